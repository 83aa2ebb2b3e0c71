"""The mounted file systems of this node: which belong to its tree, and a descriptor on each while it is used.

A mount's id in handles is made of its mountpoint, type, file system id and the directory of it that is mounted, so it
survives a restart and a remount of the same thing, and something else mounted there makes the old handles stale.
Opening objects by handle needs a descriptor on their mount; it is opened on demand and closed after a few idle
seconds, since an administrator may want to unmount.

Invariant: a `Mount` is only handed out for a real tree that is not covered by another mount.
Called by export/disk.py in the trio thread; `drop_idle` by export/service.py.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import select
from collections.abc import Callable
from typing import Final

import trio

from omfs.errors import ConfigError, StaleHandle
from omfs.export.handles import MOUNT_ID_BYTES
from omfs.kernel.handles import HandleReader
from omfs.kernel.mounttable import OMFS_TYPE, MountLine, is_real_tree, parse_mountinfo, real_trees_within_reach

_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
_OUR_TROUBLE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # tells nothing about the mount

log = logging.getLogger(__name__)


class Mount:
    """One mounted real tree.  *fd* is -1 while nothing uses it; *used* since the last sweep."""

    __slots__ = ("fd", "has_nowait", "kernel_id", "line", "stable_id", "used")

    def __init__(self, line: MountLine, stable_id: bytes) -> None:
        self.line = line
        self.kernel_id = line.mount_id
        self.stable_id = stable_id
        self.fd = -1
        self.used = True
        self.has_nowait = True  # until a read with RWF_NOWAIT was refused


class Mounts:
    """The mounts of this process's namespace, read again whenever the kernel says that they changed."""

    def __init__(self) -> None:
        """ConfigError without /proc."""
        self.generation = 0  # counts changes of the table: what was derived from it is out of date
        self.on_found: Callable[[Mount], None] | None = None  # told of each mount when it is first used
        self._reader = HandleReader()
        self._table_fd, self._watched_fd = _open_table(), _open_table()  # each open tells a change to one who asks
        self._poll = select.poll()
        self._poll.register(self._table_fd, select.POLLPRI)
        self._watch = select.epoll()  # is readable when the table, which always is, has changed
        self._watch.register(self._watched_fd, select.EPOLLPRI)
        self._lines: dict[int, MountLine] = {}
        self._open: dict[int, Mount] = {}  # by the kernel's mount id; those that were needed so far
        self._by_stable_id: dict[bytes, Mount] = {}
        self._refused: set[int] = set()  # mounts that were examined in vain since the table changed
        self._within_reach: list[MountLine] | None = None  # found out when needed
        self._read_table()

    def close(self) -> None:
        for mount in self._open.values():
            _close_fd(mount)
        self._watch.close()
        os.close(self._watched_fd)
        os.close(self._table_fd)

    def in_use(self) -> list[Mount]:
        """Those that were needed so far and are still mounted."""
        return list(self._open.values())

    def refresh(self) -> bool:
        """Read the table again if it changed; True if so."""
        if not self._poll.poll(0):
            return False
        self._read_table()
        return True

    async def wait_changed(self) -> None:
        """Until the table has changed, or may have; a change just before the call may be missed (see `refresh`)."""
        await trio.lowlevel.wait_readable(self._watch.fileno())
        self._watch.poll(0)

    def _read_table(self) -> None:
        os.lseek(self._table_fd, 0, os.SEEK_SET)
        text = b""
        while piece := os.read(self._table_fd, 1 << 16):
            text += piece
        self._lines = {line.mount_id: line for line in parse_mountinfo(text)}
        for kernel_id, mount in list(self._open.items()):
            if self._lines.get(kernel_id) != mount.line:
                _close_fd(mount)
                del self._open[kernel_id]
        self._by_stable_id = {mount.stable_id: mount for mount in self._open.values()}
        self._refused.clear()
        self._within_reach = None
        self.generation += 1

    def is_omfs(self, kernel_id: int) -> bool:
        """Whether this mount is an oMFS: serving in a chain is refused."""
        line = self._lines.get(kernel_id)
        return line is not None and line.fstype == OMFS_TYPE

    def by_kernel_id(self, kernel_id: int) -> Mount | None:
        """The mount that a walk came to, or None when it is not a tree to show."""
        self.refresh()  # first: the kernel gives the ids of old mounts to new ones
        mount = self._open.get(kernel_id)
        if mount is not None:
            return mount
        line = self._lines.get(kernel_id)
        if line is None or not is_real_tree(line.fstype):
            return None
        return self._examine(line)

    def find(self, stable_id: bytes) -> Mount | None:
        """As `by_stable_id`; None when it is not mounted (there) any more."""
        mount = self._by_stable_id.get(stable_id)
        if mount is None:
            self.refresh()
            if self._within_reach is None:
                self._within_reach = real_trees_within_reach(self._lines.values())
            for line in self._within_reach:
                if line.mount_id not in self._open:
                    self._examine(line)
            mount = self._by_stable_id.get(stable_id)
        return mount

    def by_stable_id(self, stable_id: bytes) -> Mount:
        """The mount named in a handle; StaleHandle when it is not mounted (there) any more."""
        mount = self.find(stable_id)
        if mount is None:
            raise StaleHandle("the file system is not mounted")
        return mount

    def root(self) -> Mount:
        """The mount that "/" is on; ConfigError when it can not be served."""
        fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            _, _, kernel_id = self._reader.read(fd)
        except OSError as error:
            raise ConfigError(f"/: this file system has no handles to export ({error.strerror})") from None
        finally:
            os.close(fd)
        mount = self.by_kernel_id(kernel_id)
        if mount is None:
            raise ConfigError("/: its file system is not one that can be exported")
        return mount

    def descriptor(self, mount: Mount) -> int:
        """A descriptor on *mount*, for open_by_handle_at.  StaleHandle when it is gone."""
        mount.used = True
        if mount.fd < 0:
            self.refresh()
            if self._open.get(mount.kernel_id) is mount:
                mount.fd = self._open_mountpoint(mount.line)
            if mount.fd < 0:
                raise StaleHandle("the file system is not mounted any more")
        return mount.fd

    def drop_idle(self) -> None:
        """Close the descriptors of mounts that nothing used since the last call, so that they can be unmounted."""
        for mount in self._open.values():
            if mount.used:
                mount.used = False
            else:
                _close_fd(mount)
        self.refresh()

    def _examine(self, line: MountLine) -> Mount | None:
        """Find a mount's stable id, which takes opening it; None where it can not be exported."""
        if line.mount_id in self._refused:
            return None
        fd = self._open_mountpoint(line)
        if fd < 0:
            self._refused.add(line.mount_id)
            return None
        statvfs = os.fstatvfs(fd)
        identity = b"\0".join((line.mountpoint, line.root, line.fstype, b"%d" % statvfs.f_fsid))
        mount = Mount(line, hashlib.blake2b(identity, digest_size=MOUNT_ID_BYTES).digest())
        mount.fd = fd
        self._open[line.mount_id] = self._by_stable_id[mount.stable_id] = mount
        if self.on_found is not None:
            self.on_found(mount)
        return mount

    def _open_mountpoint(self, line: MountLine) -> int:
        """A descriptor on the root of the mount, or -1: covered, gone meanwhile, or without handles."""
        try:
            fd = os.open(line.mountpoint, _OPEN)
        except OSError as error:
            if error.errno in _OUR_TROUBLE:
                raise
            log.info("%s: not served: %s", os.fsdecode(line.mountpoint), error.strerror)
            return -1
        try:
            _, _, kernel_id = self._reader.read(fd)
        except OSError as error:
            if error.errno in _OUR_TROUBLE:
                os.close(fd)
                raise
            log.info("%s: not served: %s has no file handles: %s", line.mountpoint, line.fstype, error.strerror)
            kernel_id = -1
        if kernel_id != line.mount_id:
            os.close(fd)
            return -1
        return fd


def _open_table() -> int:
    try:
        return os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"/proc/self/mountinfo: {error.strerror}; is /proc mounted?") from None


def _close_fd(mount: Mount) -> None:
    if mount.fd >= 0:
        os.close(mount.fd)
        mount.fd = -1
