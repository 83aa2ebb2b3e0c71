"""A process of its own that looks at objects through the mount, for `omfs-admin check` (telling.py starts it).

    python -m omfs.mount.cachereader MOUNTPOINT < objects > what is seen

Not a thread of the mount's daemon: a call into one's own mount waits for oneself, and cannot be given up when the
daemon is to end.  Objects are named as the kernel names them, by node id: no name is looked up, and what the kernel has
forgotten is not seen (ESTALE).  Attributes and pages come from its caches if they are there, exactly as any program
would see them.  Each line of JSON is a `Wanted` on the way in, and a `Seen` on the way out.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
from typing import Final

import msgspec

from omfs.kernel.handles import open_handle, prepare_handle
from omfs.kernel.statx import Status, status_of

WINDOW_BYTES: Final = 1 << 20  # of the data of one object
_INO64_GEN: Final = 0x81  # FILEID_INO64_GEN (include/linux/exportfs.h); fs/fuse/inode.c: node id, high half first
_HANDLE: Final = struct.Struct("=III")
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Wanted(msgspec.Struct, array_like=True):
    """An object; *with_data*: also a part of its data, which *seed* chooses."""

    number: int
    with_data: bool
    seed: int
    generation: int = 0  # our mounts have no other


class Seen(msgspec.Struct, array_like=True):
    """What a program sees; *errno* where it sees nothing.  *digest*: sha256 of the range, empty without data."""

    number: int
    errno: int = 0
    status: Status | None = None
    offset: int = 0
    size_bytes: int = 0
    digest: bytes = b""


def look(mount_fd: int, wanted: Wanted) -> Seen:
    """One object.  *mount_fd*: any descriptor in the mount."""
    handle = _HANDLE.pack(wanted.number >> 32, wanted.number & 0xFFFFFFFF, wanted.generation)
    prepared = prepare_handle(_INO64_GEN, handle)
    try:
        fd = open_handle(mount_fd, prepared, os.O_PATH | os.O_CLOEXEC)
        try:
            status = status_of(fd)
        finally:
            os.close(fd)
        if not wanted.with_data or not stat.S_ISREG(status.mode):
            return Seen(wanted.number, status=status)
        fd = open_handle(mount_fd, prepared, _READ)
        try:
            offset, size_bytes, digest = digest_of(fd, status.size_bytes, wanted.seed)
        finally:
            os.close(fd)
    except OSError as error:
        return Seen(wanted.number, errno=error.errno or 0)
    return Seen(wanted.number, 0, status, offset, size_bytes, digest)


def digest_of(fd: int, size_bytes: int, seed: int) -> tuple[int, int, bytes]:
    """(offset, bytes there, sha256) of one window of an open file that is *size_bytes* long.  OSError."""
    windows = max(1, -(-size_bytes // WINDOW_BYTES))
    offset = seed % windows * WINDOW_BYTES
    return (offset, *digest_at(fd, offset))


def digest_at(fd: int, offset: int) -> tuple[int, bytes]:
    """(bytes, sha256) of what is in the window that begins at *offset*.  OSError."""
    hashed, at = hashlib.sha256(), offset
    while at < offset + WINDOW_BYTES and (data := os.pread(fd, offset + WINDOW_BYTES - at, at)):
        hashed.update(data)
        at += len(data)
    return at - offset, hashed.digest()


def main() -> None:
    mount_fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for line in sys.stdin.buffer:
        seen = look(mount_fd, msgspec.json.decode(line, type=Wanted))
        sys.stdout.buffer.write(msgspec.json.encode(seen) + b"\n")


if __name__ == "__main__":
    main()
