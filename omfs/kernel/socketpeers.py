"""Who is at the other end of a unix socket: asked of the kernel by inode (sock_diag(7)); what protocol a socket has.

/proc/net/unix does not tell the other end.  The kernel answers at once, for the sockets of the network namespace that
this process is in.  No state but the netlink socket; not for several threads at a time.  Called by
mignode/cantmove.py.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from types import TracebackType
from typing import Final, NamedTuple

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = 1  # NLM_F_REQUEST
_SHOW: Final = 0x1 | 0x4 | 0x8  # UDIAG_SHOW_NAME, _PEER, _ICONS
_NAME, _PEER, _ICONS, _SHUTDOWN = 0, 2, 3, 6  # include/uapi/linux/unix_diag.h
_HEADER: Final = struct.Struct("=IHHII")
_ASK: Final = struct.Struct("=BBHIIIII")
_ANSWER: Final = struct.Struct("=BBBBIII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ANYTHING: Final = 0xFFFFFFFF
_LISTENS: Final = 10  # TCP_LISTEN, which unix sockets borrow
_ESTABLISHED: Final = 1
_BOTH: Final = 3  # RCV_SHUTDOWN and SEND_SHUTDOWN
_ANSWER_BYTES: Final = 1 << 16


class UnixSocket(NamedTuple):
    """*name*: as bound, an abstract one with "@" in front; "" for none.  *peer*: the other end's inode, 0 for none.

    *waiting*: inodes of those who have connected to a listener and are not accepted yet; each has no peer until then.
    *is_over*: both directions are shut down.
    """

    name: str = ""
    peer: int = 0
    listens: bool = False
    is_connected: bool = False
    waiting: tuple[int, ...] = ()
    is_over: bool = False


class SocketPeers:
    """A context."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._asked = 0

    def __enter__(self) -> SocketPeers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._netlink.close()

    def find(self, inode: int) -> UnixSocket | None:
        """None: it is gone, or of another network namespace.  Raises OSError where the kernel has no unix_diag."""
        self._asked += 1
        ask = _ASK.pack(socket.AF_UNIX, 0, 0, _ANYTHING, inode, _SHOW, _ANYTHING, _ANYTHING)
        self._netlink.send(_HEADER.pack(_HEADER.size + len(ask), _SOCK_DIAG_BY_FAMILY, _REQUEST, self._asked, 0) + ask)
        while True:
            answer = self._netlink.recv(_ANSWER_BYTES)
            length, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence == self._asked:
                break
        if kind == _SOCK_DIAG_BY_FAMILY:
            return parse_answer(answer[_HEADER.size : length])
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if -code == errno.ENOENT:
            return None
        raise OSError(-code, os.strerror(-code), "sock_diag")


def parse_answer(body: bytes) -> UnixSocket:
    """A struct unix_diag_msg and its attributes."""
    state = _ANSWER.unpack_from(body)[2]
    attributes = {}
    at = _ANSWER.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            raise ValueError(f"not an answer of unix_diag: {body!r}")
        attributes[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    icons = attributes.get(_ICONS, b"")
    return UnixSocket(
        _shown(attributes.get(_NAME, b"")),
        int.from_bytes(attributes.get(_PEER, b""), sys.byteorder),
        state == _LISTENS,
        state == _ESTABLISHED,
        struct.unpack_from(f"={len(icons) // 4}I", icons),
        int.from_bytes(attributes.get(_SHUTDOWN, b""), sys.byteorder) == _BOTH,
    )


def protocol_of(path: str) -> str:
    """Of the socket that /proc/<pid>/fd/<number> leads to: "TCP", "UNIX", "NETLINK" ..., as the kernel calls it.

    An attribute of each file of sockfs (net/socket.c).  Raises OSError.
    """
    return os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode("ascii", "replace")


def _shown(name: bytes) -> str:
    text = name.rstrip(b"\0") if not name.startswith(b"\0") else b"@" + name[1:]
    return os.fsdecode(text)
