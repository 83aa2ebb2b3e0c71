"""The POSIX locks that one lock owner holds on one file, as non-overlapping ranges.

Pure: what fcntl(2) says about splitting and replacing.  The mount keeps them to take them again when the file's owner
restarted, or to tell it where it may not know them (filelocks.py).  Ranges are [start, end], both inclusive.
"""

from __future__ import annotations

import fcntl
from typing import NamedTuple

from omfs import wire


class Range(NamedTuple):
    start: int
    end: int
    kind: int  # F_RDLCK or F_WRLCK
    pid: int


def changed(held: tuple[Range, ...], new: Range) -> tuple[Range, ...]:
    """What is held after *new* was taken, or given back where its kind is F_UNLCK."""
    kept: list[Range] = []
    for old in held:
        if old.end < new.start or new.end < old.start:
            kept.append(old)
            continue
        if old.start < new.start:
            kept.append(old._replace(end=new.start - 1))
        if new.end < old.end:
            kept.append(old._replace(start=new.end + 1))
    if new.kind != fcntl.F_UNLCK:
        kept.append(new)
    return tuple(sorted(kept))


def requests_for(open_id: int, owner: int, doubt: Range, held: tuple[Range, ...]) -> list[wire.LockRange]:
    """What makes the owner hold exactly *held* within *doubt*, whatever it holds there now.

    What is held is never given up in between: a lock that is there already is replaced by itself.
    """
    wanted: list[Range] = []
    free = doubt.start
    for lock in sorted(held):
        if lock.end < doubt.start or doubt.end < lock.start:
            continue
        if free < lock.start:
            wanted.append(Range(free, lock.start - 1, fcntl.F_UNLCK, doubt.pid))
        wanted.append(lock._replace(start=max(lock.start, doubt.start), end=min(lock.end, doubt.end)))
        free = lock.end + 1
    if free <= doubt.end:
        wanted.append(Range(free, doubt.end, fcntl.F_UNLCK, doubt.pid))
    return [wire.LockRange(open_id, owner, lock.kind, lock.start, lock.end, lock.pid, wait=False) for lock in wanted]
