"""Open files of processes of this node that have locks: flock(2), and fcntl(2) F_OFD_SETLK.

Such a lock belongs to the open file, and a process that has a copy of it (pidfd_getfd(2)) keeps it locked, whatever
becomes of the others.  So it goes over in one piece where a guest leaves; where one comes, it is taken for its open
file while everybody stands still (movinglocks.py).  Called by movinglocks.py, rangeowners.py and locks.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Collection
from typing import Final, NamedTuple, TypeAlias

from omfs.kernel.descriptors import copied_by
from omfs.kernel.filelocks import set_range

FileId: TypeAlias = tuple[int, int]  # device and inode number: one file may have several handles
FLOCK: Final = 2  # as CRIU has them
OFD: Final = 4


def file_id(fd: int) -> FileId:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class OpenLock(NamedTuple):
    """*flag*: FLOCK or OFD; *kind*: F_RDLCK 0, F_WRLCK 1."""

    flag: int
    kind: int
    start: int
    end: int

    @property
    def operation(self) -> int:
        """Of flock(2)."""
        return fcntl.LOCK_EX if self.kind else fcntl.LOCK_SH

    def take(self, fd: int) -> None:
        """BlockingIOError where it is another's."""
        if self.flag == FLOCK:
            fcntl.flock(fd, self.operation | fcntl.LOCK_NB)
        else:
            set_range(fd, self.kind, self.start, self.end)


class NativeOpen:
    """Of process *pid*, by its number *descriptor* there."""

    def __init__(self, pid: int, descriptor: int, locks: Collection[OpenLock]) -> None:
        """Raises OSError."""
        self.locks = frozenset(locks)
        self.descriptor = descriptor
        self.pidfd = os.pidfd_open(pid)
        try:
            fd = self.copy()
        except OSError:
            os.close(self.pidfd)
            raise
        self.file = file_id(fd)
        os.close(fd)

    def copy(self) -> int:
        """Of the open file, which has its locks as long as there is one.  Raises OSError: the process has ended."""
        return copied_by(self.pidfd, self.descriptor)

    def given(self, fd: int, lock: OpenLock) -> int:
        """A copy for who asks for this lock of the file of *fd*; EAGAIN where it has no such."""
        if lock not in self.locks or file_id(fd) != self.file:
            raise BlockingIOError(errno.EAGAIN, "the lock is not held any more")
        try:
            return self.copy()
        except OSError:
            raise BlockingIOError(errno.EAGAIN, "the lock is not held any more") from None

    def close(self) -> None:
        os.close(self.pidfd)
