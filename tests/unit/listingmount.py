"""A mount with one remote directory, its owner and the kernel's side of it: what the tests of listings stand on."""

from __future__ import annotations

import struct
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import trio

from omfs import wire
from omfs.mount import lowlevel_abi as abi, lowlevel_abi_dirs as dirs
from omfs.mount.listings import Listings, Policy
from omfs.mount.lowlevel import Hook
from omfs.mount.operations_names import NameOperations
from omfs.mount.remote import RemoteNode
from omfs.mount.takenlistings import Lister
from tests.unit.kerneldirectory import PAGE, Dirent, Kernel, Stream, parse

R = TypeVar("R")
HANDLE: Final = b"the directory's handle, of the usual size"
FILE: Final = wire.Attributes(0o100644, 1, 0, 0, 0, 5, 8, 4096, 0, 0, 0, 9)
FOREVER_S: Final = 1 << 30
SHARED: Final = wire.Mode.SHARED


class Peer:
    """An owner of one directory, which answers at once."""

    node_id = 2
    epoch = 0

    def __init__(self) -> None:
        self.names: dict[bytes, int] = {}  # with their cursors, which only grow
        self.piece = 3  # entries in one answer
        self.opens: set[int] = set()
        self.asked: list[wire.Message] = []
        self.searchable = True
        self.wait: trio.Event | None = None
        self.refuse: Exception | None = None
        self._cursor = 0

    def make(self, *names: bytes) -> None:
        for name in names:
            self._cursor += 7
            self.names[name] = self._cursor

    async def call(self, request: Any, expect: Any) -> Any:
        return (await self.call_for_bulk(request, expect))[0]

    async def call_for_bulk(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        self.asked.append(request)
        if self.wait is not None:
            await self.wait.wait()
        if self.refuse is not None:
            raise self.refuse
        match request:
            case wire.OpenDirectory():
                self.opens.add(len(self.asked))
                return wire.FileOpened(len(self.asked)), b""
            case wire.ReadDirectory():
                assert request.open_id in self.opens
                return self._read(request), b""
            case _:
                return wire.Done(), b""

    def _read(self, request: wire.ReadDirectory) -> wire.DirectoryRead:
        left = sorted((cursor, name) for name, cursor in self.names.items() if cursor > request.cursor)
        entries = tuple(self._entry(name, cursor) for cursor, name in left[: self.piece])
        return wire.DirectoryRead(entries, len(left) < self.piece, 1, SHARED)

    def _entry(self, name: bytes, cursor: int) -> wire.Entry:
        if self.searchable:
            return wire.Entry(name, cursor, HANDLE + name, FILE, SHARED)
        return wire.Entry(name, cursor, b"none", wire.Attributes(0o100000, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, cursor))


class Leases(Policy):
    """Gives what the owner says while *is_on*."""

    is_on = False

    def directory_mode(self, directory: Any, read: wire.DirectoryRead) -> wire.Mode:
        return read.mode if self.is_on else wire.Mode.NONE

    def names_valid_s(self, directory: Any, read: Any) -> int:
        return FOREVER_S if self.is_on and any(entry.mode >= SHARED for entry in read.entries) else 0

    def attributes_valid_s(self, inode: Any, read: Any, entry: wire.Entry) -> int:
        return FOREVER_S - 1 if self.is_on and entry.mode >= SHARED else 0


class Mount:
    """A mount with one remote directory, and the kernel's side of that."""

    def __init__(self, **bounds: int) -> None:
        self.peer = Peer()
        self.node = RemoteNode(self.peer)  # type: ignore[arg-type]
        self.hook = Hook()
        self.operations = NameOperations(self.hook, {2: self.node})
        self.listings = self.operations.listings = Listings(page_bytes=PAGE, **bounds)
        self.listings.policy = self.leases = Leases()
        self.listings.on_uncached = self._drop_pages
        self.lister = Lister(self.hook, self.operations)
        self.inode = self.operations.inodes.find(self.node, HANDLE)
        self.inode.lookups = 1
        self.kernel = Kernel(self.ask)

    async def _drop_pages(self, number: int) -> None:
        if number == self.inode.id:
            self.kernel.invalidate()

    def request(self, offset: int, size_bytes: int, number: int, plus: bool = True) -> memoryview:
        self.hook.opcode = dirs.READDIRPLUS if plus else dirs.READDIR
        self.hook.node_id = number
        return memoryview(bytes(abi.IN_HEADER_BYTES) + struct.pack("<QQIIQII", 0, offset, size_bytes, 0, 0, 0, 0))

    def ask(self, offset: int, size_bytes: int, number: int = 0, plus: bool = True) -> list[Dirent]:
        request = self.request(offset, size_bytes, number or self.inode.id, plus)
        message = finished(self.lister.read(request, 77))
        length, error, unique = struct.unpack_from("<IiQ", message)
        assert (length, error, unique) == (len(message), 0, 77)
        assert len(message) - 16 <= size_bytes
        return parse(message[16:], plus)

    def open_count(self) -> int:
        """Directories that are open at the owner."""
        return sum(map(len, self.node.files.values()))

    def list_all(self, room: int = 1000) -> list[bytes]:
        stream = Stream()
        while self.kernel.getdents(stream, room):
            pass
        assert stream.told[:2] == [b".", b".."]
        return stream.told[2:]

    def warm(self) -> bool:
        """Whether a listing takes no request."""
        before = self.kernel.requests
        self.list_all()
        return self.kernel.requests == before


def finished(coroutine: Coroutine[Any, Any, R]) -> R:
    """The result of what does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    raise AssertionError("it waited")
