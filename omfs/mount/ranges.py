"""The POSIX locks that one lock owner holds on one file, as non-overlapping ranges.

Pure: what fcntl(2) says about splitting and replacing.  The mount keeps them to take them again when the file's owner
restarted (remote.py).  Ranges are [start, end], both inclusive.
"""

from __future__ import annotations

import fcntl
from typing import NamedTuple


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
