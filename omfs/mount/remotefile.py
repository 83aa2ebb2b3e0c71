"""A file or directory that is open on its owner, and the locks taken through it.

When the owner restarted it does not know the open id any more (OpenLost): the handle is opened again, the locks are
taken again, and the call is repeated, which is safe as it was refused unexecuted.  A lock that somebody else got
meanwhile is lost: then every further read and write through the file fails with EIO, as the program believes
itself alone.  A lock call whose outcome is not known leaves a doubt: the owner may hold a lock for nobody until it is
told what we hold (`settle_doubts`).  What was written and is not sent yet (writebehind.py) comes before whatever looks
at the file.  Called by operations_*.py, takenops.py and remote.py.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from omfs import wire
from omfs.cache.holder import Holder
from omfs.errors import (
    HelloRefused,
    Interrupted,
    LockLost,
    NodeDown,
    OmfsError,
    OpenLost,
    OutcomeUnknown,
    RemoteFailure,
)  # fmt: skip
from omfs.mount.inodes import Inode
from omfs.mount.ranges import Range, changed, requests_for
from omfs.mount.remote import RemoteNode
from omfs.mount.writebehind import Unsent
from omfs.net.frames import Buffer

log = logging.getLogger(__name__)

R = TypeVar("R", bound=wire.Message)

UNOPENED: Final = 0  # no owner's open id: it does not know yet that the file is open
_REOPENS_MAX: Final = 3  # an owner that restarts more often than this within one call
_INDEFINITE: Final = (NodeDown, Interrupted, HelloRefused, OutcomeUnknown)  # a lock call that was sent may have worked


class RemoteFile:
    """One open(2) of a program, at the owner."""

    def __init__(
        self, node: RemoteNode, handle: bytes, open_id: int, caller: wire.Caller, flags: int, *,
        directory: bool = False, execute: bool = False,
    ) -> None:  # fmt: skip
        self.node = node
        self.handle = handle
        self.open_id = open_id
        self.appends = bool(flags & os.O_APPEND)
        self.is_written = bool(flags & os.O_ACCMODE)
        self.is_cached = False  # the kernel reads it through its page cache; set by operations_files.py
        self.whole: Buffer = b""  # all data, which came when it was opened, for a READ
        self.whole_hold: object = None  # under which they are so
        self.has_pages = False  # of a mapping, though it is direct_io; likewise
        self.inode: Inode[RemoteNode] | None = None  # likewise
        self._caller = caller
        self._flags = flags
        self._directory = directory
        self._execute = execute
        self._flock = 0  # LOCK_SH, LOCK_EX or 0
        self._ranges: dict[int, tuple[Range, ...]] = {}  # by lock owner
        self.own_owner: int | None = None  # the lock owner that this open itself is (F_OFD_SETLK), once that is seen
        self._lock_lost = False
        self._flock_doubtful = False  # the owner may hold another flock than _flock
        self._doubts: list[tuple[int, Range]] = []  # lock owner and where it may hold other ranges than _ranges
        self._locking = 0  # flock calls under way
        self._asking: list[int] = []  # processes with POSIX lock calls under way
        self._recovering: trio.Lock | None = None
        self._epoch = node.peer.epoch if open_id != UNOPENED else -1  # of open_id
        self._closed = False
        if open_id == UNOPENED:
            node.unopened.add(self)
        self._unsent: Unsent | None = None
        node.files.setdefault(handle, set()).add(self)

    # ------------------------------------------------------------ data

    async def read(self, offset: int, size_bytes: int) -> Buffer:
        """Up to *size_bytes*; fewer only at the end of the file."""
        await self.node.drain(self.handle)
        self.node.counters.asked_reads += 1
        return (await self._call_checked(lambda: wire.ReadBlocks(self.open_id, offset, size_bytes), wire.BlocksRead))[1]

    def take_whole(self, offset: int, size_bytes: int) -> Buffer:
        """As `read`, of what came when it was opened; kept until the end was read, which the kernel keeps then."""
        data = self.whole
        if offset + size_bytes >= len(data):
            self.whole = b""
        return memoryview(data)[offset : offset + size_bytes]

    async def write(self, offset: int | None, data: Buffer, kill_set_id: bool = False, behind: bool = False) -> int:
        """At *offset*, or (None) at the end, wherever that is by then, as one record.

        *kill_set_id*: the writer may not keep the set-id bits of the file.  *behind*: the program was answered already
        (writebehind.py, through which all writes come).
        """

        def request() -> wire.Message:
            if offset is None:
                return wire.AppendBlocks(self.open_id, kill_set_id, behind)
            return wire.WriteBlocks(self.open_id, offset, kill_set_id, behind)

        return (await self._call_checked(request, wire.BlocksWritten, data))[0].size_bytes

    @property
    def unsent(self) -> Unsent:
        """What was written through this file and is not at the owner yet."""
        if self._unsent is None:
            self._unsent = Unsent(self)
        return self._unsent

    @property
    def is_settled(self) -> bool:
        """Nothing is unsent, and no error waits to be told."""
        return self._unsent is None or not (self._unsent.is_dirty or self._unsent.has_failed)

    async def drain(self) -> None:
        """What was written through this file before is at the owner now, or has failed; see `settle`."""
        if self._unsent is not None:
            await self._unsent.drain()

    def recalled(self) -> None:
        """The lease is being taken away."""
        if self.is_written:
            self.unsent.recalled()

    async def give_up_writing(self) -> None:
        """As `drain`, because the lease is taken away; the kernel has no pages left."""
        self.has_pages = False
        await self.drain()

    async def settle(self) -> None:
        """As `drain`.  Raises, once, what became of it."""
        if self._unsent is not None:
            await self._unsent.drain()
            self._unsent.raise_error()

    async def ask_exclusive(self) -> bool:
        """Whether the owner grants that writes are answered before it has them."""
        inode = self.inode
        assert inode is not None  # since it was numbered
        asked_in = self.node.leases.round
        granted = await self._call(lambda: wire.AskLease(self.open_id), wire.LeaseGranted)
        granted = self.node.leases.counts(asked_in, granted)
        self.node.leases.granted(inode.lease, granted.serial, granted.mode, writer=self)
        return inode.lease.is_exclusive

    async def sync(self, data_only: bool) -> None:
        await self.node.drain(self.handle)
        await self.settle()
        await self._call(lambda: wire.SyncFile(self.open_id, data_only), wire.Done)

    async def allocate(self, mode: int, offset: int, size_bytes: int) -> None:
        await self.node.drain(self.handle)
        await self._call_checked(lambda: wire.AllocateSpace(self.open_id, mode, offset, size_bytes), wire.Done)

    async def seek(self, offset: int, whence: int) -> int:
        await self.node.drain(self.handle)
        return (await self._call(lambda: wire.SeekFile(self.open_id, offset, whence), wire.SeekDone)).offset

    async def copy_to(self, source_offset: int, target: RemoteFile, target_offset: int, size_bytes: int) -> int:
        """copy_file_range(2) on the owner of both."""
        await self.node.drain(self.handle)
        await self.node.drain(target.handle)
        for _ in range(_REOPENS_MAX):
            try:
                for file in (self, target):
                    if file.is_lost:
                        await file.recover(file.open_id)
                self._check_locks()
                target._check_locks()
                request = wire.CopyRange(self.open_id, source_offset, target.open_id, target_offset, size_bytes)
                return (await self.node.peer.call(request, wire.BlocksWritten)).size_bytes
            except OpenLost:
                continue
        raise self._restarts_again_and_again()

    async def set_attributes(self, request: wire.SetAttributes) -> wire.Attributes:
        """SetAttributes through this file (ftruncate)."""

        def through() -> wire.Message:
            return wire.SetAttributes(
                request.handle, request.caller, self.open_id, request.mode, request.uid, request.gid,
                request.size_bytes, request.atime_ns, request.mtime_ns, request.atime_now, request.mtime_now,
            )  # fmt: skip

        await self.node.drain(self.handle)
        return (await self._call_checked(through, wire.AttributesGot))[0].attributes

    async def read_directory(self, cursor: int, size_bytes: int, bare: bool = False) -> wire.DirectoryRead:
        unsent = self.node.unsent_handles
        read = await self._read_directory(cursor, size_bytes, bare)
        early = [entry.handle for entry in read.entries if entry.handle in unsent] if unsent else ()
        if not early:
            return read
        for handle in early:  # the owner told sizes that are not those of what was written here
            await self.node.drain(handle)
        return await self._read_directory(cursor, size_bytes, bare)

    async def _read_directory(self, cursor: int, size_bytes: int, bare: bool) -> wire.DirectoryRead:
        asked_in = self.node.leases.round
        read = await self._call(lambda: wire.ReadDirectory(self.open_id, cursor, size_bytes, bare), wire.DirectoryRead)
        return self.node.leases.counts(asked_in, read)

    async def open_for_lease(self) -> wire.FileOpened:
        """Open it once more, as it was opened, and close that at once: for what the owner grants with it."""
        await self.node.drain(self.handle)
        opened = await self.node.ask(self._open_again(), wire.FileOpened)
        self.node.close_soon(opened.open_id, written=False)
        return opened

    @property
    def closes_at_once(self) -> bool:
        """Whether `close` has nothing to wait for, and `close_here` is all of it."""
        return self._unsent is None and not self.holds_locks

    async def close(self) -> None:
        """Give it back; whatever happens, this open id is not used again."""
        await self.drain()  # what fails now nobody can be told: the program's close(2) has returned
        self.close_here()
        if self.open_id == UNOPENED or not self.holds_locks:
            return
        for owner in list(self._ranges):  # open file description locks end with the description
            await self.node.settle(wire.ReleaseLocks(self.open_id, owner))
        await self.node.settle(wire.CloseFile(self.open_id))

    def close_here(self) -> None:
        """The part of `close` that does not wait."""
        self._closed = True
        self._flock_doubtful = False
        self._doubts.clear()
        self.node.doubtful.discard(self)
        self.node.unopened.discard(self)
        if (same := self.node.files.get(self.handle)) is not None:
            same.discard(self)
            for other in same:  # mappings of one file have the same pages
                other.has_pages |= self.has_pages
            if not same:
                del self.node.files[self.handle]
        if self.is_cached and self.inode is not None:
            self.inode.wake()
        if self.open_id == UNOPENED:
            return
        if self.is_written and self.inode is not None:
            Holder.stopped_writing(self.inode.lease, self)
        if not self.holds_locks:
            self.node.close_soon(self.open_id, written=self.is_written)

    # ------------------------------------------------------------ locks

    @property
    def holds_locks(self) -> bool:
        return bool(self._flock or self._ranges)

    @property
    def flock(self) -> int | None:  # LOCK_SH, LOCK_EX or 0; None where that is in doubt
        return None if self._locking or self._flock_doubtful else self._flock

    @property
    def unsure(self) -> list[int]:  # processes that may hold other ranges than those that are known
        return [*self._asking, *(doubt.pid for _, doubt in self._doubts)]

    async def lock_file(self, operation: int, wait: bool, moving: wire.Moving | None = None) -> None:  # flock(2)
        await self._settle_all_doubts()
        self._locking += 1
        try:
            await self._call(lambda: wire.LockFile(self.open_id, operation, wait, moving), wire.Done)
            self._flock = 0 if operation == fcntl.LOCK_UN else operation
        except _INDEFINITE:
            if operation == fcntl.LOCK_UN:  # nobody counts on it any more
                self._flock = 0
            if moving is None:
                self._flock_doubtful = True
                self.node.doubtful.add(self)
            raise
        finally:
            self._locking -= 1

    async def lock_range(self, owner: int, new: Range, wait: bool, moving: wire.Moving | None = None) -> None:
        """fcntl(2) F_SETLK, or F_SETLKW where *wait*; of *moving* another has it too, so only a close gives it back.

        Raises RemoteFailure (EAGAIN), Interrupted.
        """

        def request() -> wire.Message:
            return wire.LockRange(self.open_id, owner, new.kind, new.start, new.end, new.pid, wait, moving)

        await self._settle_all_doubts()
        self._asking.append(new.pid)
        try:
            await self._call(request, wire.Done)
        except _INDEFINITE:
            self._ranges.setdefault(owner, ())  # so that a close releases what we do not know of
            if moving is None:
                self._doubts.append((owner, new))
                self.node.doubtful.add(self)
                if new.kind == fcntl.F_UNLCK:  # nobody counts on it any more
                    self._note_range(owner, new)
            raise
        finally:
            self._asking.remove(new.pid)
        self._note_range(owner, new)

    def _note_range(self, owner: int, new: Range) -> None:
        held = changed(self._all_ranges(owner), new)
        for file in self._same_object():  # the locks belong to the process and the object, not to this open
            file._ranges.pop(owner, None)
        if held:
            self._ranges[owner] = held

    def owned_ranges(self) -> list[tuple[int, Range]]:  # by lock owner
        return [(owner, lock) for owner, held in self._ranges.items() for lock in held]

    async def _settle_all_doubts(self) -> None:
        """Before another lock of the object is asked for: what is told to the owner later would undo that one."""
        for file in self._same_object():
            while file._flock_doubtful or file._doubts:
                await file._settle_one_doubt()

    async def settle_doubts(self) -> None:
        """Tell the owner what we hold where it may hold more, or less, for us.  Raises NodeDown and the like.

        Left to a lock call of the object where one is under way: it may be granted before we hear of it.
        """
        while (self._flock_doubtful or self._doubts) and not any(
            file._locking or file._asking for file in self._same_object()
        ):
            await self._settle_one_doubt()
        if not self._flock_doubtful and not self._doubts:
            self.node.doubtful.discard(self)

    async def _settle_one_doubt(self) -> None:
        if not self._doubts:
            await self._settle_flock()
            return
        doubt = owner, where = self._doubts[0]
        # Looked up with no await before it is sent, and what is held is only asked for again.
        for request in requests_for(self.open_id, owner, where, self._all_ranges(owner)):
            try:
                await self.node.peer.call(request, wire.Done)
            except OpenLost:  # with the session every lock of it is gone
                break
            except RemoteFailure as error:
                if request.kind != fcntl.F_UNLCK:
                    log.warning("node %d: a lock was lost while it was away: %s", self.node.node_id, error)
                    self._lose_locks()
                    await self.node.settle(wire.ReleaseLocks(self.open_id, owner))
                    break
            if doubt not in self._doubts:
                return  # another task settled it meanwhile, and a newer lock may be there
        if doubt in self._doubts:
            self._doubts.remove(doubt)

    async def _settle_flock(self) -> None:
        try:
            await self.node.peer.call(wire.LockFile(self.open_id, self._flock or fcntl.LOCK_UN, wait=False), wire.Done)
        except OpenLost:
            pass
        except RemoteFailure:
            self._flock = 0  # flock(2): a conversion that fails may lose the old lock
        self._flock_doubtful = False

    async def probe_range(self, owner: int, kind: int, start: int, end: int) -> wire.RangeProbed:
        """fcntl(2) F_GETLK."""
        return await self._call(lambda: wire.ProbeRange(self.open_id, owner, kind, start, end), wire.RangeProbed)

    async def release_ranges(self, owner: int) -> None:
        """A descriptor of the object was closed by *owner*: its POSIX locks there end.  Costs nothing without any."""
        holding = [file for file in self._same_object() if owner in file._ranges]
        if not holding:
            return
        for file in holding:
            del file._ranges[owner]
            file._doubts = [doubt for doubt in file._doubts if doubt[0] != owner]
        await self.node.settle(wire.ReleaseLocks(holding[0].open_id, owner))

    @property
    def is_range_locked(self) -> bool:
        """Some process holds POSIX locks on the object through this mount (or may: see `_doubts`)."""
        return any(file._ranges or file._doubts for file in self.node.files.get(self.handle, ()))

    def _same_object(self) -> list[RemoteFile]:
        return list(self.node.files.get(self.handle, ()))

    def _all_ranges(self, owner: int) -> tuple[Range, ...]:
        return tuple(lock for file in self._same_object() for lock in file._ranges.get(owner, ()))

    def _check_locks(self) -> None:
        if self._lock_lost:
            raise LockLost(f"a lock was lost when node {self.node.node_id} restarted")

    def _lose_locks(self) -> None:
        """Somebody else may have them: every further use of the data fails."""
        for file in self._same_object() if self._ranges else [self]:
            file._lock_lost = True
        self._flock = 0
        self._ranges.clear()

    # ------------------------------------------------------------ after a restart of the owner

    @property
    def is_lost(self) -> bool:
        """The owner restarted since the open id was given."""
        return self._epoch != self.node.peer.epoch

    async def _call(self, request: Callable[[], wire.Message], expect: type[R]) -> R:
        return (await self._call_and_reopen(request, expect, b"", False))[0]

    async def _call_checked(
        self, request: Callable[[], wire.Message], expect: type[R], bulk: Buffer = b""
    ) -> tuple[R, Buffer]:
        """A call that a program makes believing that it has its locks.  Raises LockLost if not."""
        self._check_locks()
        return await self._call_and_reopen(request, expect, bulk, True)

    async def _call_and_reopen(
        self, request: Callable[[], wire.Message], expect: type[R], bulk: Buffer, checked: bool
    ) -> tuple[R, Buffer]:
        lost = UNOPENED if self.open_id == UNOPENED else None
        for _ in range(_REOPENS_MAX):
            try:
                if lost is not None:
                    await self.recover(lost)
                    if checked:
                        self._check_locks()
                lost = self.open_id
                return await self.node.peer.call_for_bulk(request(), expect, bulk)
            except OpenLost:
                continue
        raise self._restarts_again_and_again()

    def _restarts_again_and_again(self) -> OpenLost:
        return OpenLost(f"node {self.node.node_id} restarts again and again")

    async def recover(self, lost: int) -> None:
        """Open the handle again and take its locks again, unless another task did so since *lost* was its open id.

        Raises what opening raises: ESTALE if the object is gone (it was unlinked while open).  A lock that is refused
        is lost; where the owner went away again meanwhile nothing is changed, and the next call tries again.
        """
        if self._recovering is None:
            self._recovering = trio.Lock()
        async with self._recovering:
            if not self._must_recover(lost):
                return
            opened = await self.node.peer.call(self._open_again(), wire.FileOpened)
            epoch = self.node.peer.epoch
            owners = list(self._ranges)
            try:
                await self._take_locks_again(opened.open_id)
            except RemoteFailure as error:
                log.warning("node %d restarted and a lock was lost: %s", self.node.node_id, error)
                self._lose_locks()
            except OmfsError:
                self.node.owe(wire.CloseFile(opened.open_id))
                raise
            while gone := [owner for owner in owners if not self._all_ranges(owner)]:  # released meanwhile
                owners.remove(gone[0])
                await self.node.settle(wire.ReleaseLocks(opened.open_id, gone[0]))
            if self._closed:
                await self.node.settle(wire.CloseFile(opened.open_id))
                return
            # No await from the look at _closed to here: a close gives back this id or the other, never neither.
            self.open_id, self._epoch = opened.open_id, epoch
            self.node.unopened.discard(self)
            self._flock_doubtful = False
            self._doubts.clear()

    async def open_now(self) -> None:
        """Let the owner know that it is open, if it does not; where that fails the next call tries again."""
        try:
            if self.open_id == UNOPENED:
                await self.recover(UNOPENED)
        except OmfsError as error:
            log.debug("node %d: a file that is open here could not be opened there: %s", self.node.node_id, error)

    def _must_recover(self, lost: int) -> bool:
        return self.open_id == lost and not self._closed

    def _open_again(self) -> wire.Message:
        if self._directory:
            return wire.OpenDirectory(self.handle, self._caller)
        return wire.OpenFile(self.handle, self._flags, self._caller, reclaim=True, execute=self._execute)

    async def _take_locks_again(self, open_id: int) -> None:
        if self._flock:
            await self.node.peer.call(wire.LockFile(open_id, self._flock, wait=False), wire.Done)
        for owner, ranges in list(self._ranges.items()):
            for lock in ranges:
                request = wire.LockRange(open_id, owner, lock.kind, lock.start, lock.end, lock.pid, wait=False)
                await self.node.peer.call(request, wire.Done)
