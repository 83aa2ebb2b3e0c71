"""The part of the FUSE kernel protocol that is about listing directories: opcodes, flags, and the packing of entries.

Pure, like lowlevel_abi.py, and from the same source (include/uapi/linux/fuse.h: struct fuse_dirent, fuse_direntplus,
fuse_open_out, fuse_fsync_in).  Used by takenlistings.py.
"""

from __future__ import annotations

import struct
from typing import Final

from omfs.mount import lowlevel_abi as abi

OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = abi.RELEASEDIR
FSYNCDIR: Final = 30
READDIRPLUS: Final = 44

_FOPEN_KEEP_CACHE: Final = 1 << 1
_FOPEN_CACHE_DIR: Final = 1 << 3
_FSYNC_DATA_ONLY: Final = 1

DT_DIR: Final = 4
_DIRENT: Final = struct.Struct("<QQII")  # ino, off, namelen, type; then the name, and NULs up to a multiple of 8
_ENTRY: Final = struct.Struct("<QQQQII")  # nodeid, generation, entry valid s, attr valid s, and their ns
_ATTR_BYTES: Final = 88
NO_ENTRY: Final = bytes(_ENTRY.size + _ATTR_BYTES)  # node id 0: "the name only"; it counts no look-up
_PADDING: Final = tuple(bytes(-length & 7) for length in range(8))

PLUS_BYTES: Final = len(NO_ENTRY) + _DIRENT.size + 7  # the most that an entry of READDIRPLUS takes besides its name


def dirent_bytes(name: bytes) -> int:
    """Size of a name in a READDIR reply and in the kernel's cache of the listing."""
    return _DIRENT.size + len(name) + 7 & ~7


class DirectoryReply:
    """Entries for one READDIR or READDIRPLUS, up to the size that the kernel asked for."""

    def __init__(self, size_bytes: int, plus: bool) -> None:
        self.left_bytes = size_bytes
        self.plus = plus
        self._parts: list[bytes] = []

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._parts)

    def add(self, number: int, kind: int, name: bytes, cookie: int, entry: bytes = NO_ENTRY) -> bool:
        """Append a name; False if it does not fit.  *cookie*: continues behind it.  *entry*: `known_entry`."""
        part = _DIRENT.pack(number, cookie, len(name), kind) + name + _PADDING[len(name) & 7]
        if self.plus:
            part = entry + part
        if len(part) > self.left_bytes:
            return False
        self.left_bytes -= len(part)
        self._parts.append(part)
        return True

    def message(self, unique: int) -> bytes:
        return abi.reply(unique, b"".join(self._parts))


def known_entry(number: int, attr: bytes, entry_s: int, attr_s: int) -> bytes:
    """What a READDIRPLUS entry says of its object: the kernel counts it as a look-up."""
    return _ENTRY.pack(number, 0, entry_s, attr_s, 0, 0) + attr


def cached_directory_reply(unique: int) -> bytes:
    """For OPENDIR: no handle, the kernel may cache the listing."""
    return abi.reply(unique, struct.pack("<QIi", 0, _FOPEN_CACHE_DIR | _FOPEN_KEEP_CACHE, 0))


def fsync_data_only(request: memoryview) -> bool:
    """Of a FSYNC or FSYNCDIR."""
    (flags,) = struct.unpack_from("<I", request, abi.IN_HEADER_BYTES + 8)
    return bool(flags & _FSYNC_DATA_ONLY)
