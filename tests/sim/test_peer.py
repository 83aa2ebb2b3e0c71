"""Calls over a line that is cut, silent, or refused: a real Peer and a real Server under trio's autojump clock."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from omfs import wire
from omfs.config import BULK_LANE_FROM_BYTES, IN_FLIGHT_MAX
from omfs.errors import Interrupted, NodeDown, OpenLost, RemoteFailure, WireError
from omfs.net.session import BULK_IN_FLIGHT_MAX_BYTES
from tests.sim.line import RANDOM, Pair, attempt, connected_pair, look_up, make_directory, wait_until_blocked

LOCK = wire.LockFile(open_id=7, operation=2, wait=True)


# ---------------------------------------------------------------- answers


async def test_a_call_and_its_reply(autojump_clock: MockClock, pair: Pair) -> None:
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert pair.names() == [b"x"]
    assert (pair.peer.state, pair.peer.software, pair.peer.address) == ("up", "test of 2", "a")
    described = pair.peer.describe()
    assert described["state"] == "up"
    assert described["requests"] == 2
    assert described["in_flight"] == 0
    assert pair.server.bytes_in == pair.peer.bytes_out > 0
    assert pair.server.bytes_out == pair.peer.bytes_in > 0


async def test_bulk_data_both_ways(autojump_clock: MockClock, pair: Pair) -> None:
    written = await pair.ask(wire.WriteBlocks(open_id=7, offset=0), wire.BlocksWritten, RANDOM)
    assert written == wire.BlocksWritten(size_bytes=len(RANDOM))
    request = wire.ReadBlocks(open_id=7, offset=0, size_bytes=len(RANDOM))
    reply, bulk = await pair.peer.call_for_bulk(request, wire.BlocksRead)
    assert reply == wire.BlocksRead()
    assert bulk == bytes(len(RANDOM))


async def test_small_bulk_data_take_the_small_lane(autojump_clock: MockClock, pair: Pair) -> None:
    session = pair.session
    assert session.small is not None
    assert session.bulk is not None
    before = session.bulk.bytes_in
    await pair.ask(wire.WriteBlocks(open_id=7, offset=0), wire.BlocksWritten, RANDOM[: BULK_LANE_FROM_BYTES - 1])
    assert session.bulk.bytes_in == before
    await pair.ask(wire.WriteBlocks(open_id=7, offset=0), wire.BlocksWritten, RANDOM[:BULK_LANE_FROM_BYTES])
    assert session.bulk.bytes_in - before > BULK_LANE_FROM_BYTES


async def test_failures_keep_their_errno(autojump_clock: MockClock, pair: Pair) -> None:
    with pytest.raises(RemoteFailure) as caught:
        await pair.ask(look_up(b"oserror"))
    assert caught.value.errno == errno.ENOENT


async def test_an_unknown_open_id_is_its_own_error(autojump_clock: MockClock, pair: Pair) -> None:
    with pytest.raises(OpenLost):
        await pair.ask(wire.CloseFile(open_id=7))


async def test_a_reply_of_another_type_breaks_the_connection_only(autojump_clock: MockClock, pair: Pair) -> None:
    with pytest.raises(WireError, match="answered LookUp with Done, not Found"):
        await pair.ask(look_up(b"x"), wire.Found)
    assert await pair.ask(look_up(b"y")) == wire.Done()
    assert pair.peer.epoch == 0


async def test_a_request_too_large_to_send_harms_nothing(autojump_clock: MockClock, pair: Pair) -> None:
    with pytest.raises(WireError, match="too large to send"):
        await pair.ask(look_up(bytes(2 << 20)))
    assert await pair.ask(look_up(b"y")) == wire.Done()
    assert len(pair.line.dialled) == 2


# ---------------------------------------------------------------- many at once


async def test_requests_are_pipelined(autojump_clock: MockClock, pair: Pair) -> None:
    slow = [attempt(pair, look_up(b"slow-%d" % number)) for number in range(100)]
    await wait_until_blocked()
    assert len(pair.service.executed) == 100
    assert await pair.ask(look_up(b"quick")) == wire.Done()
    assert not any(one.is_over for one in slow)
    pair.service.release.set()
    assert [await one.wait() for one in slow] == [wire.Done()] * 100


async def test_small_requests_do_not_wait_behind_bulk_data(autojump_clock: MockClock, pair: Pair) -> None:
    """The memory line holds 64 KiB: with one connection, LookUp would be executed last."""
    order: list[str] = []

    async def write() -> None:
        await pair.ask(wire.WriteBlocks(open_id=7, offset=0), wire.BlocksWritten, RANDOM)
        order.append("write")

    async def look() -> None:
        await pair.ask(look_up(b"x"))
        order.append("look")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(write)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(look)
    assert order == ["look", "write", "write"]


async def test_more_calls_than_the_owner_allows_wait_their_turn(autojump_clock: MockClock, pair: Pair) -> None:
    calls = [attempt(pair, look_up(b"slow")) for _ in range(IN_FLIGHT_MAX + 10)]
    await wait_until_blocked()
    assert len(pair.service.executed) == IN_FLIGHT_MAX
    pair.service.release.set()
    assert [await one.wait() for one in calls] == [wire.Done()] * len(calls)
    assert len(pair.line.dialled) == 2  # the owner closed nothing


async def test_bulk_data_in_flight_are_bounded(autojump_clock: MockClock, pair: Pair) -> None:
    read = wire.ReadBlocks(open_id=7, offset=0, size_bytes=4 << 20)
    count = 2 * BULK_IN_FLIGHT_MAX_BYTES // read.size_bytes
    calls = [attempt(pair, read, wire.BlocksRead) for _ in range(count)]
    assert [await one.wait() for one in calls] == [wire.BlocksRead()] * count
    assert pair.peer.describe()["in_flight"] == 0


# ---------------------------------------------------------------- silence


async def test_pings_measure_the_round_trip_and_keep_an_idle_line(autojump_clock: MockClock, pair: Pair) -> None:
    await trio.sleep(1000)
    assert pair.peer.state == "up"
    assert len(pair.line.dialled) == 2
    assert pair.peer.silent_s <= 2 * pair.settings.ping_interval_s
    assert pair.server.sessions


async def test_a_slow_owner_is_not_down(autojump_clock: MockClock, pair: Pair) -> None:
    slow = attempt(pair, make_directory(b"slow"))
    await trio.sleep(10 * pair.settings.timeo_s)
    assert not slow.is_over
    pair.service.release.set()
    assert await slow.wait() == wire.Done()


async def test_silence_fails_calls_within_timeo(autojump_clock: MockClock, pair: Pair) -> None:
    pair.line.cut()
    begun_s = trio.current_time()
    calls = [attempt(pair, look_up(b"x")), attempt(pair, make_directory(b"y"))]
    for one in calls:
        assert isinstance(await one.wait(), NodeDown)
        assert pair.settings.timeo_s - 4 <= one.ended_s - begun_s <= pair.settings.timeo_s + 1
    assert pair.peer.state == "down"


async def test_while_down_calls_fail_at_once_and_later_all_is_well(autojump_clock: MockClock, pair: Pair) -> None:
    pair.line.cut()
    await trio.sleep(20)
    begun_s = trio.current_time()
    with pytest.raises(NodeDown) as caught:
        await pair.ask(look_up(b"x"))
    assert caught.value.errno == errno.EHOSTDOWN
    assert trio.current_time() == begun_s
    pair.line.heal()
    await trio.sleep(7)
    assert pair.peer.state == "up"
    assert await pair.ask(look_up(b"y")) == wire.Done()
    assert pair.peer.epoch == 0  # within session_timeout_s: opens and locks are kept
    assert pair.service.ended == []


async def test_a_node_that_never_answered_is_down_after_timeo(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = Pair(nursery)
    pair.line.server = None
    await pair.start()
    begun_s = trio.current_time()
    with pytest.raises(NodeDown):
        await pair.ask(look_up(b"x"))
    assert trio.current_time() - begun_s == pytest.approx(pair.settings.timeo_s, abs=1)
    assert "Connection refused" in str(pair.peer.describe()["fault"])


async def test_a_node_that_comes_within_timeo_is_waited_for(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = Pair(nursery)
    server, pair.line.server = pair.line.server, None
    await pair.start()
    call = attempt(pair, look_up(b"x"))
    await trio.sleep(5)
    pair.line.server = server
    assert await call.wait() == wire.Done()


async def test_hard_calls_wait_until_the_node_is_back(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = await connected_pair(nursery, hard=True)
    pair.line.cut()
    calls = [attempt(pair, look_up(b"x"))]
    await trio.sleep(20)
    assert pair.peer.state == "down"
    calls.append(attempt(pair, make_directory(b"y")))
    await trio.sleep(20)
    assert not any(one.is_over for one in calls)
    pair.line.heal()
    assert [await one.wait() for one in calls] == [wire.Done(), wire.Done()]
    assert sorted(pair.names()) == [b"x", b"y"]


async def test_addresses_are_tried_in_order(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = Pair(nursery)
    pair.peer.addresses = ["bad", "good"]
    dial = pair.line.dial

    async def dial_good(address: str, *rest: Any) -> Any:
        if address == "bad":
            pair.line.dialled.append(address)
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        return await dial(address, *rest)

    pair.peer._dial = dial_good
    await pair.start()
    assert await pair.ask(look_up(b"x")) == wire.Done()
    assert pair.line.dialled == ["bad", "good", "good"]
    assert pair.peer.address == "good"


# ---------------------------------------------------------------- interrupts


async def test_a_lock_wait_ends_with_the_owners_eintr(autojump_clock: MockClock, pair: Pair) -> None:
    lock = attempt(pair, LOCK)
    await wait_until_blocked()
    assert lock.task is not None
    pair.peer.interrupt(lock.task, lambda: True)
    begun_s = trio.current_time()
    assert isinstance(await lock.wait(), Interrupted)
    assert trio.current_time() == begun_s
    assert pair.service.cancelled == 1


async def test_other_calls_to_a_node_that_answers_go_on(autojump_clock: MockClock, pair: Pair) -> None:
    slow = attempt(pair, make_directory(b"slow"))
    await wait_until_blocked()
    assert slow.task is not None
    pair.peer.interrupt(slow.task, lambda: False)
    await trio.sleep(100)
    assert not slow.is_over
    pair.service.release.set()
    assert await slow.wait() == wire.Done()


async def test_a_killed_program_does_not_wait_for_a_node_that_is_away(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    pair = await connected_pair(nursery, hard=True)
    pair.line.cut()
    killed, alive = attempt(pair, look_up(b"x")), attempt(pair, look_up(b"y"))
    await trio.sleep(40)
    assert killed.task is not None
    assert alive.task is not None
    is_wanted = True
    pair.peer.interrupt(killed.task, lambda: is_wanted)
    pair.peer.interrupt(alive.task, lambda: True)
    await trio.sleep(40)
    assert not killed.is_over
    is_wanted = False  # the second signal is SIGKILL
    await trio.sleep(1)
    assert isinstance(killed.result, Interrupted)
    assert not alive.is_over
    pair.line.heal()
    assert await alive.wait() == wire.Done()
    assert pair.names() == [b"y"]


async def test_an_interrupted_lock_wait_is_cancelled_after_a_reconnect_too(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    pair = await connected_pair(nursery, hard=True)
    lock = attempt(pair, LOCK)
    await wait_until_blocked()
    pair.line.cut()
    await trio.sleep(20)
    assert lock.task is not None
    pair.peer.interrupt(lock.task, lambda: True)
    assert not lock.is_over  # whether it was granted in the meantime, only the owner knows
    pair.line.heal()
    assert isinstance(await lock.wait(), Interrupted)
    assert pair.service.cancelled == 1
    assert pair.service.executed == [LOCK]


async def test_a_lock_wait_whose_caller_is_gone_is_cancelled(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = await connected_pair(nursery, hard=True)
    with trio.move_on_after(1):
        await pair.ask(LOCK)
    await wait_until_blocked()
    assert pair.service.cancelled == 1

    lock = attempt(pair, LOCK)
    await wait_until_blocked()
    pair.line.cut()
    await trio.sleep(20)
    assert lock.task is not None
    pair.peer.interrupt(lock.task, lambda: False)
    assert isinstance(await lock.wait(), Interrupted)
    assert pair.service.cancelled == 1
    pair.line.heal()
    await trio.sleep(10)
    assert pair.service.cancelled == 2


async def test_interrupting_a_lock_that_was_never_sent(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = await connected_pair(nursery, hard=True)
    pair.line.cut()
    await trio.sleep(20)
    lock = attempt(pair, LOCK)
    await wait_until_blocked()
    assert lock.task is not None
    pair.peer.interrupt(lock.task, lambda: True)
    assert isinstance(await lock.wait(), Interrupted)
    pair.line.heal()
    await trio.sleep(10)
    assert pair.service.executed == []


async def test_a_cancelled_call_leaves_nothing_behind(autojump_clock: MockClock, pair: Pair) -> None:
    with trio.move_on_after(1):
        await pair.ask(look_up(b"slow"))
    assert pair.peer.describe()["in_flight"] == 0
    pair.service.release.set()
    assert await pair.ask(look_up(b"x")) == wire.Done()  # the late reply disturbed nothing
    assert len(pair.line.dialled) == 2


async def test_the_end_of_run_fails_what_is_under_way(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pair = Pair(nursery)
    await pair.start_server()
    async with trio.open_nursery() as inner:
        inner.start_soon(pair.peer.run)
        await pair.ask(look_up(b"x"))
        call = attempt(pair, look_up(b"slow"))
        await wait_until_blocked()
        inner.cancel_scope.cancel()
    assert isinstance(await call.wait(), NodeDown)
