"""Snapshots of directories: what a listing in progress still has to tell, and which listings the kernel may keep.

The kernel sends no OPENDIR (takenlistings.py), so nothing but the offset says which listing a READDIR belongs to: a
*cookie* is the snapshot's generation and a position in it, 0 the beginning of a new listing.  A snapshot never changes
what it told: it grows at its end, so whoever walks through it meets every name once, whatever is made or removed
meanwhile and whoever else lists.  At offset 0 the newest snapshot serves again only while it is fresh: held under a
lease, and nothing was told by `stale`.  Otherwise each listing has a snapshot of its own.

What the kernel does with the entries (fs/fuse/readdir.c, `rdc`): it copies them into the directory's page cache as long
as each begins where the last one ended, and an empty answer at that very place makes the copy complete; from then on
getdents is served from it without a request.  A copy whose pages are missing is given up, and a place that is not in
the copy is asked for again.  Hence the rules:
- the pages of a listing that may not be kept are dropped *before* its empty answer: so a complete copy that is stale
  never exists, not for a moment;
- `may_keep` refuses a copy that ends exactly at the end of a page: there the kernel takes a place that it does not
  find for the end, and a slower reader of an older snapshot would miss the rest;
- two snapshots never share a cookie, so the kernel never puts pieces of two into one copy.
A reader that stops half way leaves a copy that cannot be completed by another snapshot: that directory is
answered from here, without the owner, until the kernel forgets it.  That costs two requests a listing, and is all.

Pure bookkeeping: the asking is in takenlistings.py.  Snapshots are bounded in number and in names; the cookie of one
that was dropped continues in a fresh one at the same position, which after removals may leave names out.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from omfs import wire
from omfs.config import LISTING_POSITION_BITS, LISTING_POSITION_MASK
from omfs.mount.lowlevel_abi_dirs import dirent_bytes

if TYPE_CHECKING:
    import trio

    from omfs.mount.inodes import Inode
    from omfs.mount.remote import RemoteNode
    from omfs.mount.remotefile import RemoteFile

SNAPSHOTS_MAX: Final = 512
NAMES_MAX: Final = 250_000  # of all snapshots; about 150 bytes each


class Name(NamedTuple):
    """An entry as it is told: *number* is the FUSE node id, *kind* the DT_ type."""

    name: bytes
    number: int
    kind: int


class Policy:
    """What of a listing may be cached: the one place that says so.  This one: nothing.

    All are asked when the owner's answer *read* was just taken; the kernel is told before anything is awaited.
    """

    def directory_mode(self, directory: Inode[RemoteNode], read: wire.DirectoryRead) -> wire.Mode:
        """What is held of the names of the directory; under SHARED the listing may serve others, and be kept."""
        return wire.Mode.NONE

    def names_valid_s(self, directory: Inode[RemoteNode], read: wire.DirectoryRead) -> int:
        """How long the kernel may use the names that *read* has."""
        return 0

    def attributes_valid_s(self, inode: Inode[RemoteNode], read: wire.DirectoryRead, entry: wire.Entry) -> int:
        """How long it may use the attributes of an entry, *inode* being its object; asked after the others."""
        return 0


class _Directory:
    """What its snapshots have in common."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.changes = 0  # counts `Listings.stale`
        self.newest: Snapshot | None = None
        self.snapshots = 0


class Snapshot:
    """One listing of a directory, as far as it was asked for."""

    def __init__(self, directory: _Directory, inode: object, generation: int, page_bytes: int) -> None:
        self.directory = directory
        self.inode = inode  # of the InodeTable: another one means that the kernel forgot the directory in between
        self.generation = generation
        self.names: list[Name] = []
        self.at_end = False
        self.mode: wire.Mode | None = None  # of the directory, in all pieces received; None: no piece yet
        self.is_dropped = False
        self._hold: object = None  # under which all of it was told, without a name left out
        self._pieces = 0
        self.was_leased = False  # then others than the one that began it may be reading it, unseen
        self.is_told = False  # to its end
        self.is_used = True  # since the last `Listings.idle`
        self.file: RemoteFile | None = None  # open at the owner while there is more
        self.cursor = 0  # the owner's, behind the last name
        self.fetched: trio.Event | None = None  # set when the piece that is being asked for is there
        self._changes = directory.changes
        self._page_bytes = page_bytes
        self._cached_bytes = 0
        self._count_cached((b".", b".."))

    def cookie(self, position: int) -> int:
        """Continues at *position*: 0 is ".", 1 "..", from 2 on the names."""
        return self.generation << LISTING_POSITION_BITS | position

    def extend(self, names: list[Name], mode: wire.Mode, at_end: bool, cursor: int) -> None:
        """The next piece is there."""
        self.mode = mode if self.mode is None else min(self.mode, mode)
        self.was_leased |= mode >= wire.Mode.SHARED
        self.names += names
        self.at_end = at_end
        self.cursor = cursor
        self._count_cached(name.name for name in names)

    def note_hold(self, hold: object) -> None:
        """The next piece was told under this hold on the directory's names; None: it may not show all of them."""
        if not self._pieces:
            self._hold = hold
        elif hold != self._hold:
            self._hold = None
        self._pieces += 1

    @property
    def knows_all(self) -> bool:
        """Whether these are all names of the directory: another node changed none since it began, nor did we."""
        return self._hold is not None and self.at_end and self.is_fresh

    @property
    def is_fresh(self) -> bool:
        """Whether a listing that begins now may be told this."""
        is_leased = self.mode is not None and self.mode >= wire.Mode.SHARED
        return is_leased and self._changes == self.directory.changes and not self.is_dropped

    @property
    def may_keep(self) -> bool:
        """Whether the kernel's copy may stay, now that it is complete."""
        return self.is_fresh and self.at_end and self._cached_bytes % self._page_bytes != 0

    def _count_cached(self, names: Iterable[bytes]) -> None:
        """As fuse_add_dirent_to_cache(): an entry does not reach over the end of a page."""
        for name in names:
            size_bytes = dirent_bytes(name)
            if self._cached_bytes % self._page_bytes + size_bytes > self._page_bytes:
                self._cached_bytes += -self._cached_bytes % self._page_bytes
            self._cached_bytes += size_bytes


async def _nothing_cached(number: int) -> None:
    """Where the kernel caches no listings."""


class Listings:
    """The snapshots of one mount."""

    def __init__(
        self, snapshots_max: int = SNAPSHOTS_MAX, names_max: int = NAMES_MAX, page_bytes: int = mmap.PAGESIZE
    ) -> None:
        self.policy = Policy()
        self.on_uncached: Callable[[int], Awaitable[None]] = _nothing_cached
        """Drop the kernel's pages of this directory; returns when they are gone."""
        self.to_close: list[Snapshot] = []  # dropped while open at the owner
        self._snapshots_max = snapshots_max
        self._names_max = names_max
        self._page_bytes = page_bytes
        self._generation = 0
        self._snapshots: OrderedDict[int, Snapshot] = OrderedDict()  # by generation, the least recently used first
        self._directories: dict[int, _Directory] = {}  # that have snapshots
        self._names = 0

    def __len__(self) -> int:
        return len(self._snapshots)

    def find(self, number: int, inode: object, cookie: int) -> tuple[Snapshot, int]:
        """The snapshot that a READDIR at *cookie* is answered from, and the position in it.

        *inode*: what the InodeTable has for *number* now.
        """
        snapshot = self._snapshots.get(cookie >> LISTING_POSITION_BITS)
        if snapshot is None or snapshot.directory.number != number or snapshot.inode is not inode:
            snapshot = self._fresh(number, inode) or self._begin(number, inode)
        self._snapshots.move_to_end(snapshot.generation)
        snapshot.is_used = True
        return snapshot, cookie & LISTING_POSITION_MASK

    def _fresh(self, number: int, inode: object) -> Snapshot | None:
        directory = self._directories.get(number)
        newest = directory.newest if directory is not None else None
        return newest if newest is not None and newest.is_fresh and newest.inode is inode else None

    def _begin(self, number: int, inode: object) -> Snapshot:
        self._generation += 1
        directory = self._directories.get(number)
        if directory is None:
            directory = self._directories[number] = _Directory(number)
        snapshot = Snapshot(directory, inode, self._generation, self._page_bytes)
        self._snapshots[snapshot.generation] = directory.newest = snapshot
        directory.snapshots += 1
        self._keep_bounds(snapshot)
        return snapshot

    def extend(self, snapshot: Snapshot, names: list[Name], mode: wire.Mode, at_end: bool, cursor: int) -> None:
        """The next piece of *snapshot* is there."""
        snapshot.extend(names, mode, at_end, cursor)
        if not snapshot.is_dropped:
            self._names += len(names)
            self._keep_bounds(snapshot)

    def stale(self, number: int) -> None:
        """A name of the directory changed, or its lease is gone: its snapshots serve no new listing.

        The kernel's pages are not dropped: at a recall that is the caller's next step; of a change that was made
        through this mount the kernel knows by itself.
        """
        directory = self._directories.get(number)
        if directory is not None:
            directory.changes += 1

    def told_to_the_end(self, snapshot: Snapshot) -> None:
        """Its only reader has all, unless it was leased: then only seekdir(3) would ask for it again."""
        if not snapshot.was_leased and not snapshot.is_dropped:
            snapshot.is_told = True
            self._snapshots.move_to_end(snapshot.generation, last=False)

    def idle(self) -> list[Snapshot]:
        """Drop what is over; returns those that are open at the owner and were not used since the last call."""
        unused = [snapshot for snapshot in self._snapshots.values() if not snapshot.is_used]
        for snapshot in self._snapshots.values():
            snapshot.is_used = False
        for snapshot in unused:
            if snapshot.is_told:
                self._drop(snapshot)
        return [snapshot for snapshot in unused if snapshot.file is not None]

    def _keep_bounds(self, used: Snapshot) -> None:
        while len(self._snapshots) > self._snapshots_max or self._names > self._names_max:
            oldest = next(iter(self._snapshots.values()))
            if oldest is used:
                if len(self._snapshots) == 1:
                    return  # one directory may be larger than all bounds
                self._snapshots.move_to_end(oldest.generation)
                continue
            self._drop(oldest)

    def _drop(self, snapshot: Snapshot) -> None:
        del self._snapshots[snapshot.generation]
        directory = snapshot.directory
        directory.snapshots -= 1
        if directory.newest is snapshot:
            directory.newest = None
        if not directory.snapshots:
            del self._directories[directory.number]
        self._names -= len(snapshot.names)
        snapshot.is_dropped = True
        if snapshot.file is not None:
            self.to_close.append(snapshot)
