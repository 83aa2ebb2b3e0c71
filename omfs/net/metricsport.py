"""The door for Prometheus: answers `GET /metrics` over HTTP, and nothing else.

Whoever may connect may read: there are only counts behind it, no names of files.  So this is the least that a scraper
needs: one request a connection, whose head is all that is read; limits on its size, its time and how many there are
at once; no header is looked at.  What it does not do: know any metric (omfs/metrics.py).  Invariant: nothing that comes
in here ends or delays the daemon.  Called by omfs/metrics.py.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from omfs.errors import ConfigError
from omfs.net.accepting import listen

HEAD_MAX_BYTES: Final = 8 << 10  # Prometheus sends less than 1 KiB
HEAD_DEADLINE_S: Final = 5.0
ANSWER_DEADLINE_S: Final = 10.0  # Prometheus gives up after 10 s, unless told otherwise
CONNECTIONS_MAX: Final = 16  # a scraper needs one

log = logging.getLogger(__name__)


def open_listener(address: str, port: int) -> socket.socket | None:
    """A listening socket; None for port 0, where nobody wants metrics.

    *address*: "" means all of this machine's.  Raises ConfigError where it can't listen there.
    """
    if not port:
        return None
    try:
        return listen(address, port)
    except OSError as error:
        number = error.errno or 0  # below 0: a name that is not known
        reason = os.strerror(number) if number > 0 else error.strerror
    except UnicodeError as error:  # no name looks like that
        reason = str(error)
    raise ConfigError(
        f"metrics on {address or '*'} port {port}: {reason}; change metrics_address or the port in omfs.toml"
    )


async def serve(
    sock: socket.socket,
    make_text: Callable[[], Awaitable[bytes]],
    content_type: str,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on *sock* with what *make_text* gives until cancelled; then it is closed."""
    answer = functools.partial(_answer, make_text, content_type, trio.CapacityLimiter(CONNECTIONS_MAX))
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, answer, [listener])
        task_status.started()


async def _answer(
    make_text: Callable[[], Awaitable[bytes]], content_type: str, places: trio.CapacityLimiter, stream: trio.abc.Stream
) -> None:
    async with stream:
        try:
            places.acquire_nowait()
        except trio.WouldBlock:
            return
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            try:
                await _answer_one(make_text, content_type, stream)
            finally:
                places.release()


async def _answer_one(
    make_text: Callable[[], Awaitable[bytes]], content_type: str, stream: trio.abc.Stream
) -> None:  # fmt: skip
    head: bytes | None = None
    with trio.move_on_after(HEAD_DEADLINE_S):
        head = await _receive_head(stream)
    if head is None:
        return
    status, text = _refusal(head), b""
    if not status:
        try:
            text = await make_text()
        except Exception:
            log.exception("the metrics can't be told")
            status = "500 Internal Server Error"
    with trio.move_on_after(ANSWER_DEADLINE_S):
        await stream.send_all(_reply(status or "200 OK", "text/plain" if status else content_type, text))


async def _receive_head(stream: trio.abc.Stream) -> bytes | None:
    """A request up to its empty line; None if it is too long or cut off."""
    head = bytearray()
    while b"\r\n\r\n" not in head:
        chunk = await stream.receive_some(HEAD_MAX_BYTES)
        head += chunk
        if not chunk or len(head) > HEAD_MAX_BYTES:
            return None
    return bytes(head)


def _refusal(head: bytes) -> str:
    """The status line of what is not to be answered with metrics; "" for what is."""
    match head.partition(b"\r\n")[0].split(b" "):
        case [b"GET", target, version] if version.startswith(b"HTTP/1."):
            return "" if target.partition(b"?")[0] == b"/metrics" else "404 Not Found"
        case [_, _, version] if version.startswith(b"HTTP/1."):
            return "405 Method Not Allowed"
        case _:
            return "400 Bad Request"


def _reply(status: str, content_type: str, text: bytes) -> bytes:
    body = text or f"{status}; GET /metrics is answered here\n".encode()
    allow = "Allow: GET\r\n" if status.startswith("405") else ""
    head = (
        f"HTTP/1.1 {status}\r\n{allow}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
