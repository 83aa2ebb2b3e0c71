"""One step of a path walk: openat2(2) that can not leave the directory, cross a mount or follow a link.

A name is resolved relative to an open directory, one component at a time; a mount point on the way answers
EXDEV, which the caller (export/disk.py) turns into its crossing code.  Raises OSError as the kernel does.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

from omfs.kernel.libc import call_number, raise_errno, system_call

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

_INSIDE: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS


class _OpenHow(ctypes.Structure):
    """struct open_how, include/uapi/linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW_BYTES: Final = ctypes.sizeof(_OpenHow)
_OPENAT2: Final = call_number("openat2")

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_HOW_STEP: Final = _OpenHow(_LOOK, 0, _INSIDE | RESOLVE_NO_XDEV)
_HOW_CROSSING: Final = _OpenHow(_LOOK, 0, _INSIDE)
_STEP: Final[Any] = ctypes.byref(_HOW_STEP)
_CROSSING: Final[Any] = ctypes.byref(_HOW_CROSSING)


def step(directory_fd: int, name: bytes) -> int:
    """An O_PATH descriptor of *name* (of a symlink itself); EXDEV where something is mounted on it."""
    fd: int = system_call(_OPENAT2, directory_fd, name, _STEP, _HOW_BYTES)
    if fd < 0:
        raise_errno()
    return fd


def step_across(directory_fd: int, name: bytes) -> int:
    """As `step`, but onto the root of what is mounted there."""
    fd: int = system_call(_OPENAT2, directory_fd, name, _CROSSING, _HOW_BYTES)
    if fd < 0:
        raise_errno()
    return fd


def create(directory_fd: int, name: bytes, flags: int, mode: int) -> int:
    """Make the regular file *name* and open it with *flags*; EEXIST when there is anything of that name."""
    how = _OpenHow(flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, _INSIDE | RESOLVE_NO_XDEV)
    fd: int = system_call(_OPENAT2, directory_fd, name, ctypes.byref(how), _HOW_BYTES)
    if fd < 0:
        raise_errno()
    return fd
