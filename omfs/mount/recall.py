"""What this node's kernel must forget, and in which order: recalls of the owners, and leases that lapse.

A recall reads like this:
    seen        at once, in the order of arrival: what was granted before it is void, also where it is still on its way
    begin       nothing of the object is granted from here on
    pass        the kernel is told, from a thread: first the names, then the attributes, listing and pages
    again       if anything was told to the kernel during the pass
    end         the lease is down to what the owner leaves; returning from `recall` is the answer

Names come first because dropping one takes the directory's lock: LOOKUPs and READDIRs under way hold it, so their
replies are processed by then.  A directory without names to drop is locked by dropping one that cannot exist.  The
kernel discards attributes that were on their way when it was told (its attr_version), in LOOKUP, READDIRPLUS and
GETATTR; other replies never carry attributes that stay valid (handlers.py).  What the kernel says it does not know may
be on its way too: it is told again until it knows, or has forgotten.

A call of our own that changes names keeps the directory locked in the kernel until its owner answers it, and the owner
may be waiting for us.  So while such a call is under way a recall of names is answered before they are forgotten, and
nobody sees them all the same: without valid attributes of the directory the kernel asks for them before it looks at any
name in it (default_permissions), and that question is answered when the names are forgotten (`wait_forgotten`).

Names are expired, not dropped: a current directory or an open file keeps its path.  Only an expired name is looked up
again without the directory's lock, so for a while after such a look-up the name is dropped for real.

A file that is being read through the page cache is given CLOSE_WITHIN_S to be closed: most programs read and close it,
and they need the lease for that.  After it is gone the kernel would read up to an older end of the file, as it discards
a size that was on its way when it was told to forget; so a read's question for the size has it set apart (`grow`).

A READ is never kept waiting.  One that is answered without a data lease, of a file that is cached otherwise, fills
pages that nobody recalls: they are dropped at once (`drop_pages_soon`), and a recall waits for those drops it finds
under way.

Threads because each notification may wait for requests that only this daemon answers; plenty of them, and apart for
names and for data, so that those that wait do not stop others.  They are left alone when the mount ends.
Called through the peers' callbacks and by operations*.py; the session gives it the device and runs it.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Final

import trio

from omfs import wire
from omfs.cache.holder import Holder, Lease
from omfs.kernel.callers import only_looks
from omfs.kernel.fusenotify import Notifier
from omfs.mount.counters import Counters
from omfs.mount.forgetting import Doomed, drop_pages, forget, forget_attributes, forget_each
from omfs.mount.inodes import Inode, InodeTable
from omfs.mount.remote import RemoteNode
from omfs.wiretypes import Mode

log = logging.getLogger(__name__)

THREADS_MAX: Final = 256  # of each kind
REVALIDATED_S: Final = 10.0  # until then the kernel may still be processing the answer to a repeated look-up
_REVALIDATED_MAX: Final = 65536
CLOSE_WITHIN_S: Final = 0.25  # a native program that wants to write may have to wait that long for long-lived readers
LOCKED_BY_ASKER_S: Final = 0.02  # forgetting takes less when nobody keeps the directory locked
_AGAIN_S: Final = 0.001  # the first wait for what the kernel does not know yet; doubled up to ...
_AGAIN_MAX_S: Final = 0.1
_UNKNOWN_MAX_S: Final = 10.0  # about the term: by then it is forgotten, and its FORGET was lost with a request
_AT_ONCE: Final = 16  # objects for one thread when everything is dropped: one of them may wait


class Recaller:
    """One per mount."""

    def __init__(
        self, inodes: InodeTable[RemoteNode], on_stale: Callable[[int], None], counters: Counters | None = None
    ) -> None:
        """*on_stale*: listings of this directory serve no longer (Listings.stale)."""
        self.notifier: Notifier | None = None  # without it nothing is ever cached
        self._served: set[RemoteNode] = set()
        self.counters = counters if counters is not None else Counters()
        self._inodes = inodes
        self._on_stale = on_stale
        self._nursery: trio.Nursery | None = None
        self._revalidated: dict[tuple[int, bytes], float] = {}  # oldest first
        self._name_threads = trio.CapacityLimiter(THREADS_MAX)
        self._data_threads = trio.CapacityLimiter(THREADS_MAX)

    async def run(self) -> None:
        """What is to be dropped besides recalls is dropped here; as long as the mount."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def attach(self, notifier: Notifier) -> None:
        """The kernel can be told from here on, so it may cache."""
        self.notifier = notifier
        for node in self._served:
            node.leases.is_enabled = True

    def serve(self, node: RemoteNode) -> None:
        """Hear what this owner recalls."""
        self._served.add(node)
        node.leases.is_enabled = self.notifier is not None
        node.leases.all_leases = lambda: (inode.lease for inode in self._inodes.of_owner(node))
        node.on_lapsed = functools.partial(self._drop_lapsed, node)
        node.on_root_changed = functools.partial(self._root_changed, node)
        node.peer.on_recall_seen = functools.partial(self.seen, node)
        node.peer.on_recall = functools.partial(self.recall, node)
        node.peer.on_lapse = functools.partial(self._lapse, node)

    # ------------------------------------------------------------ recalls

    def seen(self, node: RemoteNode, recall: wire.Recall) -> None:
        """A recall was taken from the connection."""
        leases = node.leases
        leases.look_at_term()
        if isinstance(recall, wire.RecallAll):
            leases.holder.seen_all(leases.all_leases(), recall.serial)
            for inode in self._inodes.of_owner(node):
                inode.broken()
            return
        known = self._known(node, recall.handle)
        leases.holder.seen(recall.handle, known.lease if known is not None else None, recall.serial)
        if known is not None:
            known.broken()

    async def recall(self, node: RemoteNode, recall: wire.Recall) -> None:
        """Returns when nothing of what is recalled is cached here."""
        begun_s = time.perf_counter()
        if isinstance(recall, wire.RecallAll):
            await node.open_unopened()
            await self._forget_all(node)
            await node.behind.drain()
        else:
            known = self._known(node, recall.handle)
            if known is not None:
                names, left = (
                    (recall.names, known.lease.mode) if isinstance(recall, wire.RecallNames) else (None, recall.mode)
                )
                if known.is_directory:
                    await self._forget_names(known, names, left)
                elif names is not None:
                    await self._forget(known, names, left)
                else:
                    await self._give_up(known, left)
        self.counters.recalled(time.perf_counter() - begun_s)

    def _known(self, node: RemoteNode, handle: bytes) -> Inode[RemoteNode] | None:
        if handle == node.root_handle:
            return self._inodes.directory(node)
        return self._inodes.known(node, handle)

    async def _forget(self, inode: Inode[RemoteNode], names: tuple[bytes, ...] | None, left: Mode) -> None:
        """One object: these *names* and its attributes, or (None) everything, with *left* as what its lease becomes."""
        lease = inode.lease
        if self.notifier is None:
            return
        Holder.begin_recall(lease)
        try:
            again = _Again()
            while True:
                begun = Holder.begin_pass(lease)  # another recall of it may be under way, with passes of its own
                self.counters.passes += 1
                is_known = await self._pass(inode, lease.take_names() if names is None else names)
                if not is_known and inode.lookups > 0 and not again.is_over:
                    await again.wait()
                elif Holder.is_done(lease, begun):
                    break
            for dropping in inode.dropping:
                await dropping.wait()
        finally:
            Holder.end_recall(lease, left)

    async def _give_up(self, inode: Inode[RemoteNode], left: Mode) -> None:
        """A file: what was written is at the owner, and unless *left* is SHARED nothing is cached any more.

        Writes that come meanwhile wait for the owner.  Pages that were changed through a mapping come as writes during
        the passes, which wait for them.
        """
        inode.owner.writing_recalled(inode.handle)
        if left is Mode.NONE and inode.lease.data:
            await self._wait_closed(inode)
            await inode.owner.open_unopened(inode.handle)  # it may be about to go
        Holder.begin_recall(inode.lease)
        try:
            if left is Mode.NONE or inode.owner.is_mapped(inode.handle):
                await self._forget(inode, None, left)
            await inode.owner.give_up_writing(inode.handle)
        finally:
            Holder.end_recall(inode.lease, left)

    @staticmethod
    async def _wait_closed(inode: Inode[RemoteNode]) -> None:
        """For a moment, until nobody reads the file through the page cache; the owner grants nothing meanwhile."""
        with trio.move_on_after(CLOSE_WITHIN_S):
            while inode.owner.is_cached(inode.handle):
                closed = trio.Event()
                inode.wakes |= {closed}
                try:
                    await closed.wait()
                finally:
                    inode.wakes -= {closed}

    async def _forget_names(self, inode: Inode[RemoteNode], names: tuple[bytes, ...] | None, left: Mode) -> None:
        """As `_forget`.  Returns as soon as nobody can see the names any more, see above."""
        if self.notifier is None or self._nursery is None:
            return
        forgotten = trio.Event()
        Holder.begin_recall(inode.lease)
        self._nursery.start_soon(self._forget_and_tell, inode, names, left, forgotten)
        while not forgotten.is_set():
            if inode.changing:
                inode.forgetting |= {forgotten}
                await self._void(inode)
                return
            inode.wakes |= {forgotten_or_changing := trio.Event()}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_set_after, forgotten, forgotten_or_changing)
                await forgotten_or_changing.wait()
                nursery.cancel_scope.cancel()
            inode.wakes -= {forgotten_or_changing}

    async def _forget_and_tell(
        self, inode: Inode[RemoteNode], names: tuple[bytes, ...] | None, left: Mode, forgotten: trio.Event
    ) -> None:
        try:
            await self._forget(inode, names, left)
        finally:
            Holder.end_recall(inode.lease, left)
            inode.forgetting -= {forgotten}
            forgotten.set()

    async def wait_forgotten(self, inode: Inode[RemoteNode], thread: int) -> None:
        """Before attributes of a directory are told to *thread*: names that the owner believes forgotten are.

        Who is about to change something may ask with the directory locked, and then they can't be forgotten: he is
        answered after a while.  What he does there is judged by the owner.
        """
        # From a thread: it may have to wait for that process, and it for us (kernel/processes.py).
        may_have_locked = not await trio.to_thread.run_sync(only_looks, thread, abandon_on_cancel=True)
        for forgotten in inode.forgetting:
            while not forgotten.is_set():
                with trio.move_on_after(LOCKED_BY_ASKER_S if may_have_locked else math.inf):
                    await forgotten.wait()
                if not inode.changing:
                    break

    async def _void(self, inode: Inode[RemoteNode]) -> None:
        """Attributes and listing of a directory; our own call keeps it locked, so nobody is just reading it."""
        notifier = self.notifier
        assert notifier is not None
        await trio.to_thread.run_sync(
            drop_pages, notifier, inode.id, 0, 0, limiter=self._name_threads, abandon_on_cancel=True
        )

    def void_attributes(self, inode: Inode[RemoteNode]) -> None:
        """Attributes that the kernel has, or is about to take, do not count any more.  Never waits."""
        if self.notifier is not None:
            forget_attributes(self.notifier, [inode.id])

    async def _pass(self, inode: Inode[RemoteNode], names: tuple[bytes, ...]) -> bool:
        """False: the kernel does not know the object."""
        notifier = self.notifier
        assert notifier is not None
        doomed = self._doomed(inode, names)
        if not doomed.is_directory and not doomed.pages:
            return forget(notifier, doomed)  # never waits
        threads = self._name_threads if doomed.is_directory else self._data_threads
        return await trio.to_thread.run_sync(forget, notifier, doomed, limiter=threads, abandon_on_cancel=True)

    def _doomed(self, inode: Inode[RemoteNode], names: tuple[bytes, ...]) -> Doomed:
        if inode.is_directory:
            self._on_stale(inode.id)
        self.counters.dropped_names += len(names)
        pages = inode.lease.data or inode.owner.is_cached(inode.handle) or inode.owner.is_mapped(inode.handle)
        self.counters.dropped_pages += pages
        recent_s = trio.current_time() - REVALIDATED_S
        dropped = frozenset(name for name in names if self._revalidated.get((inode.id, name), recent_s) > recent_s)
        return Doomed(inode.id, names, dropped, inode.is_directory, pages)

    # ------------------------------------------------------------ everything of an owner

    def _lapse(self, node: RemoteNode, reason: str) -> None:
        self.counters.lapses += 1
        if (
            not node.leases.owner_restarted
        ):  # else the new one may have kept what the old one granted, and judges itself
            node.behind.lose(f"node {node.node_id}: {reason}")
        for inode in self._inodes.of_owner(node):
            inode.broken()
        node.lapse_soon()

    async def _drop_lapsed(self, node: RemoteNode) -> None:
        await self._forget_all(node)
        await node.behind.drain()  # of an owner that restarted; the others wait for us until we are through
        node.peer.lapse_handled()

    async def forget_node(self, node: RemoteNode) -> None:
        """It left the map: nothing of it will be recalled any more."""
        self._served.discard(node)
        node.leases.is_enabled = False
        await self._forget_all(node)
        await node.behind.drain()

    def _root_changed(self, node: RemoteNode) -> None:
        directory = self._inodes.directory(node)
        if directory is not None and self._nursery is not None:
            self._nursery.start_soon(self._forget, directory, None, Mode.NONE)

    async def _forget_all(self, node: RemoteNode) -> None:
        """Attributes first, as that never waits: without them nobody gets past a directory without asking."""
        notifier = self.notifier
        if notifier is None:
            return
        inodes = [inode for inode in self._inodes.of_owner(node) if _may_be_cached(inode)]
        leases = [inode.lease for inode in inodes]
        for lease in leases:
            Holder.begin_recall(lease)
        try:
            numbers = [inode.id for inode in inodes]
            await trio.to_thread.run_sync(
                forget_attributes, notifier, numbers, limiter=self._data_threads, abandon_on_cancel=True
            )
            left, again = inodes, _Again()
            while left := await self._pass_all(left, again):
                await again.wait()
            for inode in inodes:
                for dropping in inode.dropping:
                    await dropping.wait()
        finally:
            for lease in leases:
                Holder.end_recall(lease, Mode.NONE)

    async def _pass_all(self, inodes: list[Inode[RemoteNode]], again: _Again) -> list[Inode[RemoteNode]]:
        """Returns those that need another pass."""
        unknown: set[int] = set()
        begun: dict[int, int] = {}  # by number
        async with trio.open_nursery() as nursery:
            for start in range(0, len(inodes), _AT_ONCE):
                some = inodes[start : start + _AT_ONCE]
                for inode in some:
                    begun[inode.id] = Holder.begin_pass(inode.lease)
                self.counters.passes += len(some)
                doomed = [self._doomed(inode, inode.lease.take_names()) for inode in some]
                nursery.start_soon(self._forget_several, doomed, unknown)
        return [
            inode
            for inode in inodes
            if not Holder.is_done(inode.lease, begun[inode.id])
            or (inode.id in unknown and inode.lookups > 0 and not again.is_over)
        ]

    async def _forget_several(self, several: list[Doomed], unknown: set[int]) -> None:
        notifier = self.notifier
        assert notifier is not None
        unknown.update(
            await trio.to_thread.run_sync(
                forget_each, notifier, several, limiter=self._name_threads, abandon_on_cancel=True
            )
        )

    # ------------------------------------------------------------ for operations

    def looked_up(self, parent: int, name: bytes) -> None:
        """A LOOKUP is being answered with an object that the kernel knew already: it may be looking again."""
        key = (parent, name)
        self._revalidated.pop(key, None)
        self._revalidated[key] = trio.current_time()
        while len(self._revalidated) > _REVALIDATED_MAX or (
            next(iter(self._revalidated.values())) < trio.current_time() - REVALIDATED_S
        ):
            del self._revalidated[next(iter(self._revalidated))]

    def moved(self, directory: Inode[RemoteNode], name: bytes) -> None:
        """A RENAME is being answered: the kernel takes what it knew under another name as known under this one."""
        lease = directory.lease
        lease.told = True
        if lease.is_held and directory.owner.leases.round:
            if lease.names is None:
                lease.names = set()
            lease.names.add(name)
        else:
            if lease.recalls:
                lease.names = {name, *(lease.names or ())}
            self.forget_names_soon(directory, (name,))

    def forget_names_soon(self, directory: Inode[RemoteNode], names: tuple[bytes, ...]) -> None:
        """Nobody knows what became of them; as soon as the kernel has processed the answer that is being given."""
        if self._nursery is not None:
            self._nursery.start_soon(self._forget, directory, names, directory.lease.mode)

    def forget_soon(self, inode: Inode[RemoteNode]) -> None:
        """Nobody knows what became of the object: likewise."""
        if self._nursery is not None:
            self._nursery.start_soon(self._forget, inode, None, Mode.NONE)

    async def drop_pages(self, inode: Inode[RemoteNode], offset: int = 0, size_bytes: int = 0) -> None:
        """Returns when the kernel has none of these pages that it had, or was about to get."""
        if self.notifier is not None:
            await self._drop_pages(inode, offset, size_bytes, _dropping(inode))

    def drop_pages_soon(self, inode: Inode[RemoteNode], offset: int, size_bytes: int) -> None:
        """The READ that is being answered fills pages that no lease covers."""
        if self.notifier is not None and self._nursery is not None:
            self._nursery.start_soon(self._drop_pages, inode, offset, size_bytes, _dropping(inode))

    @staticmethod
    async def wait_settled(inode: Inode[RemoteNode]) -> None:
        """Before the kernel is told a size of a file that it reads through the page cache: pages that were read without

        a lease until now are gone.  They may end where the file ended then, and zeros behind would count as data.
        """
        for filling in inode.filling:
            await filling.wait()
        for dropping in inode.dropping:  # some of those among them
            await dropping.wait()

    async def grow(self, inode: Inode[RemoteNode], size_bytes: int) -> None:
        """Before the kernel is answered that a file, which it reads through the page cache, has this size.

        It does not believe that if it is told to forget meanwhile.  What changes the file next waits for this.
        """
        notifier = self.notifier
        if notifier is None or not size_bytes:
            return
        growing = _dropping(inode)
        try:
            await trio.to_thread.run_sync(
                notifier.grow, inode.id, size_bytes, limiter=self._data_threads, abandon_on_cancel=True
            )
        finally:
            inode.dropping -= {growing}
            growing.set()

    async def _drop_pages(
        self, inode: Inode[RemoteNode], offset: int, size_bytes: int, dropping: trio.Event
    ) -> None:  # fmt: skip
        notifier = self.notifier
        assert notifier is not None
        self.counters.dropped_pages += 1
        try:
            await trio.to_thread.run_sync(
                drop_pages, notifier, inode.id, offset, size_bytes,
                limiter=self._data_threads, abandon_on_cancel=True,
            )  # fmt: skip
        finally:
            inode.dropping -= {dropping}
            dropping.set()


async def _set_after(first: trio.Event, then: trio.Event) -> None:
    await first.wait()
    then.set()


class _Again:
    """Waits between passes, for what the kernel does not know yet."""

    def __init__(self) -> None:
        self._wait_s = _AGAIN_S
        self._until_s = trio.current_time() + _UNKNOWN_MAX_S

    @property
    def is_over(self) -> bool:
        return trio.current_time() > self._until_s

    async def wait(self) -> None:
        await trio.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, _AGAIN_MAX_S)


def _dropping(inode: Inode[RemoteNode]) -> trio.Event:
    event = trio.Event()
    inode.dropping |= {event}
    return event


def _may_be_cached(inode: Inode[RemoteNode]) -> bool:
    lease: Lease = inode.lease
    return lease.mode is not Mode.NONE or lease.told or lease.names is not None or lease.recalls > 0 or lease.data
