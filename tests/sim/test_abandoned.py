"""Callers that leave, a holder that was stopped itself, and the road without task switches."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from omfs import wire
from omfs.errors import NodeDown, RemoteFailure
from omfs.net.channel import Channel
from omfs.net.frames import REPLY_BIT, Buffer, Frame
from tests.sim.line import CALLER, Attempt, Pair, attempt, look_up, wait_until_blocked

OPEN = wire.OpenFile(handle=b"h", flags=0, caller=CALLER)


async def test_a_file_that_was_opened_for_a_caller_who_left_is_closed(autojump_clock: MockClock, pair: Pair) -> None:
    for transport in pair.line.transports:
        transport.lose_replies()
    call = attempt(pair, OPEN, wire.FileOpened)
    assert isinstance(await call.wait(), NodeDown)
    assert pair.service.undone == []
    await trio.sleep(5)  # it has reconnected
    assert pair.peer.epoch == 0
    assert pair.service.undone == [wire.FileOpened(open_id=5)]


async def test_a_holder_that_was_stopped_itself_does_not_blame_the_owner(autojump_clock: MockClock, pair: Pair) -> None:
    await trio.sleep(1)
    autojump_clock.jump(17)  # nobody ran: SIGSTOP, or the lid was closed
    await trio.sleep(10)
    assert pair.peer.state == "up"
    assert len(pair.line.dialled) == 2, "the first pair is still in use"
    assert await pair.ask(look_up(b"x")) == wire.Done()


async def test_a_node_that_left_the_map_hangs_nobody(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = Pair(nursery, hard=True)
    await pair.start_server()
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await pair.peer.run()

    nursery.start_soon(run)
    await pair.ask(look_up(b"x"))
    scope.cancel()
    await wait_until_blocked()
    with pytest.raises(NodeDown):
        await pair.ask(look_up(b"x"))


# ---------------------------------------------------------------- without a task switch


class Wire:
    """Stands before a real channel: *answers* are what is there after each request."""

    def __init__(self, real: Channel) -> None:
        self._real = real
        self.sent: list[tuple[int, wire.Message]] = []
        self.answers: list[list[Frame]] = []
        self.fault: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def send_at_once(self, frame_id: int, message: wire.Message, bulk: Buffer = b"") -> bool:
        if self.fault is not None:
            raise self.fault
        self.sent.append((frame_id, message))
        return True

    def receive_now(self) -> list[Frame]:
        return self.answers.pop(0)


@pytest.fixture
def channel(pair: Pair) -> Wire:
    """*pair*'s peer with a stand-in for its SMALL lane, and always ready to wait on the spot."""
    real = pair.peer._channels
    assert real is not None
    stand_in = Wire(real[0])
    pair.peer._channels = (stand_in, real[1])  # type: ignore[assignment]
    pair.peer.linger = lambda descriptors: descriptors[0]
    return stand_in


async def test_a_reply_that_comes_at_once_is_taken_at_once(pair: Pair, channel: Wire) -> None:
    next_id = pair.peer._calls.last_id + 1
    channel.answers = [
        [(next_id | REPLY_BIT, wire.Done(), b"")],
        [(next_id + 1 | REPLY_BIT, wire.Failed(errno=2), b"")],
    ]
    assert await pair.ask(look_up(b"a")) == wire.Done()
    with pytest.raises(RemoteFailure) as caught:
        await pair.ask(look_up(b"b"))
    assert caught.value.errno == 2
    assert [frame_id for frame_id, _ in channel.sent] == [next_id, next_id + 1]
    assert pair.peer._calls.is_idle


async def test_what_does_not_come_at_once_comes_by_the_reader(pair: Pair, channel: Wire) -> None:
    next_id = pair.peer._calls.last_id + 1
    channel.answers = [[]]
    call: Attempt = attempt(pair, look_up(b"a"))
    await wait_until_blocked()
    assert not call.is_over
    assert list(pair.peer._calls.in_flight) == [next_id]
    pair.peer._take_reply((next_id | REPLY_BIT, wire.Done(), b""))
    assert await call.wait() == wire.Done()
    assert pair.peer._calls.is_idle


async def test_a_line_that_breaks_on_the_short_road_keeps_the_call(pair: Pair, channel: Wire) -> None:
    channel.fault = ConnectionResetError(104, "reset")
    channel.answers = [[]]
    call = attempt(pair, look_up(b"a"))
    await wait_until_blocked()
    assert not call.is_over, "it is sent again on the next pair"
    assert len(pair.peer._calls.open_calls()) == 1
