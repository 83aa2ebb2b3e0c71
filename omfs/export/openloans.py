"""Locks of open files (flock, OFD) that a guest brings to the node of the file: to its own open files there.

Called by movinglocks.py, while nobody else can take them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from omfs.errors import ControlError
from omfs.export.flock import Flock
from omfs.export.movingopens import OFD, NativeOpen, OpenLock
from omfs.export.rangeowners import RangeOwner
from omfs.export.ranges import F_UNLCK
from omfs.kernel.filelocks import RANGE_END, RangeLock, set_range

POSIX: Final = 1  # as CRIU has it


class Offered(msgspec.Struct):
    """A lock of a frozen process.  *pid*, *descriptor*: through which the file is found.

    *process*: by its number in the guest.  *flag*: POSIX, where it is the process's own; else that of the open file.
    """

    pid: int
    descriptor: int
    process: int
    kind: int
    start: int
    end: int
    flag: int = POSIX

    @property
    def of_open(self) -> OpenLock:
        return OpenLock(self.flag, self.kind, self.start, self.end)


def opens_of(locks: Iterable[Offered]) -> dict[tuple[int, int], NativeOpen]:
    """The open files that have some of them, by process and descriptor.  Raises ControlError."""
    by_open: dict[tuple[int, int], list[Offered]] = {}
    for one in locks:
        if one.flag != POSIX:
            by_open.setdefault((one.process, one.descriptor), []).append(one)
    found: dict[tuple[int, int], NativeOpen] = {}
    try:
        for number, those in by_open.items():
            found[number] = NativeOpen(those[0].pid, number[1], [one.of_open for one in those])
    except OSError as error:
        for native in found.values():
            native.close()
        raise ControlError(f"a file that it has locked can't be looked at: {error.strerror}") from None
    return found


class Loan(NamedTuple):
    """*copy*: of the open file that is to have the locks.  *flock*, *ranges*: whose they are now."""

    copy: int
    locks: frozenset[OpenLock]
    flock: Flock | None
    ranges: RangeOwner | None

    def pass_on(self) -> list[Flock | RangeOwner]:
        """From the one to the other, who has it with us; nobody else may be able to take them now.

        Returns who has them.  BlockingIOError where somebody has been all the same: then `has_taken_back`.
        """
        givers: list[Flock | RangeOwner] = [one for one in (self.flock, self.ranges) if one is not None]
        copies = [os.dup(self.copy) for _ in givers]
        try:
            if self.flock is not None:
                fcntl.flock(self.flock.fd, fcntl.LOCK_UN)
            if self.ranges is not None:
                set_range(self.ranges.fd, F_UNLCK, 0, RANGE_END)
            for lock in self.locks:
                lock.take(self.copy)
            for giver in givers:
                giver.pass_to(copies.pop())
        finally:
            for fd in copies:
                os.close(fd)
        return givers

    def has_taken_back(self) -> bool:
        """Whether all is as it was."""
        fcntl.flock(self.copy, fcntl.LOCK_UN)
        set_range(self.copy, F_UNLCK, 0, RANGE_END)
        try:
            if self.flock is not None:
                self.flock.lock(self.flock.operation)
            if self.ranges is not None:
                for lock in self.ranges.held:
                    set_range(self.ranges.fd, lock.kind, lock.start, lock.end)
        except BlockingIOError:
            return False
        return True

    def sessions(self) -> set[bytes]:
        """The keys of those that count on them."""
        of_ranges = self.ranges.claims() if self.ranges is not None else []
        return {session.key for session, _ in of_ranges} | ({self.flock.key} if self.flock is not None else set())


def loan_of(native: NativeOpen, flock: Flock | None, ranges: RangeOwner | None) -> Loan:
    """Of locks that *flock* and *ranges* have.  Raises OSError, ControlError: they have not."""
    for lock in native.locks:
        has = flock is not None and flock.operation == lock.operation
        if lock.flag == OFD:
            has = ranges is not None and ranges.has(RangeLock(lock.kind, lock.start, lock.end, 0))
        if not has:
            raise ControlError("a lock of the process that is being restored is not held any more")
    return Loan(native.copy(), native.locks, flock, ranges)
