"""System calls on an object or a name that the standard library lacks or hides behind its own rules.

Objects are given as descriptors (O_PATH will do) and are reached through /proc/self/fd, or AT_EMPTY_PATH where the
kernel takes it: never by a path that could name something else meanwhile.  Permissions are those of the thread
(kernel/credentials.py).  Every function raises OSError as the kernel does.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from omfs.kernel.libc import (
    AT_EACCESS,
    AT_EMPTY_PATH,
    AT_SYMLINK_FOLLOW,
    call_number,
    check,
    libc,
    system_call,
)

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

_AT_FDCWD: Final = -100
_FACCESSAT2: Final = call_number("faccessat2")


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def link_path(fd: int) -> bytes:
    """The magic link that leads to exactly the object of *fd*, also when it is a symlink or has no name left."""
    return b"/proc/self/fd/%d" % fd


def reopen(fd: int, flags: int) -> int:
    """Open the object of *fd* anew, with the permission checks of open(2)."""
    return os.open(b"/proc/self/fd/%d" % fd, flags)


def check_access(fd: int, mask: int) -> None:
    """access(2) for the thread's file system ids: EACCES, EROFS."""
    check(system_call(_FACCESSAT2, fd, b"", mask, AT_EACCESS | AT_EMPTY_PATH))


def set_times(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2); each time is (seconds, nanoseconds), with UTIME_NOW or UTIME_OMIT as nanoseconds."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    check(libc.utimensat(_AT_FDCWD, link_path(fd), times, 0))


def make_link(fd: int, directory_fd: int, name: bytes) -> None:
    """link(2) of the object of *fd*, under the kernel's protected_hardlinks rule."""
    check(libc.linkat(_AT_FDCWD, link_path(fd), directory_fd, name, AT_SYMLINK_FOLLOW))


def rename(directory_fd: int, name: bytes, new_directory_fd: int, new_name: bytes, flags: int) -> None:
    """renameat2(2)."""
    check(libc.renameat2(directory_fd, name, new_directory_fd, new_name, ctypes.c_uint(flags)))


def allocate(fd: int, mode: int, offset: int, size_bytes: int) -> None:
    """fallocate(2); may take long."""
    check(libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size_bytes)))
