"""Leases that lapse: in time after a cut, not after a short one, and what must happen before they are used again."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from omfs import wire
from omfs.net import server as server_module
from omfs.net.term import SPAN
from tests.sim.line import SETTINGS, Attempt, FakeMount, Pair, look_up, wait_until_blocked

LEASE = wire.RecallLease(handle=b"file", serial=7, mode=wire.Mode.NONE)
EVERYTHING = wire.ReturnLeases(leases=(), everything=True)
TERM_S = SETTINGS.lease_term_s
SOON_S = SETTINGS.ping_interval_s + 2  # a reconnect, and the next Ping


def returns(pair: Pair) -> int:
    """How often the owner was told that nothing is held."""
    return pair.service.executed.count(EVERYTHING)


async def cut_and_heal(pair: Pair) -> None:
    """Away for longer than a term, and back."""
    pair.line.cut()
    await trio.sleep(2 * TERM_S)
    pair.line.heal()
    await trio.sleep(2 * SOON_S)
    assert pair.peer.state == "up"


# ---------------------------------------------------------------- when they lapse


async def test_an_idle_line_keeps_its_leases(autojump_clock: MockClock, pair: Pair, mount: FakeMount) -> None:
    for _ in range(500):
        assert pair.peer.lease_round == 1
        await trio.sleep(1.3)
    assert mount.told == []
    assert pair.peer.describe()["lapses"] == 0


@pytest.mark.parametrize("after_s", [0.0, 0.8, 1.6, 2.4, 3.2])
async def test_they_lapse_before_the_owner_counts_the_holder_out(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount, after_s: float
) -> None:
    await trio.sleep(10 + after_s)
    session = pair.session
    pair.line.cut()
    cut_s = trio.current_time()
    while not session.lease_lapsed(trio.current_time(), TERM_S):
        valid_until_s = trio.current_time() if pair.peer.lease_valid else 0
        await trio.sleep(0.05)
        assert valid_until_s < cut_s + SPAN * TERM_S
    assert not pair.peer.lease_valid
    [lapsed_s] = mount.lapsed_s
    assert trio.current_time() - lapsed_s >= (1 - SPAN) * TERM_S - 0.1  # that long there is to drop everything
    assert pair.peer.lapses == 1
    assert trio.current_time() - cut_s <= TERM_S + 0.1


async def test_replies_lost_on_their_way_renew_nothing(autojump_clock: MockClock, pair: Pair, mount: FakeMount) -> None:
    """The owner hears us all the time; we cannot know."""
    for transport in pair.line.transports:
        transport.lose_replies()
    await trio.sleep(SPAN * TERM_S + 1)
    assert len(mount.lapsed_s) == 1
    assert not pair.session.lease_lapsed(trio.current_time(), TERM_S)


async def test_a_short_loss_of_the_connection_is_no_lapse(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    for _ in range(10):
        pair.line.reset()
        assert pair.peer.lease_round == 1
        await trio.sleep(4)
        assert pair.peer.lease_round == 1
    server, pair.line.server = pair.line.server, None
    pair.line.reset()
    await trio.sleep(SPAN * TERM_S - SETTINGS.ping_interval_s - 2)
    pair.line.server = server
    await trio.sleep(TERM_S)
    assert pair.peer.lease_round == 1
    assert mount.told == []
    assert returns(pair) == 0


async def test_a_process_that_was_stopped_uses_no_lease_first(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    """No task has run since, so nobody has been told yet."""
    autojump_clock.jump(TERM_S)
    assert not pair.peer.lease_valid
    await wait_until_blocked()
    assert len(mount.lapsed_s) == 1
    await trio.sleep(SOON_S)
    assert pair.peer.lease_round == 2


@pytest.mark.parametrize("term_s", [2.0, 60.0])
async def test_the_owner_says_how_long(autojump_clock: MockClock, nursery: trio.Nursery, term_s: float) -> None:
    """Pings come often enough for a short term, and late enough for nobody to lapse in a long one."""
    pair = Pair(nursery, replace(SETTINGS, lease_term_s=term_s))
    mount = FakeMount(pair.peer)
    await pair.start()
    await pair.ask(look_up(b"x"))
    for _ in range(100):
        await trio.sleep(0.7)
        assert pair.peer.lease_round == 1
    begun_s = trio.current_time()
    pair.line.cut()
    await trio.sleep(term_s)
    assert len(mount.lapsed_s) == 1
    assert mount.lapsed_s[0] - begun_s <= SPAN * term_s


async def test_pings_far_apart_come_often_enough_for_the_term(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = Pair(nursery, replace(SETTINGS, ping_interval_s=30, timeo_s=150, session_timeout_s=600))
    mount = FakeMount(pair.peer)
    await pair.start()
    await pair.ask(look_up(b"x"))
    await trio.sleep(500)
    assert pair.peer.lease_round == 1
    assert mount.told == []


async def test_an_owner_without_leases(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = Pair(nursery, replace(SETTINGS, lease_term_s=0))
    mount = FakeMount(pair.peer)
    await pair.start()
    await pair.ask(look_up(b"x"))
    await trio.sleep(100)
    assert not pair.peer.lease_valid
    await cut_and_heal(pair)
    assert mount.told == []
    assert returns(pair) == 0


# ---------------------------------------------------------------- and when they begin again


async def test_nothing_is_used_before_all_is_dropped_and_the_owner_told(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.drops_at_once = False
    await cut_and_heal(pair)
    assert mount.told == ["nothing was answered for too long"]
    await trio.sleep(20)
    assert not pair.peer.lease_valid
    assert returns(pair) == 0

    told = trio.Event()
    answer = pair.service.answer

    async def answer_later() -> server_module.Answer:
        await told.wait()
        return wire.Done(), b""

    def answer_everything(*request: Any) -> server_module.Answer | Coroutine[Any, Any, server_module.Answer]:
        quick = answer(*request)
        return answer_later() if request[1] == EVERYTHING else quick

    pair.service.answer = answer_everything  # type: ignore[method-assign]
    pair.peer.lapse_handled()
    await trio.sleep(10)
    assert returns(pair) == 1
    assert not pair.peer.lease_valid
    told.set()
    await wait_until_blocked()
    assert pair.peer.lease_round == 2
    await trio.sleep(50)
    assert (pair.peer.lease_round, returns(pair), len(mount.lapsed_s)) == (2, 1, 1)


async def test_after_a_cut_the_owner_is_told_once(autojump_clock: MockClock, pair: Pair, mount: FakeMount) -> None:
    """All is dropped while nobody can be told."""
    for number in range(1, 4):
        await cut_and_heal(pair)
        assert len(mount.lapsed_s) == returns(pair) == pair.peer.lapses == number
        assert pair.peer.lease_round == number + 1
    assert pair.peer.epoch == 0


async def test_an_owner_that_restarted_voids_everything(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.drops_at_once = False
    await pair.restart_server()
    await trio.sleep(2)
    assert pair.peer.epoch == 1
    assert mount.told == ["the owner has lost our session"]
    assert not pair.peer.lease_valid
    assert returns(pair) == 0
    pair.peer.lapse_handled()
    await wait_until_blocked()
    assert returns(pair) == 1
    assert pair.peer.lease_round == 2


async def test_the_owner_is_told_as_soon_as_there_is_a_connection(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    """Not only with the next Ping: until then nothing would be cached."""
    await pair.restart_server()
    await pair.ask(look_up(b"x"))
    await wait_until_blocked()
    assert returns(pair) == 1
    assert pair.peer.lease_round == 2


async def test_an_owner_that_restarts_again_before_it_is_told(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.drops_at_once = False
    await pair.restart_server()
    await trio.sleep(2)
    await pair.restart_server()
    await trio.sleep(2)
    assert pair.peer.epoch == 2
    assert len(mount.told) == 1  # nothing was cached in between
    pair.peer.lapse_handled()
    await wait_until_blocked()
    assert returns(pair) == 1
    assert pair.peer.lease_round == 2


async def test_an_owner_that_restarts_while_it_is_being_told(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    mount.drops_at_once = False
    await cut_and_heal(pair)
    for transport in pair.line.transports:
        transport.lose_replies()
    pair.peer.lapse_handled()
    await wait_until_blocked()
    assert returns(pair) == 1
    await pair.restart_server()
    await trio.sleep(2 * TERM_S)
    assert pair.peer.epoch == 1
    assert returns(pair) >= 2  # the new one knows as well
    assert pair.peer.lease_round == 2


async def test_an_owner_that_refuses_to_be_told_is_told_again(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    answer = pair.service.answer

    def refuse(*request: Any) -> server_module.Answer | Coroutine[Any, Any, server_module.Answer]:
        quick = answer(*request)
        return (wire.Failed(errno=5), b"") if request[1] == EVERYTHING else quick

    pair.service.answer = refuse  # type: ignore[method-assign]
    await cut_and_heal(pair)
    await trio.sleep(20)
    assert not pair.peer.lease_valid
    assert returns(pair) > 2
    pair.service.answer = answer  # type: ignore[method-assign]
    await trio.sleep(SOON_S)
    assert pair.peer.lease_round == 2


async def test_without_a_mount_nothing_lapses_and_nobody_is_told(autojump_clock: MockClock, pair: Pair) -> None:
    await cut_and_heal(pair)
    assert returns(pair) == 0
    await pair.session.ask(LEASE)


# ---------------------------------------------------------------- lapses and recalls


async def test_a_recall_during_a_lapse_is_answered_when_all_is_dropped(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount
) -> None:
    """The mount may have forgotten its leases already, but not yet what the kernel caches."""
    mount.drops_at_once = False
    await cut_and_heal(pair)
    session = pair.session
    asked = Attempt(pair.nursery, lambda: session.ask(LEASE))
    await trio.sleep(20)
    assert mount.handled == [LEASE]
    assert not asked.is_over
    pair.peer.lapse_handled()
    assert await asked.wait() is None


async def test_a_recall_that_fails_makes_all_leases_lapse(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: wire.Recall) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("a bug")

    pair.peer.on_recall = fail
    mount.drops_at_once = False
    session = pair.session
    asked = Attempt(pair.nursery, lambda: session.ask(LEASE))
    await wait_until_blocked()
    assert "node 2: its RecallLease failed here" in caplog.text
    assert mount.told == [LEASE, "a recall failed here"]
    assert not asked.is_over
    pair.peer.lapse_handled()
    assert await asked.wait() is None
    await wait_until_blocked()
    assert pair.peer.lease_round == 2
    assert len(pair.line.dialled) == 2


async def test_a_mount_that_cannot_drop_uses_no_lease_any_more(
    autojump_clock: MockClock, pair: Pair, mount: FakeMount, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(reason: str) -> None:
        raise KeyError("a bug")

    pair.peer.on_lapse = fail
    await cut_and_heal(pair)
    assert "dropping its leases failed; none will be used" in caplog.text
    await trio.sleep(50)
    assert not pair.peer.lease_valid
    assert await pair.ask(look_up(b"x")) == wire.Done()


async def test_a_term_is_no_longer_than_the_session(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """The end of a session frees what its holder had."""
    pair = Pair(nursery, replace(SETTINGS, session_timeout_s=8))
    mount = FakeMount(pair.peer)
    await pair.start()
    await pair.ask(look_up(b"x"))
    pair.line.cut()
    cut_s = trio.current_time()
    await trio.sleep(10)
    assert len(pair.service.ended) == 1
    assert mount.lapsed_s[0] - cut_s <= SPAN * 8
