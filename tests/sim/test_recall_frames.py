"""Recalls on the wire: in order with the replies, and what becomes of owners and holders that break the rules."""

from __future__ import annotations

import contextlib

import pytest
import trio
from trio.testing import MockClock

from omfs import wire
from omfs.config import IN_FLIGHT_MAX
from omfs.net.frames import REPLY_BIT, Frame
from omfs.net.session import Session
from tests.sim.line import KEY, LARGE, Client, FakeMount, Pair, hello, look_up, wait_until_blocked

LEASE = wire.RecallLease(handle=b"file", serial=7, mode=wire.Mode.NONE)
NAMES = wire.RecallNames(handle=b"dir", serial=8, names=(b"a",))


def recall(serial: int) -> wire.RecallAll:
    return wire.RecallAll(serial=serial)


async def check_undisturbed(pair: Pair) -> None:
    assert await pair.ask(look_up(b"y")) == wire.Done()
    assert len(pair.line.dialled) == 2
    assert pair.peer.epoch == 0


# ---------------------------------------------------------------- order on the wire


class Holder:
    """Both lanes of a holder made by hand."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.small = Client(pair)

    async def connect(self) -> Session:
        await self.small.ask(1, hello())
        self.bulk = Client(self._pair)
        await self.bulk.ask(2, hello(wire.Lane.BULK))
        return self._pair.server.sessions[KEY]

    async def receive(self, count: int) -> list[Frame]:
        frames: list[Frame] = []
        while len(frames) < count:
            frames += await self.small.channel.receive()
        return frames


async def test_a_recall_comes_behind_the_reply_sent_before_it_even_if_that_takes_long(
    autojump_clock: MockClock, pair: Pair
) -> None:
    holder = Holder(pair)
    session = await holder.connect()
    answered: list[bool] = []
    await holder.small.channel.request(3, look_up(b"large"))
    await wait_until_blocked()  # a part of the reply fills the line
    requests = [LEASE, NAMES, recall(9)]
    for request in requests:
        session.ask_soon(request, answered.append)
    await wait_until_blocked()
    frames = await holder.receive(4)
    assert frames[0][:2] == (3 | REPLY_BIT, LARGE)
    assert [message for _, message, _ in frames[1:]] == requests
    for recall_id, _, _ in frames[1:]:
        await holder.small.channel.reply(recall_id, wire.LeaseReturned())
    await wait_until_blocked()
    assert answered == [True] * 3


async def test_recalls_and_replies_keep_their_order(autojump_clock: MockClock, pair: Pair) -> None:
    holder = Holder(pair)
    session = await holder.connect()
    for number in range(3, 9):
        await holder.small.channel.request(number, look_up(b"x"))
        await wait_until_blocked()
        session.ask_soon(recall(number), lambda answered: None)
    frames = await holder.receive(12)
    assert [getattr(message, "serial", 0) for _, message, _ in frames] == [0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8]


async def test_nothing_is_asked_before_the_pair_is_complete(autojump_clock: MockClock, pair: Pair) -> None:
    """Until then the holder expects the answer to its Hello and nothing else."""
    client = Client(pair)
    await client.ask(1, hello())
    session = pair.server.sessions[KEY]
    session.ask_soon(LEASE, lambda answered: None)
    await client.channel.request(2, look_up(b"x"))
    [frame] = await client.channel.receive()
    assert frame[0] == 2 | REPLY_BIT
    await Client(pair).ask(3, hello(wire.Lane.BULK))
    [(_, message, _)] = await client.channel.receive()
    assert message == LEASE
    await Client(pair).ask(4, hello(wire.Lane.BULK))  # another beside the same SMALL lane: nothing is asked twice
    await client.channel.request(5, look_up(b"x"))
    [frame] = await client.channel.receive()
    assert frame[0] == 5 | REPLY_BIT


async def test_a_line_that_breaks_while_recalls_wait_for_it(autojump_clock: MockClock, pair: Pair) -> None:
    holder = Holder(pair)
    session = await holder.connect()
    answered: list[bool] = []
    await holder.small.channel.request(3, look_up(b"large"))
    await wait_until_blocked()
    session.ask_soon(LEASE, answered.append)
    await wait_until_blocked()
    holder.small.transport.close()
    await wait_until_blocked()
    session.ask_soon(NAMES, answered.append)
    again = Holder(pair)
    assert await again.connect() is session
    frames = await again.receive(2)
    assert [message for _, message, _ in frames] == [LEASE, NAMES]
    assert session.asks == 2


# ---------------------------------------------------------------- bad holders, bad owners


@pytest.mark.parametrize(
    ("reply", "bulk", "told"),
    [
        (wire.Done(), b"", "answered RecallLease with Done"),
        (wire.Failed(errno=5), b"", "answered RecallLease with Failed"),
        (wire.LeaseReturned(), b"x", "answered RecallLease with LeaseReturned"),
    ],
)
async def test_a_holder_that_answers_something_else(
    autojump_clock: MockClock,
    pair: Pair,
    caplog: pytest.LogCaptureFixture,
    reply: wire.Message,
    bulk: bytes,
    told: str,
) -> None:
    holder = Holder(pair)
    session = await holder.connect()
    session.ask_soon(LEASE, lambda answered: None)
    [(recall_id, _, _)] = await holder.receive(1)
    await holder.small.channel.reply(recall_id, reply, bulk)
    await holder.small.wait_closed()
    assert f"node 1 (holder): {told}" in caplog.text
    assert session.asks == 1  # and asked again of whoever connects next
    await check_undisturbed(pair)


async def test_a_holder_that_answers_twice_or_nothing(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    holder = Holder(pair)
    session = await holder.connect()
    answered: list[bool] = []
    session.ask_soon(LEASE, answered.append)
    [(recall_id, _, _)] = await holder.receive(1)
    await holder.small.channel.reply(recall_id, wire.LeaseReturned())
    await holder.small.channel.reply(recall_id, wire.LeaseReturned())
    await holder.small.wait_closed()
    assert answered == [True]
    assert "node 1 (holder): a LeaseReturned that nobody asked for" in caplog.text
    await check_undisturbed(pair)


async def test_a_holder_that_answers_on_the_wrong_lane(
    autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    holder = Holder(pair)
    session = await holder.connect()
    session.ask_soon(LEASE, lambda answered: None)
    [(recall_id, _, _)] = await holder.receive(1)
    await holder.bulk.channel.reply(recall_id, wire.LeaseReturned())
    await holder.bulk.wait_closed()
    assert "a LeaseReturned that nobody asked for" in caplog.text
    assert session.asks == 1


async def test_a_holder_that_recalls(autojump_clock: MockClock, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    holder = Holder(pair)
    await holder.connect()
    await holder.small.channel.request(3, LEASE)
    await holder.small.wait_closed()
    assert "node 1 (holder): refused a request that is not one of ours" in caplog.text
    await check_undisturbed(pair)


@pytest.mark.parametrize(
    ("message", "bulk", "told"),
    [
        (look_up(b"x"), b"", "refused a request that is not one of ours"),
        (LEASE, b"x", "sent bulk data with RecallLease"),
    ],
)
async def test_an_owner_that_asks_what_it_may_not(
    autojump_clock: MockClock,
    pair: Pair,
    mount: FakeMount,
    caplog: pytest.LogCaptureFixture,
    message: wire.Message,
    bulk: bytes,
    told: str,
) -> None:
    assert pair.session.small is not None
    await pair.session.small.request(77, message, bulk)
    await wait_until_blocked()
    assert f"node 2: connection lost: {told}" in caplog.text
    assert mount.told == []
    assert await pair.ask(look_up(b"y")) == wire.Done()
    assert len(pair.line.dialled) == 4


async def test_an_owner_that_recalls_too_much_at_once(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount, caplog: pytest.LogCaptureFixture
) -> None:
    mount.gate = trio.Event()
    assert pair.session.small is not None
    with contextlib.suppress(OSError):
        for number in range(IN_FLIGHT_MAX + 1):
            await pair.session.small.request(1000 + number, recall(number))
    await wait_until_blocked()
    assert f"too many recalls at once ({IN_FLIGHT_MAX})" in caplog.text
    assert len(mount.told) == IN_FLIGHT_MAX
    mount.gate.set()
    assert await pair.ask(look_up(b"y")) == wire.Done()
