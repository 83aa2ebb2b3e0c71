"""What becomes of calls when the line breaks, the owner restarts, or Hello is refused."""

from __future__ import annotations

import errno
import logging

import pytest
import trio
from trio.testing import MockClock

from omfs import wire
from omfs.errors import HelloRefused, NotServed, OutcomeUnknown
from omfs.net.server import admit_all
from tests.sim.line import (
    HOLDER,
    RANDOM,
    SETTINGS,
    Attempt,
    Pair,
    attempt,
    local_node,
    look_up,
    make_directory,
    wait_until_blocked,
)

LOCK = wire.LockFile(open_id=7, operation=2, wait=True)


# ---------------------------------------------------------------- reconnects and restarts


async def test_what_was_under_way_is_sent_again(autojump_clock: MockClock, pair: Pair) -> None:
    calls = [attempt(pair, look_up(b"slow-1")), attempt(pair, look_up(b"slow-2"))]
    await wait_until_blocked()
    pair.line.reset()
    await wait_until_blocked()
    pair.service.release.set()
    assert [await one.wait() for one in calls] == [wire.Done()] * 2
    assert len(pair.line.dialled) == 4
    assert pair.peer.epoch == 0


async def test_a_reply_lost_in_the_cut_is_replayed_not_executed_again(autojump_clock: MockClock, pair: Pair) -> None:
    for transport in pair.line.transports:
        transport.lose_replies()
    call = attempt(pair, make_directory(b"once"))
    await wait_until_blocked()
    assert pair.names() == [b"once"]  # executed, and its reply is gone
    pair.line.reset()
    assert await call.wait() == wire.Done()
    assert pair.names() == [b"once"]


async def test_a_request_still_executing_at_the_reconnect_is_executed_once(
    autojump_clock: MockClock, pair: Pair
) -> None:
    calls = [attempt(pair, make_directory(b"slow")), attempt(pair, LOCK)]
    await wait_until_blocked()
    pair.line.reset()
    await trio.sleep(5)
    assert sorted(pair.names()) == [b"", b"slow"]
    pair.service.release.set()
    assert await calls[0].wait() == wire.Done()  # over the new connection
    assert sorted(pair.names()) == [b"", b"slow"]
    assert not calls[1].is_over


async def test_a_request_lost_on_its_way_is_executed_after_the_reconnect(autojump_clock: MockClock, pair: Pair) -> None:
    pair.line.cut()
    call = attempt(pair, make_directory(b"once"))
    await trio.sleep(5)
    pair.line.heal()
    pair.line.reset()
    assert await call.wait() == wire.Done()
    assert pair.names() == [b"once"]


async def test_a_long_write_that_is_cut_is_sent_again_whole(autojump_clock: MockClock, pair: Pair) -> None:
    call = Attempt(
        pair.nursery,
        lambda: pair.ask(wire.WriteBlocks(open_id=7, offset=0), wire.BlocksWritten, RANDOM),
    )
    for _ in range(6):
        await trio.lowlevel.checkpoint()
    assert not call.is_over
    pair.line.reset()
    assert await call.wait() == wire.BlocksWritten(size_bytes=len(RANDOM))
    assert pair.service.bulk_bytes == len(RANDOM)


async def test_an_owner_that_restarted(autojump_clock: MockClock, pair: Pair) -> None:
    once = attempt(pair, make_directory(b"slow"))
    again = attempt(pair, look_up(b"slow"))
    await wait_until_blocked()
    await pair.restart_server()
    await trio.sleep(2)
    pair.service.release.set()
    assert isinstance(await once.wait(), OutcomeUnknown)
    assert await again.wait() == wire.Done()
    assert pair.peer.epoch == 1
    assert pair.names() == [b"slow", b"slow", b"slow"]
    assert len(pair.service.ended) == 1


async def test_what_was_not_sent_yet_outlives_a_restart(autojump_clock: MockClock, pair: Pair) -> None:
    server, pair.line.server = pair.line.server, None
    pair.line.reset()
    await trio.sleep(0.5)
    call = attempt(pair, make_directory(b"new"))
    await wait_until_blocked()
    pair.line.server = server
    await pair.restart_server()
    assert await call.wait() == wire.Done()
    assert pair.peer.epoch == 1


async def test_an_expired_session_is_a_new_epoch(autojump_clock: MockClock, pair: Pair) -> None:
    pair.line.cut()
    await trio.sleep(pair.settings.session_timeout_s + 20)
    assert len(pair.service.ended) == 1
    assert pair.server.sessions == {}
    pair.line.heal()
    await trio.sleep(7)
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert pair.peer.epoch == 1


# ---------------------------------------------------------------- refusals


async def test_a_refused_hello_is_told_once_and_ends_with_the_cause(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pair(nursery)
    pair.peer.local = local_node(HOLDER, map_digest=b"another")
    await pair.start()
    with pytest.raises(HelloRefused, match="the cluster maps of node 2 and node 1 differ") as caught:
        await pair.ask(look_up(b"x"))
    assert caught.value.errno == errno.EHOSTDOWN
    await trio.sleep(30)
    told = [record.message for record in caplog.records if record.name == "omfs.net.peer"]
    assert len([line for line in told if "maps" in line]) == 1
    assert "maps" in pair.peer.refusal
    assert pair.server.sessions == {}

    pair.peer.local = local_node(HOLDER)  # the map was corrected, and SIGHUP
    await trio.sleep(2)
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert pair.peer.refusal == ""


@pytest.mark.parametrize("hard", [False, True])
async def test_an_owner_that_serves_nobody_says_so_once_and_lets_in_later(
    autojump_clock: MockClock, nursery: trio.Nursery, hard: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no dead node: calls fail at once, also where `hard` ones would wait for a dead one."""
    caplog.set_level(logging.INFO)
    pair = Pair(nursery, hard=hard)

    def refuse(_: wire.Hello) -> None:
        raise NotServed("node 2 serves no files")

    pair.server.admit = refuse
    await pair.start()
    for _ in range(2):
        with pytest.raises(NotServed, match="node 2 serves no files") as caught:
            await pair.ask(look_up(b"x"))
        assert caught.value.errno == errno.EACCES
        assert trio.current_time() < 1
    await trio.sleep(30)
    assert pair.peer.state == "down"
    assert len(pair.line.dialled) > 25
    told = [record for record in caplog.records if "serves no files" in record.message]
    assert [record.name for record in told] == ["omfs.net.peer"], "nor is the owner's log filled"

    pair.server.admit = admit_all
    await trio.sleep(SETTINGS.reconnect_interval_s + 0.1)
    assert pair.peer.refusal == ""
    assert await pair.ask(look_up(b"x")) == wire.Done()


async def test_a_hard_holder_waits_for_an_owner_that_does_not_fit(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """After one that let nobody in, too."""
    pair = Pair(nursery, hard=True)
    asked = []

    def refuse(_: wire.Hello) -> None:
        asked.append(None)
        raise NotServed("not now") if len(asked) == 1 else HelloRefused("the maps differ")

    pair.server.admit = refuse
    await pair.start()
    with pytest.raises(NotServed):
        await pair.ask(look_up(b"x"))
    await trio.sleep(2)
    with trio.move_on_after(100) as waited:
        await pair.ask(look_up(b"x"))
    assert waited.cancelled_caught


async def test_an_owner_of_another_number_is_refused_by_the_holder(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    pair = Pair(nursery)
    pair.peer.node_id = 3
    await pair.start()
    with pytest.raises(HelloRefused, match="this is node 2, not node 3"):
        await pair.ask(look_up(b"x"))
