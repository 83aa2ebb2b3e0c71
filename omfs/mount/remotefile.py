"""A file or directory that is open on its owner, and the locks taken through it.

When the owner restarted it does not know the open id any more (OpenLost): the handle is opened again, the locks are
taken again, and the call is repeated, which is safe as it was refused unexecuted.  A lock that somebody else got
meanwhile is lost: then every further read and write through the file fails with EIO, as the program believes
itself alone.  Called by operations_files.py, lockops.py and remote.py.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from omfs import wire
from omfs.errors import OmfsError, OpenLost
from omfs.mount.ranges import Range, changed
from omfs.mount.remote import RemoteNode
from omfs.net.frames import Buffer

log = logging.getLogger(__name__)

R = TypeVar("R", bound=wire.Message)

_KEPT_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME | os.O_NONBLOCK
"""What of open(2)'s flags means something to the owner; it does its own caching and has no descriptors to inherit."""

_ONCE_FLAGS: Final = os.O_TRUNC
_REOPENS_MAX: Final = 3  # an owner that restarts more often than this within one call


class LockLost(OmfsError):
    """The owner restarted and another process got the lock before it could be taken again."""


async def open_file(node: RemoteNode, handle: bytes, flags: int, caller: wire.Caller) -> RemoteFile:
    """Open an existing object; *flags* as open(2)."""
    flags &= _KEPT_FLAGS
    opened = await node.peer.call(wire.OpenFile(handle, flags, caller), wire.FileOpened)
    return RemoteFile(node, handle, opened.open_id, caller, flags & ~_ONCE_FLAGS)


async def create_file(
    node: RemoteNode, parent: bytes, name: bytes, mode: int, umask: int, flags: int, caller: wire.Caller
) -> tuple[RemoteFile, wire.Attributes]:
    """open(2) with O_CREAT."""
    flags &= _KEPT_FLAGS | os.O_EXCL
    created = await node.peer.call(wire.CreateFile(parent, name, mode, umask, flags, caller), wire.FileCreated)
    kept = flags & ~(_ONCE_FLAGS | os.O_EXCL)
    return RemoteFile(node, created.handle, created.open_id, caller, kept), created.attributes


async def open_directory(node: RemoteNode, handle: bytes, caller: wire.Caller) -> RemoteFile:
    opened = await node.peer.call(wire.OpenDirectory(handle, caller), wire.FileOpened)
    return RemoteFile(node, handle, opened.open_id, caller, 0, directory=True)


class RemoteFile:
    """One open(2) of a program, at the owner."""

    def __init__(
        self, node: RemoteNode, handle: bytes, open_id: int, caller: wire.Caller, flags: int, directory: bool = False
    ) -> None:
        self.node = node
        self.handle = handle
        self.open_id = open_id
        self.appends = bool(flags & os.O_APPEND)
        self._caller = caller
        self._flags = flags
        self._directory = directory
        self._flock = 0  # LOCK_SH, LOCK_EX or 0
        self._ranges: dict[int, tuple[Range, ...]] = {}  # by lock owner
        self._lock_lost = False
        self._recovering: trio.Lock | None = None
        node.files.setdefault(handle, set()).add(self)

    # ------------------------------------------------------------ data

    async def read(self, offset: int, size_bytes: int) -> Buffer:
        """Up to *size_bytes*; fewer only at the end of the file."""
        self._check_locks()
        for _ in range(_REOPENS_MAX):
            request = wire.ReadBlocks(self.open_id, offset, size_bytes)
            try:
                return (await self.node.peer.call_for_bulk(request, wire.BlocksRead))[1]
            except OpenLost:
                await self.recover(request.open_id)
                self._check_locks()
        raise OpenLost(f"node {self.node.node_id} restarts again and again")

    async def write(self, offset: int, data: Buffer) -> int:
        self._check_locks()
        written = await self._call(lambda: wire.WriteBlocks(self.open_id, offset), wire.BlocksWritten, data)
        return written.size_bytes

    async def append(self, data: Buffer) -> int:
        """Write at the end, wherever that is by then, as one record."""
        self._check_locks()
        written = await self._call(lambda: wire.AppendBlocks(self.open_id), wire.BlocksWritten, data)
        return written.size_bytes

    async def sync(self, data_only: bool) -> None:
        await self._call(lambda: wire.SyncFile(self.open_id, data_only), wire.Done)

    async def allocate(self, mode: int, offset: int, size_bytes: int) -> None:
        self._check_locks()
        await self._call(lambda: wire.AllocateSpace(self.open_id, mode, offset, size_bytes), wire.Done)

    async def seek(self, offset: int, whence: int) -> int:
        return (await self._call(lambda: wire.SeekFile(self.open_id, offset, whence), wire.SeekDone)).offset

    async def copy_to(self, source_offset: int, target: RemoteFile, target_offset: int, size_bytes: int) -> int:
        """copy_file_range(2) on the owner of both."""
        self._check_locks()
        target._check_locks()

        def request() -> wire.Message:
            return wire.CopyRange(self.open_id, source_offset, target.open_id, target_offset, size_bytes)

        source_id, target_id = self.open_id, target.open_id
        try:
            return (await self.node.peer.call(request(), wire.BlocksWritten)).size_bytes
        except OpenLost:
            await self.recover(source_id)
            await target.recover(target_id)
        return (await self.node.peer.call(request(), wire.BlocksWritten)).size_bytes

    async def set_attributes(self, request: wire.SetAttributes) -> wire.Attributes:
        """SetAttributes through this file (ftruncate)."""
        self._check_locks()

        def through() -> wire.Message:
            return wire.SetAttributes(
                request.handle, request.caller, self.open_id, request.mode, request.uid, request.gid,
                request.size_bytes, request.atime_ns, request.mtime_ns, request.atime_now, request.mtime_now,
            )  # fmt: skip

        return (await self._call(through, wire.AttributesGot)).attributes

    async def read_directory(self, cursor: int, size_bytes: int) -> wire.DirectoryRead:
        return await self._call(lambda: wire.ReadDirectory(self.open_id, cursor, size_bytes), wire.DirectoryRead)

    async def close(self) -> None:
        """Give it back; whatever happens, this open id is not used again."""
        same = self.node.files.get(self.handle)
        if same is not None:
            same.discard(self)
            if not same:
                del self.node.files[self.handle]
        if not self._flags & os.O_ACCMODE and not self.holds_locks:
            self.node.close_soon(self.open_id)
            return
        for owner in self._ranges:  # open file description locks end with the description
            await self.node.settle(wire.ReleaseLocks(self.open_id, owner))
        await self.node.settle(wire.CloseFile(self.open_id))

    # ------------------------------------------------------------ locks

    @property
    def holds_locks(self) -> bool:
        return bool(self._flock or self._ranges)

    async def lock_file(self, operation: int, wait: bool) -> None:
        """flock(2).  Raises RemoteFailure (EWOULDBLOCK), Interrupted."""
        await self._call(lambda: wire.LockFile(self.open_id, operation, wait), wire.Done)
        self._flock = 0 if operation == fcntl.LOCK_UN else operation

    async def lock_range(self, owner: int, new: Range, wait: bool) -> None:
        """fcntl(2) F_SETLK, or F_SETLKW where *wait*.  Raises RemoteFailure (EAGAIN), Interrupted."""

        def request() -> wire.Message:
            return wire.LockRange(self.open_id, owner, new.kind, new.start, new.end, new.pid, wait)

        await self._call(request, wire.Done)
        held = changed(self._all_ranges(owner), new)
        for file in self._same_object():  # the locks belong to the process and the object, not to this open
            file._ranges.pop(owner, None)
        if held:
            self._ranges[owner] = held

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
        await self.node.settle(wire.ReleaseLocks(holding[0].open_id, owner))

    def _same_object(self) -> list[RemoteFile]:
        return list(self.node.files.get(self.handle, ()))

    def _all_ranges(self, owner: int) -> tuple[Range, ...]:
        return tuple(lock for file in self._same_object() for lock in file._ranges.get(owner, ()))

    def _check_locks(self) -> None:
        if self._lock_lost:
            raise LockLost(f"a lock was lost when node {self.node.node_id} restarted")

    # ------------------------------------------------------------ after a restart of the owner

    async def _call(self, request: Callable[[], wire.Message], expect: type[R], bulk: Buffer = b"") -> R:
        for _ in range(_REOPENS_MAX):
            used = self.open_id
            try:
                return await self.node.peer.call(request(), expect, bulk)
            except OpenLost:
                await self.recover(used)
        raise OpenLost(f"node {self.node.node_id} restarts again and again")

    async def recover(self, lost: int) -> None:
        """Open the handle again and take its locks again, unless another task did so since *lost* was its open id.

        Raises what opening raises: ESTALE if the object is gone (it was unlinked while open).
        """
        if self._recovering is None:
            self._recovering = trio.Lock()
        async with self._recovering:
            if self.open_id != lost:
                return
            request: wire.Message
            if self._directory:
                request = wire.OpenDirectory(self.handle, self._caller)
            else:
                request = wire.OpenFile(self.handle, self._flags, self._caller, reclaim=True)
            opened = await self.node.peer.call(request, wire.FileOpened)
            try:
                await self._take_locks_again(opened.open_id)
            except OmfsError as error:
                log.warning("node %d restarted and a lock was lost: %s", self.node.node_id, error)
                for file in self._same_object() if self._ranges else [self]:
                    file._lock_lost = True
                self._flock = 0
                self._ranges.clear()
            self.open_id = opened.open_id

    async def _take_locks_again(self, open_id: int) -> None:
        if self._flock:
            await self.node.peer.call(wire.LockFile(open_id, self._flock, wait=False), wire.Done)
        for owner, ranges in self._ranges.items():
            for lock in ranges:
                request = wire.LockRange(open_id, owner, lock.kind, lock.start, lock.end, lock.pid, wait=False)
                await self.node.peer.call(request, wire.Done)
