"""Byte transports: what they are, how to get one to a node, and an in-memory pair for the simulation ring.

Those of sockets are in sockets.py.  What they do not do: frames, sessions, reconnecting.  The `..._now` methods never
wait and return 0 where they would have to; every fault is an OSError (the end of the stream too); close() wakes
whoever waits.  One task may send and one may receive at a time.  Called by net/channel.py; made by net/peer.py and
net/server.py.
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from omfs.net.frames import Buffer
from omfs.net.sockets import CLOSED, SocketTransport, tune, wait_tls

MEMORY_PIPE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bulk data that are still in a file: [offset, offset + size_bytes) of *fd*, all below the end of the file."""

    fd: int
    offset: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes


class Transport(Protocol):
    """A connected, ordered byte stream."""

    name: str  # the other end, for the log
    certificate: dict[str, object] | None  # the other end's, as SSLSocket.getpeercert() tells it
    can_sendfile: bool

    def fileno(self) -> int:
        """The descriptor to poll, -1 where there is none."""

    def send_now(self, data: Buffer, more: bool = False) -> int:
        """Bytes taken.  After 0 the next call must offer the same data again.  *more* follows at once."""

    def sendfile_now(self, fd: int, offset: int, size_bytes: int) -> int:
        """Bytes taken from the file; only where can_sendfile.  EOFError: the file has become shorter."""

    def receive_now(self, into: memoryview, fill: bool = False) -> int:
        """Bytes received.  *fill*: as many as are there (TLS would otherwise give one record of 16 KiB)."""

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...

    def close(self) -> None: ...


async def dial(address: str, port: int, context: ssl.SSLContext | None, timeo_s: float) -> Transport:
    """Connect to a node; TLS where *context* is given.  Raises OSError.  The caller sets the deadline."""
    found = await trio.socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    family, _, _, _, target = found[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        tune(sock, timeo_s)
        try:
            sock.connect(target)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            if fault := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(fault, os.strerror(fault)) from None
        name = f"{address}:{port}"
        if context is None:
            return SocketTransport(sock, name)
        return await wait_tls(sock, name, context, server_side=False)
    except BaseException:
        sock.close()
        raise


class _Pipe:
    """One direction of a MemoryTransport pair."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False
        self.cut = False
        self.changed = trio.lowlevel.ParkingLot()

    def close(self) -> None:
        self.closed = True
        self.changed.unpark_all()


class MemoryTransport:
    """A transport inside one process, for the simulation ring; make them with `memory_transports`.

    `cut()` is a pulled cable: bytes vanish in both directions and neither end is told.  `lose_replies()` loses only
    what this end would receive.
    """

    can_sendfile = False

    def __init__(self, name: str, outgoing: _Pipe, incoming: _Pipe) -> None:
        self.name = name
        self.certificate: dict[str, object] | None = None
        self._outgoing = outgoing
        self._incoming = incoming

    def fileno(self) -> int:
        return -1

    def send_now(self, data: Buffer, more: bool = False) -> int:
        pipe = self._outgoing
        if pipe.closed:
            raise BrokenPipeError("connection closed")
        if pipe.cut:
            return len(data)
        room = max(0, MEMORY_PIPE_BYTES - len(pipe.data))
        pipe.data += memoryview(data)[:room]
        pipe.changed.unpark_all()
        return min(room, len(data))

    def sendfile_now(self, fd: int, offset: int, size_bytes: int) -> int:
        raise AssertionError("can_sendfile is False")

    def receive_now(self, into: memoryview, fill: bool = False) -> int:
        pipe = self._incoming
        if not pipe.data:
            if pipe.closed:
                raise ConnectionResetError(CLOSED)
            return 0
        size_bytes = min(len(into), len(pipe.data))
        into[:size_bytes] = pipe.data[:size_bytes]
        del pipe.data[:size_bytes]
        pipe.changed.unpark_all()
        return size_bytes

    async def wait_readable(self) -> None:
        while not (self._incoming.data or self._incoming.closed):
            await self._incoming.changed.park()
        await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        pipe = self._outgoing
        while not (pipe.cut or pipe.closed or len(pipe.data) < MEMORY_PIPE_BYTES):
            await pipe.changed.park()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._incoming.close()
        if not self._outgoing.cut:
            self._outgoing.close()

    def cut(self) -> None:
        for pipe in (self._outgoing, self._incoming):
            pipe.cut = True
            pipe.data.clear()
            pipe.changed.unpark_all()

    def lose_replies(self) -> None:
        self._incoming.cut = True
        self._incoming.data.clear()
        self._incoming.changed.unpark_all()


def memory_transports(
    client_name: str = "client", server_name: str = "server"
) -> tuple[MemoryTransport, MemoryTransport]:
    """(client's end, server's end); each end's name is the other side's."""
    there, back = _Pipe(), _Pipe()
    return MemoryTransport(server_name, there, back), MemoryTransport(client_name, back, there)
