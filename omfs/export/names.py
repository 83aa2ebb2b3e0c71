"""Making, removing and renaming names, as the calling user.

Each function does one request: opens the parent directory from its handle, makes one system call relative to it under
the caller's identity and umask (the owner's kernel applies it, or a default ACL instead), and looks up what came of
it.  No await inside, and all in the trio thread: the umask belongs to the whole process.  Names are checked
here; nothing ever moves or links from one export tree or mount to another (EXDEV).

Raises OSError as the kernel does, BadHandle, StaleHandle.  Called by export/service.py.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple

import msgspec

from omfs import wire
from omfs.export.bare import children_list_all
from omfs.export.disk import Disk, Place, attributes_of, check_name
from omfs.export.trees import is_shown
from omfs.kernel import objects, walk
from omfs.kernel.credentials import ROOT

SYMLINK_MAX_BYTES: Final = 4095  # PATH_MAX without its NUL
SLOW_REMOVAL_BYTES: Final = 16 << 20  # freeing more than this is left to a thread

_MODE_MAX: Final = 0o177777
_MAKEABLE: Final = (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)


class HiddenDevice(FileNotFoundError):
    """There is something of this name, but it is never shown."""


class Umask:
    """The caller's umask for one creation: ``with Umask(mask), identity: ...``."""

    __slots__ = ("_before", "_mask")

    def __init__(self, mask: int) -> None:
        self._mask = mask & 0o777

    def __enter__(self) -> None:
        self._before = os.umask(self._mask)

    def __exit__(self, *_: object) -> None:
        os.umask(self._before)


def _open_parent(disk: Disk, parent: Place, name: bytes) -> int:
    """The directory to change *name* in, as `Disk.directory` gives it."""
    check_name(name)
    parent.must_be_writable()
    return disk.directory(parent)


def must_be_makeable(disk: Disk, parent_fd: int, parent: Place, name: bytes) -> None:
    """EACCES for the name of a hidden export tree."""
    if disk.trees.maybe_tops(name) and disk.tree_of(parent_fd, parent, name).hidden:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _found(disk: Disk, parent_fd: int, parent: Place, name: bytes) -> wire.Found:
    """What was just made, and the directory after that."""
    handle, status = disk.look_up(parent_fd, parent, name, ROOT)
    return wire.Found(handle, attributes_of(status), parent=directory_now(parent_fd))


def directory_now(fd: int) -> wire.Attributes:
    """What the directory looks like after a change of its names."""
    return attributes_of(os.fstat(fd))


def make_node(disk: Disk, request: wire.MakeNode) -> wire.Found:
    """mknod of a regular file, FIFO or socket; EPERM for devices."""
    if not 0 <= request.mode <= _MODE_MAX:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    file_type = stat.S_IFMT(request.mode)
    if not is_shown(request.mode):
        raise PermissionError(errno.EPERM, "devices can not be made on another node")
    if file_type not in _MAKEABLE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    parent = disk.locate(request.parent)
    identity = parent.tree.identity_of(request.caller)
    fd = _open_parent(disk, parent, request.name)
    try:
        must_be_makeable(disk, fd, parent, request.name)
        with Umask(request.umask), identity:
            os.mknod(request.name, file_type | request.mode & 0o7777, dir_fd=fd)
        return _found(disk, fd, parent, request.name)
    except OSError:
        disk.must_exist(parent)
        raise


def make_directory(disk: Disk, request: wire.MakeDirectory) -> wire.Found:
    """mkdir."""
    parent = disk.locate(request.parent)
    identity = parent.tree.identity_of(request.caller)
    fd = _open_parent(disk, parent, request.name)
    try:
        must_be_makeable(disk, fd, parent, request.name)
        with Umask(request.umask), identity:
            os.mkdir(request.name, request.mode & 0o7777, dir_fd=fd)
        found = _found(disk, fd, parent, request.name)
        return msgspec.structs.replace(found, lists_all=children_list_all(parent.mount, fd))
    except OSError:
        disk.must_exist(parent)
        raise


def make_symlink(disk: Disk, request: wire.MakeSymlink) -> wire.Found:
    """symlink; the target is any bytes."""
    if not request.target:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if len(request.target) > SYMLINK_MAX_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if b"\0" in request.target:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    parent = disk.locate(request.parent)
    identity = parent.tree.identity_of(request.caller)
    fd = _open_parent(disk, parent, request.name)
    try:
        must_be_makeable(disk, fd, parent, request.name)
        with identity:
            os.symlink(request.target, request.name, dir_fd=fd)
        return _found(disk, fd, parent, request.name)
    except OSError:
        disk.must_exist(parent)
        raise


def make_link(disk: Disk, request: wire.MakeLink, source_fd: int, source: Place) -> wire.Found:
    """link of the object behind *source_fd* (O_PATH)."""
    parent = disk.locate(request.parent)
    if source.mount is not parent.mount or source.tree is not parent.tree:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    identity = parent.tree.identity_of(request.caller)
    fd = _open_parent(disk, parent, request.name)
    try:
        must_be_makeable(disk, fd, parent, request.name)
        with identity:
            objects.make_link(source_fd, fd, request.name)
        return _found(disk, fd, parent, request.name)
    except OSError:
        disk.must_exist(parent)
        raise


class Removed(NamedTuple):
    """*victim*: a descriptor that may hold the last reference to a big file, to be closed in a thread; or -1."""

    victim: int
    reply: wire.NamesChanged


def remove_name(disk: Disk, request: wire.RemoveName, slowly: bool = False) -> Removed:
    """unlink or rmdir.  BlockingIOError, and nothing is done, when that frees a big file, unless *slowly*."""
    parent = disk.locate(request.parent)
    identity = parent.tree.identity_of(request.caller)
    name = request.name
    fd = _open_parent(disk, parent, name)
    try:
        if disk.is_guarded(fd, name):
            raise OSError(errno.EBUSY, "an export tree")
        if request.directory:
            with identity:
                os.rmdir(name, dir_fd=fd)
            return Removed(-1, _changed(fd))
        victim, _, _ = disk.find(fd, parent, name, identity)
        try:
            status = os.fstat(victim)
            if not is_shown(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            is_big = _frees_much(status)
            if is_big and not slowly:
                raise BlockingIOError(errno.EAGAIN, "takes long")
            with identity:
                os.unlink(name, dir_fd=fd)
        except BaseException:
            os.close(victim)
            raise
        if is_big:
            return Removed(victim, _changed(fd))
        os.close(victim)
        return Removed(-1, _changed(fd))
    except OSError:
        disk.must_exist(parent)
        raise


def _changed(*directories: int) -> wire.NamesChanged:
    return wire.NamesChanged(tuple(map(directory_now, directories)))


def _frees_much(status: os.stat_result) -> bool:
    """Whether removing the last name of this is slow (directories are small)."""
    return status.st_nlink == 1 and status.st_blocks * 512 > SLOW_REMOVAL_BYTES


def rename_name(disk: Disk, request: wire.RenameName, slowly: bool = False) -> Removed:
    """renameat2 with flags 0, RENAME_NOREPLACE or RENAME_EXCHANGE.  *slowly* and the result as for `remove_name`."""
    if request.flags not in (0, objects.RENAME_NOREPLACE, objects.RENAME_EXCHANGE):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    old = disk.locate(request.parent)
    new = disk.locate(request.new_parent)
    if old.mount is not new.mount or old.tree is not new.tree:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    check_name(request.new_name)
    identity = old.tree.identity_of(request.caller)
    old_fd = _open_parent(disk, old, request.name)
    try:
        new_fd = old_fd if new is old else disk.directory(new)
        if disk.is_guarded(old_fd, request.name) or disk.is_guarded(new_fd, request.new_name):
            raise OSError(errno.EBUSY, "an export tree")
        with identity:
            os.close(_look_at(old_fd, request.name))
            victim = _big_victim(new_fd, request)
        is_big = victim >= 0
        try:
            if is_big and not slowly:
                raise BlockingIOError(errno.EAGAIN, "takes long")
            with identity:
                objects.rename(old_fd, request.name, new_fd, request.new_name, request.flags)
        except BaseException:
            if is_big:
                os.close(victim)
            raise
        return Removed(victim, _changed(old_fd) if new is old else _changed(old_fd, new_fd))
    except OSError:
        disk.must_exist(old)
        disk.must_exist(new)
        raise


def _big_victim(new_fd: int, request: wire.RenameName) -> int:
    """A descriptor of the big file that will be replaced, or -1.  EACCES or ENOENT for a device, as nobody sees it."""
    if request.flags == objects.RENAME_NOREPLACE:
        return -1
    try:
        fd = _look_at(new_fd, request.new_name)
    except FileNotFoundError as error:
        if request.flags == objects.RENAME_EXCHANGE:
            raise
        if isinstance(error, HiddenDevice):
            raise PermissionError(errno.EACCES, "a device has this name") from None
        return -1
    if request.flags == 0 and _frees_much(os.fstat(fd)):
        return fd
    os.close(fd)
    return -1


def _look_at(parent_fd: int, name: bytes) -> int:
    """An O_PATH descriptor of an object to be renamed.

    ENOENT for a device; EBUSY for a mount point, which must not be asked anything: it could be our own /mfs.
    """
    try:
        fd = walk.step(parent_fd, name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY)) from None
    if is_shown(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise HiddenDevice(errno.ENOENT, os.strerror(errno.ENOENT))


def read_link(fd: int, place: Place) -> wire.LinkRead:
    """readlink; EINVAL for anything but a symlink."""
    if not place.is_symlink:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return wire.LinkRead(os.readlink(b"", dir_fd=fd))
