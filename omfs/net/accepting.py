"""Listening, and letting in those who come: what the entrances of omfs-export and mignode have in common.

Whoever has connected and not yet said who it is, is a *stranger*; of these there are only so many, so that nobody who
just connects costs a daemon its descriptors.  Called by net/server.py and mignode/line.py, which check who comes.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import trio

_ACCEPT_PAUSE_S: Final = 0.1  # after accept() failed for want of descriptors or memory

log = logging.getLogger(__name__)


class Stranger:
    """One of them, until `leave`."""

    def __init__(self, others: set[Stranger]) -> None:
        self._others = others
        others.add(self)

    def leave(self) -> None:
        """It is known now, or gone; may be called again."""
        self._others.discard(self)


class Entrance:
    """Counts strangers."""

    def __init__(self) -> None:
        self._strangers: set[Stranger] = set()

    def stranger(self) -> Stranger:
        """One more, who may come in by another way than `accept`."""
        return Stranger(self._strangers)

    async def accept(
        self, listener: socket.socket, strangers_max: int, let_in: Callable[[socket.socket, str, Stranger], None]
    ) -> None:
        """Until cancelled.  Whoever comes is given to *let_in*, with its address as a name; too many are closed."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as error:
                log.error("cannot accept connections: %s", error)
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            name = _readable(address)
            if len(self._strangers) >= strangers_max:
                log.warning("%s: closed, %d others have not said yet who they are", name, len(self._strangers))
                sock.close()
            else:
                let_in(sock, name, self.stranger())  # counted here: the next accept() may come before its task runs


def listen(address: str, port: int) -> socket.socket:
    """A listening socket on *address* ("" = all, IPv6 and IPv4).  Raises OSError."""
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.create_server((address, port), family=family, backlog=128)
    elif socket.has_dualstack_ipv6():
        sock = socket.create_server(("", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
    else:
        sock = socket.create_server(("", port), backlog=128)
    sock.setblocking(False)
    return sock


def tls_reason(error: ssl.SSLError) -> str:
    """Why somebody who came did not get in, in the administrator's terms."""
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL"):
        return "it does not speak TLS 1.3 (is it sec=none there?)"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it showed no certificate"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not one of this cluster: {error.verify_message}"
    return error.reason or str(error)


def _readable(address: Any) -> str:
    host, port = address[0], address[1]
    return f"{str(host).removeprefix('::ffff:')}:{port}"
