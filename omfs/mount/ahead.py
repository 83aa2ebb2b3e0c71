"""Objects of a directory before anybody asks for them: who looks up some of its names one by one soon wants others.

When some look-ups of a directory had to be answered by its owner, pieces of its listing are asked for beside them, with
what each name is and may be granted; a LOOKUP of one of these then costs no message.  The more of them are wanted, the
more are asked for: a program that walks through a directory soon has all of it, one that opens a few files in a large
one makes its owner tell a few times as many.

Look-ups that find nothing count, too, at half the rate: whoever makes files in a directory, unpacks an archive or
compiles, asks so for each name.  When all of the directory came ahead, all its names are known (allnames.py), and a
name that is not there costs no message either.

What came ahead is told at most once, and only while it is certain: under the leases, held without a break, of the
directory and of the object; of names that no call of ours was changing since it was asked for; of objects that the
kernel knew by no name since then, as nobody here can have changed those; and to who asks with the same credentials as
who it was fetched for.  Unused it is given back after a while.

Bounded in names; the directories not used for longest go first.  Called by takenops.py, unasked.py (by way of
handlers.py) and operations_names.py; run by session.py.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Set
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from omfs import wire
from omfs.config import READDIR_REPLY_BYTES
from omfs.errors import OmfsError
from omfs.mount.opening import open_directory
from omfs.wiretypes import Mode

if TYPE_CHECKING:
    from omfs.mount.allnames import AllNames
    from omfs.mount.inodes import Inode, InodeTable
    from omfs.mount.remote import RemoteNode

log = logging.getLogger(__name__)

NAMES_MAX: Final = 50_000  # of all directories; about 600 bytes each
_ASKED_FIRST: Final = 4  # look-ups that had to be asked for before anything is fetched
_PER_FOUND: Final = 4  # names that are fetched for each of those that found something
_PER_ABSENT: Final = 2  # and for each that found nothing, which can gain only when all names are known
_PER_USED: Final = 16  # and for each that was used
_PIECE_MIN: Final = 64
_PIECE_MAX: Final = 1024
_ENTRY_BYTES: Final = 96  # of the reply, besides the handle
_REST_S: Final = 15.0  # a directory whose names nobody wanted for one to two of these is given up


class _Object(NamedTuple):
    entry: wire.Entry
    inode: Inode[RemoteNode]
    hold: tuple[int, int]


class _Directory:
    """One that is walked through.  *caller*: for whom."""

    def __init__(self, inode: Inode[RemoteNode], caller: wire.Caller) -> None:
        self.inode = inode
        self.caller = caller
        self.objects: dict[bytes, _Object] = {}
        self.hold: tuple[int, int] | None = None  # under which they were told
        self.changed: set[bytes] = set()  # names that calls of ours change or changed, at least since it is fetching
        self.sees_changes = not inode.changing  # none is under way that began before this was here to note it
        self.names: set[bytes] | None = None  # all that it may have had since its first piece; None: not known
        self.found = 0
        self.absent = 0
        self.used = 0
        self.fetched = 0
        self.cursor = 0
        self.at_end = False
        self.is_fetching = False
        self.is_resting = False

    @property
    def wanted(self) -> int:
        """How many names more are to be asked for."""
        if self.at_end or self.found + self.absent < _ASKED_FIRST:
            return 0
        return self.found * _PER_FOUND + self.absent * _PER_ABSENT + self.used * _PER_USED - self.fetched

    def begin_piece(self) -> None:
        """The next one is asked for now."""
        if not self.inode.changing:
            self.changed.clear()
            self.sees_changes = True
        if not self.cursor:
            self.names = set(self.changed) if self.sees_changes else None

    def note_names(self, read: wire.DirectoryRead) -> None:
        """Those of a piece that was just taken, under `hold`."""
        if not read.lists_all or any(entry.is_name_only for entry in read.entries):
            self.names = None
        if self.names is not None:
            self.names.update(entry.name for entry in read.entries)


class Ahead:
    """Of one mount."""

    def __init__(self, inodes: InodeTable[RemoteNode], all_names: AllNames, names_max: int = NAMES_MAX) -> None:
        self._inodes = inodes
        self._all_names = all_names
        self._names_max = names_max
        self._directories: OrderedDict[int, _Directory] = OrderedDict()  # by number, the least recently used first
        self._names = 0
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        """Names that are known ahead."""
        return self._names

    # ------------------------------------------------------------ asked by the handlers

    def missed(self, inode: Inode[RemoteNode], caller: wire.Caller) -> None:
        """A look-up in this directory found something, and its owner had to be asked."""
        directory = self._walked(inode, caller)
        if directory is not None:
            directory.found += 1
            self._touch(directory)

    def missed_absent(self, inode: Inode[RemoteNode], caller: wire.Caller) -> None:
        """The same of one that found nothing."""
        directory = self._walked(inode, caller)
        if directory is None:
            return
        if directory.at_end and directory.hold != inode.hold_of_names:  # all of it came, and was changed elsewhere
            self._give_up(inode.id)
            directory = self._begin(inode, caller)
        directory.absent += 1
        self._touch(directory)

    def take(self, inode: Inode[RemoteNode], name: bytes, caller: wire.Caller) -> tuple[int, wire.Attributes] | None:
        """Node id and attributes of what has this name, which the kernel is now told for ever; None: ask."""
        directory = self._directories.get(inode.id)
        if directory is None or name not in directory.objects or directory.caller != caller:
            return None
        if directory.inode is not inode or directory.hold != inode.hold_of_names:
            self._give_up(inode.id)
            return None
        entry, found, hold = self._removed(directory, name)
        if not self._is_certain(found, hold):
            return None
        leases = inode.owner.leases
        if not leases.may_name_unasked(inode.lease, name) or not leases.tell_unasked(found.lease):
            self._release(found)
            return None
        found.lookups += 1
        directory.used += 1
        self._touch(directory)
        return found.id, entry.attributes

    def changes(self, inode: Inode[RemoteNode], name: bytes) -> None:
        """A call of ours that makes, moves or removes this name has begun: it is counted in `Inode.changing`."""
        directory = self._directories.get(inode.id)
        if directory is None:
            return
        if inode.changing == 1 and not directory.is_fetching:
            directory.changed.clear()
        directory.changed.add(name)
        if directory.names is not None:
            directory.names.add(name)
        if name in directory.objects:
            self._release(self._removed(directory, name).inode)

    def _walked(self, inode: Inode[RemoteNode], caller: wire.Caller) -> _Directory | None:
        """This directory as this caller walks through it; None while another does."""
        directory = self._directories.get(inode.id)
        if directory is None or directory.inode is not inode:
            self._give_up(inode.id)
            return self._begin(inode, caller)
        return directory if directory.caller == caller else None

    def _begin(self, inode: Inode[RemoteNode], caller: wire.Caller) -> _Directory:
        directory = self._directories[inode.id] = _Directory(inode, caller)
        return directory

    def _is_certain(self, inode: Inode[RemoteNode], hold: tuple[int, int]) -> bool:
        """Whether what was told of it holds, and the kernel has no name for it."""
        if inode.lookups or self._inodes.peek(inode.id) is not inode:
            return False
        is_sure = inode.hold_of_names == hold and not inode.altering and inode.handle not in inode.owner.unsent_handles
        if not is_sure:
            self._release(inode)
        return is_sure

    def _touch(self, directory: _Directory) -> None:
        self._directories.move_to_end(directory.inode.id)
        directory.is_resting = False
        if directory.wanted > 0 and not directory.is_fetching and self._nursery is not None:
            directory.is_fetching = True
            self._nursery.start_soon(self._fetch, directory)

    # ------------------------------------------------------------ fetching

    async def run(self) -> None:
        """As long as the mount."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while True:
                    await trio.sleep(_REST_S)
                    self.give_up_resting()
            finally:
                self._nursery = None  # what is looked up while the mount ends is answered, too

    def give_up_resting(self) -> None:
        """Those of which nobody wanted a name since this was called before."""
        for number, directory in list(self._directories.items()):
            if directory.is_resting and not directory.is_fetching:
                self._give_up(number)
            directory.is_resting = True

    async def _fetch(self, directory: _Directory) -> None:
        inode, node = directory.inode, directory.inode.owner
        try:
            handle = inode.handle if inode.handle is not None else await node.root()
            file = await open_directory(node, handle, directory.caller)
            try:
                count = min(max(directory.wanted, _PIECE_MIN), _PIECE_MAX)
                size_bytes = min(count * (len(handle) + _ENTRY_BYTES), READDIR_REPLY_BYTES)
                directory.begin_piece()
                with self._inodes.noting_forgotten() as forgotten:
                    read = await file.read_directory(directory.cursor, size_bytes)
                    self._take(directory, read, forgotten)
            finally:
                await file.close()
        except OmfsError as error:  # it may be searched but not read, it is gone, its owner is silent
            log.debug("node %d: nothing ahead of a directory: %s", node.node_id, error)
            directory.at_end = True
        finally:
            directory.is_fetching = False

    def _take(self, directory: _Directory, read: wire.DirectoryRead, forgotten: Set[bytes]) -> None:
        """In the step in which the answer came.  *forgotten*: handles that the kernel forgot since it was asked for."""
        inode, node = directory.inode, directory.inode.owner
        if self._directories.get(inode.id) is not directory:
            return
        directory.fetched += len(read.entries)
        if not node.leases.granted(inode.lease, read.serial, read.mode):
            return
        if directory.hold != inode.hold_of_names:
            self._empty(directory)
            directory.hold = inode.hold_of_names
            if directory.cursor:  # what came under another hold says nothing of now
                directory.names = None
        directory.note_names(read)
        for entry in read.entries:
            is_certain = entry.name not in directory.changed and entry.handle not in forgotten
            if is_certain and entry.mode is not Mode.NONE and not entry.is_name_only:
                self._know(directory, read, entry)
        directory.at_end = read.at_end or not read.entries
        directory.cursor = read.entries[-1].cursor if read.entries else directory.cursor
        if directory.at_end and directory.names is not None:
            self._all_names.know(inode, directory.names)
            directory.names = None
        while self._names > self._names_max:
            self._give_up(next(iter(self._directories)))

    def _know(self, directory: _Directory, read: wire.DirectoryRead, entry: wire.Entry) -> None:
        node = directory.inode.owner
        inode = self._inodes.find(node, entry.handle)
        if inode.lookups or entry.name in directory.objects:  # the kernel knows it, by this name or another
            return
        granted = node.leases.granted(inode.lease, read.serial, entry.mode)
        hold = inode.hold_of_names
        if not granted or hold is None:
            self._release(inode)
            return
        inode.is_directory = entry.attributes.mode >> 12 == 4
        directory.objects[entry.name] = _Object(entry, inode, hold)
        self._names += 1

    # ------------------------------------------------------------ forgetting

    def _removed(self, directory: _Directory, name: bytes) -> _Object:
        self._names -= 1
        return directory.objects.pop(name)

    def _release(self, inode: Inode[RemoteNode]) -> None:
        """The kernel was never told of it, and is not going to be."""
        if not inode.lookups and self._inodes.peek(inode.id) is inode:
            self._inodes.drop(inode)

    def _empty(self, directory: _Directory) -> None:
        for name in list(directory.objects):
            self._release(self._removed(directory, name).inode)

    def _give_up(self, number: int) -> None:
        directory = self._directories.pop(number, None)
        if directory is not None:
            self._empty(directory)
