"""What the owner makes of strangers, of nodes that don't fit, and of requests that break the rules.

Every test has a well-behaved holder too (the `pair`), which must not notice anything.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from omfs import wire
from omfs.config import IN_FLIGHT_MAX, REPLIES_KEPT
from omfs.errors import BadHandle, HelloRefused, RemoteFailure, RuleBroken
from omfs.net import server as server_module
from omfs.net.frames import HEADER, REPLY_BIT
from omfs.net.hello import check_certificate, check_hello, check_welcome, hello_to
from omfs.net.transport import MemoryTransport
from tests.sim.line import (
    HOLDER,
    KEY,
    OWNER,
    Client,
    Pair,
    hello,
    local_node,
    look_up,
    make_directory,
    wait_until_blocked,
)


async def check_undisturbed(pair: Pair) -> None:
    await pair.ask(look_up(b"y"))
    assert len(pair.line.dialled) == 2
    assert pair.peer.epoch == 0


# ---------------------------------------------------------------- Hello


@pytest.mark.parametrize(
    ("greeting", "certified", "reason"),
    [
        (
            wire.Hello(wire.PROTOCOL_VERSION + 1, "newer", HOLDER, OWNER, True, b"map", KEY, wire.Lane.SMALL),
            None,
            f"speaks protocol {wire.PROTOCOL_VERSION}, node 1 ('newer') speaks {wire.PROTOCOL_VERSION + 1}: install",
        ),
        (hello(node_id=3), 1, "the certificate is node 1's but the caller says it is node 3"),
        (hello_to(local_node(HOLDER), 3, KEY, wire.Lane.SMALL), None, "this is node 2, not node 3"),
        (hello(map_digest=b"other"), None, "the cluster maps of node 2 and node 1 differ"),
        (hello(dfsa=False), None, "node 2 is mounted with dfsa=1, node 1 with dfsa=0: use the same on all nodes"),
        (hello(key=b"short"), None, "a session key has 16 bytes, not 5"),
    ],
)
def test_a_hello_that_does_not_fit(greeting: wire.Hello, certified: int | None, reason: str) -> None:
    with pytest.raises(HelloRefused) as caught:
        check_hello(greeting, local_node(OWNER), certified)
    assert reason in str(caught.value)


def test_a_hello_that_fits() -> None:
    check_hello(hello(), local_node(OWNER), None)
    check_hello(hello(), local_node(OWNER), HOLDER)


def test_what_a_holder_checks() -> None:
    welcomed = wire.Welcomed(
        version=wire.PROTOCOL_VERSION, software="x", node_id=OWNER, instance=b"i", resumed=False, lease_term_s=12.0
    )
    assert check_welcome(welcomed, OWNER) is welcomed
    check_certificate(None, OWNER)
    check_certificate(OWNER, OWNER)
    for reply, reason in [
        (
            wire.Welcomed(version=1, software="x", node_id=3, instance=b"i", resumed=False, lease_term_s=12.0),
            "wanted node 2",
        ),
        (
            wire.Welcomed(version=9, software="x", node_id=2, instance=b"i", resumed=False, lease_term_s=12.0),
            "with protocol 9",
        ),
        (wire.Refused(reason="because"), "because"),
        (wire.Done(), "answered our Hello with Done"),
    ]:
        with pytest.raises(HelloRefused, match=reason):
            check_welcome(reply, OWNER)
    with pytest.raises(HelloRefused, match="the certificate there is node 3's"):
        check_certificate(3, OWNER)


async def test_a_refused_node_is_told_why_and_logged(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(pair)
    reply = await client.ask(1, hello(dfsa=False))
    assert isinstance(reply, wire.Refused)
    assert "dfsa" in reply.reason
    await client.wait_closed()
    assert "holder: refused: node 2 is mounted with dfsa=1" in caplog.text
    await check_undisturbed(pair)


async def test_sessions_belong_to_their_node(autojump_clock: MockClock, pair: Pair) -> None:
    assert isinstance(await Client(pair).ask(1, hello()), wire.Welcomed)
    reply = await Client(pair).ask(1, hello(node_id=3))
    assert reply == wire.Refused(reason="this session belongs to another node than 3")
    await check_undisturbed(pair)


async def test_the_bulk_lane_comes_second(autojump_clock: MockClock, pair: Pair) -> None:
    reply = await Client(pair).ask(1, hello(wire.Lane.BULK))
    assert isinstance(reply, wire.Refused)
    assert reply.reason == "no such session; connect the SMALL lane first"


async def test_one_node_cannot_open_sessions_without_end(autojump_clock: MockClock, pair: Pair) -> None:
    for number in range(server_module.SESSIONS_PER_NODE_MAX - 1):
        assert isinstance(await Client(pair).ask(1, hello(key=b"%16d" % number)), wire.Welcomed)
    reply = await Client(pair).ask(1, hello())
    assert reply == wire.Refused(reason="node 1 has 64 sessions already")
    await check_undisturbed(pair)


async def test_resumed_is_said_only_when_the_holder_knew_of_the_session(autojump_clock: MockClock, pair: Pair) -> None:
    first = await Client(pair).ask(1, hello())
    again = await Client(pair).ask(2, hello())  # perhaps the first Welcomed was lost
    assert isinstance(first, wire.Welcomed)
    assert isinstance(again, wire.Welcomed)
    assert not first.resumed
    assert not again.resumed
    await Client(pair).ask(3, hello(wire.Lane.BULK))
    third = await Client(pair).ask(4, hello())
    assert isinstance(third, wire.Welcomed)
    assert third.resumed


# ---------------------------------------------------------------- bad input


def says(data: bytes) -> Callable[[MemoryTransport], None]:
    def say(transport: MemoryTransport) -> None:
        assert transport.send_now(data) == len(data)

    return say


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: node2\r\n\r\n", "refused a frame of"),
        (bytes.fromhex("16030102000100").ljust(32, b"\1"), "it looks like TLS, so its sec= differs from ours"),
        (HEADER.pack(5000, 0, 1), "refused a frame of 5000 bytes"),  # a stranger may not send so much
        (HEADER.pack(5, 1, 1), "with 1 bytes of bulk data"),
        (HEADER.pack(3, 0, 1) + b"\xff\xff\xff", "refused a request that is not one of ours"),
        (HEADER.pack(6, 0, 1) + b"\x91\xa4Ping", "began with Ping instead of one Hello"),
        (HEADER.pack(6, 0, 1 | REPLY_BIT) + b"\x91\xa4Done", "began with Done instead of one Hello"),
    ],
)
async def test_a_stranger_who_says_anything_else(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture, data: bytes, told: str
) -> None:
    client = Client(pair)
    says(data)(client.transport)
    await client.wait_closed()
    [line] = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("holder: ")
    assert told in line
    assert line.endswith("connection closed")
    await check_undisturbed(pair)


async def test_a_stranger_who_says_nothing(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(pair)
    begun_s = trio.current_time()
    await client.wait_closed()
    assert trio.current_time() - begun_s == pytest.approx(server_module.HELLO_TIMEOUT_S, abs=0.1)
    assert "holder: no Hello within 5 s" in caplog.text
    await check_undisturbed(pair)


async def test_a_stranger_who_goes_away(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    Client(pair).transport.close()
    await wait_until_blocked()
    assert "holder: lost before it said Hello" in caplog.text
    await check_undisturbed(pair)


@pytest.mark.parametrize(
    ("frame_id", "message", "told"),
    [
        (5, hello(), "a second Hello"),
        (5 | REPLY_BIT, wire.Done(), "a Done that nobody asked for"),
    ],
)
async def test_a_node_that_breaks_the_rules(
    autojump_clock: MockClock,
    pair: Pair,
    caplog: pytest.LogCaptureFixture,
    frame_id: int,
    message: wire.Message,
    told: str,
) -> None:
    client = Client(pair)
    await client.ask(1, hello())
    await client.channel.request(frame_id, message)
    await client.wait_closed()
    assert f"node 1 (holder): {told}" in caplog.text
    await check_undisturbed(pair)


def raising(error: Exception, slowly: bool) -> Callable[..., Any]:
    """In place of a service's `answer`."""

    async def fail() -> server_module.Answer:
        await trio.lowlevel.checkpoint()
        raise error

    def answer(*_: object) -> Any:
        if slowly:
            return fail()
        raise error

    return answer


@pytest.mark.parametrize("slowly", [False, True])
async def test_what_no_kernel_asks_for_costs_the_connections(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture, slowly: bool
) -> None:
    client, bulk = Client(pair), Client(pair)
    await client.ask(1, hello())
    await bulk.ask(1, hello(wire.Lane.BULK))
    answer = pair.service.answer
    pair.server.service.answer = raising(RuleBroken("asked for b'..'"), slowly)  # type: ignore[method-assign]
    await client.channel.request(2, look_up(b".."))
    await client.wait_closed()
    [line] = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("node 1")
    assert line.endswith("asked for b'..'; connection closed")
    if slowly:
        await bulk.wait_closed()
    pair.server.service.answer = answer  # type: ignore[method-assign]
    await check_undisturbed(pair)


@pytest.mark.parametrize("slowly", [False, True])
async def test_a_handle_that_is_none_of_ours_is_stale_and_said_once(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture, slowly: bool
) -> None:
    """An owner that has lost its key does not know what it gave out itself: no reason to cut anybody off."""
    client = Client(pair)
    await client.ask(1, hello())
    pair.server.service.answer = raising(BadHandle("a handle of 3 bytes"), slowly)  # type: ignore[method-assign]
    for number in (2, 3):
        reply = await client.ask(number, wire.GetAttributes(b"abc"))
        assert isinstance(reply, wire.Failed)
        assert reply.errno == errno.ESTALE
    [line] = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("node 1: a handle of 3 bytes; answered with ESTALE")


async def test_large_bulk_data_have_a_lane_of_their_own(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(pair)
    await client.ask(1, hello())
    says(HEADER.pack(30, 1 << 20, 2))(client.transport)
    await client.wait_closed()
    assert "with 1048576 bytes of bulk data" in caplog.text


async def test_a_node_that_asks_for_too_much_at_once(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(pair)
    await client.ask(1, hello())
    for number in range(2, IN_FLIGHT_MAX + 3):
        await client.channel.request(number, look_up(b"slow"))
    await client.wait_closed()
    assert f"too many requests at once ({IN_FLIGHT_MAX} with 0 bytes" in caplog.text
    await check_undisturbed(pair)


async def test_bulk_data_that_are_held_are_limited(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """32 MiB reads that take long: the third would go beyond 64 MiB."""

    async def answer_later() -> server_module.Answer:
        await pair.service.release.wait()
        return wire.BlocksRead(), b""

    pair.server.service.answer = lambda *_: answer_later()  # type: ignore[method-assign]
    client = Client(pair)
    await client.ask(1, hello())
    for number in (2, 3, 4):
        await client.channel.request(number, wire.ReadBlocks(open_id=1, offset=0, size_bytes=32 << 20))
    await client.wait_closed()
    assert "too many requests at once (2 with 67108864 bytes" in caplog.text


# ---------------------------------------------------------------- requests


async def test_a_bug_in_the_service_is_an_eio(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RemoteFailure, match="internal error, see the owner's log") as caught:
        await pair.ask(look_up(b"bug"))
    assert caught.value.errno == errno.EIO
    assert "LookUp failed here" in caplog.text
    assert "KeyError: 'a bug'" in caplog.text
    await check_undisturbed(pair)


async def test_a_bug_in_a_coroutine_is_an_eio(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> server_module.Answer:
        await trio.lowlevel.checkpoint()
        raise KeyError("a bug")

    answer = pair.service.answer
    pair.server.service.answer = lambda *_: fail()  # type: ignore[method-assign]
    with pytest.raises(RemoteFailure, match="internal error"):
        await pair.ask(make_directory(b"x"))
    pair.server.service.answer = answer  # type: ignore[method-assign]
    await check_undisturbed(pair)


async def test_a_reply_too_large_to_send_is_an_error(autojump_clock: MockClock, pair: Pair) -> None:
    with pytest.raises(RemoteFailure, match="XattrGot is too large to send"):
        await pair.ask(look_up(b"huge"))
    await check_undisturbed(pair)


async def test_a_repeated_request_is_answered_from_memory(autojump_clock: MockClock, pair: Pair) -> None:
    client = Client(pair)
    await client.ask(1, hello())
    assert await client.ask(2, make_directory(b"a")) == wire.Done()
    assert await client.ask(2, make_directory(b"a")) == wire.Done()
    assert pair.names() == [b"a"]
    failed = wire.CloseFile(open_id=3)
    assert await client.ask(3, failed) == await client.ask(3, failed)
    assert len(pair.service.executed) == 2


async def test_a_repeat_whose_reply_is_forgotten_is_refused_not_executed(autojump_clock: MockClock, pair: Pair) -> None:
    client = Client(pair)
    await client.ask(1, hello())
    for number in range(2, REPLIES_KEPT + 4):
        await client.ask(number, make_directory(b"a"))
    assert await client.ask(2, make_directory(b"late")) == wire.Done()  # not a repeat: no reconnect since
    client = Client(pair)
    await client.ask(REPLIES_KEPT + 10, hello())
    executed = len(pair.service.executed)
    reply = await client.ask(3, make_directory(b"again"))
    assert isinstance(reply, wire.Failed)
    assert reply.errno == errno.EIO
    assert "forgotten" in reply.text
    assert len(pair.service.executed) == executed


async def test_cancelling_what_is_not_under_way(autojump_clock: MockClock, pair: Pair) -> None:
    client = Client(pair)
    await client.ask(1, hello())
    assert await client.ask(2, wire.CancelRequest(request_id=77)) == wire.Done()


async def test_cancelling_a_waiting_request(autojump_clock: MockClock, pair: Pair) -> None:
    client = Client(pair)
    await client.ask(1, hello())
    await client.channel.request(2, wire.LockFile(open_id=1, operation=2, wait=True))
    assert await client.ask(3, wire.CancelRequest(request_id=2)) == wire.Done()
    reply = await client.reply_to(2)
    assert isinstance(reply, wire.Failed)
    assert reply.errno == errno.EINTR


async def test_nothing_more_is_read_from_a_connection_that_was_replaced(autojump_clock: MockClock, pair: Pair) -> None:
    """A request left in the old connection must not be executed after its repeat in the new one."""
    old, new = Client(pair), Client(pair)
    await old.ask(1, hello())
    await new.channel.request(2, hello())
    await wait_until_blocked()
    with pytest.raises(OSError, match="closed"):
        await old.channel.request(3, look_up(b"stale"))
    assert b"stale" not in pair.names()


# ---------------------------------------------------------------- the end of a session


async def test_a_silent_holder_loses_its_session(autojump_clock: MockClock, pair: Pair) -> None:
    client = Client(pair)
    await client.ask(1, hello())
    session = pair.server.sessions[KEY]
    session.data = "opens and locks"
    await client.channel.request(2, wire.LockFile(open_id=1, operation=2, wait=True))
    await trio.sleep(pair.settings.session_timeout_s - 3)
    assert pair.service.ended == []
    await trio.sleep(5)
    assert pair.service.ended == [session]
    assert session.ended
    assert pair.service.cancelled == 1
    await client.wait_closed()
    await check_undisturbed(pair)


async def test_a_failing_end_of_a_session_disturbs_nobody(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(session: object) -> None:
        raise KeyError("a bug")

    pair.service.session_ended = fail  # type: ignore[method-assign]
    await Client(pair).ask(1, hello())
    await trio.sleep(pair.settings.session_timeout_s + 5)
    assert "ending its session failed" in caplog.text
    await check_undisturbed(pair)


async def test_a_server_that_could_not_run_blames_nobody(autojump_clock: MockClock, pair: Pair) -> None:
    """After two minutes in which this process was stopped, what the holder sent may still be unread."""
    autojump_clock.jump(120)
    await wait_until_blocked()
    assert pair.service.ended == []
    await check_undisturbed(pair)
