"""Connecting to an owner: both lanes of a pair, TLS and Hello included.

The steps of one attempt, from an address to two channels that the owner has welcomed; retrying, sessions and what is
sent over them are the peer's.  Invariant: when this raises, nothing stays open.  Called by net/peer.py only.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from omfs import wire
from omfs.errors import HelloRefused, WireError
from omfs.net import transport
from omfs.net.channel import Channel
from omfs.net.frames import REPLY_BIT
from omfs.net.hello import LocalNode, check_certificate, check_welcome, hello_to
from omfs.net.tls import peer_node_id

CONNECT_TIMEOUT_S: Final = 5.0  # for one lane on one address: TCP, TLS and Hello
_CLOSED: Final = "it closed the connection before it answered our Hello (is its sec= the same as ours?)"

Dial: TypeAlias = Callable[[str, int, ssl.SSLContext | None, float], Awaitable[transport.Transport]]
"""(address, port, context, timeo_s) -> a connected transport; raises OSError."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two connected lanes, and what the owner said on the first.  *hello_s*: when the second's Hello was sent."""

    channels: tuple[Channel, Channel]  # by lane
    welcomed: wire.Welcomed
    hello_s: float


@dataclass(frozen=True, slots=True)
class Connector:
    """Everything an attempt needs; *take_id* gives the next request id of the session."""

    dial: Dial
    port: int
    context: ssl.SSLContext | None
    timeo_s: float
    local: LocalNode
    node_id: int
    session_key: bytes
    take_id: Callable[[], int]

    async def connect(self, address: str) -> Pair:
        """Raises OSError, HelloRefused, WireError."""
        small, welcomed, _ = await self._open_lane(address, wire.Lane.SMALL)
        try:
            bulk, _, hello_s = await self._open_lane(address, wire.Lane.BULK)
        except BaseException:
            small.close("the BULK lane could not be connected")
            raise
        return Pair((small, bulk), welcomed, hello_s)

    async def _open_lane(self, address: str, lane: wire.Lane) -> tuple[Channel, wire.Welcomed, float]:
        timeout_s = min(self.timeo_s, CONNECT_TIMEOUT_S)
        with trio.move_on_after(timeout_s):
            try:
                channel = Channel(await self.dial(address, self.port, self.context, self.timeo_s), at_holder=True)
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):  # which one depends on Python's version
                raise ConnectionResetError(_CLOSED) from None
            except ssl.SSLError as error:
                raise HelloRefused(f"TLS: {tls_reason(error)}") from None
            try:
                return channel, *await self._say_hello(channel, lane)
            except BaseException:
                channel.close("Hello failed")
                raise
        raise TimeoutError(f"no answer within {timeout_s:g} s")

    async def _say_hello(self, channel: Channel, lane: wire.Lane) -> tuple[wire.Welcomed, float]:
        certificate = channel.transport.certificate
        check_certificate(None if certificate is None else peer_node_id(certificate), self.node_id)
        hello_id = self.take_id()
        sent_s = trio.current_time()
        try:
            await channel.request(hello_id, hello_to(self.local, self.node_id, self.session_key, lane))
            frames = await channel.receive()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            raise ConnectionResetError(_CLOSED) from None
        except ssl.SSLError as error:
            raise HelloRefused(f"TLS: {tls_reason(error)}") from None
        if len(frames) != 1 or frames[0][0] != hello_id | REPLY_BIT:
            raise WireError("did not answer our Hello")
        welcomed = check_welcome(frames[0][1], self.node_id)
        channel.admit(lane)
        return welcomed, sent_s


def tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not one of this cluster: {error.verify_message}"
    if error.reason and "ALERT" in error.reason:
        return f"it refused our certificate ({error.reason.lower().replace('_', ' ')})"
    return error.reason or str(error)
