"""statx(2) of what the caller wants only.

os.stat asks for everything, access times and blocks included, and a FUSE mount whose kernel doubts one of them asks for
all attributes anew: so what it has cached of the others would not be seen.  Called by mount/cachereader.py.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, NamedTuple

from omfs.kernel.libc import AT_EMPTY_PATH, check, libc

_WANTED: Final = 0x0001 | 0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0040 | 0x0080 | 0x0100 | 0x0200  # but atime, blocks
_STATX: Final = struct.Struct("=16xIIIH2xQQ8x8x16x16xqI4xqI4xII")  # nlink to size; ctime, mtime, the device's numbers
_STATX_BYTES: Final = 256


class Status(NamedTuple):
    """As in stat(2); times in ns since the epoch."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def status_of(fd: int) -> Status:
    """Of what *fd* (O_PATH will do) refers to.  OSError."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    check(libc.statx(fd, b"", AT_EMPTY_PATH, _WANTED, buffer))
    nlink, uid, gid, mode, inode, size_bytes, ctime_s, ctime_ns, mtime_s, mtime_ns, major, minor = _STATX.unpack_from(
        buffer.raw
    )
    rdev = os.makedev(major, minor)
    return Status(
        mode, nlink, uid, gid, rdev, size_bytes, mtime_s * 10**9 + mtime_ns, ctime_s * 10**9 + ctime_ns, inode
    )
