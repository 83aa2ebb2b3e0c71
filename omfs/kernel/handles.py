"""Kernel file handles: name_to_handle_at(2) and open_by_handle_at(2).

A kernel handle names an inode and its generation within a mounted file system; it survives a restart, and a
reused inode number answers ESTALE.  This room knows nothing of what omfs sends over the wire (export/handles.py
seals these).  Opening by handle needs CAP_DAC_READ_SEARCH and skips all permission checks on the way: the
caller decides who may.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Any, Final

from omfs.kernel.libc import AT_EMPTY_PATH, libc, raise_errno

HANDLE_MAX_BYTES: Final = 128  # MAX_HANDLE_SZ, include/uapi/linux/fcntl.h


class _FileHandle(ctypes.Structure):
    """struct file_handle with room for the largest handle there is."""

    _fields_ = (
        ("size", ctypes.c_uint),
        ("kind", ctypes.c_int),
        ("data", ctypes.c_ubyte * HANDLE_MAX_BYTES),
    )


_DATA_AT: Final = _FileHandle.data.offset


class HandleReader:
    """Reads the handles of open descriptors; holds the call's buffers, so use one per thread."""

    def __init__(self) -> None:
        self._handle = _FileHandle()
        self._mount_id = ctypes.c_int()
        self._handle_ref = ctypes.byref(self._handle)
        self._mount_ref = ctypes.byref(self._mount_id)
        self._data_address = ctypes.addressof(self._handle) + _DATA_AT

    def read(self, fd: int) -> tuple[int, bytes, int]:
        """(handle type, handle bytes, mount id) of what *fd* (O_PATH will do) refers to.

        Raises OSError: EOPNOTSUPP where the file system has no handles.
        """
        handle = self._handle
        handle.size = HANDLE_MAX_BYTES
        if libc.name_to_handle_at(fd, b"", self._handle_ref, self._mount_ref, AT_EMPTY_PATH) < 0:
            raise_errno()
        return handle.kind, ctypes.string_at(self._data_address, handle.size), self._mount_id.value


class PreparedHandle:
    """A handle laid out for the kernel, to be opened many times (read only after construction)."""

    __slots__ = ("_ref", "_struct")

    def __init__(self, kind: int, data: bytes) -> None:
        """ValueError when *data* is longer than any kernel handle."""
        if len(data) > HANDLE_MAX_BYTES:
            raise ValueError(f"a kernel handle of {len(data)} bytes")
        self._struct = _FileHandle(size=len(data), kind=kind)
        ctypes.memmove(ctypes.addressof(self._struct) + _DATA_AT, data, len(data))
        self._ref: Any = ctypes.byref(self._struct)

    def open(self, mount_fd: int, flags: int) -> int:
        """open_by_handle_at: a new descriptor; *mount_fd* is any (not O_PATH) descriptor on the mount.

        Raises OSError: ESTALE when the object is gone.
        """
        fd: int = libc.open_by_handle_at(mount_fd, self._ref, flags)
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
