"""A file or directory that is open on its owner; the locks taken through it are in filelocks.py.

When the owner restarted it does not know the open id any more (OpenLost): the handle is opened again, the locks are
taken again, and the call is repeated, which is safe as it was refused unexecuted.  What was written and is not sent yet
(writebehind.py) comes before whatever looks at the file.  Called by operations_*.py, takenops.py and remote.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from omfs import wire
from omfs.cache.holder import Holder
from omfs.errors import OmfsError, OpenLost
from omfs.mount.filelocks import FileLocks
from omfs.mount.inodes import Inode
from omfs.mount.remote import RemoteNode
from omfs.mount.writebehind import Unsent
from omfs.net.frames import Buffer

log = logging.getLogger(__name__)

R = TypeVar("R", bound=wire.Message)

UNOPENED: Final = 0  # no owner's open id: it does not know yet that the file is open
_REOPENS_MAX: Final = 3  # an owner that restarts more often than this within one call


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
        self.locks = FileLocks(self)
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
        granted = await self.call(lambda: wire.AskLease(self.open_id), wire.LeaseGranted)
        granted = self.node.leases.counts(asked_in, granted)
        self.node.leases.granted(inode.lease, granted.serial, granted.mode, writer=self)
        return inode.lease.is_exclusive

    async def sync(self, data_only: bool) -> None:
        await self.node.drain(self.handle)
        await self.settle()
        await self.call(lambda: wire.SyncFile(self.open_id, data_only), wire.Done)

    async def allocate(self, mode: int, offset: int, size_bytes: int) -> None:
        await self.node.drain(self.handle)
        await self._call_checked(lambda: wire.AllocateSpace(self.open_id, mode, offset, size_bytes), wire.Done)

    async def seek(self, offset: int, whence: int) -> int:
        await self.node.drain(self.handle)
        return (await self.call(lambda: wire.SeekFile(self.open_id, offset, whence), wire.SeekDone)).offset

    async def copy_to(self, source_offset: int, target: RemoteFile, target_offset: int, size_bytes: int) -> int:
        """copy_file_range(2) on the owner of both."""
        await self.node.drain(self.handle)
        await self.node.drain(target.handle)
        for _ in range(_REOPENS_MAX):
            try:
                for file in (self, target):
                    if file.is_lost:
                        await file.recover(file.open_id)
                self.locks.check()
                target.locks.check()
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
        read = await self.call(lambda: wire.ReadDirectory(self.open_id, cursor, size_bytes, bare), wire.DirectoryRead)
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
        return self._unsent is None and not self.locks.are_held

    async def close(self) -> None:
        """Give it back; whatever happens, this open id is not used again."""
        await self.drain()  # what fails now nobody can be told: the program's close(2) has returned
        self.close_here()
        if self.open_id == UNOPENED or not self.locks.are_held:
            return
        await self.locks.release_own()
        await self.node.settle(wire.CloseFile(self.open_id))

    def close_here(self) -> None:
        """The part of `close` that does not wait."""
        self._closed = True
        self.locks.forget_doubts()
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
        if not self.locks.are_held:
            self.node.close_soon(self.open_id, written=self.is_written)

    # ------------------------------------------------------------ after a restart of the owner

    @property
    def is_lost(self) -> bool:
        """The owner restarted since the open id was given."""
        return self._epoch != self.node.peer.epoch

    async def call(self, request: Callable[[], wire.Message], expect: type[R]) -> R:
        """What the owner answers; *request* makes the message, anew where the file is opened again.  OmfsError."""
        return (await self._call_and_reopen(request, expect, b"", False))[0]

    async def _call_checked(
        self, request: Callable[[], wire.Message], expect: type[R], bulk: Buffer = b""
    ) -> tuple[R, Buffer]:
        """A call that a program makes believing that it has its locks.  Raises LockLost if not."""
        self.locks.check()
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
                        self.locks.check()
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
            try:
                await self.locks.take_again(opened.open_id)
            except OmfsError:
                self.node.owe(wire.CloseFile(opened.open_id))
                raise
            if self._closed:
                await self.node.settle(wire.CloseFile(opened.open_id))
                return
            # No await from the look at _closed to here: a close gives back this id or the other, never neither.
            self.open_id, self._epoch = opened.open_id, epoch
            self.node.unopened.discard(self)
            self.locks.forget_doubts()

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
