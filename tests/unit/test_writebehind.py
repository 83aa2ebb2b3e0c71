"""Writes that are answered before their owner has them: what sends them, what becomes of errors, and of the lease."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from omfs import wire
from omfs.errors import Interrupted, NodeDown, OutcomeUnknown, RemoteFailure
from omfs.mount.remotefile import RemoteFile
from omfs.mount.writebehind import (
    FILE_BYTES_MAX,
    MOUNT_BYTES_MAX,
    SEND_WITHIN_S,
    SENDERS_MAX,
)
from tests.unit.fakepeer import USER
from tests.unit.writingmount import SHARED, WritingMount, failed_with

MIB = 1 << 20
BLOCK = bytes(range(256)) * 16


@pytest.fixture
async def mount(nursery: trio.Nursery) -> WritingMount:
    return await WritingMount.run(nursery)


# ---------------------------------------------------------------- what is sent, and when


async def test_closing_a_new_small_file_costs_one_request(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    assert await mount.write(file, 0, b"small") == 5
    assert mount.owner.writes == [], "answered before the owner has it"
    await file.settle()
    assert mount.owner.writes == [(0, 5, True)]
    await file.close()
    await trio.sleep(1)
    assert [type(request).__name__ for request in mount.owner.asked] == ["OpenFile", "WriteBlocks", "CloseFiles"]


async def test_small_writes_in_a_row_are_one_request(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    for number in range(256):
        await mount.write(file, number * 4096, BLOCK)
    await file.settle()
    assert mount.owner.writes == [(0, MIB, True)]
    assert mount.owner.data == BLOCK * 256


async def test_what_nobody_asks_for_is_sent_soon(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"a")
    await mount.write(file, None, b"b")
    await trio.sleep(2 * SEND_WITHIN_S)
    assert mount.owner.data == b"ab"
    assert file.is_settled
    assert (mount.node.counters.behind_bytes, mount.node.counters.behind_files, mount.node.behind.files) == (
        0,
        0,
        set(),
    )
    assert (mount.node.counters.behind_writes, mount.node.counters.behind_requests) == (2, 2)


async def test_a_synchronous_write_is_at_the_owner(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"before")
    await mount.write(file, 2, b"sync", must_arrive=True)
    assert mount.owner.writes == [(0, 6, True), (2, 4, False)]


async def test_a_whole_request_does_not_wait(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    await mount.write(file, 0, bytes(MIB))
    await trio.testing.wait_all_tasks_blocked()
    assert mount.owner.writes == [(0, MIB, True)]


async def test_several_requests_are_under_way_and_no_two_that_overlap(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    mount.owner.gate = trio.Event()
    for number in range(6):
        await mount.write(file, number * MIB, bytes([number + 1]) * MIB)
    await trio.testing.wait_all_tasks_blocked()
    await mount.write(file, 0, b"new")
    await trio.sleep(1)
    assert len(mount.owner.under_way) == SENDERS_MAX
    assert len({request.offset for request in mount.owner.under_way}) == SENDERS_MAX
    mount.owner.gate.set()
    await file.settle()
    assert mount.owner.data[:4] == b"new\x01"
    assert len(mount.owner.writes) == 7


Trigger = Callable[[WritingMount, RemoteFile], Awaitable[Any]]
TRIGGERS: dict[str, Trigger] = {
    "fsync": lambda mount, file: file.sync(False),
    "close": lambda mount, file: file.settle(),
    "release": lambda mount, file: file.close(),
    "read": lambda mount, file: file.read(0, 10),
    "lseek": lambda mount, file: file.seek(0, os.SEEK_DATA),
    "fallocate": lambda mount, file: file.allocate(0, 0, 10),
    "copy_file_range": lambda mount, file: file.copy_to(0, file, 100, 10),
    "ftruncate": lambda mount, file: file.set_attributes(wire.SetAttributes(b"handle", USER, size_bytes=1)),
    "setattr": lambda mount, file: mount.node.set_attributes(wire.SetAttributes(b"handle", USER, mode=0o600)),
    "getattr": lambda mount, file: mount.node.get_attributes(b"handle"),
    "link": lambda mount, file: mount.node.make_link(b"handle", b"dir", b"other", USER),
    "setxattr": lambda mount, file: mount.node.set_xattr(b"handle", b"user.a", b"1", 0, USER),
    "removexattr": lambda mount, file: mount.node.remove_xattr(b"handle", b"user.a", USER),
    "open": lambda mount, file: mount.open(os.O_RDONLY),
    "recall": lambda mount, file: mount.recall(SHARED),
    "unmount": lambda mount, file: mount.node.give_back_all(),
}


@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_whatever_may_show_the_file_waits_for_its_writes(
    mount: WritingMount, autojump_clock: MockClock, trigger: str
) -> None:
    file = await mount.open(os.O_RDWR)
    await mount.write(file, 0, b"data")
    before = len(mount.owner.asked)
    await TRIGGERS[trigger](mount, file)
    assert isinstance(mount.owner.asked[before], wire.WriteBlocks), "before anything else"
    assert mount.owner.writes == [(0, 4, True)]


async def test_a_name_or_listing_that_was_told_too_early_is_asked_for_again(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"data")
    found = await mount.node.look_up(b"dir", b"name", USER)
    assert found.handle == b"handle"
    assert [type(request).__name__ for request in mount.owner.asked[1:]] == ["LookUp", "WriteBlocks", "LookUp"]
    await mount.node.look_up(b"dir", b"name", USER)
    assert len(mount.owner.of(wire.LookUp)) == 3, "nothing was unsent"
    await mount.write(file, 0, b"more")
    await file.read_directory(0, 4096)
    assert [type(request).__name__ for request in mount.owner.asked[-3:]] == [
        "ReadDirectory", "WriteBlocks", "ReadDirectory",
    ]  # fmt: skip


async def test_a_look_up_that_overtook_what_was_sent_meanwhile_is_repeated(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"data")

    ask = mount.owner.call_for_bulk

    async def answered_late(request: Any, expect: Any, bulk: Any = b"") -> Any:
        answer = await ask(request, expect, bulk)
        if isinstance(request, wire.LookUp):
            await file.drain()  # all is sent when the answer comes, which was made before
        return answer

    mount.owner.call_for_bulk = answered_late  # type: ignore[method-assign]
    await mount.node.look_up(b"dir", b"name", USER)
    assert len(mount.owner.of(wire.LookUp)) == 2


async def test_a_drain_does_not_wait_for_what_is_written_later(
    mount: WritingMount, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    file = await mount.open()
    mount.owner.gate = trio.Event()
    await mount.write(file, 0, b"one")
    drained = trio.Event()

    async def drain() -> None:
        await file.drain()
        drained.set()

    nursery.start_soon(drain)
    await trio.testing.wait_all_tasks_blocked()
    await mount.write(file, 100, b"two")
    mount.owner.gate.set()
    mount.owner.gate = trio.Event()
    await drained.wait()
    assert file.unsent.is_dirty
    mount.owner.gate.set()


# ---------------------------------------------------------------- bounds


async def test_a_file_may_have_so_much_unsent_and_no_more(
    mount: WritingMount, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    file = await mount.open()
    mount.owner.gate = trio.Event()
    written: list[int] = []

    async def write() -> None:
        for number in range(2 * FILE_BYTES_MAX // MIB):
            written.append(await mount.write(file, number * MIB, bytes(MIB)))

    nursery.start_soon(write)
    await trio.sleep(1)
    assert sum(written) == FILE_BYTES_MAX
    assert mount.node.counters.behind_bytes == FILE_BYTES_MAX
    mount.owner.gate.set()
    await trio.sleep(1)
    await file.settle()
    assert len(mount.owner.data) == 2 * FILE_BYTES_MAX


async def test_where_the_mount_has_too_much_unsent_a_write_waits_for_the_owner(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    mount.node.counters.behind_bytes = MOUNT_BYTES_MAX  # of others
    await mount.write(file, 0, b"data")
    assert mount.owner.writes == [(0, 4, False)]


async def test_who_is_killed_does_not_wait(
    mount: WritingMount, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    file = await mount.open()
    mount.owner.gate = trio.Event()
    await mount.write(file, 0, b"x")
    await trio.sleep(1)
    await mount.write(file, 0, b"y")  # has to wait for the other
    tasks: list[trio.lowlevel.Task] = []
    outcome: list[BaseException] = []

    async def drain() -> None:
        tasks.append(trio.lowlevel.current_task())
        with pytest.raises(Interrupted) as caught:
            await file.drain()
        outcome.append(caught.value)

    nursery.start_soon(drain)
    await trio.testing.wait_all_tasks_blocked()
    mount.node.interrupt(tasks[0], lambda: True)
    await trio.testing.wait_all_tasks_blocked()
    assert outcome == [], "a signal that it handles"
    mount.node.interrupt(tasks[0], lambda: False)
    await trio.testing.wait_all_tasks_blocked()
    assert len(outcome) == 1
    mount.owner.gate.set()
    await file.settle()
    assert mount.owner.data == b"y", "nothing is lost by that"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("told", ["write", "fsync", "close"])
async def test_an_error_is_told_exactly_once(
    mount: WritingMount, autojump_clock: MockClock, told: str, number: int
) -> None:
    file = await mount.open()
    mount.owner.fails = [number]
    await mount.write(file, 0, b"data")
    await trio.sleep(1)
    assert not file.is_settled
    tell: dict[str, Callable[[], Awaitable[Any]]] = {
        "write": lambda: mount.write(file, 0, b"data"),
        "fsync": lambda: file.sync(False),
        "close": file.settle,
    }
    assert await failed_with(tell[told]()) == number
    await tell[told]()
    await file.settle()
    assert mount.node.counters.behind_failed == 1


async def test_an_error_is_told_to_who_wrote(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    mount.owner.fails = [errno.ENOSPC]
    await mount.write(file, 0, b"data")
    await mount.node.get_attributes(b"handle")
    other = await mount.open(os.O_RDONLY)
    await other.sync(False)
    await other.settle()
    assert await failed_with(file.settle()) == errno.ENOSPC


async def test_a_disk_that_takes_a_part_is_asked_why(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    mount.owner.room_bytes = 6
    await mount.write(file, 0, b"0123456789")
    assert await failed_with(file.settle()) == errno.ENOSPC
    assert mount.owner.data == b"012345"
    assert len(mount.owner.of(wire.WriteBlocks)) == 2


async def test_what_an_owner_that_is_away_does_not_get_is_an_error(
    mount: WritingMount, autojump_clock: MockClock
) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"data")
    mount.owner.state = "down"
    with pytest.raises(RemoteFailure) as caught:
        await file.settle()
    assert caught.value.errno == NodeDown.errno


async def test_what_was_interrupted_is_sent_all_the_same(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"data")
    mount.owner.refuse[wire.WriteBlocks] = Interrupted("killed")
    with pytest.raises(Interrupted):
        await file.settle()
    del mount.owner.refuse[wire.WriteBlocks]
    await trio.sleep(1)
    assert mount.owner.data == b"data"
    await file.settle()


async def test_an_append_of_which_nobody_knows_is_not_repeated(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    await mount.write(file, None, b"data")
    mount.owner.refuse[wire.AppendBlocks] = OutcomeUnknown("restarted")
    assert await failed_with(file.settle()) == errno.EIO
    assert len(mount.owner.of(wire.AppendBlocks)) == 1


async def test_a_late_write_is_refused_by_the_owner(mount: WritingMount, autojump_clock: MockClock) -> None:
    file = await mount.open()
    await mount.write(file, 0, b"data")
    mount.owner.holds = False
    assert await failed_with(file.settle()) == errno.EIO
    assert mount.owner.data == b""
