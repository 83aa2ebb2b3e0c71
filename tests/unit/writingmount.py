"""One owner that grants EXCLUSIVE leases and one file of it that is open for writing here; the peer is a fake.

The owner keeps the file's bytes, executes what it is asked in the order that a test chooses, and refuses what is
written behind a lease that it has taken back, as the real one does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from omfs import wire
from omfs.errors import RemoteFailure
from omfs.kernel.fusenotify import Notifier
from omfs.mount.inodes import Inode, InodeTable
from omfs.mount.opening import open_file
from omfs.mount.recall import Recaller
from omfs.mount.remote import RemoteNode
from omfs.mount.remotefile import RemoteFile
from omfs.net.peer import Peer
from omfs.wiretypes import Mode
from tests.unit.fakepeer import ATTRIBUTES, USER, FakePeer

EXCLUSIVE, SHARED, NONE = Mode.EXCLUSIVE, Mode.SHARED, Mode.NONE


async def failed_with(call: Awaitable[Any]) -> int:
    """The errno of the owner's refusal."""
    with pytest.raises(RemoteFailure) as caught:
        await call
    return caught.value.errno


class Owner(FakePeer):
    """*writes*: what was written, in order.  *holds*: whether this session has the lease.

    *caches*: it grants that data are cached.  *gate*: writes wait for it.  *fails*: with these errnos, one each.
    *room_bytes*: the disk is full behind that.
    """

    lease_round = 1

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()
        self.holds = True
        self.grants = EXCLUSIVE
        self.caches = False
        self.writes: list[tuple[int | None, int, bool]] = []
        self.gate: trio.Event | None = None
        self.fails: list[int] = []
        self.room_bytes = 1 << 40
        self.under_way: list[Any] = []
        self.most_under_way = 0
        self.lapsed = trio.Event()
        self.on_asked: Callable[[], None] = lambda: None
        self._serial = 0

    def lapse_handled(self) -> None:
        self.lapsed.set()

    def interrupt(self, task: Any, still_wanted: Any) -> None:
        pass

    def granted(self) -> dict[str, Any]:
        self._serial += 1
        return {"serial": self._serial, "mode": self.grants}

    def recall(self, mode: Mode) -> wire.RecallLease:
        self._serial += 1
        return wire.RecallLease(b"handle", self._serial, mode)

    async def call_for_bulk(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        if not isinstance(request, wire.WriteBlocks | wire.AppendBlocks):
            return await super().call_for_bulk(request, expect, bulk)
        self.under_way.append(request)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        try:
            if self.gate is not None:
                await self.gate.wait()
            return await super().call_for_bulk(request, expect, bulk)
        finally:
            self.under_way.remove(request)

    def _reply(self, request: Any, bulk: Any) -> tuple[wire.Message, bytes]:
        match request:
            case wire.OpenFile() | wire.CreateFile():
                opened, rest = super()._reply(request, bulk)
                is_cached = {"data": self.caches} if isinstance(opened, wire.FileOpened) else {}
                data = (
                    bytes(self.data)
                    if self.caches and isinstance(request, wire.OpenFile) and request.wants_data
                    else rest
                )
                return msgspec.structs.replace(opened, **self.granted(), **is_cached), data
            case wire.AskLease():
                self.on_asked()
                return wire.LeaseGranted(**self.granted()), b""
            case wire.WriteBlocks() | wire.AppendBlocks():
                return wire.BlocksWritten(self._write(request, bytes(bulk))), b""
            case wire.GetAttributes():
                self._serial += 1
                return wire.AttributesGot(ATTRIBUTES, self._serial, min(self.grants, SHARED)), b""
            case wire.SeekFile():
                return wire.SeekDone(request.offset), b""
            case wire.LookUp() | wire.MakeLink():
                return wire.Found(b"handle", ATTRIBUTES), b""
            case wire.ReadDirectory():
                return wire.DirectoryRead((wire.Entry(b"name", 1, b"handle", ATTRIBUTES),), True), b""
            case _:
                return super()._reply(request, bulk)

    def _write(self, request: wire.WriteBlocks | wire.AppendBlocks, data: bytes) -> int:
        if request.behind and not self.holds:
            raise RemoteFailure(errno.EIO, "the lease was lost")
        if self.fails:
            raise RemoteFailure(self.fails.pop(0))
        offset = request.offset if isinstance(request, wire.WriteBlocks) else None
        start = len(self.data) if offset is None else offset
        data = data[: max(0, self.room_bytes - start)]
        if not data:
            raise RemoteFailure(errno.ENOSPC)
        self.writes.append((offset, len(data), request.behind))
        self.data.extend(bytes(max(0, start - len(self.data))))
        self.data[start : start + len(data)] = data
        return len(data)


class Kernel:
    """Is told to forget; *launder*: called where pages are dropped, in trio's thread, and waited for."""

    def __init__(self) -> None:
        self.dropped: list[tuple[int, int]] = []
        self.voided = 0  # how often attributes were
        self.grown: list[int] = []
        self.on_grow: Callable[[], Any] = lambda: None  # in the thread
        self.launder: Callable[[], Any] | None = None

    def inval_inode(self, number: int, offset: int = 0, size_bytes: int = 0) -> bool:
        self.dropped.append((offset, size_bytes))
        if self.launder is not None:
            trio.from_thread.run(self.launder)
        return True

    def grow(self, number: int, size_bytes: int) -> bool:
        self.grown.append(size_bytes)
        self.on_grow()
        return True

    def inval_attributes(self, number: int) -> bool:
        self.voided += 1
        return True

    def inval_entry(self, parent: int, name: bytes, expire: bool = False) -> bool:
        return True


class WritingMount:
    """The owner, the file b"handle", and what takes recalls."""

    def __init__(self) -> None:
        self.owner = Owner()
        self.node = RemoteNode(cast(Peer, self.owner))
        self.kernel = Kernel()
        self.inodes: InodeTable[RemoteNode] = InodeTable()
        self.recaller = Recaller(self.inodes, lambda _: None, self.node.counters)
        self.recaller.serve(self.node)
        self.recaller.attach(cast(Notifier, self.kernel))
        self.inode: Inode[RemoteNode] = self.inodes.find(self.node, b"handle")
        self.inode.lookups += 1

    @classmethod
    async def run(cls, nursery: trio.Nursery) -> WritingMount:
        mount = cls()
        nursery.start_soon(mount.recaller.run)
        nursery.start_soon(mount.node.tend)
        await trio.testing.wait_all_tasks_blocked()
        return mount

    async def open(self, flags: int = os.O_WRONLY) -> RemoteFile:
        file, opened = await open_file(self.node, b"handle", flags, USER)
        file.inode = self.inode
        self.node.leases.granted(self.inode.lease, opened.serial, opened.mode, writer=file if file.is_written else None)
        return file

    async def recall(self, mode: Mode) -> None:
        recall = self.owner.recall(mode)
        self.recaller.seen(self.node, recall)
        await self.recaller.recall(self.node, recall)
        self.owner.holds = False

    @staticmethod
    async def write(file: RemoteFile, offset: int | None, data: bytes, **how: bool) -> int:
        return await file.unsent.write(offset, data, False, **how)
