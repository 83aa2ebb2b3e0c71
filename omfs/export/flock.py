"""What one open id has locked by flock(2), and on which open file.

That is the open id's own, but of a guest that has moved: then it is the one that had the lock, of which a copy is here.
Called by export/files.py, flocks.py and movinglocks.py.
"""

from __future__ import annotations

import fcntl
import os

from omfs import wire


class Flock:
    """*own*: the open id's descriptor.  *key*: of its session.

    *operation*: LOCK_SH, LOCK_EX, or 0.  *moving*: under which name it goes over.
    """

    __slots__ = ("_own", "fd", "key", "moving", "operation")

    def __init__(self, own: int, key: bytes) -> None:
        self.fd = own
        self.operation = 0
        self.moving: wire.Moving | None = None
        self._own = own
        self.key = key

    def lock(self, operation: int) -> None:
        """flock(2), without waiting: BlockingIOError, and what it had is lost (it does not convert in one step)."""
        self.operation = 0
        fcntl.flock(self.fd, operation | fcntl.LOCK_NB)
        self.operation = 0 if operation == fcntl.LOCK_UN else operation

    def pass_to(self, fd: int) -> None:
        """The lock is that of this open file now, of which *fd* is a copy, and ours."""
        self.close()
        self.fd = fd

    def leave(self) -> None:
        """The processes whose open file it is go on without us."""
        self.close()
        self.operation, self.moving = 0, None

    def close(self) -> None:
        """Of what is shared: the lock ends with the last copy of the open file."""
        if self.fd != self._own:
            os.close(self.fd)
        self.fd = self._own
