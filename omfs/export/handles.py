"""What holders get as a handle: the kernel's handle with its mount and export tree, sealed against forgery.

Layout: version, export tree id (4), mount id (8), file type, kernel handle type (i32), kernel handle, MAC (16).  The
MAC is a keyed blake2b; the key stays on this node (handle.key in state_dir) and survives restarts, so handles do too.
Sealing is deterministic: one object, one handle.  The file type is inside because it can not change and whoever
opens an object must know beforehand that it is no device.

Invariant: `unseal` returns exactly what this owner sealed, or raises BadHandle; no byte of a handle is
looked at before its MAC was checked.  No I/O but the key file.  Called by export/disk.py.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

from omfs.errors import BadHandle, ConfigError

KEY_BYTES: Final = 32
KEY_FILE: Final = "handle.key"
MAC_BYTES: Final = 16
TREE_ID_BYTES: Final = 4
MOUNT_ID_BYTES: Final = 8
KERNEL_HANDLE_MAX_BYTES: Final = 128

_VERSION: Final = 1
_HEAD: Final = struct.Struct("<B4s8sBi")
_REGULAR: Final = bytes([stat.S_IFREG >> 12])
HANDLE_MIN_BYTES: Final = _HEAD.size + 1 + MAC_BYTES
HANDLE_MAX_BYTES: Final = _HEAD.size + KERNEL_HANDLE_MAX_BYTES + MAC_BYTES


class Unsealed(NamedTuple):
    """The contents of a handle; *file_type* is S_IFMT(mode) >> 12."""

    tree_id: bytes
    mount_id: bytes
    file_type: int
    kind: int
    data: bytes


class Sealer:
    """Seals and opens handles with one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key must have {KEY_BYTES} bytes, not {len(key)}")
        self._mac = hashlib.blake2b(key=key, digest_size=MAC_BYTES, person=b"omfs handle")

    def seal(self, tree_id: bytes, mount_id: bytes, file_type: int, kind: int, data: bytes) -> bytes:
        """The handle for a holder."""
        body = _HEAD.pack(_VERSION, tree_id, mount_id, file_type, kind) + data
        mac = self._mac.copy()
        mac.update(body)
        return body + mac.digest()

    def unseal(self, handle: bytes) -> Unsealed:
        """Check and take apart.  Raises BadHandle for anything that `seal` did not make."""
        if not HANDLE_MIN_BYTES <= len(handle) <= HANDLE_MAX_BYTES:
            raise BadHandle(f"a handle of {len(handle)} bytes")
        body = handle[:-MAC_BYTES]
        mac = self._mac.copy()
        mac.update(body)
        if not hmac.compare_digest(mac.digest(), handle[-MAC_BYTES:]):
            raise BadHandle("a handle that this node did not issue")
        version, tree_id, mount_id, file_type, kind = _HEAD.unpack_from(body)
        if version != _VERSION:
            raise BadHandle(f"a handle of version {version}")
        return Unsealed(tree_id, mount_id, file_type, kind, body[_HEAD.size :])


def mount_of(handle: bytes) -> bytes:
    """The mount's id in a handle that this node sealed."""
    return handle[1 + TREE_ID_BYTES : 1 + TREE_ID_BYTES + MOUNT_ID_BYTES]


def is_directory(handle: bytes) -> bool:
    """Whether a handle that this node sealed is a directory's."""
    return handle[_HEAD.size - 5] == stat.S_IFDIR >> 12


def is_regular(handle: bytes) -> bool:
    """Whether a handle that this node sealed is a regular file's; of others, whatever they are, something."""
    return handle[_HEAD.size - 5 : _HEAD.size - 4] == _REGULAR


def prepared_of(handle: bytes) -> bytes:
    """The kernel's handle in a handle that this node sealed, as kernel/handles.py prepares it."""
    return (len(handle) - _HEAD.size - MAC_BYTES).to_bytes(4, "little") + handle[_HEAD.size - 4 : -MAC_BYTES]


def load_key(state_dir: Path) -> bytes:
    """This node's key, made at the first start (mode 0600).  Raises ConfigError."""
    path = state_dir / KEY_FILE
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        for _ in range(2):
            try:
                return _read_key(path)
            except FileNotFoundError:
                _make_key(path)
        return _read_key(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; omfs-export keeps its handle key there") from None


def _read_key(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_mode & 0o077:
            os.fchmod(fd, 0o600)
        key = os.read(fd, KEY_BYTES + 1)
    finally:
        os.close(fd)
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path}: not a key of {KEY_BYTES} bytes; remove it and remount the holders")
    return key


def _make_key(path: Path) -> None:
    """Appear complete or not at all; whoever was first wins."""
    new = path.with_name(f"{KEY_FILE}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(fd, os.urandom(KEY_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(new, path)
        except FileExistsError:
            return
    finally:
        new.unlink(missing_ok=True)
