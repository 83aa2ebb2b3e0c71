"""A node and its objects as the mount sees them: each operation is one method that asks the owner.

`RemoteNode` acts on handles, `remotefile.RemoteFile` on what is open.  What is cached under a lease is in the kernel
(and Inode.xattrs), which then does not ask; so whatever is asked here is asked of the owner.  Answers carry only grants
that count (heldleases.py).  What it does not do: know FUSE, retry a call (the peer does), decide about access (the
owner does).

What is owed to a node that is away (a close, an unlock) is kept and paid when it is back, so that nothing stays open or
locked there; `tend` does that and takes the locks again soon after the owner restarted.  It also gives leases back and
has everything dropped when they lapse (recall.py).  Called by operations*.py; built by daemon.py, which runs `tend`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from omfs import wire
from omfs.config import WRITTEN_CLOSES_MAX
from omfs.errors import HelloRefused, Interrupted, NameAbsent, NodeDown, OmfsError, OutcomeUnknown, RemoteFailure
from omfs.mount.callers import ROOT
from omfs.mount.counters import Counters
from omfs.mount.heldleases import Granting, HeldLeases
from omfs.mount.writebehind import WriteBehind
from omfs.net.frames import Buffer
from omfs.net.peer import Peer

if TYPE_CHECKING:
    from omfs.mount.filelocks import FileLocks
    from omfs.mount.remotefile import RemoteFile

log = logging.getLogger(__name__)

T = TypeVar("T")

_TEND_INTERVAL_S: Final = 1.0
_SILENT_S: Final = 1.0  # `ls -l /mfs` waits that long for a node, once; then not before it is heard again
_AGAIN_S: Final = 0.05  # and then so long for each question that it can't do without
_CLOSE_WRITTEN_S: Final = 0.001  # until then nobody can execute the file there (ETXTBSY)
_CLOSE_ROW_S: Final = 0.005  # the same in a row of files that are written one after the other
_CLOSE_READ_S: Final = 0.01
_CLOSES_MAX: Final = 1024  # in one message
_LAST_WRITES_S: Final = 30.0  # a mount that ends waits so long for an owner that is away: then it is cut off anyway
_NOTHING: Final[frozenset[bytes]] = frozenset()
_OWED_MAX: Final = 65536  # a session of a node that is away for good ends at its side anyway
_UNDELIVERED: Final = (NodeDown, HelloRefused, OutcomeUnknown, Interrupted)


class _Closes:
    """Open ids to be given back together, *within_s* of the first, at most *count_max* in one message.

    *row_s*: the same where others were sent less than that before.
    """

    def __init__(self, within_s: float, row_s: float, count_max: int) -> None:
        self._within_s = within_s
        self._row_s = row_s
        self._count_max = count_max
        self._open_ids: list[int] = []
        self._sent_s = -math.inf
        self._wanted = trio.Event()

    def add(self, open_id: int) -> None:
        self._open_ids.append(open_id)
        self._wanted.set()

    async def wait(self) -> list[wire.CloseFiles]:
        await self._wanted.wait()
        is_row = trio.current_time() - self._sent_s < self._row_s
        await trio.sleep(self._row_s if is_row else self._within_s)
        self._sent_s = trio.current_time()
        self._wanted = trio.Event()
        open_ids, self._open_ids = self._open_ids, []
        starts = range(0, len(open_ids), self._count_max)
        return [wire.CloseFiles(tuple(open_ids[start : start + self._count_max])) for start in starts]


class RemoteNode:
    """One owner.  *files* is what is open there through this mount, by handle.

    *doubtful*: files of which it may hold other locks than we know.  *unopened*: those it does not know are open.
    """

    def __init__(self, peer: Peer, counters: Counters | None = None) -> None:
        self.peer = peer
        self.node_id = peer.node_id
        self.leases = HeldLeases(peer)
        self.counters = counters if counters is not None else Counters()
        self.on_lapsed: Callable[[], Awaitable[None]] | None = None  # make the kernel forget everything; by recall.py
        self.on_root_changed: Callable[[], None] | None = None  # the same for the names of /mfs/<N>
        self._lapsed = trio.Event()
        self.behind = WriteBehind(self.counters)
        self.files: dict[bytes, set[RemoteFile]] = {}
        self.root_attributes: wire.Attributes | None = None  # as last seen
        self._root: bytes | None = None
        self._root_epoch = 0
        self.doubtful: set[FileLocks] = set()
        self.unopened: set[RemoteFile] = set()
        self._owed: deque[tuple[int, wire.Message]] = deque()  # with the epoch that they are of
        self._lost: list[RemoteFile] = []  # their locks are to be taken again
        self._read = _Closes(_CLOSE_READ_S, _CLOSE_READ_S, _CLOSES_MAX)
        self._written = _Closes(_CLOSE_WRITTEN_S, _CLOSE_ROW_S, WRITTEN_CLOSES_MAX)
        self._epoch = peer.epoch
        self._is_doubtful = False  # it did not answer within _SILENT_S when last asked about its root

    def is_cached(self, handle: bytes | None) -> bool:
        """Whether the kernel reads a file that is open here through its page cache."""
        files = self.files.get(handle) if handle is not None else None
        return files is not None and any(file.is_cached for file in files)

    def is_mapped(self, handle: bytes | None) -> bool:
        """Whether the kernel has pages of a file that is read(2) from its owner: a mapping."""
        return handle is not None and any(file.has_pages for file in self.files.get(handle, ()))

    def interrupt(self, task: trio.lowlevel.Task, still_wanted: Callable[[], bool]) -> None:
        """The process that *task* works for was signalled."""
        self.peer.interrupt(task, still_wanted)
        self.behind.interrupt(task, still_wanted)

    async def open_unopened(self, handle: bytes | None = None) -> None:
        """Let the owner know what is open here before this object, or (None) any, may change or go."""
        if self.unopened:
            async with trio.open_nursery() as nursery:
                for file in self.unopened:
                    if handle is None or file.handle == handle:
                        nursery.start_soon(file.open_now)

    async def give_back_all(self) -> None:
        """The mount has ended: what was written is sent, and nothing of this owner is cached any more."""
        if self.behind.files:
            with trio.move_on_after(_LAST_WRITES_S):
                await self.behind.drain()
            self.behind.lose(f"node {self.node_id} can't be reached, and this mount ends")
        if self.peer.state == "up":
            with trio.move_on_after(_SILENT_S), contextlib.suppress(OmfsError):
                await self.peer.call(wire.ReturnLeases((), everything=True), wire.Done)

    # ------------------------------------------------------------ what is written and not sent yet

    async def drain(self, handle: bytes | None) -> None:
        """What was written to this file before is at the owner now (or has failed), so that it can be asked about it.

        Raises Interrupted.
        """
        if self.behind.files and handle is not None:
            for file in tuple(self.files.get(handle, ())):
                await file.drain()

    def writing_recalled(self, handle: bytes | None) -> None:
        """The lease on it is being taken away."""
        if handle is not None:
            for file in self.files.get(handle, ()):
                file.recalled()

    async def give_up_writing(self, handle: bytes | None) -> None:
        """As `drain`, for a recall, which made the kernel forget its pages before."""
        if handle is not None:
            for file in tuple(self.files.get(handle, ())):
                await file.give_up_writing()

    @property
    def unsent_handles(self) -> frozenset[bytes]:
        """Of these the owner tells old sizes and times if it is asked now.

        As of before the question: it may have been answered before they were sent, though they are sent by then.
        """
        files = self.behind.files
        return frozenset(unsent.handle for unsent in files) if files else _NOTHING

    # ------------------------------------------------------------ the tree's root

    @property
    def root_handle(self) -> bytes | None:
        """Of the root of the tree, as last attached."""
        return self._root

    async def root(self) -> bytes:
        """The handle of the root of the tree; asked again after a restart of the owner: its trees may differ."""
        if self._root is None or self._root_epoch != self.peer.epoch:
            found = await self.ask(wire.AttachTree(ROOT), wire.Found)
            if found.handle != self._root:
                self.leases.root.void = self.leases.new_lease(found.handle).void
                if self.on_root_changed is not None:
                    self.on_root_changed()
            self._root, self._root_epoch = found.handle, self.peer.epoch
            self.root_attributes = found.attributes
        return self._root

    def forget_root(self) -> None:
        """It turned out stale: the owner exports another tree now."""
        self._root_epoch = -1

    async def get_root_attributes(self) -> wire.AttributesGot | None:
        """For `ls -l /mfs`: the owner's answer if it is there, otherwise at once the last one, or None."""
        if self.peer.state != "up" or (self._is_doubtful and self.peer.silent_s > _SILENT_S):
            return self._last_root_attributes()
        self._is_doubtful = True
        got: wire.AttributesGot | None = None
        with trio.move_on_after(_SILENT_S):
            try:
                got = await self.get_attributes(await self.root())
                self.root_attributes = got.attributes
            except RemoteFailure as error:
                if error.errno != errno.ESTALE:
                    raise
                self.forget_root()
                await self.root()
            except NodeDown:
                return self._last_root_attributes()
            self._is_doubtful = False
        return got or self._last_root_attributes()

    def _last_root_attributes(self) -> wire.AttributesGot | None:
        return None if self.root_attributes is None else wire.AttributesGot(self.root_attributes)

    async def ask_of_root(self, ask: Callable[[bytes], Awaitable[T]], must_wait: Callable[[], bool]) -> T:
        """What *ask* learns of the root by its handle; for `ls -l /mfs`, as `get_root_attributes`.

        Where the node is silent: NodeDown, for nobody knows the answer.  But first *must_wait* is asked whether
        the caller is on its way to something below, and so waits for the node as for that.
        """
        is_silent = self._is_doubtful and (self.peer.state != "up" or self.peer.silent_s > _SILENT_S)
        self._is_doubtful = True
        with trio.move_on_after(_AGAIN_S if is_silent else _SILENT_S):
            try:
                answer = await ask(await self.root())
            except RemoteFailure:
                self._is_doubtful = False
                raise
            self._is_doubtful = False
            return answer
        if not must_wait():
            raise NodeDown(f"node {self.node_id} is silent")
        return await ask(await self.root())

    # ------------------------------------------------------------ leases

    async def ask(self, request: wire.Message, expect: type[Granting]) -> Granting:
        """Ask the owner for something that it may grant a lease with."""
        asked_in = self.leases.round
        return self.leases.counts(asked_in, await self.peer.call(request, expect))

    async def ask_for_bulk(self, request: wire.Message, expect: type[Granting]) -> tuple[Granting, Buffer]:
        """As `ask`; also what comes beside the reply."""
        asked_in = self.leases.round
        reply, bulk = await self.peer.call_for_bulk(request, expect)
        return self.leases.counts(asked_in, reply), bulk

    def lapse_soon(self) -> None:
        """Its leases are void: have everything dropped."""
        self.leases.look_at_term()
        self._lapsed.set()

    async def _drop_what_lapsed(self) -> None:
        while True:
            await self._lapsed.wait()
            self._lapsed = trio.Event()
            if self.on_lapsed is not None:
                await self.on_lapsed()

    async def _return_leases(self) -> None:
        while True:
            for request in await self.leases.wait_returns():
                await self.settle(request)

    # ------------------------------------------------------------ names

    async def look_up(self, parent: bytes, name: bytes, caller: wire.Caller) -> wire.Found:
        """Raises NameAbsent, also with grants that count."""
        self.counters.asked_look_ups += 1
        unsent, asked_in = self.unsent_handles, self.leases.round
        request = wire.LookUp(parent, name, caller)
        try:
            found = self.leases.counts(asked_in, await self.peer.call(request, wire.Found))
            if found.handle in unsent:  # what is written from here on the kernel knows better than this answer
                await self.drain(found.handle)
                asked_in = self.leases.round
                found = self.leases.counts(asked_in, await self.peer.call(request, wire.Found))
            return found
        except NameAbsent as absent:
            if not asked_in or self.leases.round != asked_in:
                absent.serial = 0
            raise

    async def make_node(self, parent: bytes, name: bytes, mode: int, umask: int, caller: wire.Caller) -> wire.Found:
        return await self.ask(wire.MakeNode(parent, name, mode, umask, caller), wire.Found)

    async def make_directory(
        self, parent: bytes, name: bytes, mode: int, umask: int, caller: wire.Caller
    ) -> wire.Found:
        return await self.ask(wire.MakeDirectory(parent, name, mode, umask, caller), wire.Found)

    async def make_symlink(self, parent: bytes, name: bytes, target: bytes, caller: wire.Caller) -> wire.Found:
        return await self.ask(wire.MakeSymlink(parent, name, target, caller), wire.Found)

    async def make_link(self, handle: bytes, parent: bytes, name: bytes, caller: wire.Caller) -> wire.Found:
        await self.drain(handle)
        return await self.ask(wire.MakeLink(handle, parent, name, caller), wire.Found)

    async def remove_name(self, parent: bytes, name: bytes, directory: bool, caller: wire.Caller) -> wire.NamesChanged:
        await self.open_unopened()  # it may be one of them that goes
        return await self.ask(wire.RemoveName(parent, name, directory, caller), wire.NamesChanged)

    async def rename(
        self, parent: bytes, name: bytes, new_parent: bytes, new_name: bytes, flags: int, caller: wire.Caller
    ) -> wire.NamesChanged:
        await self.open_unopened()
        return await self.ask(wire.RenameName(parent, name, new_parent, new_name, flags, caller), wire.NamesChanged)

    async def read_link(self, handle: bytes, caller: wire.Caller) -> bytes:
        return (await self.peer.call(wire.ReadLink(handle, caller), wire.LinkRead)).target

    # ------------------------------------------------------------ attributes

    async def get_attributes(self, handle: bytes) -> wire.AttributesGot:
        self.counters.asked_attributes += 1
        await self.drain(handle)
        return await self.ask(wire.GetAttributes(handle), wire.AttributesGot)

    async def set_attributes(self, request: wire.SetAttributes) -> wire.Attributes:
        await self.drain(request.handle)
        return (await self.peer.call(request, wire.AttributesGot)).attributes

    async def check_access(self, handle: bytes, mask: int, caller: wire.Caller) -> None:
        """Raises RemoteFailure (EACCES, EROFS) where access is refused."""
        await self.peer.call(wire.CheckAccess(handle, mask, caller), wire.Done)

    async def stat_filesystem(self, handle: bytes) -> wire.FilesystemStatted:
        return await self.peer.call(wire.StatFilesystem(handle), wire.FilesystemStatted)

    async def get_xattr(self, handle: bytes, name: bytes, caller: wire.Caller) -> bytes:
        self.counters.asked_xattrs += 1
        return (await self.peer.call(wire.GetXattr(handle, name, caller), wire.XattrGot)).value

    async def set_xattr(self, handle: bytes, name: bytes, value: bytes, flags: int, caller: wire.Caller) -> None:
        await self.drain(handle)  # a later write would take file capabilities away again
        await self.peer.call(wire.SetXattr(handle, name, value, flags, caller), wire.Done)

    async def list_xattrs(self, handle: bytes, caller: wire.Caller) -> tuple[bytes, ...]:
        self.counters.asked_xattrs += 1
        return (await self.peer.call(wire.ListXattrs(handle, caller), wire.XattrsListed)).names

    async def remove_xattr(self, handle: bytes, name: bytes, caller: wire.Caller) -> None:
        await self.drain(handle)
        await self.peer.call(wire.RemoveXattr(handle, name, caller), wire.Done)

    # ------------------------------------------------------------ what is owed, and restarts

    async def settle(self, request: wire.Message) -> None:
        """Send a request that only gives something back; if the node is away, when it returns.

        No error reaches the caller: what the owner does not know any more needs no giving back.
        """
        if self._owed or not await self._gave_back(request):  # in order
            self.owe(request)

    def owe(self, request: wire.Message) -> None:
        """As `settle`, but soon instead of now."""
        if len(self._owed) < _OWED_MAX:
            self._owed.append((self.peer.epoch, request))

    async def _gave_back(self, request: wire.Message) -> bool:
        """False if the node is away."""
        try:
            await self.peer.call(request, wire.Done)
        except _UNDELIVERED:
            return False
        except OmfsError as error:
            log.debug("node %d: %s: %s", self.node_id, type(request).__name__, error)
        return True

    def close_soon(self, open_id: int, written: bool) -> None:
        """Close a file that was open without locks; some of them together, in a moment.

        Nobody waits for it, and a close of its own would meet the program's next call on the way.
        """
        (self._written if written else self._read).add(open_id)

    async def _close_together(self, closes: _Closes) -> None:
        while True:
            for request in await closes.wait():
                await self.settle(request)

    async def tend(self) -> None:
        """Pay what is owed and take locks again after a restart of the owner; runs as long as the mount."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_together, self._read)
            nursery.start_soon(self._close_together, self._written)
            nursery.start_soon(self._return_leases)
            nursery.start_soon(self._drop_what_lapsed)
            nursery.start_soon(self.behind.run)
            await self._look_after()

    async def _look_after(self) -> None:
        while True:
            await trio.sleep(_TEND_INTERVAL_S)
            if self.peer.state != "up":
                continue
            if self.peer.epoch != self._epoch:
                self._epoch = self.peer.epoch
                self._lost = [file for files in self.files.values() for file in files if file.locks.are_held]
            self._lost = [file for file in list(self._lost) if not await self._recovered(file)]
            while self._owed:
                epoch, request = self._owed[0]
                if epoch == self.peer.epoch and not await self._gave_back(request):  # else it went with its session
                    break
                self._owed.popleft()
            await self.settle_doubts()

    async def settle_doubts(self) -> None:
        """Whether we have the locks that were asked for in vain, as far as the owner answers now."""
        for locks in list(self.doubtful):
            if self.peer.state == "up":
                await self._settle_doubts(locks)

    async def _recovered(self, file: RemoteFile) -> bool:
        """False if it is to be tried again."""
        try:
            if file.is_lost:
                await self.drain(file.handle)  # the file that is EXCLUSIVE is opened again first
                await file.recover(file.open_id)
        except _UNDELIVERED:
            return False
        except OmfsError as error:
            log.warning("node %d restarted; a locked file is not there any more: %s", self.node_id, error)
        except Exception:
            log.exception("node %d restarted; a locked file could not be opened again", self.node_id)
        return True

    async def _settle_doubts(self, locks: FileLocks) -> None:
        try:
            await locks.settle_doubts()
        except OmfsError as error:
            log.debug("node %d: locks in doubt: %s", self.node_id, error)
        except Exception:
            log.exception("node %d: locks in doubt could not be settled", self.node_id)
            self.doubtful.discard(locks)
