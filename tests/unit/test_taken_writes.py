"""WRITE, FLUSH, READ and RELEASE as the kernel sends them, under an EXCLUSIVE lease: what is answered at once."""

from __future__ import annotations

import errno
import math
import os
import struct
import threading
from typing import Any, Final

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from omfs import wire
from omfs.mount import justtold, lowlevel_abi as abi
from tests.unit.fakepeer import ATTRIBUTES
from tests.unit.takenmount import TakenMount
from tests.unit.writingmount import NONE, SHARED, Owner

FROM_CACHE: Final = abi.WRITE_FROM_CACHE


class Mount(TakenMount):
    """Of the fake owner."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.owner = Owner()
        super().__init__(nursery, self.owner)

    async def wait_dropped(self) -> None:
        """Threads run in real time, whatever the clock says."""
        await trio.testing.wait_all_tasks_blocked()
        for dropping in self.inode.dropping:
            await dropping.wait()
        await trio.testing.wait_all_tasks_blocked()

    async def wait_answered(self, request: int) -> None:
        while not self.answered(request):
            await self.hook.news.wait()

    async def recall(self, mode: wire.Mode) -> None:
        recall = self.owner.recall(mode)
        self.operations.recaller.seen(self.node, recall)
        await self.operations.recaller.recall(self.node, recall)
        self.owner.holds = False


@pytest.fixture
async def mount(nursery: trio.Nursery) -> Mount:
    mount = Mount(nursery)
    nursery.start_soon(mount.operations.recaller.run)
    nursery.start_soon(mount.node.tend)
    await trio.testing.wait_all_tasks_blocked()
    return mount


async def test_a_write_is_answered_at_once_and_the_close_sends_it(mount: Mount, autojump_clock: MockClock) -> None:
    fh = await mount.open()
    request = mount.write(fh, 0, b"hello")
    assert mount.hook.answers[request] == (0, struct.pack("<II", 5, 0)), "before any task ran"
    assert mount.owner.writes == []
    assert await mount.flush(fh) == 0
    assert mount.owner.writes == [(0, 5, True)]
    before = len(mount.owner.asked)
    assert await mount.flush(fh) == 0
    assert len(mount.owner.asked) == before


async def test_what_the_kernel_reuses_is_copied(mount: Mount, autojump_clock: MockClock) -> None:
    fh = await mount.open()
    body = bytearray(bytes(abi.IN_HEADER_BYTES) + struct.pack("<QQIIQII", fh, 0, 4, 0, 0, 0, 0) + b"data")
    mount.hook.unique += 1
    assert mount.hook.takers[abi.WRITE](mount.hook, memoryview(body)) is None
    body[-4:] = b"next"
    await mount.flush(fh)
    assert mount.owner.data == b"data"


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC])
async def test_a_synchronous_write_waits_for_the_owner(mount: Mount, autojump_clock: MockClock, flags: int) -> None:
    fh = await mount.open()
    request = mount.write(fh, 0, b"hello", flags)
    assert not mount.answered(request)
    await trio.testing.wait_all_tasks_blocked()
    assert mount.owner.writes == [(0, 5, False)]


async def test_append_goes_by_the_flags_of_now(mount: Mount, autojump_clock: MockClock) -> None:
    fh = await mount.open()
    mount.write(fh, 7, b"a", os.O_APPEND)
    mount.write(fh, 0, b"b", os.O_APPEND, FROM_CACHE)
    await mount.flush(fh)
    assert [offset for offset, *_ in mount.owner.writes] == [None, 0]


async def test_an_error_is_told_once(mount: Mount, autojump_clock: MockClock) -> None:
    fh = await mount.open()
    mount.owner.fails = [errno.ENOSPC, errno.EDQUOT]
    mount.write(fh, 0, b"a")
    assert await mount.flush(fh) == errno.ENOSPC
    assert await mount.flush(fh) == 0
    mount.write(fh, 0, b"a")
    await trio.sleep(1)
    request = mount.write(fh, 0, b"b")
    await trio.testing.wait_all_tasks_blocked()
    assert mount.hook.answers[request][0] == errno.EDQUOT
    assert await mount.flush(fh) == 0


async def test_without_the_lease_a_write_waits_for_the_owner(mount: Mount, autojump_clock: MockClock) -> None:
    mount.owner.grants = SHARED
    fh = await mount.open()
    request = mount.write(fh, 0, b"hello")
    assert not mount.answered(request)
    await trio.testing.wait_all_tasks_blocked()
    assert mount.owner.writes == [(0, 5, False)]


async def test_while_a_write_is_under_way_the_kernel_has_no_attributes(mount: Mount, autojump_clock: MockClock) -> None:
    """Others may see what was written before its answer is here."""

    async def kept_s() -> int:
        asked = mount.get_attributes()
        await trio.testing.wait_all_tasks_blocked()
        return int(struct.unpack_from("<Q", mount.hook.answers[asked][1])[0])

    mount.owner.grants = SHARED
    fh = await mount.open()
    assert await kept_s() > 0
    voided, mount.owner.gate = mount.kernel.voided, trio.Event()
    writes = [mount.write(fh, 0, b"hello") for _ in range(2)]
    await trio.testing.wait_all_tasks_blocked()
    assert mount.kernel.voided == voided + 1, "as soon as it was sent"
    assert await kept_s() == 0
    mount.owner.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert all(map(mount.answered, writes))
    assert await kept_s() > 0


async def test_a_new_file_is_held_from_its_making(mount: Mount, autojump_clock: MockClock) -> None:
    mount.inode.is_directory = True
    before = len(mount.owner.asked)
    request = mount.ask(abi.CREATE, struct.pack("<IIII", os.O_WRONLY | os.O_CREAT, 0o644, 0, 0) + b"name\0")
    await trio.testing.wait_all_tasks_blocked()
    error, body = mount.hook.answers[request]
    assert not error
    (fh,) = struct.unpack_from("<Q", body, len(body) - 16)
    assert mount.answered(mount.write(fh, 0, b"small"))
    assert await mount.flush(fh) == 0
    kinds = [type(one).__name__ for one in mount.owner.asked[before:]]
    assert kinds == ["CreateFile", "WriteBlocks"]


# ---------------------------------------------------------------- mappings


async def test_pages_of_a_mapping_stay_under_the_lease_until_it_is_recalled(
    mount: Mount, autojump_clock: MockClock
) -> None:
    fh = await mount.open()
    mount.read(fh, 4096, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert mount.kernel.dropped == []
    stored: list[int] = []

    async def launder() -> None:  # the page was changed: it comes as a WRITE, which the notification waits for
        mount.kernel.launder = None
        request = mount.write(fh, 0, b"stored", 0, FROM_CACHE)
        await trio.testing.wait_all_tasks_blocked()
        assert mount.answered(request), "not waiting for the recall that waits for it"
        stored.append(request)

    mount.kernel.launder = launder
    await mount.recall(SHARED)
    assert len(stored) == 1
    assert mount.owner.data == b"stored", "before the recall is answered"
    assert (0, 0) in mount.kernel.dropped
    assert not mount.node.is_mapped(b"handle")


async def test_without_the_lease_pages_of_a_mapping_are_dropped_at_once(
    mount: Mount, autojump_clock: MockClock
) -> None:
    mount.owner.grants = SHARED
    fh = await mount.open()
    mount.read(fh, 4096, 0)
    await trio.testing.wait_all_tasks_blocked()
    await mount.wait_dropped()
    assert len(mount.owner.of(wire.AskLease)) == 1
    assert mount.kernel.dropped == [(0, 4096)]
    mount.read(fh, 4096, abi.READ_LOCK_OWNER)
    await mount.wait_dropped()
    assert len(mount.owner.of(wire.ReadBlocks)) == 2
    assert mount.kernel.dropped == [(0, 4096)], "a read(2) fills no pages"


async def test_pages_that_are_only_read_stay_under_any_lease(mount: Mount, autojump_clock: MockClock) -> None:
    """Though the descriptor is direct_io, as for two seconds after a change: a program just made is run from them."""
    mount.owner.grants = SHARED
    first, second = await mount.open(os.O_RDONLY), await mount.open(os.O_RDONLY)
    mount.read(first, 4096, 0)
    await mount.wait_dropped()
    assert mount.kernel.dropped == []
    assert not mount.owner.of(wire.AskLease)
    await mount.release(first)
    await mount.recall(NONE)
    assert mount.kernel.dropped == [(0, 0)], "the other one has them mapped, too"
    mount.owner.grants = NONE
    request = mount.read(second, 4096, 0)
    await mount.wait_answered(request)
    await mount.wait_dropped()
    assert mount.kernel.dropped == [(0, 0), (0, 4096)], "nothing is held"


async def test_who_reads_pages_of_a_mapping_can_be_recalled(mount: Mount, autojump_clock: MockClock) -> None:
    """Also where they are dropped at once: who changes the file next waits for that."""
    mount.owner.grants = SHARED
    fh = await mount.open()
    await mount.recall(NONE)
    assert not mount.inode.lease.is_held
    mount.read(fh, 4096, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert mount.inode.lease.is_held
    assert mount.node.is_mapped(b"handle")


async def test_who_reads_a_cached_file_to_its_end_sees_the_size_of_now(mount: Mount, autojump_clock: MockClock) -> None:
    """The kernel does not believe an answer that a recall has overtaken, so it is told otherwise before."""
    mount.owner.grants, mount.owner.caches = SHARED, True
    fh = await mount.open(os.O_RDONLY)
    told = []
    mount.kernel.on_grow = lambda: told.append(mount.answered(request))
    request = mount.get_attributes(fh)
    await mount.wait_answered(request)
    assert mount.kernel.grown == [ATTRIBUTES.size_bytes]
    assert told == [False], "before the answer"
    await mount.wait_answered(mount.get_attributes())
    await mount.wait_answered(mount.get_attributes(await mount.open()))
    assert mount.kernel.grown == [ATTRIBUTES.size_bytes], "stat(2) is told the answer"


async def test_a_recall_waits_until_the_kernel_has_the_size(mount: Mount, autojump_clock: MockClock) -> None:
    """Else it would be longer than what the file is truncated to."""
    mount.owner.grants, mount.owner.caches = SHARED, True
    fh = await mount.open(os.O_RDONLY)
    growing, go_on = trio.Event(), threading.Event()
    mount.kernel.on_grow = lambda: (trio.from_thread.run_sync(growing.set), go_on.wait())
    mount.get_attributes(fh)
    await growing.wait()
    recalled, dropped = trio.Event(), trio.Event()

    async def recall() -> None:
        await mount.recall(NONE)
        recalled.set()

    async def note_drop() -> None:
        dropped.set()

    mount.kernel.launder = note_drop
    mount.nursery.start_soon(recall)
    await dropped.wait()
    with trio.move_on_after(1):
        await recalled.wait()
    assert not recalled.is_set()
    go_on.set()
    await recalled.wait()


@pytest.mark.parametrize("held", ["the read", "the drop of its page"])
async def test_no_size_is_told_while_a_page_of_before_may_be_there(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, held: str, autojump_clock: MockClock
) -> None:
    """Its zeros behind the end of then would count as data."""
    mount.owner.grants, mount.owner.caches = SHARED, True
    fh = await mount.open(os.O_RDONLY)
    await mount.recall(NONE)
    mount.owner.caches, mount.owner.grants = False, NONE
    mount.inode.regain_at_s = math.inf
    go_on, held_now, ask = trio.Event(), trio.Event(), mount.owner.call_for_bulk

    async def hold() -> None:
        held_now.set()
        await go_on.wait()

    async def ask_slowly(request: Any, expect: Any, bulk: Any = b"") -> Any:
        if isinstance(request, wire.ReadBlocks):
            await hold()
        return await ask(request, expect, bulk)

    if held == "the read":
        monkeypatch.setattr(mount.owner, "call_for_bulk", ask_slowly)
    else:
        mount.kernel.launder = hold
    mount.read(fh, 4096, 0)
    await held_now.wait()
    asked = mount.get_attributes(), mount.get_attributes(fh)
    with trio.move_on_after(1):
        await mount.wait_answered(asked[0])
    assert not any(map(mount.answered, asked))
    go_on.set()
    for request in asked:
        await mount.wait_answered(request)


async def test_who_reads_a_cached_file_without_its_lease_can_be_recalled(
    mount: Mount, autojump_clock: MockClock
) -> None:
    """What fills pages meanwhile is dropped at once, and who changes the file next waits for that."""
    mount.owner.grants, mount.owner.caches = SHARED, True
    fh = await mount.open(os.O_RDONLY)
    await mount.recall(NONE)
    mount.owner.caches = False
    mount.inode.regain_at_s = math.inf  # it was refused just now
    await mount.wait_answered(mount.read(fh, 4096, 0))
    assert mount.inode.lease.is_held
    await mount.wait_dropped()
    assert (0, 4096) in mount.kernel.dropped


async def test_what_was_just_made_is_not_asked_for(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The kernel checks access to it within the same open(2)."""
    monkeypatch.setattr(justtold, "WITHIN_S", math.inf)
    mount.owner.grants = NONE
    await mount.asked(abi.CREATE, struct.pack("<IIII", os.O_WRONLY, 0o644, 0o022, 0) + b"new\0")
    mount.file = b"new"
    for asked in (0, 1):
        await mount.wait_answered(mount.get_attributes())
        assert len(mount.owner.of(wire.GetAttributes)) == asked, "once"


async def test_what_came_with_the_open_is_read_without_asking(mount: Mount, autojump_clock: MockClock) -> None:
    mount.owner.grants, mount.owner.caches, mount.owner.data[:] = SHARED, True, b"hello"
    fh = await mount.open(os.O_RDONLY)
    first = mount.read(fh, 3, 0)
    await mount.wait_answered(first)
    rest = mount.read(fh, 4096, 0, 3)
    await mount.wait_answered(rest)
    assert [mount.hook.answers[request][1] for request in (first, rest)] == [b"hel", b"lo"]
    assert not mount.owner.of(wire.ReadBlocks)
    await mount.wait_answered(mount.read(fh, 4096, 0))
    assert mount.owner.of(wire.ReadBlocks), "the kernel had them; it has dropped them since"


@pytest.mark.parametrize("what", ["a recall", "a change of ours"])
async def test_what_came_with_the_open_serves_only_under_its_lease(
    mount: Mount, what: str, autojump_clock: MockClock
) -> None:
    mount.owner.grants, mount.owner.caches, mount.owner.data[:] = SHARED, True, b"hello"
    fh = await mount.open(os.O_RDONLY)
    if what == "a recall":
        await mount.recall(NONE)
    else:
        async with mount.operations.changing(mount.inode, data=True):
            pass
    await mount.wait_answered(mount.read(fh, 4096, 0))
    assert mount.owner.of(wire.ReadBlocks)


async def test_pages_that_are_read_go_when_the_file_is_written_here(mount: Mount, autojump_clock: MockClock) -> None:
    mount.owner.grants = SHARED
    reader = await mount.open(os.O_RDONLY)
    mount.read(reader, 4096, 0)
    await mount.wait_dropped()
    await mount.open()
    assert mount.kernel.dropped == [(0, 0)]
    mount.read(reader, 4096, 0)
    await mount.wait_dropped()
    assert mount.kernel.dropped == [(0, 0), (0, 4096)], "who writes here says nothing of it to anybody"


async def test_a_page_does_not_wait_for_the_lease_while_a_recall_waits_for_the_page(
    mount: Mount, autojump_clock: MockClock
) -> None:
    """Else two nodes that map the same file would wait for each other: each asks, and is asked to forget that page."""
    mount.owner.grants = SHARED
    fh = await mount.open()
    mount.owner.before = None
    never = trio.Event()
    ask = mount.owner.call_for_bulk

    async def slow(request: Any, expect: Any, bulk: Any = b"") -> Any:
        if isinstance(request, wire.AskLease):
            await never.wait()
        return await ask(request, expect, bulk)

    mount.owner.call_for_bulk = slow  # type: ignore[method-assign]
    request = mount.read(fh, 4096, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert not mount.answered(request)
    await mount.recall(NONE)
    await trio.testing.wait_all_tasks_blocked()
    assert mount.answered(request)
    never.set()


async def test_a_store_is_not_dropped_by_its_own_write(mount: Mount, autojump_clock: MockClock) -> None:
    """The notification would wait for the page, and the page for the answer."""
    mount.owner.grants = SHARED
    fh = await mount.open()
    mount.inode.lease.data = True
    await mount.asked(abi.WRITE, struct.pack("<QQIIQII", fh, 0, 1, FROM_CACHE, 0, 0, 0) + b"x")
    assert mount.kernel.dropped == []
    await mount.asked(abi.WRITE, struct.pack("<QQIIQII", fh, 0, 1, 0, 0, 0, 0) + b"x")
    await mount.wait_dropped()
    assert mount.kernel.dropped == [(0, 0)]


async def test_a_write_beside_a_mapping_drops_what_was_read_again(mount: Mount, autojump_clock: MockClock) -> None:
    fh = await mount.open()
    mount.read(fh, 4096, 0)
    await trio.testing.wait_all_tasks_blocked()
    mount.write(fh, 0, b"abc")
    await mount.wait_dropped()
    assert mount.kernel.dropped == [(0, 3)]
