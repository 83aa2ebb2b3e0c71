"""Reading a directory with its cursors: getdents64(2), and whether it takes names in any case.

os.scandir hides d_off, without which a listing can not be continued where another request left it.  The
caller keeps the descriptor's position (os.lseek to a cursor); nothing is remembered here.
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
from typing import Final, NamedTuple

from omfs.kernel.libc import libc, raise_errno

DT_UNKNOWN: Final = 0
DT_CHR: Final = 2
DT_BLK: Final = 6

_HEAD: Final = struct.Struct("=QqHB")  # struct linux_dirent64: inode, d_off, record length, type; then the name
_BUFFER_BYTES: Final = 32 << 10
_GET_FLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS, include/uapi/linux/fs.h
_CASEFOLD: Final = 0x40000000  # FS_CASEFOLD_FL


class DirectoryEntry(NamedTuple):
    """One record; *cursor* continues the listing behind it."""

    name: bytes
    cursor: int
    kind: int
    inode: int


def read_entries(fd: int) -> list[DirectoryEntry]:
    """The next entries from the descriptor's position, without "." and ".."; [] at the end.

    Raises OSError, ENOENT when the directory was removed.
    """
    buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
    while True:
        filled: int = libc.getdents64(fd, buffer, _BUFFER_BYTES)
        if filled < 0:
            raise_errno()
        if filled == 0:
            return []
        entries = _parse(buffer.raw[:filled])
        if entries:
            return entries


def folds_case(fd: int) -> bool:
    """Whether a name is found in this directory however its letters are written.  OSError where nobody can say."""
    flags = fcntl.ioctl(fd, _GET_FLAGS, bytes(8))
    return bool(int.from_bytes(flags[:4], "little") & _CASEFOLD)


def _parse(records: bytes) -> list[DirectoryEntry]:
    entries = []
    at = 0
    while at < len(records):
        inode, cursor, length, kind = _HEAD.unpack_from(records, at)
        name = records[at + _HEAD.size : at + length].split(b"\0", 1)[0]
        if name not in (b".", b".."):
            entries.append(DirectoryEntry(name, cursor, kind, inode))
        at += length
    return entries
