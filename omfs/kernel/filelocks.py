"""File locks: flock(2), open file description locks (fcntl(2)), and waits that can be interrupted.

A blocking lock call sits in a worker thread.  Python's own wrappers start it again after a signal, so the
calls here are raw, and `LockWait.interrupt` sends the thread a signal, again and again until it has left, since one
that arrives just before the system call is lost.  Which lock belongs to whom is export/locks.py's business.
"""

from __future__ import annotations

import ctypes
import fcntl
import signal
import struct
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from omfs.kernel.libc import check, libc

F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37
F_OFD_SETLKW: Final = 38
RANGE_END: Final = (1 << 63) - 1  # an inclusive end that means "to the end of the file, however it grows"

WAKE_SIGNAL: Final = signal.SIGURG  # ignored by default, so one that comes late harms nobody

_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


class RangeLock(NamedTuple):
    """A lock of [start, end], both inclusive; *kind* F_RDLCK 0, F_WRLCK 1, F_UNLCK 2; *pid* -1 when unknown."""

    kind: int
    start: int
    end: int
    pid: int


def _pack(kind: int, start: int, end: int) -> bytes:
    length = 0 if end >= RANGE_END else end - start + 1
    return _FLOCK.pack(kind, 0, start, length, 0)


def set_range(fd: int, kind: int, start: int, end: int) -> None:
    """F_OFD_SETLK; BlockingIOError (EAGAIN) when another lock is in the way."""
    fcntl.fcntl(fd, F_OFD_SETLK, _pack(kind, start, end))


def probe_range(fd: int, kind: int, start: int, end: int) -> RangeLock | None:
    """F_OFD_GETLK: the first lock that is in the way, or None."""
    kind, whence, start, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, _pack(kind, start, end)))
    assert whence == 0
    if kind == fcntl.F_UNLCK:
        return None
    return RangeLock(kind, start, RANGE_END if length == 0 else start + length - 1, pid)


def block_in_range(fd: int, kind: int, start: int, end: int) -> None:
    """F_OFD_SETLKW, for a LockWait: InterruptedError after a signal."""
    record = ctypes.create_string_buffer(_pack(kind, start, end), _FLOCK.size)
    check(libc.fcntl(fd, F_OFD_SETLKW, record))


def block_in_flock(fd: int, operation: int) -> None:
    """flock without LOCK_NB, for a LockWait: InterruptedError after a signal."""
    check(libc.flock(fd, operation))


def install_wake_signal() -> None:
    """Let WAKE_SIGNAL interrupt system calls.  Main thread only; once per process is enough."""
    signal.signal(WAKE_SIGNAL, lambda number, frame: None)


class LockWait:
    """One blocking lock call: `run` in a worker thread, `interrupt` from another.

    States: not begun -> inside -> left.  An interrupt before `run` begins makes it leave at once, so after
    `interrupt` returned True the call is not inside and never will be.
    """

    def __init__(self, block: Callable[[], None]) -> None:
        self._block = block
        self._guard = threading.Lock()
        self._thread: int | None = None
        self._left = False
        self._interrupted = False
        self.acquired = False

    def run(self) -> bool:
        """Wait for the lock; False when interrupted.  Raises the call's OSError."""
        with self._guard:
            if self._interrupted:
                self._left = True
                return False
            self._thread = threading.get_ident()
        try:
            while True:
                try:
                    self._block()
                except InterruptedError:
                    if self._is_interrupted():
                        return False
                else:
                    self.acquired = True
                    return True
        finally:
            with self._guard:
                self._left = True

    def _is_interrupted(self) -> bool:
        return self._interrupted

    def interrupt(self) -> bool:
        """Ask the thread to leave; True when it has left.  Repeat until then."""
        with self._guard:
            self._interrupted = True
            if self._thread is None or self._left:
                return True
            signal.pthread_kill(self._thread, WAKE_SIGNAL)
            return False
