"""Writes that are answered before their owner has the data: allowed under an EXCLUSIVE lease (docs/leases.md).

`Unsent` is what one open file has written so; it sends it SEND_WITHIN_S after the first write, or as soon as a whole
request has gathered, several at once, never two that depend on each other (dirty.py).  `drain` returns when all that
was written before is at the owner, or has failed.  What fails is kept and told once, at the file's next write, fsync or
close.  `WriteBehind` is all of that towards one owner, and runs the senders.

The owner refuses what comes after the lease is gone (WriteBlocks.behind), so nothing late can overwrite what others
wrote since.  Where the lease was recalled writes wait for their owner again, after what is unsent, until it is granted
anew: it is asked for when somebody goes on writing.  What it does not do: know FUSE; decide when to drain (remote.py
and remotefile.py, before whatever may show the file's data or attributes; recall.py).

Invariants: `put` never waits, and is only called while `is_allowed`; no sender waits for anything but the owner.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from omfs.errors import Interrupted, OmfsError, RemoteFailure
from omfs.mount.counters import Counters
from omfs.mount.dirty import Dirty, Piece
from omfs.net.frames import Buffer

if TYPE_CHECKING:
    from omfs.mount.remotefile import RemoteFile

log = logging.getLogger(__name__)

SEND_WITHIN_S: Final = 0.005
SENDERS_MAX: Final = 4  # requests under way for one file: enough to keep a 10 Gbit/s line busy
FILE_BYTES_MAX: Final = 8 << 20
MOUNT_BYTES_MAX: Final = 64 << 20
ASK_AFTER_WRITES: Final = 2  # a single write after a recall is often the last one: asking would only take from others
ASK_AGAIN_S: Final = 0.05  # two nodes that write in turn would else do nothing but take the lease from each other
ASK_AGAIN_MAX_S: Final = 3.2  # after refusals, which come from another open of the file and may last


class WriteBehind:
    """Towards one owner.  *files*: those with something unsent; *waiting*: tasks that wait for a sender."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.files: set[Unsent] = set()
        self.waiting: dict[trio.lowlevel.Task, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._wanted = trio.Event()

    @property
    def is_running(self) -> bool:
        return self._nursery is not None

    async def run(self) -> None:
        """Send what nobody drains, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while True:
                    await self._wanted.wait()
                    await trio.sleep(SEND_WITHIN_S)
                    self._wanted = trio.Event()
                    for unsent in tuple(self.files):
                        unsent.send_soon()
            finally:
                self._nursery = None

    def soon(self) -> None:
        """Something was written."""
        self._wanted.set()

    def start(self, task: Callable[[], Awaitable[None]]) -> bool:
        """False: the mount has ended, and only a drain sends."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(task)
        return True

    async def drain(self) -> None:
        """Everything that is not lost; in no order."""
        async with trio.open_nursery() as nursery:
            for unsent in tuple(self.files):
                if not unsent.is_lost:
                    nursery.start_soon(unsent.drain)

    def lose(self, why: str) -> None:
        """The lease is over: what is not acknowledged must not be sent any more, and is lost."""
        files = tuple(self.files)
        if files:
            log.error(
                "%s: %d bytes that were written to %d files are lost", why, sum(map(Unsent.lose, files)), len(files)
            )

    def interrupt(self, task: trio.lowlevel.Task, still_wanted: Callable[[], bool]) -> None:
        """The process that *task* works for was signalled."""
        scope = self.waiting.get(task)
        if scope is not None and not still_wanted():
            scope.cancel()


class Unsent:
    """What one open file has written and the owner does not have yet, and how it goes on writing."""

    def __init__(self, file: RemoteFile) -> None:
        self.handle = file.handle
        self._file = file
        self._all = file.node.behind  # holds this one while anything is unsent
        self._counters = self._all.counters
        self._dirty = Dirty()
        self.is_lost = False  # all of it; what is under way must still end before anything is written again
        self._errno = 0  # of a write that was answered early, not yet told
        self._progress = trio.lowlevel.ParkingLot()
        self._senders = 0  # tasks of their own
        self._written_through = 0  # writes since the lease was lost, or never had
        self._ask_at_s = 0.0
        self._ask_again_s = ASK_AGAIN_S
        self._asking: trio.Event | None = None  # set when a mapping need not wait for the lease any more

    # ------------------------------------------------------------ writing

    @property
    def is_dirty(self) -> bool:
        return self._dirty.size_bytes > 0

    @property
    def has_failed(self) -> bool:
        """Some error waits to be told."""
        return self._errno != 0

    @property
    def is_allowed(self) -> bool:
        """Whether a write may be answered now, before the owner has it."""
        inode = self._file.inode
        return (
            inode is not None
            and inode.lease.is_exclusive
            and inode.lease.writer is self._file  # else another open has it, and what both send would be in no order
            and inode.owner.leases.round != 0
            and self._all.is_running
        )

    def has_room(self, size_bytes: int) -> bool:
        return (
            self._dirty.size_bytes + size_bytes <= FILE_BYTES_MAX
            and self._counters.behind_bytes + size_bytes <= MOUNT_BYTES_MAX
        )

    def put(self, offset: int | None, data: Buffer, kill_set_id: bool) -> bool:
        """Take a write (*offset* None: append), which is done as far as the program can tell.

        True: there is something to send, so the other tasks should get their turn.
        """
        dirty, counters = self._dirty, self._counters
        before = dirty.size_bytes
        dirty.write(offset, data, kill_set_id)
        self.is_lost = False
        counters.behind_writes += 1
        self._count(before)
        if not dirty.is_ready:
            self._all.soon()
            return False
        self.send_soon()
        return True

    async def write(
        self, offset: int | None, data: Buffer, kill_set_id: bool, *, may_ask: bool = True, must_arrive: bool = False
    ) -> int:
        """A write that could not be answered at once.  Raises what an earlier one ended with.

        *may_ask*: for the lease; not for what comes from the page cache, for which a recall may be waiting.
        *must_arrive*: the owner has it on its disk when this returns (O_SYNC).
        """
        self.raise_error()
        if not must_arrive:
            if may_ask and self._written_through >= ASK_AFTER_WRITES and self._may_ask():
                await self._ask()
            while self.is_allowed and not self.has_room(len(data)) and self.is_dirty:
                await self._step()
            self.raise_error()
            if self.is_allowed and self.has_room(len(data)):
                self.put(offset, data, kill_set_id)
                return len(data)
            self._written_through += 1
        await self._file.node.drain(self.handle)
        self.raise_error()
        return await self._file.write(offset, data, kill_set_id)

    def raise_error(self) -> None:
        """Tell, once, what became of a write that was answered early."""
        if self._errno:
            number, self._errno = self._errno, 0
            raise RemoteFailure(number)

    # ------------------------------------------------------------ the lease

    def recalled(self) -> None:
        """It is being taken away: not to be asked for again at once."""
        self._written_through = 0
        self._ask_at_s = trio.current_time() + ASK_AGAIN_S
        self._asked()

    async def ask_for_mapping(self) -> None:
        """Before a page of it is read that a program may change by itself.  Whether it was granted says the lease.

        Waits no longer when a recall comes, which waits for that page; elsewhere another node may wait so for us.
        """
        if self._asking is None:
            if not self._may_ask() or not self._all.start(self._ask_aside):
                return
            self._asking = trio.Event()
        await self._asking.wait()

    async def _ask_aside(self) -> None:
        try:
            await self._ask()
        finally:
            self._asked()

    def _asked(self) -> None:
        if self._asking is not None:
            self._asking.set()
            self._asking = None

    def _may_ask(self) -> bool:
        inode = self._file.inode
        return (
            inode is not None
            and not inode.lease.is_exclusive
            and not inode.lease.recalls
            and inode.owner.leases.round != 0
            and trio.current_time() >= self._ask_at_s
        )

    async def _ask(self) -> None:
        """For the lease; without it writes wait for their owner."""
        self._ask_at_s = trio.current_time() + self._ask_again_s  # also for others that write meanwhile
        try:
            is_granted = await self._file.ask_exclusive()
        except Interrupted:
            raise
        except OmfsError as error:
            log.debug("node %d: no lease for writing: %s", self._file.node.node_id, error)
            is_granted = False
        self._ask_again_s = ASK_AGAIN_S if is_granted else min(2 * self._ask_again_s, ASK_AGAIN_MAX_S)
        self._ask_at_s = trio.current_time() + self._ask_again_s

    def lose(self) -> int:
        """See `WriteBehind.lose`."""
        before = self._dirty.size_bytes
        lost = self._dirty.lose()
        self.is_lost = True
        self._errno = self._errno or errno.EIO
        self._count(before)
        self._progress.unpark_all()
        return lost

    # ------------------------------------------------------------ sending

    def send_soon(self) -> None:
        """From tasks of their own."""
        while self._senders < min(SENDERS_MAX, self._dirty.waiting) and self._all.start(self.send_waiting):
            self._senders += 1

    async def send_waiting(self) -> None:
        """One of those tasks."""
        try:
            while self._dirty.sending < SENDERS_MAX and (piece := self._dirty.take()) is not None:
                await self._send(piece)
        finally:
            self._senders -= 1

    async def drain(self) -> None:
        """Returns when all that was written before this is at the owner, or has failed.

        A single request is sent by the calling task: the close of a small new file costs no other.
        Raises Interrupted; nothing is lost by that.
        """
        last = self._dirty.newest
        if self._dirty.waiting > 1:
            self.send_soon()
        while self._dirty.oldest <= last:
            await self._step()

    async def _step(self) -> None:
        """Send a piece, or wait until one is there."""
        piece = self._dirty.take()
        if piece is not None:
            await self._send(piece)
            return
        task = trio.lowlevel.current_task()
        with trio.CancelScope() as scope:
            self._all.waiting[task] = scope
            try:
                await self._progress.park()
                return
            finally:
                del self._all.waiting[task]
        raise Interrupted("killed while its writes were being sent")

    async def _send(self, piece: Piece) -> None:
        self._counters.behind_requests += 1
        is_back = False
        try:
            await self._deliver(piece)
        except (Interrupted, trio.Cancelled):
            is_back = piece.offset is not None and not piece.is_lost
            if not is_back:  # nobody knows whether it was appended, and it must not be twice
                self._failed(piece, errno.EIO, "given up while it was under way")
            raise
        except OmfsError as error:
            self._failed(piece, error.errno, str(error))
        except Exception:
            log.exception("node %d: writing failed", self._file.node.node_id)
            self._failed(piece, errno.EIO, "an error of ours")
        finally:
            before = self._dirty.size_bytes
            if is_back:
                self._dirty.put_back(piece)
                self._all.soon()
            else:
                self._dirty.sent(piece)
            self._count(before)
            self._progress.unpark_all()
        if self._dirty.is_ready:
            self.send_soon()  # what had to wait for this one

    async def _deliver(self, piece: Piece) -> None:
        """Raises OmfsError.  A disk that takes only a part is asked once more, to hear why."""
        rest, offset = memoryview(piece.data), piece.offset
        for _ in range(2):
            written = await self._file.write(offset, rest, piece.kill_set_id, behind=True)
            rest = rest[written:]
            if not rest:
                return
            offset = None if offset is None else offset + written
        raise RemoteFailure(errno.ENOSPC)

    def _failed(self, piece: Piece, number: int, text: str) -> None:
        self._counters.behind_failed += 1
        node_id = self._file.node.node_id
        log.warning("node %d: %d bytes that were written could not be stored there: %s", node_id, len(piece.data), text)
        if not piece.is_lost:  # else it is told already
            self._errno = self._errno or number

    def _count(self, before_bytes: int) -> None:
        """*before_bytes*: were unsent."""
        now_bytes, counters = self._dirty.size_bytes, self._counters
        counters.behind_bytes += now_bytes - before_bytes
        if bool(now_bytes) is not bool(before_bytes):
            counters.behind_files += 1 if now_bytes else -1
            (self._all.files.add if now_bytes else self._all.files.discard)(self)
