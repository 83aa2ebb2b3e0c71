"""Writing behind and the lease that allows it: recalls, asking again, lapses, restarts of the owner, the end."""

from __future__ import annotations

import errno
import math
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from omfs import wire
from omfs.mount.writebehind import ASK_AGAIN_MAX_S, ASK_AGAIN_S, SENDERS_MAX
from tests.unit.writingmount import NONE, SHARED, WritingMount, failed_with

MIB = 1 << 20


@pytest.fixture
async def mount(nursery: trio.Nursery) -> WritingMount:
    return await WritingMount.run(nursery)


@pytest.mark.parametrize("left", [SHARED, NONE])
async def test_a_recall_takes_the_writes_out_and_ends_writing_behind(
    mount: WritingMount, autojump_clock: MockClock, left: Any
) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"old")
    await mount.recall(left)
    assert mount.inode.lease.mode is left
    assert mount.owner.writes == [(0, 3, True)]
    await mount.write(file, 3, b"new")
    assert mount.owner.writes[1:] == [(3, 3, False)], "waits for the owner"


async def test_a_file_that_is_closed_is_not_held_exclusive(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    late = mount.owner.granted()
    await file.close()
    assert mount.inode.lease.mode is SHARED, "as the owner has it then"
    mount.node.leases.granted(mount.inode.lease, late["serial"], late["mode"])
    mount.owner.grants = NONE
    again = await mount.open()
    await mount.write(again, 0, b"data")
    assert mount.owner.writes == [(0, 4, False)]


async def test_only_the_file_that_it_was_granted_for_writes_behind(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    """After a restart another one may not be open at the owner yet, and the two know nothing of each other's order."""
    other = await mount.open()
    file = await mount.open()
    assert (other.unsent.is_allowed, file.unsent.is_allowed) == (False, True)
    await mount.write(file, 0, b"one")
    await mount.write(other, 0, b"two")
    assert mount.owner.writes == [(0, 3, True), (0, 3, False)]
    await other.close()
    assert file.unsent.is_allowed


async def test_a_recall_of_everything_takes_the_writes_out(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"data")
    recall = wire.RecallAll(10)
    mount.recaller.seen(mount.node, recall)
    await mount.recaller.recall(mount.node, recall)
    assert mount.owner.data == b"data"


async def test_writes_during_a_recall_come_after_what_is_unsent(
    mount: WritingMount, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    file = await mount.open()
    mount.owner.gate = trio.Event()
    await mount.write(file, 0, b"first ")
    nursery.start_soon(mount.recall, SHARED)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(mount.write, file, None, b"second")
    await trio.testing.wait_all_tasks_blocked()
    mount.owner.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert mount.owner.writes == [(0, 6, True), (None, 6, False)]


async def test_from_the_moment_a_recall_is_seen_nothing_is_answered_early(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    recall = mount.owner.recall(SHARED)
    mount.recaller.seen(mount.node, recall)
    assert not file.unsent.is_allowed
    await mount.recaller.recall(mount.node, recall)


async def test_who_goes_on_writing_gets_the_lease_again_but_not_at_once(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    await mount.recall(SHARED)
    mount.owner.on_asked = lambda: setattr(mount.owner, "holds", True)
    for _ in range(5):
        await mount.write(file, 0, b"x")
    assert mount.owner.of(wire.AskLease) == []
    await trio.sleep(ASK_AGAIN_S)
    await mount.write(file, 0, b"y")
    assert len(mount.owner.of(wire.AskLease)) == 1
    assert len(mount.owner.writes) == 5, "the sixth is behind"
    await mount.recall(NONE)
    await trio.sleep(1)
    await mount.write(file, 0, b"z")
    assert len(mount.owner.of(wire.AskLease)) == 1, "a single write does not ask"


async def test_an_owner_that_refuses_is_asked_less_and_less(mount: WritingMount, autojump_clock: MockClock) -> None:
    mount.owner.grants = SHARED
    file = await mount.open()
    for _ in range(1000):
        await mount.write(file, 0, b"x")
        await trio.sleep(0.01)
    asked = len(mount.owner.of(wire.AskLease))
    expected = math.log2(ASK_AGAIN_MAX_S / ASK_AGAIN_S) + 10 / ASK_AGAIN_MAX_S
    assert 3 < asked <= expected + 2
    assert len(mount.owner.writes) == 1000


async def test_what_comes_from_the_page_cache_does_not_ask(mount: WritingMount, autojump_clock: MockClock) -> None:
    mount.owner.grants = SHARED
    file = await mount.open()
    for _ in range(10):
        await mount.write(file, 0, b"x", may_ask=False)
    assert mount.owner.of(wire.AskLease) == []


async def test_when_the_lease_lapses_what_is_not_acknowledged_is_lost_and_told(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    mount.owner.gate = trio.Event()
    for number in range(5):
        await mount.write(file, number * MIB, bytes(MIB))
    await trio.testing.wait_all_tasks_blocked()
    mount.owner.lease_round = 0
    mount.recaller._lapse(mount.node, "not heard")
    await mount.owner.lapsed.wait()
    mount.owner.holds = False
    mount.owner.gate.set()
    await trio.sleep(1)
    assert mount.owner.data == b""
    assert len(mount.owner.of(wire.WriteBlocks)) == SENDERS_MAX, "the last was never sent"
    assert mount.node.counters.behind_bytes == 0
    assert await failed_with(file.settle()) == errno.EIO
    await file.settle()


async def test_an_owner_that_restarted_gets_what_it_missed_before_the_leases_end(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"data")
    mount.owner.restart()
    mount.owner.lease_round = 0
    mount.recaller._lapse(mount.node, "restarted")
    await mount.owner.lapsed.wait()
    assert mount.owner.data == b"data"
    kinds = [type(request).__name__ for request in mount.owner.asked]
    assert kinds == ["OpenFile", "WriteBlocks", "OpenFile", "WriteBlocks"], "opened again, and repeated"
    await file.settle()
    assert not file.unsent.is_allowed


async def test_a_mount_that_ends_waits_for_an_owner_that_is_away_and_not_for_ever(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"data")
    mount.owner.silence = True
    await mount.node.give_back_all()
    assert mount.owner.data == b""
    assert not mount.node.behind.files
