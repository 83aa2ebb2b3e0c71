"""The loaded C library and the one way to call it: a result below zero becomes an OSError.

Every ctypes call of omfs goes through this room's modules.  What glibc wraps is called by its name; what it
wraps wrongly for us (setgroups reaches all threads) or not at all is called by number through `system_call`,
with the numbers of the machines we run on.  No state, no policy.  Called by the rest of omfs/kernel only.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

from omfs.errors import ConfigError

libc: Final = ctypes.CDLL(None, use_errno=True)

system_call: Final = libc.syscall
"""syscall(2); arguments must be ctypes objects, bytes or ints that fit a C int."""
system_call.restype = ctypes.c_long

AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EACCESS: Final = 0x200

_X86_64: Final = {
    "setgroups": 116, "setfsuid": 122, "setfsgid": 123, "keyctl": 250, "ioprio_set": 251, "ioprio_get": 252,
    "kcmp": 312, "seccomp": 317,
}  # fmt: skip
# include/uapi/asm-generic/unistd.h
_GENERIC: Final = {
    "setgroups": 159, "setfsuid": 151, "setfsgid": 152, "keyctl": 219, "ioprio_set": 30, "ioprio_get": 31, "kcmp": 272,
    "seccomp": 277,
}  # fmt: skip
_SAME_EVERYWHERE: Final = {"clone3": 435, "openat2": 437, "faccessat2": 439, "mount_setattr": 442}
_BY_MACHINE: Final = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC, "loongarch64": _GENERIC}


def call_number(name: str) -> int:
    """The number of system call *name* on this machine; ConfigError on a machine we have no table for."""
    if name in _SAME_EVERYWHERE:
        return _SAME_EVERYWHERE[name]
    numbers = _BY_MACHINE.get(platform.machine())
    if numbers is None:
        raise ConfigError(f"no system call numbers for machine type {platform.machine()}; add them to kernel/libc.py")
    return numbers[name]


def raise_errno() -> None:
    """Raise the OSError of the call that just failed in this thread."""
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def check(result: int) -> int:
    """Return *result*, or raise OSError with the thread's errno when it is negative."""
    if result < 0:
        raise_errno()
    return result
