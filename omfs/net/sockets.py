"""Transports over non-blocking sockets, plain or TLS (what they promise: transport.py).

The socket is used directly (send, recv_into and trio's wait_readable/wait_writable): trio.SSLStream costs several
times as much per message.  `ssl.SSLSocket` too costs more for a stream: it writes each record of 16 KiB by itself, so
that each is sent in packets of its own, and reads each with two calls.  Here TLS works in memory, and the socket gets
and gives what there is (measured: a fourth less processor time on both sides together).

Invariant: what the socket has given and TLS has not is looked at before the socket is waited for (`_is_fed`).
Made by transport.py, server.py and mignode/line.py; called by net/channel.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from typing import Final

import trio

from omfs.net.frames import Buffer

SENDFILE_MAX_BYTES: Final = 1 << 20  # per call, so that other tasks get their turn
RECORDS_MAX_BYTES: Final = 256 << 10  # received at once, for the same reason
CLOSED: Final = "the other side closed the connection"
TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)  # tcp(7)
_FIRST_BUFFER_BYTES: Final = 32 << 10  # most connections see only small frames
_PART_BYTES: Final = 64 << 10  # larger blocks of memory the allocator gives back, and gets anew page by page


class SocketTransport:
    """A connected non-blocking socket without TLS."""

    can_sendfile = True

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.name = name
        self.certificate: dict[str, object] | None = None
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def send_now(self, data: Buffer, more: bool = False) -> int:
        try:
            return self._sock.send(data, socket.MSG_MORE if more else 0)
        except BlockingIOError:
            return 0

    def sendfile_now(self, fd: int, offset: int, size_bytes: int) -> int:
        try:
            sent = os.sendfile(self._sock.fileno(), fd, offset, min(size_bytes, SENDFILE_MAX_BYTES))
        except BlockingIOError:
            return 0
        if sent == 0:
            raise EOFError
        return sent

    def receive_now(self, into: memoryview, fill: bool = False) -> int:
        try:
            size_bytes = self._sock.recv_into(into)
        except BlockingIOError:
            return 0
        if size_bytes == 0:
            raise ConnectionResetError(CLOSED)
        return size_bytes

    async def wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._sock)
        except trio.ClosedResourceError:
            raise ConnectionAbortedError("connection closed") from None

    async def wait_writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._sock)
        except trio.ClosedResourceError:
            raise ConnectionAbortedError("connection closed") from None

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


class TlsTransport(SocketTransport):
    """To be used after `shake_hands`."""

    can_sendfile = False

    def __init__(self, sock: socket.socket, name: str, context: ssl.SSLContext, *, server_side: bool) -> None:
        super().__init__(sock, name)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._buffer = memoryview(bytearray(_FIRST_BUFFER_BYTES))
        self._is_fed = False  # TLS may have more to give without the socket
        self._unsent: list[bytes | memoryview] = []  # what TLS made of ...
        self._unsent_bytes = 0  # ... so many bytes of the caller's

    async def shake_hands(self) -> None:
        """Raises OSError (ssl.SSLError among them); the other side is told why."""
        while True:
            try:
                self._tls.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                is_done = self._is_fed = False
            except ssl.SSLError:
                self._tell_why()
                raise
            self._take_encrypted()
            while not self._flush():
                await self.wait_writable()
            if is_done:
                break
            try:
                while not self._receive():
                    await self.wait_readable()
            except EOFError:
                self._incoming.write_eof()  # TLS says best what that means now
        self._is_fed = True  # the first records may have come with the handshake's last
        self.certificate = dict(self._tls.getpeercert() or {})

    # ------------------------------------------------------------ sending

    def send_now(self, data: Buffer, more: bool = False) -> int:
        if not self._unsent:
            self._unsent_bytes = self._tls.write(data)
            self._take_encrypted()
        return self._unsent_bytes if self._flush(more) else 0

    def sendfile_now(self, fd: int, offset: int, size_bytes: int) -> int:
        raise AssertionError("can_sendfile is False")

    def _take_encrypted(self) -> None:
        while self._outgoing.pending:
            self._unsent.append(self._outgoing.read(_PART_BYTES))

    def _flush(self, more: bool = False) -> bool:
        """Whether all that TLS made is at the kernel now."""
        unsent = self._unsent
        while unsent:
            try:
                sent = self._sock.sendmsg(unsent, (), socket.MSG_MORE if more else 0)
            except BlockingIOError:
                return False
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.pop(0))
            if sent:
                unsent[0] = memoryview(unsent[0])[sent:]
        return True

    def _tell_why(self) -> None:
        """What TLS says to the other side of what it found wrong."""
        self._take_encrypted()
        with contextlib.suppress(OSError):
            self._flush()

    # ------------------------------------------------------------ receiving

    def receive_now(self, into: memoryview, fill: bool = False) -> int:
        """All records that are in memory; of the socket's one more piece, or where *fill* as many as are there."""
        received, end = 0, min(len(into), RECORDS_MAX_BYTES)
        may_ask = True
        while received < end:
            if self._is_fed:
                received += self._decrypt(into[received:end])
            elif may_ask and self._has_more(received):
                may_ask = fill
            else:
                break
        return received

    def _has_more(self, received: int) -> bool:
        """The end of the stream is told when what came before it has been given."""
        try:
            return self._receive()
        except EOFError:
            if received:
                return False
            raise ConnectionResetError(CLOSED) from None

    def _decrypt(self, into: memoryview) -> int:
        """Of one record; 0: none is complete."""
        try:
            size_bytes = self._tls.read(len(into), into)
        except ssl.SSLWantReadError:
            self._is_fed = False
            return 0
        except ssl.SSLError:
            self._tell_why()
            raise
        if not size_bytes:
            raise ConnectionResetError(CLOSED)
        if not self._incoming.pending:
            self._is_fed = bool(self._tls.pending())
        return int(size_bytes)

    def _receive(self) -> bool:
        """Give TLS what the socket has; False: nothing for now.  EOFError: nor ever again."""
        buffer = self._buffer
        try:
            size_bytes = self._sock.recv_into(buffer)
        except BlockingIOError:
            return False
        if not size_bytes:
            raise EOFError
        self._incoming.write(buffer[:size_bytes])
        self._is_fed = True
        if size_bytes == len(buffer) < RECORDS_MAX_BYTES:
            self._buffer = memoryview(bytearray(2 * size_bytes))
        return True

    async def wait_readable(self) -> None:
        if not self._is_fed:
            await super().wait_readable()


def tune(sock: socket.socket, timeo_s: float) -> None:
    """No delay for small frames; the kernel gives up unacknowledged data after *timeo_s* (tcp(7) TCP_USER_TIMEOUT)."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, max(1, int(timeo_s * 1000)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def wait_tls(sock: socket.socket, name: str, context: ssl.SSLContext, *, server_side: bool) -> TlsTransport:
    """Handshake on a connected non-blocking socket, which then belongs to the result (closed on failure).

    Raises OSError (ssl.SSLError among them).  The caller sets the deadline.
    """
    transport = TlsTransport(sock, name, context, server_side=server_side)
    try:
        await transport.shake_hands()
    except BaseException:
        transport.close()
        raise
    return transport
