"""Abort a FUSE connection whose daemon is dead but not gone.

A daemon that is killed while one of its threads waits in the kernel for a lock that only its own answer would release
does not end: its device stays open, and every call into the mount waits for ever.  The kernel's control file system
can abort the connection (Documentation/filesystems/fuse.rst, "Control filesystem"); it is mounted for the moment, at no
place that anybody sees (fsopen(2), Linux 5.2).  Called by mount/deadmount.py.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from omfs.kernel.libc import check, system_call

_FSOPEN: Final = 430  # the same numbers on all machines
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FSOPEN_CLOEXEC: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT_CLOEXEC: Final = 1


def abort_connection(device: bytes) -> None:
    """All calls into the FUSE mount with this device ("major:minor" of mountinfo) fail with ENOTCONN from now on.

    OSError: ENOENT when there is no such connection.
    """
    _, _, minor = device.partition(b":")
    context = check(system_call(_FSOPEN, b"fusectl", ctypes.c_uint(_FSOPEN_CLOEXEC)))
    try:
        check(system_call(_FSCONFIG, context, ctypes.c_uint(_FSCONFIG_CMD_CREATE), None, None, 0))
        control = check(system_call(_FSMOUNT, context, ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(0)))
    finally:
        os.close(context)
    try:
        file = os.open(minor + b"/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
        try:
            os.write(file, b"1")
        finally:
            os.close(file)
    finally:
        os.close(control)
