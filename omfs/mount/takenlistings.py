"""Listing directories, taken out of pyfuse3's stream: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR and FSYNCDIR.

OPENDIR is answered with ENOSYS: from then on the kernel opens directories without asking, sends READDIRs without a
handle, and keeps listings in its page cache, so that a listing that is under a lease is repeated without any request.
Which snapshot a READDIR continues, and what the kernel may keep, says listings.py; here the owner is asked, piece by
piece, and the entries are packed.

A listing is opened at the owner when its first piece is asked for, as the user who asks: who may not read the
directory gets EACCES there.  It is closed when its end is known, when it is dropped, or after it rested for a while
(`tend`); the owner's cursor continues it also through another open.

An entry brings its object along (READDIRPLUS) only where the kernel may use that for longer than this call, and only in
the call in which the owner told it: what was received earlier may have been overtaken by a write through this mount.
Called by the hook, installed by session.py.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from pyfuse3 import FUSEError

from omfs import wire
from omfs.config import READDIR_REPLY_BYTES
from omfs.errors import OmfsError
from omfs.kernel.fusenotify import Notifier
from omfs.mount import lowlevel_abi as abi, lowlevel_abi_dirs as dirs
from omfs.mount.inodes import ROOT_ID, Inode, directory_id
from omfs.mount.listings import Name, Snapshot
from omfs.mount.lowlevel import Hook
from omfs.mount.magiclinks import listed
from omfs.mount.opening import open_directory
from omfs.mount.operations_names import NameOperations
from omfs.mount.remote import RemoteNode
from omfs.mount.taker import taker

log = logging.getLogger(__name__)

REST_S: Final = 30.0  # a listing that nobody continued for one to two of these is closed at the owner
OWNER_ENTRY_BYTES: Final = 80  # what the owner counts for an entry besides name and handle (export/listings.py)
_DROPPING_MAX: Final = 8  # threads that let the kernel drop pages
_NAME_MAX: Final = 255
_DOTS: Final = 2  # positions before the first name


class Lister:
    """Answers the directory requests of one mount."""

    def __init__(self, hook: Hook, operations: NameOperations) -> None:
        self._hook = hook
        self._operations = operations
        self._listings = operations.listings

    async def read(self, request: memoryview, unique: int) -> bytes:
        """READDIR and READDIRPLUS.  Raises OmfsError, FUSEError."""
        hook, operations, listings = self._hook, self._operations, self._listings
        number, caller = hook.node_id, operations.callers.caller(hook)
        _, offset, size_bytes = abi.read_in(request)
        reply = dirs.DirectoryReply(size_bytes, hook.opcode == dirs.READDIRPLUS)
        inode = None if operations.is_local(number) else operations.inodes.get(number)
        snapshot, position = listings.find(number, inode, offset)
        if inode is None and not snapshot.at_end:
            listings.extend(snapshot, self._nodes(number), wire.Mode.SHARED, at_end=True, cursor=0)
        if inode is not None and not offset and snapshot.mode is not None:
            operations.counters.answered_listings += 1
        for index, (dot, dot_number) in enumerate(((b".", number), (b"..", ROOT_ID))):
            # The kernel takes only the inode number and the type of these two and counts no look-up.
            if position == index and reply.add(dot_number, dirs.DT_DIR, dot, snapshot.cookie(index + 1)):
                position += 1
        if position >= _DOTS:
            await self._tell(reply, snapshot, position - _DOTS, caller)
        if not len(reply):
            if not snapshot.may_keep:
                await listings.on_uncached(number)
            listings.told_to_the_end(snapshot)
        while listings.to_close:
            await _close(listings.to_close.pop())
        return reply.message(unique)

    def _nodes(self, number: int) -> list[Name]:
        """/mfs itself; there is nothing below /mfs/<self>, laid over."""
        if number != ROOT_ID:
            return []
        nodes = [Name(b"%d" % node_id, directory_id(node_id), dirs.DT_DIR) for node_id in self._operations.node_ids()]
        return nodes + listed()

    async def _tell(self, reply: dirs.DirectoryReply, snapshot: Snapshot, index: int, caller: wire.Caller) -> None:
        """Pack what is known from *index* on; ask the owner where that is nothing."""
        dots = len(reply)
        while True:
            while index < len(snapshot.names):
                name = snapshot.names[index]
                if not reply.add(name.number, name.kind, name.name, snapshot.cookie(index + _DOTS + 1)):
                    return
                index += 1
            if snapshot.at_end or len(reply) > dots:
                return
            if snapshot.fetched is None:
                index += await self._fetch(reply, snapshot, index, caller)
            else:  # another process asks for the same piece
                await snapshot.fetched.wait()

    async def _fetch(self, reply: dirs.DirectoryReply, snapshot: Snapshot, index: int, caller: wire.Caller) -> int:
        """Let the owner tell the next piece; returns how many of its names were packed already, from *index* on."""
        snapshot.fetched = trio.Event()
        try:
            node, handle = await self._operations.place(snapshot.directory.number)
            file = snapshot.file
            if file is None:
                file = snapshot.file = await open_directory(node, handle, caller)
            self._operations.counters.asked_listings += 1
            asked_at = self._operations.xattr_changes
            size_bytes = _piece_bytes(reply, snapshot, len(handle))
            read = await file.read_directory(snapshot.cursor, size_bytes, reply.plus)  # `ls -l` asks for ACLs next
            return self._take(reply, snapshot, index, node, read, asked_at)
        except OmfsError as error:
            if error.errno == errno.ESTALE:  # removed by another node: as the kernel says of a removed directory
                raise FUSEError(errno.ENOENT) from None
            raise
        finally:
            snapshot.fetched.set()
            snapshot.fetched = None
            if snapshot.at_end or snapshot.is_dropped:
                await _close(snapshot)

    def _take(
        self, reply: dirs.DirectoryReply, snapshot: Snapshot, index: int, node: RemoteNode, read: wire.DirectoryRead,
        asked_at: int,
    ) -> int:  # fmt: skip
        """Add a piece to the snapshot, and to the reply as much of it as fits; returns how many names that is."""
        inodes, policy, entries = self._operations.inodes, self._listings.policy, read.entries
        directory = inodes.get(snapshot.directory.number)
        mode = policy.directory_mode(directory, read)
        if any(entry.is_name_only for entry in entries):
            mode = wire.Mode.NONE  # another user may see more
        packed, can_pack = 0, reply.plus and index == len(snapshot.names)
        name_s = policy.names_valid_s(directory, read) if can_pack else 0
        round_ = node.leases.round if any(entry.bare for entry in entries) else 0
        names: list[Name] = []
        for entry in entries:
            kind = entry.attributes.mode >> 12
            if entry.is_name_only:
                names.append(Name(entry.name, entry.attributes.inode, kind))
                can_pack = False
                continue
            inode = inodes.find(node, entry.handle)
            names.append(Name(entry.name, inode.id, kind))
            if can_pack:
                known = self._known(inode, read, entry, name_s, asked_at, round_)
                can_pack = reply.add(inode.id, kind, entry.name, snapshot.cookie(index + packed + _DOTS + 1), known)
                packed += can_pack
                inode.lookups += can_pack and known is not dirs.NO_ENTRY
            if not inode.lookups:
                inodes.drop(inode)  # the kernel knows only its number
        cursor = entries[-1].cursor if entries else snapshot.cursor
        lists_all = read.lists_all and mode is not wire.Mode.NONE
        snapshot.note_hold(directory.hold_of_names if lists_all else None)
        self._listings.extend(snapshot, names, mode, at_end=read.at_end or not entries, cursor=cursor)
        if snapshot.knows_all and not directory.changing:
            self._operations.all_names.know(directory, (name.name for name in snapshot.names))
        return packed

    def _known(
        self, inode: Inode[RemoteNode], read: wire.DirectoryRead, entry: wire.Entry, name_s: int, asked_at: int,
        round_: int,
    ) -> bytes:  # fmt: skip
        """What the entry says of its object: nothing where the kernel could not use it in a later call."""
        attr_s = self._listings.policy.attributes_valid_s(inode, read, entry)
        if attr_s:
            self._operations.note_bare(inode, entry.bare, asked_at, round_)
        if not name_s and not attr_s:
            return dirs.NO_ENTRY
        return dirs.known_entry(inode.id, abi.attributes(inode.id, entry.attributes), name_s, attr_s)

    async def sync(self, request: memoryview, unique: int) -> bytes:
        """FSYNCDIR.  Raises OmfsError, FUSEError."""
        hook, operations = self._hook, self._operations
        number, caller, data_only = hook.node_id, operations.callers.caller(hook), dirs.fsync_data_only(request)
        if not operations.is_local(number):
            node, handle = await operations.place(number)
            file = await open_directory(node, handle, caller)
            try:
                await file.sync(data_only)
            finally:
                await file.close()
        return abi.reply(unique)

    async def tend(self) -> None:
        """Close at the owner what nobody continues; runs as long as the mount."""
        while True:
            await trio.sleep(REST_S)
            for snapshot in self._listings.idle():
                if snapshot.fetched is None:
                    await _close(snapshot)


def _piece_bytes(reply: dirs.DirectoryReply, snapshot: Snapshot, handle_bytes: int) -> int:
    """How much to ask for: under a lease what fits the reply, since it is told with attributes only now; else much."""
    if not reply.plus or (snapshot.mode is not None and snapshot.mode < wire.Mode.SHARED):
        return READDIR_REPLY_BYTES
    left_bytes = reply.left_bytes - dirs.PLUS_BYTES - _NAME_MAX  # the owner's last entry may exceed what was asked for
    return max(left_bytes * min(handle_bytes + OWNER_ENTRY_BYTES, dirs.PLUS_BYTES) // dirs.PLUS_BYTES, 1)


async def _close(snapshot: Snapshot) -> None:
    if snapshot.fetched is None and snapshot.file is not None:  # else `_fetch` does it
        file, snapshot.file = snapshot.file, None
        await file.close()


def page_dropper(hook: Hook) -> Callable[[int], Awaitable[None]]:
    """What makes the kernel forget the listing of a directory that it may not keep, before it is told the end of it."""
    notifier, limiter = Notifier(hook.fd), trio.CapacityLimiter(_DROPPING_MAX)

    async def drop_pages(number: int) -> None:
        try:
            await trio.to_thread.run_sync(notifier.inval_inode, number, limiter=limiter)
        except OSError as error:  # unmounted
            log.debug("pages of directory %d: %s", number, error)

    return drop_pages


def install_listing_takers(hook: Hook, operations: NameOperations) -> Lister:
    """Let the hook take these operations out of pyfuse3's stream; the mount runs the Lister's `tend`."""
    lister = Lister(hook, operations)

    def take_opendir(hook: Hook, request: memoryview) -> None:
        if hook.flags & abi.NO_OPENDIR_SUPPORT:
            hook.answer(abi.error_reply(hook.unique, errno.ENOSYS))
        else:  # Linux before 5.1 asks each time
            hook.answer(dirs.cached_directory_reply(hook.unique))

    operations.listings.on_uncached = page_dropper(hook)
    hook.takers[dirs.OPENDIR] = take_opendir
    hook.takers[dirs.RELEASEDIR] = lambda hook, request: hook.answer(abi.reply(hook.unique))
    hook.takers[dirs.READDIR] = hook.takers[dirs.READDIRPLUS] = taker("read of a directory", lister.read)
    hook.takers[dirs.FSYNCDIR] = taker("sync of a directory", lister.sync)
    return lister
