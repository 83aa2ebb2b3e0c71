"""What the owner asks of its holders, over lines that break: asked until answered, handled once, seen in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from omfs import wire
from omfs.config import IN_FLIGHT_MAX, META_MAX_BYTES
from omfs.errors import SessionEnded, WireError
from omfs.net.frames import REPLY_BIT
from omfs.net.recalls import RECALLS_KEPT
from tests.sim.line import (
    Attempt,
    FakeMount,
    Pair,
    attempt,
    look_up,
    wait_until_blocked,
)

LEASE = wire.RecallLease(handle=b"file", serial=7, mode=wire.Mode.NONE)
NAMES = wire.RecallNames(handle=b"dir", serial=8, names=(b"a",))


def recall(serial: int) -> wire.RecallAll:
    return wire.RecallAll(serial=serial)


def ask(pair: Pair, request: wire.Recall) -> Attempt:
    """The owner asks; what became of it."""
    session = pair.session
    return Attempt(pair.nursery, lambda: session.ask(request))


async def check_undisturbed(pair: Pair) -> None:
    assert await pair.ask(look_up(b"y")) == wire.Done()
    assert len(pair.line.dialled) == 2
    assert pair.peer.epoch == 0


# ---------------------------------------------------------------- asked and answered


async def test_a_recall_while_nothing_else_happens(autojump_clock: MockClock, pair: Pair, mount: FakeMount) -> None:
    for request in (LEASE, NAMES, recall(9)):
        await pair.session.ask(request)
    assert mount.told == mount.handled == [LEASE, NAMES, recall(9)]
    assert pair.session.asks == 0
    await check_undisturbed(pair)


async def test_where_nothing_is_cached_recalls_are_answered_at_once(autojump_clock: MockClock, pair: Pair) -> None:
    await pair.session.ask(LEASE)
    await check_undisturbed(pair)


async def test_recalls_and_calls_do_not_wait_for_each_other(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.gate = trio.Event()
    calls = [attempt(pair, look_up(b"slow")) for _ in range(10)]
    recalls = [ask(pair, recall(serial)) for serial in range(10)]
    await wait_until_blocked()
    assert len(mount.told) == 10
    assert await pair.ask(look_up(b"quick")) == wire.Done()
    assert not any(one.is_over for one in (*calls, *recalls))
    pair.service.release.set()
    assert [await one.wait() for one in calls] == [wire.Done()] * 10
    assert not any(one.is_over for one in recalls)
    mount.gate.set()
    assert [await one.wait() for one in recalls] == [None] * 10
    assert len(pair.line.dialled) == 2


async def test_no_more_recalls_at_a_time_than_a_holder_takes(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.gate = trio.Event()
    recalls = [recall(serial) for serial in range(IN_FLIGHT_MAX + 10)]
    answered: list[bool] = []
    for request in recalls:
        pair.session.ask_soon(request, answered.append)
    await wait_until_blocked()
    assert mount.told == recalls[:IN_FLIGHT_MAX]
    mount.gate.set()
    await wait_until_blocked()
    assert mount.told == recalls
    assert answered == [True] * len(recalls)
    await check_undisturbed(pair)


async def test_only_so_many_answered_recalls_are_remembered(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    for serial in range(RECALLS_KEPT + 10):
        pair.session.ask_soon(recall(serial), lambda answered: None)
    await wait_until_blocked()
    assert len(mount.handled) == RECALLS_KEPT + 10
    assert len(pair.peer._handled) == RECALLS_KEPT
    await check_undisturbed(pair)


async def test_who_gives_up_waiting_does_not_take_the_recall_back(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.gate = trio.Event()
    with trio.move_on_after(1):
        await pair.session.ask(LEASE)
    assert pair.session.asks == 1
    mount.gate.set()
    await wait_until_blocked()
    assert pair.session.asks == 0
    await check_undisturbed(pair)


async def test_a_failing_callback_harms_nobody(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(answered: bool) -> None:
        raise KeyError("a bug")

    pair.session.ask_soon(LEASE, fail)
    await wait_until_blocked()
    assert "what waited for a RecallLease failed" in caplog.text
    await check_undisturbed(pair)


async def test_a_recall_too_large_is_not_asked(autojump_clock: MockClock, pair: Pair, mount: FakeMount) -> None:
    with pytest.raises(WireError, match="RecallNames is too large to send"):
        await pair.session.ask(wire.RecallNames(handle=b"d", serial=1, names=(bytes(META_MAX_BYTES),)))
    assert pair.session.asks == 0
    await check_undisturbed(pair)


# ---------------------------------------------------------------- a reply that is taken by the caller itself


@pytest.mark.parametrize("recall_first", [True, False])
async def test_a_recall_beside_a_reply_is_seen_before_the_caller_goes_on(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount, recall_first: bool
) -> None:
    """The caller waits in the process itself (`linger`), so no reader task could have noted the recall."""
    session = pair.session
    assert session.small is not None
    answered: list[bool] = []

    def linger(descriptors: tuple[int, int]) -> int:
        pair.peer.linger = None
        assert session.small is not None
        sends: list[Callable[[], object]] = [
            lambda: session.ask_soon(LEASE, answered.append),
            lambda: session.small and session.small.send_at_once(pair.peer._calls.last_id + 1 | REPLY_BIT, wire.Done()),
        ]
        for send in sends if recall_first else reversed(sends):
            send()
        return descriptors[wire.Lane.SMALL]

    pair.peer.linger = linger
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert mount.told == [LEASE]  # no task has run since: the handler not either
    assert mount.handled == []
    await wait_until_blocked()
    assert mount.handled == [LEASE]
    assert answered == [True]
    await check_undisturbed(pair)


async def test_a_recall_instead_of_the_reply(autojump_clock: MockClock, pair: Pair, mount: FakeMount) -> None:
    session = pair.session
    answered: list[bool] = []

    def linger(descriptors: tuple[int, int]) -> int:
        pair.peer.linger = None
        session.ask_soon(LEASE, answered.append)
        return descriptors[wire.Lane.SMALL]

    pair.peer.linger = linger
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert mount.told == [LEASE]
    await wait_until_blocked()
    assert answered == [True]
    await check_undisturbed(pair)


async def test_a_bad_frame_beside_a_reply_costs_the_connection_only(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    session = pair.session

    def linger(descriptors: tuple[int, int]) -> int:
        pair.peer.linger = None
        assert session.small is not None
        session.small.send_at_once(1 << 40 | REPLY_BIT, wire.Done())
        return descriptors[wire.Lane.SMALL]

    pair.peer.linger = linger
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert len(pair.line.dialled) == 4
    assert pair.peer.describe()["in_flight"] == 0


# ---------------------------------------------------------------- connections that are lost


async def test_a_recall_that_is_being_handled_when_the_line_breaks(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.gate = trio.Event()
    asked = ask(pair, LEASE)
    await wait_until_blocked()
    pair.line.reset()
    await trio.sleep(1)
    assert len(pair.line.dialled) == 4
    assert not asked.is_over
    mount.gate.set()
    assert await asked.wait() is None
    assert mount.told == mount.handled == [LEASE]
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert len(pair.line.dialled) == 4  # one answer, over the new connection


async def test_a_recall_handled_while_there_is_no_connection(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.gate = trio.Event()
    asked = ask(pair, LEASE)
    await wait_until_blocked()
    server, pair.line.server = pair.line.server, None
    pair.line.reset()
    await wait_until_blocked()
    mount.gate.set()
    await wait_until_blocked()
    assert mount.handled == [LEASE]
    pair.line.server = server
    assert await asked.wait() is None
    assert mount.told == mount.handled == [LEASE]
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert pair.peer.epoch == 0


async def test_an_answer_lost_in_the_cut_is_given_again_not_handled_again(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    small = pair.session.small
    assert small is not None
    small.transport.lose_replies()  # type: ignore[attr-defined]  # what the owner would receive
    asked = ask(pair, LEASE)
    await wait_until_blocked()
    assert mount.handled == [LEASE]
    assert not asked.is_over
    pair.line.reset()
    assert await asked.wait() is None
    assert mount.told == mount.handled == [LEASE]
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert len(pair.line.dialled) == 4


async def test_a_recall_without_a_connection_is_asked_on_the_next(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    session = pair.session
    server, pair.line.server = pair.line.server, None
    pair.line.reset()
    await wait_until_blocked()
    assert session.small is None
    recalls = [ask(pair, LEASE), ask(pair, NAMES)]
    await wait_until_blocked()
    assert mount.told == []
    pair.line.server = server
    assert [await one.wait() for one in recalls] == [None, None]
    assert len(mount.handled) == 2


async def test_many_cuts_and_every_recall_is_handled_once(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    recalls = [recall(serial) for serial in range(40)]
    answered: list[int] = []
    for number, request in enumerate(recalls):
        pair.session.ask_soon(request, lambda is_answered, number=number: answered.append(number))  # type: ignore[misc]
        if number % 4 == 0:
            for _ in range(number // 4):
                await trio.lowlevel.checkpoint()
            pair.line.reset()
        await trio.lowlevel.checkpoint()
    await trio.sleep(5)
    assert sorted(answered) == list(range(40))
    assert sorted(one.serial for one in mount.handled) == list(range(40))
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert pair.peer.epoch == 0


async def test_recalls_of_a_session_that_is_lost_are_not_answered_in_the_next(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    """The ids of a new owner begin anew: the answer to its first recall must not be that to another's first."""
    mount.gate = trio.Event()
    old = ask(pair, LEASE)
    await wait_until_blocked()
    await pair.restart_server()
    await trio.sleep(3)
    assert isinstance(await old.wait(), SessionEnded)
    connections = len(pair.line.dialled)
    new = ask(pair, NAMES)
    await wait_until_blocked()
    assert mount.told[0] == LEASE
    assert mount.told[-1] == NAMES
    assert not new.is_over
    mount.gate.set()
    assert await new.wait() is None
    assert sorted(type(one).__name__ for one in mount.handled) == ["RecallLease", "RecallNames"]
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert len(pair.line.dialled) == connections


# ---------------------------------------------------------------- the end of a session


async def test_the_end_of_a_session_ends_the_wait(autojump_clock: MockClock, pair: Pair, mount: FakeMount) -> None:
    session = pair.session
    order: list[object] = []
    pair.service.session_ended = order.append  # type: ignore[method-assign, assignment]
    pair.line.cut()
    asked = ask(pair, LEASE)
    session.ask_soon(NAMES, order.append)
    await trio.sleep(pair.settings.session_timeout_s - 10)
    assert not asked.is_over
    await trio.sleep(20)
    error = await asked.wait()
    assert isinstance(error, SessionEnded)
    assert str(error) == "the session of node 1 ended before its RecallLease"
    assert order == [session, False]  # the service hears it first
    session.ask_soon(LEASE, order.append)
    assert order == [session, False]  # never before ask_soon returns
    await wait_until_blocked()
    assert order == [session, False, False]
    with pytest.raises(SessionEnded):
        await session.ask(LEASE)
