"""FUSE handlers about names: look-up, making, removing, renaming, links, and the listing of directories.

/mfs itself is answered here without asking anybody: its names are the nodes of the map.  Called by pyfuse3.
"""

from __future__ import annotations

import errno
import stat
from collections import deque
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError, RequestContext

from omfs import wire
from omfs.config import READDIR_REPLY_BYTES
from omfs.errors import OmfsError, RemoteFailure
from omfs.mount.handlers import Foundation, answering
from omfs.mount.inodes import ROOT_ID, directory_id
from omfs.mount.listings import Listings
from omfs.mount.remotefile import RemoteFile, open_directory

T = TypeVar("T")

_DOT_CURSOR: Final = (1 << 63) - 3  # no file system uses these as d_off: they are beyond ext4's largest hash
_DOT_DOT_CURSOR: Final = (1 << 63) - 2


class OpenDirectory:
    """What the owner sent and the kernel did not take yet; only without the hook, else takenlistings.py answers."""

    def __init__(self, number: int, file: RemoteFile | None) -> None:
        self.number = number
        self.file = file  # None: /mfs itself
        self.entries: deque[wire.Entry] = deque()
        self.cursor = 0  # behind the last entry that was taken
        self.at_end = False


class NameOperations(Foundation):
    """Handlers about names."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open_directories: dict[int, OpenDirectory] = {}
        self._next_directory = 1
        self.listings = Listings()  # what is told of directories where the hook is installed

    async def changing_names(self, change: Awaitable[T], *directories: int) -> T:
        """Await *change*, which makes, moves or removes names in these directories: older listings serve no more.

        They are told so afterwards, also if it failed: only a listing that begins from then on must show the change.
        The kernel voids its own copy when it is told of success; where nobody knows whether it happened, we do.
        """
        is_in_doubt = False
        try:
            return await change
        except OmfsError as error:
            is_in_doubt = not isinstance(error, RemoteFailure)
            raise
        finally:
            for number in directories:
                self.listings.stale(number)
                if is_in_doubt:
                    await self.listings.on_uncached(number)

    @answering
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode == ROOT_ID:
            return self._look_up_node(name)
        node, parent = await self.place(parent_inode)
        found = await node.look_up(parent, name, self.callers.caller(ctx))
        return self.entry(node, found.handle, found.attributes)

    def _look_up_node(self, name: bytes) -> EntryAttributes:
        if name.isdigit() and not name.startswith(b"0"):
            number = int(name)
            if number == self.self_id:
                return self.self_entry()
            if number in self.nodes:
                return self.directory_entry(self.inodes.get(directory_id(number)))
        raise FUSEError(errno.ENOENT)

    @answering
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise FUSEError(errno.EPERM)
        node, parent = await self.place(parent_inode)
        found = await self.changing_names(
            node.make_node(parent, name, mode, ctx.umask, self.callers.caller(ctx)), parent_inode
        )
        return self.entry(node, found.handle, found.attributes)

    @answering
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        node, parent = await self.place(parent_inode)
        found = await self.changing_names(
            node.make_directory(parent, name, stat.S_IMODE(mode), ctx.umask, self.callers.caller(ctx)), parent_inode
        )
        return self.entry(node, found.handle, found.attributes)

    @answering
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        node, parent = await self.place(parent_inode)
        found = await self.changing_names(
            node.make_symlink(parent, name, target, self.callers.caller(ctx)), parent_inode
        )
        return self.entry(node, found.handle, found.attributes)

    @answering
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        node, handle = await self.place(inode)
        parent_node, parent = await self.place(new_parent_inode)
        node = self.same_node(node, parent_node)
        found = await self.changing_names(
            node.make_link(handle, parent, new_name, self.callers.caller(ctx)), new_parent_inode
        )
        return self.entry(node, found.handle, found.attributes)

    @answering
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        node, parent = await self.place(parent_inode)
        await self.changing_names(node.remove_name(parent, name, False, self.callers.caller(ctx)), parent_inode)

    @answering
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if parent_inode == ROOT_ID:
            raise FUSEError(errno.EBUSY)
        node, parent = await self.place(parent_inode)
        await self.changing_names(node.remove_name(parent, name, True, self.callers.caller(ctx)), parent_inode)

    @answering
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        node, parent = await self.place(parent_inode_old)
        new_node, new_parent = await self.place(parent_inode_new)
        node = self.same_node(node, new_node)
        await self.changing_names(
            node.rename(parent, name_old, new_parent, name_new, flags, self.callers.caller(ctx)),
            parent_inode_old,
            parent_inode_new,
        )

    @answering
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        node, handle = await self.place(inode)
        return await node.read_link(handle, self.callers.caller(ctx))

    # ------------------------------------------------------------ listings

    @answering
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        file = None
        if not self.is_local(inode):
            node, handle = await self.place(inode)
            file = await open_directory(node, handle, self.callers.caller(ctx))
        number, self._next_directory = self._next_directory, self._next_directory + 1
        self._open_directories[number] = OpenDirectory(inode, file)
        return number

    @answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._open_directories[fh]
        if start_id == 0:
            if not self._told_dot(token, b".", listing.number, _DOT_CURSOR):
                return
            start_id = _DOT_CURSOR
        if start_id == _DOT_CURSOR:
            if not self._told_dot(token, b"..", ROOT_ID, _DOT_DOT_CURSOR):
                return
            start_id = _DOT_DOT_CURSOR
        start = 0 if start_id == _DOT_DOT_CURSOR else start_id
        if listing.file is None:
            self._list_nodes(start, token, listing)
        else:
            await self._list_remote(listing, listing.file, start, token)

    @staticmethod
    def _told_dot(token: pyfuse3.ReaddirToken, name: bytes, number: int, cursor: int) -> bool:
        # The kernel takes only the inode number and the type of these two and counts no look-up.
        entry = EntryAttributes()
        entry.st_ino = number
        entry.st_mode = stat.S_IFDIR | 0o755
        return pyfuse3.readdir_reply(token, name, entry, cursor)

    def _list_nodes(self, start: int, token: pyfuse3.ReaddirToken, listing: OpenDirectory) -> None:
        if listing.number != ROOT_ID:  # below /mfs/<self>, laid over
            return
        for number in self.node_ids():
            if number <= start:
                continue
            entry = self._look_up_node(b"%d" % number)
            if not pyfuse3.readdir_reply(token, b"%d" % number, entry, number):
                return

    async def _list_remote(
        self, listing: OpenDirectory, file: RemoteFile, start: int, token: pyfuse3.ReaddirToken
    ) -> None:
        entries = listing.entries
        if start != listing.cursor or start == 0:  # seekdir or rewinddir: what is here does not fit
            entries.clear()
            listing.cursor, listing.at_end = start, False
        while True:
            if not entries:
                if listing.at_end:
                    return
                read = await file.read_directory(listing.cursor, READDIR_REPLY_BYTES)
                entries.extend(read.entries)
                listing.at_end = read.at_end or not read.entries
                if not entries:
                    return
            entry = entries[0]
            inode = self.inodes.find(file.node, entry.handle)
            inode.lookups += 1
            told = self.shown(inode.id, entry.attributes)
            if not pyfuse3.readdir_reply(token, entry.name, told, entry.cursor):
                self.inodes.forget(inode.id, 1)
                return
            entries.popleft()
            listing.cursor = entry.cursor

    @answering
    async def releasedir(self, fh: int) -> None:
        listing = self._open_directories.pop(fh, None)
        if listing is not None and listing.file is not None:
            await listing.file.close()

    @answering
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        listing = self._open_directories[fh]
        if listing.file is not None:
            await listing.file.sync(datasync)
