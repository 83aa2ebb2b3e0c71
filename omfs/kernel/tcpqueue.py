"""What a TCP socket in repair mode has received and nobody has read yet.

Repair mode (tcp(7) does not tell; net/ipv4/tcp.c: TCP_REPAIR, CAP_NET_ADMIN) lets one queue at a time be looked at; the
socket still takes what comes.  Called by mignode/tcpstreams.py.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from typing import Final, NamedTuple

_TCP_REPAIR_QUEUE: Final = 20
_TCP_QUEUE_SEQ: Final = 21
_RECEIVED: Final = 1  # TCP_RECV_QUEUE


class Received(NamedTuple):
    """*next_sequence*: the number of the byte that would come next; a FIN counts as one."""

    next_sequence: int
    data: bytes


def received(connection: socket.socket) -> Received:
    """Takes nothing out.  The socket is in repair mode, and its programs are frozen.  Raises OSError."""
    connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _RECEIVED)
    while True:
        sequence = _sequence_of(connection)
        size = array.array("i", [0])
        fcntl.ioctl(connection.fileno(), termios.FIONREAD, size)
        data = connection.recv(size[0], socket.MSG_PEEK | socket.MSG_DONTWAIT) if size[0] else b""
        if _sequence_of(connection) == sequence:  # else more came in between
            return Received(sequence, data)


def _sequence_of(connection: socket.socket) -> int:
    return int.from_bytes(connection.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, 4), "little")
