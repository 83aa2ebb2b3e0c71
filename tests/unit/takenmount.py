"""A mount as the kernel sees it, without a kernel: requests go in, answers and questions to an owner come out."""

from __future__ import annotations

import os
import struct
from collections.abc import Coroutine
from typing import Any, cast

import trio

from omfs.kernel.fusenotify import Notifier
from omfs.mount import lowlevel_abi as abi
from omfs.mount.inodes import Inode
from omfs.mount.lowlevel import Hook, Passed
from omfs.mount.operations_attributes import AttributeOperations
from omfs.mount.remote import RemoteNode
from omfs.mount.takenops import install_takers
from tests.unit.writingmount import Kernel


class RecordingHook(Hook):
    """Keeps the answers, by the number of the request."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.news = trio.Event()  # there is another one

    def answer(self, message: bytes) -> None:
        _, error, unique = struct.unpack_from("<IiQ", message)
        assert unique not in self.answers
        self.answers[unique] = (-error, message[16:])
        self.news.set()
        self.news = trio.Event()


class TakenMount:
    """The kernel's requests go in at `ask`; what is told to the kernel is noted."""

    def __init__(self, nursery: trio.Nursery, peer: Any, handle: bytes = b"handle") -> None:
        self.nursery = nursery
        self.node = RemoteNode(peer)
        self.hook = RecordingHook()
        self.operations = AttributeOperations(self.hook, {2: self.node})
        self.kernel = Kernel()
        self.operations.recaller.attach(cast(Notifier, self.kernel))
        install_takers(self.hook, self.operations)
        self.file = handle

    @property
    def inode(self) -> Inode[RemoteNode]:
        """Of the file *handle*, which the kernel knows."""
        inode = self.operations.inodes.find(self.node, self.file)
        inode.lookups = max(1, inode.lookups)
        return inode

    def ask(self, opcode: int, payload: bytes) -> int:
        """Let the taker have it; what waits goes on in a task.  Returns the request's number."""
        hook = self.hook
        hook.unique += 1
        hook.opcode, hook.node_id, hook.pid = opcode, self.inode.id, os.getpid()
        taken = hook.takers[opcode](hook, memoryview(bytes(abi.IN_HEADER_BYTES) + payload))
        assert not isinstance(taken, Passed)
        if taken is not None:
            self.nursery.start_soon(_rest, taken)
        return hook.unique

    async def asked(self, opcode: int, payload: bytes) -> tuple[int, bytes]:
        unique = self.ask(opcode, payload)
        while unique not in self.hook.answers:
            await self.hook.news.wait()
        return self.hook.answers[unique]

    async def open(self, flags: int = os.O_RDWR) -> int:
        error, body = await self.asked(abi.OPEN, struct.pack("<II", flags, 0))
        assert not error
        fh, how, _ = struct.unpack_from("<QIi", body)
        assert bool(how & abi.FOPEN_DIRECT_IO) is not self.operations.is_cached(fh)
        return int(fh)

    def write(self, fh: int, offset: int, data: bytes, flags: int = 0, write_flags: int = 0) -> int:
        return self.ask(abi.WRITE, struct.pack("<QQIIQII", fh, offset, len(data), write_flags, 0, flags, 0) + data)

    def answered(self, unique: int) -> bool:
        return unique in self.hook.answers

    def read(self, fh: int, size_bytes: int, read_flags: int, offset: int = 0) -> int:
        return self.ask(abi.READ, struct.pack("<QQIIQII", fh, offset, size_bytes, read_flags, 0, 0, 0))

    def get_attributes(self, fh: int | None = None) -> int:
        """*fh*: for a read of that file, which has come to the end that the kernel knows."""
        return self.ask(abi.GETATTR, struct.pack("<IIQ", fh is not None, 0, fh or 0))

    async def release(self, fh: int) -> None:
        await self.asked(abi.RELEASE, struct.pack("<QIIQ", fh, 0, 0, 0))

    async def flush(self, fh: int) -> int:
        return (await self.asked(abi.FLUSH, struct.pack("<QIIQ", fh, 0, 0, 0)))[0]


async def _rest(taken: Coroutine[Any, Any, None]) -> None:
    await taken
