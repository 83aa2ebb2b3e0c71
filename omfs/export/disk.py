"""Finding objects on this node's disk: from a handle to a descriptor, and from a directory one step down.

No path is ever resolved again.  A handle leads to its object through open_by_handle_at; a name is looked up in an open
directory by openat2 under the caller's identity, which can not leave the directory, follow a link or cross a mount.
Where something is mounted on the name, `_cross` decides: a real tree is entered, the kernel's pseudo file systems are
hidden, an oMFS is refused (EREMOTE).  Devices and hidden trees are not found.  Attributes come from os.fstat:
measured on 6.18, it costs 1.5 us with all fields, ctypes statx 1.8.

All of it runs in the trio thread.  Called by the other rooms of export/.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from typing import Final

from omfs import wire
from omfs.errors import ConfigError, RuleBroken
from omfs.export.bare import bare_of
from omfs.export.handles import Sealer
from omfs.export.mounts import Mount, Mounts
from omfs.export.trees import ExportTree, ExportTrees, is_shown
from omfs.kernel import walk
from omfs.kernel.credentials import Identity
from omfs.kernel.handles import HandleReader, mount_id_of, open_handle, prepare_handle
from omfs.kernel.objects import link_path
from omfs.wiretypes import Bare

NAME_MAX_BYTES: Final = 255

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SUCH_PATH: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NO_NAMES: Final = frozenset({b"", b".", b".."})
_SLASH: Final = ord("/")  # a number is found in bytes in a tenth of the time that b"/" takes
_PLACES_KEPT: Final = 1 << 14  # handles whose seal was checked; a few hundred bytes each
_DIRECTORIES_KEPT: Final = 64  # open ones


class Place:
    """Where an object is: an unsealed handle, ready to be opened.  *file_type* is S_IFMT(mode) >> 12."""

    __slots__ = ("file_type", "handle", "mount", "prepared", "tree")

    def __init__(self, handle: bytes, mount: Mount, tree: ExportTree, file_type: int, kind: int, data: bytes) -> None:
        self.handle = handle
        self.mount = mount
        self.tree = tree
        self.file_type = file_type
        self.prepared = prepare_handle(kind, data)

    @property
    def is_directory(self) -> bool:
        return self.file_type == stat.S_IFDIR >> 12

    @property
    def is_regular(self) -> bool:
        return self.file_type == stat.S_IFREG >> 12

    @property
    def is_symlink(self) -> bool:
        return self.file_type == stat.S_IFLNK >> 12

    def must_be_writable(self) -> None:
        """EROFS in a read-only export tree (a read-only mount answers for itself)."""
        if self.tree.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))


class Disk:
    """This node's tree as others see it."""

    def __init__(self, sealer: Sealer, trees: ExportTrees, mounts: Mounts) -> None:
        self.trees = trees
        self.mounts = mounts
        self._sealer = sealer
        self._reader = HandleReader()
        self._places: dict[bytes, Place] = {}
        self._places_generation = mounts.generation
        self._directories: dict[bytes, int] = {}  # descriptors by handle, the one used last at the end

    # ------------------------------------------------------------ from handles

    def locate(self, handle: bytes) -> Place:
        """The place that a holder's handle names.  Raises BadHandle (forged), StaleHandle (not mounted)."""
        if self._places_generation != self.mounts.generation:
            self._places.clear()
            self.leave_directories()
            self._places_generation = self.mounts.generation
        place = self._places.get(handle)
        return self._locate_new(handle) if place is None else place

    def _locate_new(self, handle: bytes) -> Place:
        tree_id, mount_id, file_type, kind, data = self._sealer.unseal(handle)
        tree = self.trees.by_id(tree_id)
        return self._keep(Place(handle, self.mounts.by_stable_id(mount_id), tree, file_type, kind, data))

    def _keep(self, place: Place) -> Place:
        if len(self._places) >= _PLACES_KEPT:
            self._places.clear()
        self._places[place.handle] = place
        return place

    def open(self, place: Place) -> int:
        """An O_PATH descriptor of the object, to be closed by the caller.  OSError ESTALE when it is gone."""
        return open_handle(self.mounts.descriptor(place.mount), place.prepared, _LOOK)

    def directory(self, place: Place) -> int:
        """An O_PATH descriptor of a directory to work in at once: it stays the disk's, as most names come in crowds.

        Whatever fails there with an OSError may fail because the directory was removed since: ask `must_exist`.
        """
        kept = self._directories
        fd = kept.pop(place.handle, -1)
        if fd < 0:
            fd = self.open(place)
            if len(kept) >= _DIRECTORIES_KEPT:
                os.close(kept.pop(next(iter(kept))))
        kept[place.handle] = fd
        return fd

    def must_exist(self, place: Place) -> None:
        """OSError ESTALE when this directory was removed.  What `directory` gave for it is closed."""
        if (fd := self._directories.pop(place.handle, -1)) >= 0:
            os.close(fd)  # first: as long as it is open, so is a way to what was removed
        self.directory(place)

    def leave_directories(self) -> None:
        """Close what `directory` has kept open: it would keep file systems from being unmounted."""
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()

    def open_as_root(self, place: Place, flags: int) -> int:
        """Open the object with *flags* and root's rights, in one call.  OSError."""
        return open_handle(self.mounts.descriptor(place.mount), place.prepared, flags)

    # ------------------------------------------------------------ to handles

    def attach(self) -> tuple[bytes, os.stat_result]:
        """The root of the node's tree.  ConfigError when its file system can not be exported."""
        mount = self.mounts.root()
        fd = os.open("/", _LOOK)
        try:
            return self.describe(fd, mount, self.trees.root)
        finally:
            os.close(fd)

    def look_up(self, parent_fd: int, parent: Place, name: bytes, identity: Identity) -> tuple[bytes, os.stat_result]:
        """Handle and attributes of *name* in the open directory.  OSError: ENOENT, EACCES, EREMOTE ..."""
        fd, mount, tree = self.find(parent_fd, parent, name, identity)
        try:
            return self.describe(fd, mount, tree)
        finally:
            os.close(fd)

    def look_up_bare(
        self, parent_fd: int, parent: Place, name: bytes, identity: Identity
    ) -> tuple[bytes, os.stat_result, Bare]:
        """The same, and which extended attributes it does not have: a third more work."""
        fd, mount, tree = self.find(parent_fd, parent, name, identity)
        try:
            return *self.describe(fd, mount, tree), bare_of(mount, link_path(fd))
        finally:
            os.close(fd)

    def find(self, parent_fd: int, parent: Place, name: bytes, identity: Identity) -> tuple[int, Mount, ExportTree]:
        """An O_PATH descriptor of *name* (to be closed by the caller), with its mount and export tree."""
        tree = parent.tree if not self.trees.maybe_tops(name) else self.tree_of(parent_fd, parent, name)
        if tree.hidden:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            with identity:
                return walk.step(parent_fd, name), parent.mount, tree
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        with identity:
            fd = walk.step_across(parent_fd, name)
        try:
            return fd, self._cross(fd), tree
        except BaseException:
            os.close(fd)
            raise

    def _cross(self, fd: int) -> Mount:
        """The mount that a step led onto; no stat before it is known not to be an oMFS, which would ask ourselves."""
        kernel_id = mount_id_of(fd)
        mount = self.mounts.by_kernel_id(kernel_id)
        if mount is not None:
            return mount
        number = errno.EREMOTE if self.mounts.is_omfs(kernel_id) else errno.ENOENT
        raise OSError(number, os.strerror(number))

    def describe(self, fd: int, mount: Mount, tree: ExportTree) -> tuple[bytes, os.stat_result]:
        """Handle and attributes of the object behind *fd*; ENOENT for what is never shown."""
        status = os.fstat(fd)
        if not is_shown(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        kind, data, _ = self._reader.read(fd)
        return self._sealer.seal(tree.id, mount.stable_id, status.st_mode >> 12, kind, data), status

    def place(self, fd: int, mount: Mount, tree: ExportTree) -> tuple[Place, os.stat_result]:
        """As `describe`, of an object that will be used at once."""
        status = os.fstat(fd)
        if not is_shown(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        kind, data, _ = self._reader.read(fd)
        file_type = status.st_mode >> 12
        handle = self._sealer.seal(tree.id, mount.stable_id, file_type, kind, data)
        return self._keep(Place(handle, mount, tree, file_type, kind, data)), status

    # ------------------------------------------------------------ export trees

    def tree_of(self, parent_fd: int, parent: Place, name: bytes) -> ExportTree:
        """The export tree that *name* in this directory belongs to (whether or not it exists)."""
        for tree in self.trees.maybe_tops(name):
            if self._is_at(parent_fd, tree.parent_path):
                return tree
        return parent.tree

    def is_guarded(self, parent_fd: int, name: bytes) -> bool:
        """Whether *name* is the top of an export tree or on the way to one, and so must stay where it is."""
        paths = self.trees.maybe_guarded(name)
        return any(self._is_at(parent_fd, posixpath.dirname(path)) for path in paths)

    def _is_at(self, directory_fd: int, path: bytes) -> bool:
        """Whether the open directory is what *path* (of the configuration) leads to now, through whatever mount.

        OSError when that can't be told: who does not know must not serve.
        """
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _NO_SUCH_PATH:
                raise
            return False
        try:
            # The handle first: fstat could ask a file system that is none of ours.
            is_alike = self._reader.read(fd)[:2] == self._reader.read(directory_fd)[:2]
            return is_alike and os.fstat(fd).st_dev == os.fstat(directory_fd).st_dev
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
        finally:
            os.close(fd)


def check_name(name: bytes) -> None:
    """Refuse what is not one component of a path: OSError ENAMETOOLONG, or RuleBroken for what no kernel asks for.

    Each kernel takes paths apart itself, and "." and ".." are asked only of file systems that say so for NFS.
    """
    if len(name) > NAME_MAX_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if _SLASH in name or 0 in name or name in _NO_NAMES:
        raise RuleBroken(f"asked for {name!r}, which is not the name of a directory entry")


def attributes_of(status: os.stat_result) -> wire.Attributes:
    """As the wire carries them."""
    return wire.Attributes(
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_size,
        status.st_blocks,
        status.st_blksize,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )


def check_exportable(disk: Disk) -> None:
    """ConfigError, at the start, when the node's root can not be served."""
    try:
        disk.attach()
    except OSError as error:
        raise ConfigError(f"/: can not be exported: {error.strerror}") from None
