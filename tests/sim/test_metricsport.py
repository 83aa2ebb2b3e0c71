"""The door for Prometheus, over real sockets of this machine: what is answered, refused and cut off."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from omfs.errors import ConfigError
from omfs.net import metricsport
from omfs.net.accepting import listen
from omfs.net.metricsport import (
    ANSWER_DEADLINE_S,
    CONNECTIONS_MAX,
    HEAD_DEADLINE_S,
    HEAD_MAX_BYTES,
    open_listener,
    serve,
)

TEXT = b"# HELP omfs_info Which daemon this is.\n"
GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"


async def tell() -> bytes:
    return TEXT


async def served(nursery: trio.Nursery, make_text: Callable[[], Awaitable[bytes]], content_type: str) -> int:
    """Served on a free port: this."""
    sock = listen("127.0.0.1", 0)
    port: int = sock.getsockname()[1]
    await nursery.start(serve, sock, make_text, content_type)
    return port


@pytest.fixture
async def port(nursery: trio.Nursery) -> int:
    return await served(nursery, tell, "text/plain; version=0.0.4")


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Until the other side closes, in whichever way."""
    answer = b""
    try:
        async for chunk in stream:
            answer += chunk
    except trio.BrokenResourceError:
        pass
    return answer


async def ask(port: int, request: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        return await receive_all(stream)


async def test_metrics_are_told(port: int) -> None:
    for request in (GET, GET.replace(b"/metrics", b"/metrics?name%5B%5D=up"), b"GET /metrics HTTP/1.0\r\n\r\n"):
        head, _, body = (await ask(port, request)).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 200 OK"
        assert b"Content-Type: text/plain; version=0.0.4" in lines
        assert b"Content-Length: %d" % len(TEXT) in lines
        assert b"Connection: close" in lines
        assert body == TEXT


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404 Not Found"),
        (b"GET /metrics/../status HTTP/1.1", b"404 Not Found"),
        (b"GET /metricsx HTTP/1.1", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"GET /metrics", b"400 Bad Request"),
        (b"GET  /metrics HTTP/1.1", b"400 Bad Request"),
        (b"GET /metrics SPDY/3", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"400 Bad Request"),
        (b"", b"400 Bad Request"),
    ],
)
async def test_everything_else_is_refused(port: int, request_line: bytes, status: bytes) -> None:
    answer = await ask(port, request_line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert TEXT not in answer
    assert (b"\r\nAllow: GET\r\n" in answer) == status.startswith(b"405")
    assert TEXT in await ask(port, GET)


async def test_a_request_without_end_is_cut_off(port: int) -> None:
    assert await ask(port, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (2 * HEAD_MAX_BYTES)) == b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:  # and one that stops in the middle
        await stream.send_all(GET[:-2])
        await stream.send_eof()
        assert await receive_all(stream) == b""
    assert TEXT in await ask(port, GET)


async def test_who_is_slow_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    """Over a stream in memory: a clock of the test's own knows nothing of real sockets."""
    ours, theirs = trio.testing.memory_stream_pair()
    begun_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metricsport._answer, tell, "text/plain", trio.CapacityLimiter(1), theirs)
        for byte in GET:
            await ours.send_all(bytes([byte]))
            with trio.move_on_after(HEAD_DEADLINE_S / 10.5):
                assert await ours.receive_some() == b""
                break
        else:
            pytest.fail("it was listened to without end")
    assert trio.current_time() - begun_s == pytest.approx(HEAD_DEADLINE_S)


async def test_who_takes_nothing_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # sends only as fast as it is received
    begun_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metricsport._answer, tell, "text/plain", trio.CapacityLimiter(1), theirs)
        await ours.send_all(GET)
    assert trio.current_time() - begun_s == pytest.approx(ANSWER_DEADLINE_S)


async def test_a_crowd_does_not_get_in(port: int) -> None:
    idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(CONNECTIONS_MAX)]
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as late:  # accepted after them
            assert await receive_all(late) == b""
        await idle.pop().aclose()
        answer = b""
        while not answer:  # until it is noticed that a place is free
            try:
                answer = await ask(port, GET)
            except trio.BrokenResourceError:
                await trio.lowlevel.checkpoint()
        assert TEXT in answer
    finally:
        for stream in idle:
            await stream.aclose()


async def test_metrics_that_fail_are_logged(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> bytes:
        raise KeyError("held")

    port = await served(nursery, fail, "text/plain")
    with caplog.at_level(logging.ERROR):
        answer = await ask(port, GET)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert "the metrics can't be told" in caplog.text
    assert (await ask(port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")


def test_where_nobody_can_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"metrics on 127.0.0.1 port {port}: Address already in use; "):
            open_listener("127.0.0.1", port)
    for address in ("192.0.2.1", "no..host"):
        with pytest.raises(ConfigError, match=f"metrics on {address} port 9"):
            open_listener(address, 9)


def test_no_port_is_no_listener() -> None:
    assert open_listener("127.0.0.1", 0) is None
