"""The process that keeps kernel leases and the fanotify group alive while omfs-export is killed and started again.

A lease ends when the last descriptor of its open file description is closed, so whoever is blocked by it would go
on, and change what other nodes still have cached.  This process holds a duplicate of each descriptor, and gives all of
them to the next omfs-export that connects.  It does nothing with them, and knows only the keys they came with.

It is started by leasekeeper.py, the other end, as a script without site-packages: it imports nothing but the standard
library and stays small.  It ends when told (END), or when no omfs-export was connected for *linger_s*; with it go the
leases.

Protocol: SOCK_SEQPACKET, one message per packet: its kind, then keys, each behind its length; descriptors as
SCM_RIGHTS, one per key and in their order.  Nothing but RECOVER and CLOSE is answered: what is in the socket's queue is
safe from the sender's death.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Final

HOLD: Final = b"H"  # keys with their descriptors; a key that is known gets the new one
DROP: Final = b"D"  # keys
CLOSE: Final = b"C"  # one key; answered with CLOSE when its descriptor is closed
WATCH: Final = b"W"  # no key, one descriptor: the fanotify group
RECOVER: Final = b"R"  # answered with HOLD and WATCH of everything, then END
END: Final = b"E"

DESCRIPTORS_MAX: Final = 128  # in a packet; the kernel allows SCM_MAX_FD, 253
PACKET_MAX_BYTES: Final = 1 << 16
QUEUE_BYTES: Final = 1 << 20  # some thousand packets: the sender never waits for this process to wake up

_LENGTH: Final = struct.Struct("=H")


def pack_keys(keys: Iterable[bytes]) -> bytes:
    """The keys of a packet."""
    return b"".join(_LENGTH.pack(len(key)) + key for key in keys)


def unpack_keys(packet: bytes) -> list[bytes]:
    """The keys of a packet, in their order."""
    keys = []
    at = 1
    while at < len(packet):
        (length,) = _LENGTH.unpack_from(packet, at)
        keys.append(packet[at + 2 : at + 2 + length])
        at += 2 + length
    return keys


class Keeper:
    """What is kept, and the one connection that it came through."""

    def __init__(self, listener: socket.socket, linger_s: float) -> None:
        self._listener = listener
        self._linger_s = linger_s
        self._connection: socket.socket | None = None
        self._kept: dict[bytes, int] = {}
        self._group = -1
        self._is_ended = False

    def run(self) -> None:
        """Until told to end, or left alone too long."""
        deadline_s = time.monotonic() + self._linger_s
        while not self._is_ended:
            if self._connection is not None:
                select.select([self._connection, self._listener], [], [])
                if not self._receive(self._connection):
                    deadline_s = time.monotonic() + self._linger_s
            elif not select.select([self._listener], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
                return
            self._accept()

    def _accept(self) -> None:
        """A new omfs-export takes the place of the old one, of which all packets have been received."""
        if not select.select([self._listener], [], [], 0)[0]:
            return
        if self._connection is not None:
            self._connection.close()
        self._connection, _ = self._listener.accept()
        self._connection.setblocking(False)

    def _receive(self, connection: socket.socket) -> bool:
        """Take everything that is in the queue; False when the connection was closed."""
        while True:
            try:
                packet, fds, _, _ = socket.recv_fds(connection, PACKET_MAX_BYTES, DESCRIPTORS_MAX)
            except BlockingIOError:
                return True
            except OSError:
                packet, fds = b"", []
            if not packet:
                connection.close()
                self._connection = None
                return False
            self._handle(connection, packet, fds)

    def _handle(self, connection: socket.socket, packet: bytes, fds: list[int]) -> None:
        kind = packet[:1]
        if kind == HOLD:
            for key, fd in zip(unpack_keys(packet), fds, strict=True):
                self._forget(key)
                self._kept[key] = fd
        elif kind == DROP:
            for key in unpack_keys(packet):
                self._forget(key)
        elif kind == CLOSE:
            for key in unpack_keys(packet):
                self._forget(key)
            with contextlib.suppress(OSError):  # it died
                connection.send(CLOSE)
        elif kind == WATCH:
            if self._group >= 0:
                os.close(self._group)
            (self._group,) = fds
        elif kind == RECOVER:
            self._give_all(connection)
        elif kind == END:
            self._is_ended = True

    def _forget(self, key: bytes) -> None:
        fd = self._kept.pop(key, -1)
        if fd >= 0:
            os.close(fd)

    def _give_all(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        try:
            keys = list(self._kept)
            for at in range(0, len(keys), DESCRIPTORS_MAX):
                some = keys[at : at + DESCRIPTORS_MAX]
                socket.send_fds(connection, [HOLD + pack_keys(some)], [self._kept[key] for key in some])
            if self._group >= 0:
                socket.send_fds(connection, [WATCH], [self._group])
            connection.send(END)
        except OSError:
            pass  # it died again; the next one will ask
        finally:
            connection.setblocking(False)


def main() -> None:
    """`keeperprocess.py LISTENER_FD LINGER_S SOCKET_PATH`."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    path = os.fsencode(sys.argv[3])
    status = os.stat(path)
    try:
        Keeper(listener, float(sys.argv[2])).run()
    finally:
        try:
            if os.path.samestat(os.stat(path), status):
                os.unlink(path)
        except FileNotFoundError:
            pass


if __name__ == "__main__":
    main()
