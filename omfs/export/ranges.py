"""The POSIX locks that one lock owner holds on one file, as the kernel keeps them.  Pure.

The kernel does not tell which ranges an open file description has locked, and we must know to undo a lock that
was got too late, to move locks to another descriptor, and to tell who is in the way.  Later locks replace what
they overlap, as fcntl(2) has it.  Called by export/locks.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from omfs.kernel.filelocks import RangeLock

F_RDLCK: Final = 0
F_WRLCK: Final = 1
F_UNLCK: Final = 2


class HeldRanges:
    """Non-overlapping locks in order of their start.  Ends are inclusive."""

    def __init__(self) -> None:
        self._locks: list[RangeLock] = []

    def __bool__(self) -> bool:
        return bool(self._locks)

    def __iter__(self) -> Iterator[RangeLock]:
        return iter(self._locks)

    def set(self, new: RangeLock) -> None:
        """Lock or unlock a range: what it overlaps is cut, equal neighbours become one."""
        kept: list[RangeLock] = []
        for lock in self._locks:
            if lock.end < new.start or lock.start > new.end:
                kept.append(lock)
                continue
            if lock.start < new.start:
                kept.append(lock._replace(end=new.start - 1))
            if lock.end > new.end:
                kept.append(lock._replace(start=new.end + 1))
        if new.kind != F_UNLCK:
            kept.append(new)
        kept.sort(key=lambda lock: lock.start)
        self._locks = _joined(kept)

    def within(self, start: int, end: int) -> list[RangeLock]:
        """The parts of the held locks that lie in [start, end]."""
        return [
            lock._replace(start=max(lock.start, start), end=min(lock.end, end))
            for lock in self._locks
            if lock.start <= end and lock.end >= start
        ]

    def blocker(self, kind: int, start: int, end: int) -> RangeLock | None:
        """The first held lock that keeps others from locking the range as *kind*."""
        for lock in self._locks:
            if lock.start <= end and lock.end >= start and F_WRLCK in (kind, lock.kind):
                return lock
        return None


def _joined(locks: list[RangeLock]) -> list[RangeLock]:
    joined: list[RangeLock] = []
    for lock in locks:
        if joined:
            last = joined[-1]
            if last.kind == lock.kind and last.pid == lock.pid and last.end + 1 == lock.start:
                joined[-1] = last._replace(end=lock.end)
                continue
        joined.append(lock)
    return joined
