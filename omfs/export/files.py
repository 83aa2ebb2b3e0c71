"""What one holder has open: open ids, the descriptors behind them, and how they come to be.

An object is opened for I/O under the caller's identity, through /proc/self/fd (or straight by handle for root), and
only regular files and directories ever are: the sealed handle tells the type beforehand, so no device is opened
and no FIFO waited for.  `Opened` counts the threads that use its descriptor; it is closed when the last has left,
so that a number never means another file meanwhile.  A `Share` keeps one node from taking all that there is.

Reading and writing is blocks.py, listing listings.py, locking locks.py.  Called by export/service.py.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from typing import Final

import trio

from omfs import wire
from omfs.errors import OpenLost
from omfs.export.bare import bare_of
from omfs.export.disk import Disk, Place, attributes_of, check_name
from omfs.export.flock import Flock
from omfs.export.listings import Listing
from omfs.export.metadata import SLOW_TRUNCATION_BYTES
from omfs.export.names import SLOW_REMOVAL_BYTES, Umask, directory_now, must_be_makeable
from omfs.kernel import objects, walk
from omfs.kernel.credentials import ROOT, Identity

CREATE_ATTEMPTS: Final = 16  # a name that others make and remove all the time; the kernel too gives up

_KEPT_FLAGS: Final = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
_ADDED_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY


class Opened:
    """One open id's descriptor.  *identity* opened it and is acted under when writing (quotas, reserved blocks)."""

    __slots__ = ("_closing", "_users", "fd", "flags", "flock", "identity", "listing", "place", "suspects")

    def __init__(self, fd: int, flags: int, place: Place, identity: Identity) -> None:
        self.fd = fd
        self.flags = flags
        self.place = place
        self.identity = identity
        self.listing = Listing(fd) if place.is_directory else None
        self.flock: Flock | None = None  # what it has locked by flock(2) (flocks.py)
        self.suspects = 0  # so many transfers will not be tried in the trio thread (blocks.py)
        self._users = 0
        self._closing = False

    @property
    def is_readable(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def is_writable(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    def __enter__(self) -> int:
        """Use the descriptor over an await: it stays open until everybody has left.  EBADF when it was closed."""
        if self._closing:
            raise OSError(errno.EBADF, "closed meanwhile")
        self._users += 1
        return self.fd

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if self._closing and not self._users:
            os.close(self.fd)

    def close(self) -> None:
        """Close as soon as nobody uses it."""
        fd = self.give_up()
        if fd >= 0:
            os.close(fd)

    def give_up(self) -> int:
        """No new users from now on: the descriptor, which the caller must close, or -1 if its last user will."""
        self._closing = True
        if self.flock is not None:
            self.flock.close()
            self.flock = None
        return -1 if self._users else self.fd


class OpenIds:
    """Numbers for opens that a restarted owner does not confuse with those of its past life."""

    def __init__(self) -> None:
        self._last = secrets.randbits(31) << 32

    def next(self) -> int:
        self._last += 1
        return self._last


class Share:
    """What one node may have of this owner, over all its sessions: descriptors, and threads that wait for locks."""

    def __init__(self, descriptors_max: int, waiters_max: int) -> None:
        self._descriptors_left = descriptors_max
        self._waiters_left = waiters_max

    def check(self) -> None:
        """ENFILE when no descriptor is left."""
        if self._descriptors_left <= 0:
            raise OSError(errno.ENFILE, "this node has too many files open or locked here")

    def take(self) -> None:
        """One descriptor.  ENFILE."""
        self.check()
        self._descriptors_left -= 1

    def give_back(self) -> None:
        self._descriptors_left += 1

    def __enter__(self) -> None:
        """Wait for a lock inside.  ENOLCK when too many do."""
        if self._waiters_left <= 0:
            raise OSError(errno.ENOLCK, "too many programs of this node wait for locks here")
        self._waiters_left -= 1

    def __exit__(self, *_: object) -> None:
        self._waiters_left += 1


class SessionFiles:
    """Everything that one session has open."""

    def __init__(self, ids: OpenIds, share: Share) -> None:
        self.share = share
        self._ids = ids
        self._opens: dict[int, Opened] = {}
        self._by_handle: dict[bytes, list[Opened]] = {}
        self._ended = False

    def __len__(self) -> int:
        return len(self._opens)

    def add(self, opened: Opened) -> int:
        """Its new open id.  EBADF when the session ended meanwhile, ENFILE beyond the node's share: it is closed."""
        try:
            if self._ended:
                raise OSError(errno.EBADF, "the session ended")
            self.share.take()
        except OSError:
            opened.close()
            raise
        open_id = self._ids.next()
        self._opens[open_id] = opened
        self._by_handle.setdefault(opened.place.handle, []).append(opened)
        return open_id

    def get(self, open_id: int) -> Opened:
        """OpenLost for an id that is not open in this session (the owner restarted)."""
        opened = self._opens.get(open_id)
        if opened is None:
            raise OpenLost("this node restarted since the file was opened")
        return opened

    def get_directory(self, open_id: int) -> tuple[Opened, Listing]:
        """As `get`; ENOTDIR for a file."""
        opened = self.get(open_id)
        if opened.listing is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return opened, opened.listing

    def known(self, open_ids: tuple[int, ...]) -> dict[int, Opened]:
        """Those of the ids that are open."""
        return {open_id: self._opens[open_id] for open_id in open_ids if open_id in self._opens}

    def remove(self, open_id: int) -> Opened:
        """Forget the id; the caller closes.  OpenLost as for `get`."""
        opened = self.get(open_id)
        del self._opens[open_id]
        self.share.give_back()
        others = self._by_handle[opened.place.handle]
        others.remove(opened)
        if not others:
            del self._by_handle[opened.place.handle]
        return opened

    def is_open(self, handle: bytes) -> bool:
        """Whether this session has the object open."""
        return handle in self._by_handle

    def close_all(self) -> None:
        """The session ended.  What takes long to close, a thread closes."""
        self._ended = True
        slow: list[int] = []
        for opened in self._opens.values():
            self.share.give_back()
            if not holds_big_orphan(opened):
                opened.close()
            elif (fd := opened.give_up()) >= 0:
                slow.append(fd)
        self._opens.clear()
        self._by_handle.clear()
        if slow:
            trio.lowlevel.start_thread_soon(lambda: _close_each(slow), lambda _: None)

    def open_object(self, disk: Disk, place: Place) -> int:
        """A descriptor of the object, to be closed by the caller: also of a file without a name that is open here.

        Some file systems do not find an unlinked inode by its handle any more.  OSError ESTALE.
        """
        try:
            return disk.open(place)
        except OSError as error:
            opens = self._by_handle.get(place.handle)
            if error.errno != errno.ESTALE or not opens:
                raise
            return os.dup(opens[0].fd)


def _close_each(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def writable_of(files: SessionFiles, request: wire.SetAttributes) -> Opened | None:
    """The caller's own open file, if it may write: then the mode does not matter for a truncation (ftruncate(2))."""
    if request.open_id is None:
        return None
    opened = files.get(request.open_id)
    return opened if opened.is_writable and opened.place.handle == request.handle else None


# ---------------------------------------------------------------- opening


def checked_flags(place: Place, flags: int) -> int:
    """The flags that count on the owner.  OSError for what can't be opened or written."""
    if not place.is_regular:
        number = errno.EISDIR if place.is_directory else errno.ELOOP if place.is_symlink else errno.ENXIO
        raise OSError(number, os.strerror(number))
    if flags & os.O_ACCMODE == os.O_ACCMODE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
        place.must_be_writable()
    return flags & _KEPT_FLAGS


def open_file(disk: Disk, files: SessionFiles, request: wire.OpenFile) -> wire.FileOpened:
    """OpenFile.  BlockingIOError when that takes long: a native program's kernel lease must be broken first, or a big
    file is cut off; then `open_slowly`.

    A reclaimed open (the owner restarted) was granted before: its owner gets it back even if the mode now forbids it
    (files are made with mode 0444 and written, as git does), and nothing is truncated twice.
    """
    files.share.check()
    place = disk.locate(request.handle)
    flags = checked_flags(place, request.flags)
    identity = place.tree.identity_of(request.caller)
    if request.execute:
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        path_fd = files.open_object(disk, place)
        try:
            identity = who_opens_to_execute(path_fd, identity)
        finally:
            os.close(path_fd)
    if request.reclaim:
        flags &= ~os.O_TRUNC
    how = flags | _ADDED_FLAGS | os.O_NONBLOCK
    if flags & os.O_TRUNC:
        _must_be_quick(disk, files, place)
    try:
        fd = perhaps_appending(lambda flags: _open_for(disk, files, place, flags, identity), how, request.flags)
    except PermissionError:
        if not request.reclaim:
            raise
        fd = _reclaim_for_owner(disk, files, place, how, identity, request.flags)
    return wire.FileOpened(files.add(Opened(fd, flags, place, identity)))


def adopt_file(disk: Disk, files: SessionFiles, request: wire.OpenFile, fd: int) -> wire.FileOpened:
    """A reclaimed OpenFile whose descriptor was kept over the restart; closed where that fails."""
    try:
        place = disk.locate(request.handle)
        opened = Opened(fd, checked_flags(place, request.flags), place, place.tree.identity_of(request.caller))
    except BaseException:
        os.close(fd)
        raise
    return wire.FileOpened(files.add(opened))


def who_opens_to_execute(fd: int, identity: Identity) -> Identity:
    """This daemon, if *identity* may execute the object of *fd*: a program need not be readable.  EACCES."""
    with identity:
        objects.check_access(fd, os.X_OK)
    return ROOT


def open_slowly(fd: int, asked: int, place: Place, identity: Identity, wait: bool) -> Opened:
    """Open the object of *fd* with the flags *asked* for, in a thread: a truncation may take long.

    Unless *wait*, BlockingIOError when a native program's kernel lease is in the way.
    """
    flags = checked_flags(place, asked)
    how = flags | os.O_CLOEXEC | (0 if wait else os.O_NONBLOCK)
    with identity:
        return Opened(perhaps_appending(lambda how: objects.reopen(fd, how), how, asked), flags, place, identity)


def perhaps_appending(open_with: Callable[[int], int], flags: int, asked: int) -> int:
    """Open with *flags*; once more with O_APPEND where the kernel insists on it (chattr +a) and it was *asked* for.

    Otherwise the descriptor is without: what is an append is told by each request.
    """
    try:
        return open_with(flags)
    except PermissionError as error:
        if error.errno != errno.EPERM or not asked & os.O_APPEND:
            raise
        return open_with(flags | os.O_APPEND)


def _must_be_quick(disk: Disk, files: SessionFiles, place: Place) -> None:
    """BlockingIOError when cutting the file off frees much."""
    fd = files.open_object(disk, place)
    try:
        _check_truncation(fd)
    finally:
        os.close(fd)


def _check_truncation(fd: int) -> None:
    if os.fstat(fd).st_size > SLOW_TRUNCATION_BYTES:
        raise BlockingIOError(errno.EAGAIN, "takes long")


def _open_for(disk: Disk, files: SessionFiles, place: Place, flags: int, identity: Identity) -> int:
    if identity.uid == 0:
        try:
            return disk.open_as_root(place, flags)
        except OSError as error:
            if error.errno != errno.ESTALE or not files.is_open(place.handle):
                raise
    path_fd = files.open_object(disk, place)
    try:
        with identity:
            return objects.reopen(path_fd, flags & ~os.O_NOFOLLOW)
    finally:
        os.close(path_fd)


def _reclaim_for_owner(
    disk: Disk, files: SessionFiles, place: Place, flags: int, identity: Identity, asked: int
) -> int:
    path_fd = files.open_object(disk, place)
    try:
        if os.fstat(path_fd).st_uid != identity.uid:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return perhaps_appending(lambda flags: objects.reopen(path_fd, flags), flags & ~os.O_NOFOLLOW, asked)
    finally:
        os.close(path_fd)


def open_directory(disk: Disk, files: SessionFiles, request: wire.OpenDirectory) -> wire.FileOpened:
    """OpenDirectory."""
    files.share.check()
    place = disk.locate(request.handle)
    if not place.is_directory:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    identity = place.tree.identity_of(request.caller)
    flags = os.O_RDONLY | os.O_DIRECTORY | _ADDED_FLAGS
    fd = _open_for(disk, files, place, flags, identity)
    return wire.FileOpened(files.add(Opened(fd, os.O_RDONLY, place, identity)))


# ---------------------------------------------------------------- creating


def create_file(disk: Disk, files: SessionFiles, request: wire.CreateFile) -> wire.FileCreated:
    """open(2) with O_CREAT: make the file, or (without O_EXCL) open the one that is there.

    A symlink at the end is not followed (ELOOP; the calling node's kernel follows links itself), and nothing but a
    regular file is opened.  O_EXCL comes first, since the calling kernel creates what it has just not found.
    BlockingIOError as for `open_file`.
    """
    files.share.check()
    check_name(request.name)
    parent = disk.locate(request.parent)
    parent.must_be_writable()
    identity = parent.tree.identity_of(request.caller)
    if request.flags & os.O_ACCMODE == os.O_ACCMODE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    parent_fd = disk.directory(parent)
    try:
        must_be_makeable(disk, parent_fd, parent, request.name)
        for _ in range(CREATE_ATTEMPTS):
            try:
                return _create_new(disk, files, parent_fd, parent, identity, request)
            except FileExistsError:
                if request.flags & os.O_EXCL:
                    raise
            try:
                return _open_existing(disk, files, parent_fd, parent, identity, request)
            except FileNotFoundError:
                continue  # removed in between
        raise OSError(errno.ESTALE, "the name is made and removed all the time")
    except OSError:
        disk.must_exist(parent)
        raise


def _create_new(
    disk: Disk, files: SessionFiles, parent_fd: int, parent: Place, identity: Identity, request: wire.CreateFile
) -> wire.FileCreated:
    flags = request.flags & _KEPT_FLAGS & ~os.O_TRUNC
    try:
        with Umask(request.umask), identity:
            fd = walk.create(parent_fd, request.name, flags | _ADDED_FLAGS, request.mode & 0o7777)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise FileExistsError(errno.EEXIST, "a mount point") from None
    try:
        tree = disk.tree_of(parent_fd, parent, request.name)
        place, status = disk.place(fd, parent.mount, tree)
        bare, parent_now = bare_of(parent.mount, fd), directory_now(parent_fd)
        opened = Opened(fd, flags, place, identity)
    except BaseException:
        os.close(fd)
        raise
    return wire.FileCreated(files.add(opened), place.handle, attributes_of(status), bare=bare, parent=parent_now)


def _open_existing(
    disk: Disk, files: SessionFiles, parent_fd: int, parent: Place, identity: Identity, request: wire.CreateFile
) -> wire.FileCreated:
    path_fd, mount, tree = disk.find(parent_fd, parent, request.name, identity)
    try:
        try:
            place, _ = disk.place(path_fd, mount, tree)
        except FileNotFoundError:
            raise PermissionError(errno.EACCES, "a device has this name") from None
        flags = checked_flags(place, request.flags)
        if flags & os.O_TRUNC:
            _check_truncation(path_fd)
        how = flags | os.O_CLOEXEC | os.O_NONBLOCK
        with identity:
            fd = perhaps_appending(lambda how: objects.reopen(path_fd, how), how, request.flags)
        status = os.fstat(fd)
    finally:
        os.close(path_fd)
    return wire.FileCreated(files.add(Opened(fd, flags, place, identity)), place.handle, attributes_of(status))


def holds_big_orphan(opened: Opened) -> bool:
    """Whether closing this frees so much on the disk that it belongs in a thread."""
    status = os.fstat(opened.fd)
    return status.st_nlink == 0 and status.st_blocks * 512 > SLOW_REMOVAL_BYTES and stat.S_ISREG(status.st_mode)
