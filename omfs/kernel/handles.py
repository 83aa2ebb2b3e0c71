"""Kernel file handles: name_to_handle_at(2) and open_by_handle_at(2).

A kernel handle names an inode and its generation within a mounted file system; it survives a restart, and a
reused inode number answers ESTALE.  This room knows nothing of what omfs sends over the wire (export/handles.py
seals these).  Opening by handle needs CAP_DAC_READ_SEARCH and skips all permission checks on the way: the
caller decides who may.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import sys
from typing import Any, Final

from omfs.kernel.libc import AT_EMPTY_PATH, libc, raise_errno

HANDLE_MAX_BYTES: Final = 128  # MAX_HANDLE_SZ, include/uapi/linux/fcntl.h


_HEAD: Final = struct.Struct("=Ii")  # struct file_handle: size of the handle, its type; then the handle itself
_ROOM_FOR_ALL: Final = HANDLE_MAX_BYTES.to_bytes(4, sys.byteorder)


class HandleReader:
    """Reads the handles of open descriptors; holds the call's buffers, so use one per thread."""

    def __init__(self) -> None:
        self._buffer = bytearray(_HEAD.size + HANDLE_MAX_BYTES)
        self._mount_id = ctypes.c_int()
        self._address: Any = ctypes.byref((ctypes.c_char * len(self._buffer)).from_buffer(self._buffer))
        self._handle = memoryview(self._buffer)[_HEAD.size :]
        self._mount_address: Any = ctypes.byref(self._mount_id)

    def read(self, fd: int) -> tuple[int, bytes, int]:
        """(handle type, handle bytes, mount id) of what *fd* (O_PATH will do) refers to.

        Raises OSError: EOPNOTSUPP where the file system has no handles.
        """
        buffer = self._buffer
        buffer[:4] = _ROOM_FOR_ALL
        if libc.name_to_handle_at(fd, b"", self._address, self._mount_address, AT_EMPTY_PATH) < 0:
            raise_errno()
        size, kind = _HEAD.unpack_from(buffer)
        return kind, self._handle[:size].tobytes(), self._mount_id.value


def prepare_handle(kind: int, data: bytes) -> bytes:
    """A handle laid out for `open_handle`.  ValueError when it is longer than any kernel handle."""
    if len(data) > HANDLE_MAX_BYTES:
        raise ValueError(f"a kernel handle of {len(data)} bytes")
    return _HEAD.pack(len(data), kind) + data


def open_handle(mount_fd: int, prepared: bytes, flags: int) -> int:
    """open_by_handle_at: a new descriptor; *mount_fd* is any (not O_PATH) descriptor on the mount.

    Raises OSError: ESTALE when the object is gone.
    """
    fd: int = libc.open_by_handle_at(mount_fd, prepared, flags)
    if fd < 0:
        raise_errno()
    return fd


def mount_id_of(fd: int) -> int:
    """The mount id of any descriptor, also where the file system has no handles (proc(5), /proc/pid/fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(errno.ENOENT, "no mnt_id in fdinfo")
