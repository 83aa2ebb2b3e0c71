"""FUSE handlers about names: look-up, making, removing, renaming, links, and the listing of directories.

/mfs itself is answered here without asking anybody: its names are the nodes of the map.  Called by pyfuse3.
"""

from __future__ import annotations

import errno
import stat
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any, Final, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError, RequestContext

from omfs import wire
from omfs.config import READDIR_REPLY_BYTES
from omfs.errors import OmfsError, RemoteFailure
from omfs.mount.flights import Flights, in_flight
from omfs.mount.handlers import Foundation, answering
from omfs.mount.inodes import ROOT_ID, directory_id
from omfs.mount.leasepolicy import LeasePolicy
from omfs.mount.listings import Listings
from omfs.mount.opening import open_directory
from omfs.mount.recall import Recaller
from omfs.mount.remotefile import RemoteFile
from omfs.wiretypes import Mode

T = TypeVar("T", wire.Found, wire.NamesChanged, tuple[RemoteFile, wire.FileCreated])

_RENAME_EXCHANGE: Final = 2

_DOT_CURSOR: Final = (1 << 63) - 3  # no file system uses these as d_off: they are beyond ext4's largest hash
_DOT_DOT_CURSOR: Final = (1 << 63) - 2


def _told_of_directories(
    answer: wire.Found | wire.NamesChanged | tuple[RemoteFile, wire.FileCreated],
) -> tuple[int, Iterable[tuple[wire.Attributes | None, Mode]]]:
    """What the answer to a change of names says of its directories, in order, and the serial of that."""
    if isinstance(answer, wire.NamesChanged):
        return answer.serial, zip(answer.parents, answer.modes, strict=False)  # no modes: nothing is granted
    made = answer[1] if isinstance(answer, tuple) else answer
    return made.serial, ((made.parent, made.parent_mode),)


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
        self.listings.policy = LeasePolicy()
        self.recaller = Recaller(self.inodes, self.listings.stale, self.counters)
        for node in self.nodes.values():
            self.recaller.serve(node)
        self.flights = Flights(self.recaller, self.hook.on_next)

    def may_tell_now(self, number: int, thread: int) -> bool:
        """Whether *thread* may be told attributes of the object without a look at what is under way there."""
        inode = self.object(number)
        return not inode.forgetting and not in_flight(inode, thread)

    async def changing_names(
        self, change: Awaitable[T], thread: int, *changed: tuple[int, bytes], removes: bool = False, moves: bool = False
    ) -> T:
        """Await *change*, which makes, moves or removes these names of these directories: no listing may be told again.

        *thread* makes the call.  Nobody here sees the names as they were once the owner may show others what they are.

        Afterwards, also where it failed: only what is listed from then on need show it.  The kernel voids its own copy
        when it is told of success; where nobody knows whether it happened that is left to us.  It does not void
        attributes of the directory that were answered before and that it has not taken yet: that is ours, too.

        What the answer says of the directories is kept for the kernel, which is going to ask, unless another call of
        ours changed them meanwhile.  *removes*: the name is gone if it succeeds.  *moves*: other directories may have
        changed, too (the one that is removed, moved or replaced).
        """
        directories = {number: self.object(number) for number, _ in changed}
        leases = directories[changed[0][0]].owner.leases
        leases.name_changes += 1
        leases.moves += moves
        moves_before = leases.moves
        begun = {number: directory.begin_change() for number, directory in directories.items()}
        for number, name in changed:
            self.all_names.may_exist(directories[number], name)
            self.ahead.changes(directories[number], name)
        alone: set[int] = set()
        flight = self.flights.begin(directories.values(), thread)
        try:
            answer = await change
            if leases.moves == moves_before:
                alone = {number for number, directory in directories.items() if directory.was_alone(begun[number])}
        except RemoteFailure:
            raise
        except OmfsError:
            for number, name in changed:
                self.all_names.end(directories[number])
                self.listings.stale(number)
                await self.listings.on_uncached(number)
                self.recaller.forget_names_soon(directories[number], (name,))
            raise
        finally:
            leases.moves += moves
            for directory in directories.values():
                directory.end_change()
                self.listings.stale(directory.id)
                self.recaller.void_attributes(directory)
            flight.answered()
        serial, told = _told_of_directories(answer)
        for (number, directory), (attributes, mode) in zip(directories.items(), told, strict=False):
            if number in alone and attributes is not None and leases.granted(directory.lease, serial, mode):
                directory.keep_attributes(attributes)
        if removes and alone:
            self.all_names.removed(self.object(changed[0][0]), changed[0][1])
        return answer

    @answering
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode == ROOT_ID:
            return self._look_up_node(name)
        parent, caller = self.object(parent_inode), self.callers.caller(ctx)
        node, handle = await self.place(parent_inode)
        return self.entry(self.found(parent, name, await node.look_up(handle, name, caller)))

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
        parent, umask, caller, thread = self.object(parent_inode), ctx.umask, self.callers.caller(ctx), ctx.pid
        node, handle = await self.place(parent_inode)
        making = node.make_node(handle, name, mode, umask, caller)
        return self.entry(self.made(parent, name, await self.changing_names(making, thread, (parent_inode, name))))

    @answering
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        parent, umask, caller, thread = self.object(parent_inode), ctx.umask, self.callers.caller(ctx), ctx.pid
        node, handle = await self.place(parent_inode)
        making = node.make_directory(handle, name, stat.S_IMODE(mode), umask, caller)
        return self.entry(self.made(parent, name, await self.changing_names(making, thread, (parent_inode, name))))

    @answering
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        parent, caller, thread = self.object(parent_inode), self.callers.caller(ctx), ctx.pid
        node, handle = await self.place(parent_inode)
        making = node.make_symlink(handle, name, target, caller)
        return self.entry(self.made(parent, name, await self.changing_names(making, thread, (parent_inode, name))))

    @answering
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent, caller, thread = self.object(new_parent_inode), self.callers.caller(ctx), ctx.pid
        node, handle = await self.place(inode)
        parent_node, parent_handle = await self.place(new_parent_inode)
        node = self.same_node(node, parent_node)
        making = node.make_link(handle, parent_handle, new_name, caller)
        found = await self.changing_names(making, thread, (new_parent_inode, new_name))
        return self.entry(self.made(parent, new_name, found))

    @answering
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.remove(parent_inode, name, False, self.callers.caller(ctx), ctx.pid)

    @answering
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if parent_inode == ROOT_ID:
            raise FUSEError(errno.EBUSY)
        await self.remove(parent_inode, name, True, self.callers.caller(ctx), ctx.pid)

    async def remove(
        self, parent_inode: int, name: bytes, directory: bool, caller: wire.Caller, thread: int
    ) -> None:  # fmt: skip
        """unlink(2), or rmdir(2) where *directory*."""
        node, parent = await self.place(parent_inode)
        removing = node.remove_name(parent, name, directory, caller)
        await self.changing_names(removing, thread, (parent_inode, name), removes=True, moves=directory)

    @answering
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        caller = self.callers.caller(ctx)
        await self.move(parent_inode_old, name_old, parent_inode_new, name_new, flags, caller, ctx.pid)

    async def move(
        self, old_number: int, old_name: bytes, new_number: int, new_name: bytes, flags: int, caller: wire.Caller,
        thread: int,
    ) -> None:  # fmt: skip
        """renameat2(2)."""
        old_parent, new_parent = self.object(old_number), self.object(new_number)
        node, old_handle = await self.place(old_number)
        new_node, new_handle = await self.place(new_number)
        node = self.same_node(node, new_node)
        moving = node.rename(old_handle, old_name, new_handle, new_name, flags, caller)
        await self.changing_names(moving, thread, (old_number, old_name), (new_number, new_name), moves=True)
        self.recaller.moved(new_parent, new_name)
        if flags & _RENAME_EXCHANGE:
            self.recaller.moved(old_parent, old_name)

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
