"""The objects behind handles that this node issued, for whoever wants to read their names (omfs-admin leases).

Works beside a running omfs-export and without one: it needs the handle key and root's rights.  A handle has no name;
the kernel tells the one by which the object was reached last, if it still remembers, and it is only believed when it
leads to the same object.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from omfs.cli.leasechecks import Fresh
from omfs.config import Settings
from omfs.errors import BadHandle, ConfigError, StaleHandle
from omfs.export.disk import Disk, attributes_of
from omfs.export.handles import KEY_FILE, Sealer, load_key
from omfs.export.mounts import Mounts
from omfs.export.trees import ExportTrees
from omfs.kernel.handles import HandleReader, mount_id_of, prepare_handle
from omfs.kernel.objects import reopen
from omfs.mount.cachereader import digest_at

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME


class Found(NamedTuple):
    """An object's name, "" where none is known, and what there is instead of it."""

    path: str
    instead: str


class Target(NamedTuple):
    """The object that a command names: what its handles have inside, and its identity."""

    prepared: bytes
    identity: tuple[int, int]


class Objects:
    """Finds what handles stand for; close it."""

    def __init__(self, settings: Settings) -> None:
        """ConfigError where this node has no handle key."""
        state_dir = Path(settings.state_dir)
        if not (state_dir / KEY_FILE).exists():
            raise ConfigError(f"{state_dir / KEY_FILE}: missing; omfs-export has not run here")
        self._mounts = Mounts()
        self._disk = Disk(Sealer(load_key(state_dir)), ExportTrees(settings.trees, os.path.realpath), self._mounts)
        self._ancestors: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mounts.close()

    @contextlib.contextmanager
    def _open(self, handle: bytes) -> Iterator[int]:
        fd = self._disk.open(self._disk.locate(handle))
        try:
            yield fd
        finally:
            os.close(fd)

    def find(self, handle: bytes) -> Found:
        """The name of the object now."""
        try:
            with self._open(handle) as fd:
                status = os.fstat(fd)
                path = os.readlink(f"/proc/self/fd/{fd}")
        except (OSError, StaleHandle):
            return Found("", "gone")
        except BadHandle:
            return Found("", "not issued with this node's key")
        with contextlib.suppress(OSError):
            named = os.lstat(path)
            if (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino):
                return Found(path, "")
        return Found("", "removed" if status.st_nlink == 0 else f"inode {status.st_ino}")

    def fresh(self, handle: bytes, offset: int | None) -> Fresh:
        """The object as it is now, and (unless *offset* is None) its data there, as an audit compares them.

        StaleHandle, BadHandle; OSError: ESTALE where it is no more, EWOULDBLOCK where somebody has a kernel lease on
        the file that must go first.
        """
        with self._open(handle) as fd:
            digest = b""
            if offset is not None:
                data = reopen(fd, _READ)
                try:
                    digest = digest_at(data, offset)[1]
                finally:
                    os.close(data)
            attributes = attributes_of(os.fstat(fd))
            return Fresh(msgspec.structs.replace(attributes, blocks=0, block_size_bytes=0, atime_ns=0), digest)

    # ------------------------------------------------------------ choosing

    def target(self, path: str) -> Target:
        """What *path* names (a link itself, not what it leads to).  ConfigError where it is nothing of this node's."""
        try:
            fd = os.open(path, _LOOK)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        try:
            if self._mounts.is_omfs(mount_id_of(fd)):
                raise ConfigError(f"{path}: is reached through oMFS; ask on the node whose disk it is on")
            kind, data, _ = HandleReader().read(fd)
            status = os.fstat(fd)
        except OSError as error:
            raise ConfigError(f"{path}: can't be exported, so nobody has a lease on it: {error.strerror}") from None
        finally:
            os.close(fd)
        return Target(prepare_handle(kind, data), (status.st_dev, status.st_ino))

    def is_target(self, handle: bytes, target: Target) -> bool:
        """Whether the handle is one of the target's (it has one per mount through which it was reached)."""
        try:
            if self._disk.locate(handle).prepared != target.prepared:
                return False
            with self._open(handle) as fd:
                status = os.fstat(fd)
        except (OSError, StaleHandle, BadHandle):
            return False
        return (status.st_dev, status.st_ino) == target.identity

    def is_below(self, path: str, target: Target) -> bool:
        """Whether the named object is the target or somewhere below it, whatever the target's own path is."""
        return target.identity in map(self._identity, (path, *map(str, Path(path).parents)))

    def _identity(self, path: str) -> tuple[int, int]:
        identity = self._ancestors.get(path)
        if identity is None:
            try:
                status = os.lstat(path)
                identity = (status.st_dev, status.st_ino)
            except OSError:
                identity = (-1, -1)
            self._ancestors[path] = identity
        return identity
