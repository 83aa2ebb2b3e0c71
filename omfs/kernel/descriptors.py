"""Descriptors on their way: exactly those that are wanted before an execve, those that come over a unix socket, and
copies of what other processes have.

Called by mignode's rooms and export/movingopens.py.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
from collections.abc import Mapping
from typing import Final

from omfs.kernel.libc import check, system_call

_PIDFD_GETFD: Final = 438  # the same on all machines
_ABOVE_ALL: Final = (1 << 31) - 1
_BYTES: Final = array.array("i").itemsize


def have_exactly(wanted: Mapping[int, int], *, besides: int = -1) -> int:
    """Have these descriptors: the number that each is to have, and the one that it has now.  The rest is closed.

    They pass an execve; *besides*, if given, is kept as well, close-on-exec, under a number that is returned (else -1).
    """
    above = max((2, *wanted, *wanted.values(), besides)) + 1
    # out of the way first: one may have the number that another is to have
    moved = {there: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, above) for there, ours in wanted.items()}
    last = fcntl.fcntl(besides, fcntl.F_DUPFD_CLOEXEC, above) if besides >= 0 else -1
    for there, ours in moved.items():
        os.dup2(ours, there)
    kept = sorted({*wanted, last} - {-1})
    for low, high in zip([-1, *kept], [*kept, _ABOVE_ALL], strict=True):
        if low + 1 < high:
            os.closerange(low + 1, high)
    return last


def copied_from(pid: int, number: int) -> int:
    """A copy of a descriptor of another process: the same open file (pidfd_getfd(2), Linux 5.6), close-on-exec.

    Raises OSError: ESRCH, EBADF where it is gone, EPERM.
    """
    pidfd = os.pidfd_open(pid)
    try:
        return copied_by(pidfd, number)
    finally:
        os.close(pidfd)


def copied_by(pidfd: int, number: int) -> int:
    """The same, of the process of a pidfd."""
    return check(system_call(ctypes.c_long(_PIDFD_GETFD), pidfd, number, 0))


def receive_with(sock: socket.socket, size_bytes: int, descriptors_max: int) -> tuple[bytes, list[int], int]:
    """A packet, the descriptors that came with it (ours now, close-on-exec), and the flags of recvmsg(2).

    socket.recv_fds of Python 3.11 takes flags and forgets them.  Raises OSError.
    """
    room = socket.CMSG_SPACE(descriptors_max * _BYTES)
    packet, ancillary, flags, _ = sock.recvmsg(size_bytes, room, socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % _BYTES])
    return packet, list(numbers), flags
