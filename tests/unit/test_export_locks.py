"""Locks: between holders, against native programs, and waits that are given up."""

# ruff: noqa: ASYNC110, ASYNC230, ASYNC240 - nothing else runs in these tests: the service answers in this thread

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, strategies as st

from omfs import wire
from omfs.errors import OpenLost
from omfs.export.ranges import F_RDLCK, F_UNLCK, F_WRLCK, HeldRanges
from omfs.export.service import ExportService
from omfs.kernel.filelocks import RANGE_END, LockWait, RangeLock, probe_range, set_range
from tests.unit.exportroom import Asker, FakeSession, refused

lab = pytest.mark.lab

NATIVE = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "flock":
    fcntl.flock(fd, fcntl.LOCK_EX)
else:
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(service: ExportService) -> Iterator[Asker]:
    """A second holder."""
    asker = Asker(service, FakeSession(3))
    yield asker
    asker.end()


async def opened(asker: Asker, path: Path, flags: int = os.O_RDWR) -> int:
    if not path.exists():
        path.write_bytes(bytes(100))
    return await asker.open((await asker.walk(path)).handle, flags)


async def flock(asker: Asker, open_id: int, operation: int, wait: bool = False) -> None:
    await asker.get(wire.LockFile(open_id, operation, wait), wire.Done)


async def lock(
    asker: Asker, open_id: int, kind: int, start: int = 0, end: int = RANGE_END, owner: int = 1, wait: bool = False
) -> None:
    await asker.get(wire.LockRange(open_id, owner, kind, start, end, 100 + owner, wait), wire.Done)


async def probe(asker: Asker, open_id: int, kind: int = F_WRLCK, start: int = 0, owner: int = 1) -> wire.RangeProbed:
    return await asker.get(wire.ProbeRange(open_id, owner, kind, start, RANGE_END), wire.RangeProbed)


class Native:
    """A program on the owner that holds a lock until told."""

    def __init__(self, path: Path, kind: str) -> None:
        command = [sys.executable, "-c", NATIVE, str(path), kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"locked\n"

    def end(self) -> None:
        self.process.communicate()


# ---------------------------------------------------------------- flock


@lab
async def test_flock_excludes_other_holders(root: Asker, other: Asker, room: Path) -> None:
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    await flock(root, mine, fcntl.LOCK_SH)
    await flock(other, theirs, fcntl.LOCK_SH)
    with refused(errno.EAGAIN):
        await flock(root, mine, fcntl.LOCK_EX)
    await flock(other, theirs, fcntl.LOCK_UN)
    await flock(root, mine, fcntl.LOCK_EX)
    with refused(errno.EAGAIN):
        await flock(other, theirs, fcntl.LOCK_SH)
    await root.close(mine)
    await flock(other, theirs, fcntl.LOCK_EX)
    with refused(errno.EINVAL):
        await flock(other, theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)


@lab
async def test_flock_waits(root: Asker, other: Asker, room: Path) -> None:
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file", os.O_RDONLY)
    await flock(root, mine, fcntl.LOCK_EX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flock, other, theirs, fcntl.LOCK_EX, True)
        await until_waiting(1)
        await flock(root, mine, fcntl.LOCK_UN)
    with refused(errno.EAGAIN):
        await flock(root, mine, fcntl.LOCK_SH)


@lab
async def test_a_cancelled_flock_wait_leaves_no_lock_and_no_thread(root: Asker, other: Asker, room: Path) -> None:
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    await flock(root, mine, fcntl.LOCK_EX)
    for _ in range(5):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flock, other, theirs, fcntl.LOCK_EX, True)
                await until_waiting(1)
                scope.cancel()
        assert scope.cancelled_caught
        assert waiting_threads() == 0
    await flock(root, mine, fcntl.LOCK_UN)
    await flock(root, mine, fcntl.LOCK_EX)


@lab
async def test_flock_and_native_programs_exclude_each_other(root: Asker, room: Path) -> None:
    mine = await opened(root, room / "file")
    native = await trio.to_thread.run_sync(Native, room / "file", "flock")
    with refused(errno.EAGAIN):
        await flock(root, mine, fcntl.LOCK_SH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flock, root, mine, fcntl.LOCK_EX, True)
        await until_waiting(1)
        await trio.to_thread.run_sync(native.end)
    with open(room / "file") as file, refused(errno.EAGAIN):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


@lab
async def test_a_close_while_waiting_does_not_lock_another_file(root: Asker, other: Asker, room: Path) -> None:
    """The waiting thread's descriptor number must not come to mean something else."""
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    await flock(root, mine, fcntl.LOCK_EX)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flock, other, theirs, fcntl.LOCK_EX, True)
            await until_waiting(1)
            await other.close(theirs)
            fds = [os.open(room / f"new{number}", os.O_CREAT | os.O_RDWR) for number in range(20)]
            scope.cancel()
    for fd in fds:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    assert waiting_threads() == 0


# ---------------------------------------------------------------- POSIX locks


@lab
async def test_ranges_exclude_other_owners_and_holders(root: Asker, other: Asker, room: Path) -> None:
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    await lock(root, mine, F_WRLCK, 0, 9)
    await lock(root, mine, F_RDLCK, 5, 19)
    for asker, open_id, owner in ((other, theirs, 1), (root, mine, 2)):
        await lock(asker, open_id, F_WRLCK, 20, 29, owner)
        await lock(asker, open_id, F_RDLCK, 5, 9, owner)
        for kind, at in ((F_WRLCK, 5), (F_RDLCK, 0)):
            with refused(errno.EAGAIN):
                await lock(asker, open_id, kind, at, at, owner)
        await lock(asker, open_id, F_UNLCK, owner=owner)
    await lock(root, mine, F_UNLCK, 0, 4)
    await lock(other, theirs, F_WRLCK, 0, 4)
    with refused(errno.EAGAIN):
        await lock(other, theirs, F_WRLCK, 0, 5)


@lab
async def test_probing_tells_who_is_in_the_way(root: Asker, other: Asker, room: Path) -> None:
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    assert (await probe(other, theirs)).kind == F_UNLCK
    await lock(root, mine, F_RDLCK, 10, 19, owner=7)
    assert await probe(other, theirs) == wire.RangeProbed(F_RDLCK, 10, 19, 107)
    assert (await probe(other, theirs, F_RDLCK)).kind == F_UNLCK
    assert (await probe(other, theirs, start=20)).kind == F_UNLCK
    assert (await probe(root, mine, owner=7)).kind == F_UNLCK
    assert (await probe(root, mine, owner=8)).pid == 107
    with refused(errno.EINVAL):
        await probe(root, mine, F_UNLCK)


@lab
async def test_ranges_and_native_programs_exclude_each_other(root: Asker, room: Path) -> None:
    mine = await opened(root, room / "file")
    native = await trio.to_thread.run_sync(Native, room / "file", "posix")
    with refused(errno.EAGAIN):
        await lock(root, mine, F_RDLCK, 0, 0)
    assert await probe(root, mine) == wire.RangeProbed(F_WRLCK, 0, 9, native.process.pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lock, root, mine, F_WRLCK, 0, RANGE_END, 1, True)
        await until_waiting(1)
        await trio.to_thread.run_sync(native.end)
    with open(room / "file", "r+b") as file:
        blocker = struct.unpack(
            "@hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("@hhqqi4x", F_RDLCK, 0, 0, 0, 0))
        )
        assert blocker[0] == F_WRLCK


@lab
async def test_locks_end_with_their_owner_their_file_and_their_session(root: Asker, other: Asker, room: Path) -> None:
    mine, second, theirs = [await opened(asker, room / "file") for asker in (root, root, other)]
    await lock(root, mine, F_WRLCK, 0, 0, owner=1)
    await lock(root, mine, F_WRLCK, 1, 1, owner=2)
    await root.get(wire.ReleaseLocks(second, 1), wire.Done)
    await root.get(wire.ReleaseLocks(second, 99), wire.Done)
    await lock(other, theirs, F_WRLCK, 0, 0)
    with refused(errno.EAGAIN):
        await lock(other, theirs, F_WRLCK, 1, 1)
    await root.close(mine)
    with refused(errno.EAGAIN):
        await lock(other, theirs, F_WRLCK, 1, 1)
    await root.close(second)
    await lock(other, theirs, F_WRLCK, 1, 1)
    third = await opened(root, room / "file")
    with refused(errno.EAGAIN):
        await lock(root, third, F_RDLCK)
    other.end()
    await lock(root, third, F_RDLCK)


@lab
async def test_a_lock_needs_the_right_kind_of_open(root: Asker, room: Path) -> None:
    reading = await opened(root, room / "file", os.O_RDONLY)
    writing = await opened(root, room / "file", os.O_WRONLY)
    with refused(errno.EBADF):
        await lock(root, reading, F_WRLCK)
    with refused(errno.EBADF):
        await lock(root, writing, F_RDLCK)
    for kind, start, end in ((3, 0, 1), (F_WRLCK, 2, 1), (F_WRLCK, -1, 1), (F_WRLCK, 0, 1 << 63)):
        with refused(errno.EINVAL):
            await lock(root, writing, kind, start, end)


@lab
async def test_a_reader_that_turns_writer_keeps_its_locks(root: Asker, other: Asker, room: Path) -> None:
    reading, writing = await opened(root, room / "file", os.O_RDONLY), await opened(root, room / "file")
    theirs = await opened(other, room / "file")
    await lock(root, reading, F_RDLCK, 0, 9)
    await lock(root, writing, F_WRLCK, 20, 29)
    for at in (0, 20):
        with refused(errno.EAGAIN):
            await lock(other, theirs, F_WRLCK, at, at)
    await lock(root, writing, F_UNLCK, 0, 9)
    await lock(other, theirs, F_WRLCK, 0, 9)


@lab
async def test_a_cancelled_range_wait_changes_nothing(root: Asker, other: Asker, room: Path) -> None:
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    await lock(root, mine, F_WRLCK, 10, 19)
    await lock(other, theirs, F_RDLCK, 0, 9)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock, other, theirs, F_WRLCK, 0, 19, 1, True)
            await until_waiting(1)
            scope.cancel()
    assert waiting_threads() == 0
    await lock(root, mine, F_UNLCK)
    await lock(root, mine, F_WRLCK, 10, 19, owner=5)
    assert (await probe(root, mine, owner=6)) == wire.RangeProbed(F_RDLCK, 0, 9, 101)


@lab
async def test_a_wait_goes_on_when_its_owner_gives_its_locks_up(root: Asker, other: Asker, room: Path) -> None:
    """Another thread closed the file: what was held is free at once, and the waiter still gets what it waits for."""
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    await lock(root, mine, F_WRLCK, 0, 9)
    await lock(other, theirs, F_WRLCK, 20, 29)
    async with trio.open_nursery() as nursery:
        for start in (0, 5):
            nursery.start_soon(lock, other, theirs, F_WRLCK, start, start, 1, True)
        await until_waiting(2)
        await other.get(wire.ReleaseLocks(theirs, 1), wire.Done)
        await lock(root, mine, F_WRLCK, 20, 29)
        await until_waiting(2)
        await lock(root, mine, F_UNLCK, 0, 9)
    for start in (0, 5):
        with refused(errno.EAGAIN):
            await lock(root, mine, F_WRLCK, start, start)
    await lock(root, mine, F_WRLCK, 1, 4)


@lab
@pytest.mark.parametrize("how", ["close", "session"])
async def test_a_wait_ends_with_its_open_and_its_session(root: Asker, other: Asker, room: Path, how: str) -> None:
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    await lock(root, mine, F_WRLCK)

    async def wait() -> None:
        with pytest.raises(OpenLost):
            await lock(other, theirs, F_WRLCK, wait=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await until_waiting(1)
        if how == "close":
            await other.close(theirs)
        else:
            other.end()
    assert waiting_threads() == 0
    await lock(root, mine, F_UNLCK)
    await lock(root, mine, F_WRLCK, owner=2)


@lab
async def test_a_wait_is_not_disturbed_by_its_owners_other_attempts(root: Asker, other: Asker, room: Path) -> None:
    mine, theirs = await opened(root, room / "file"), await opened(other, room / "file")
    await lock(root, mine, F_WRLCK)
    answer = other.begin(wire.LockRange(theirs, 1, F_WRLCK, 0, 9, 101, True))
    assert not isinstance(answer, tuple)
    with refused(errno.EAGAIN):
        await lock(other, theirs, F_WRLCK)  # fails before the other one begins
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: answer)
        await until_waiting(1)
        await lock(root, mine, F_UNLCK)
    with refused(errno.EAGAIN):
        await lock(root, mine, F_WRLCK, 9, 9)


@lab
async def test_a_reader_that_turns_writer_while_it_waits(root: Asker, other: Asker, room: Path) -> None:
    reading, writing = await opened(root, room / "file", os.O_RDONLY), await opened(root, room / "file")
    theirs = await opened(other, room / "file")
    await lock(other, theirs, F_WRLCK, 50, 59)
    await lock(root, reading, F_RDLCK, 0, 9)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lock, root, reading, F_RDLCK, 50, 59, 1, True)
        await until_waiting(1)
        await lock(root, writing, F_WRLCK, 0, 9)
        await until_waiting(1)
        await lock(other, theirs, F_UNLCK)
    for at in (0, 50):
        with refused(errno.EAGAIN):
            await lock(other, theirs, F_WRLCK, at, at)


@lab
async def test_one_node_does_not_take_all_waiters(
    root: Asker, other: Asker, service: ExportService, room: Path
) -> None:
    mine = await opened(root, room / "file")
    await lock(root, mine, F_WRLCK)
    greedy = Asker(service, FakeSession(4))
    await greedy.walk(room)
    greedy.session.data.files.share._waiters_left = 2
    theirs, third = await opened(greedy, room / "file"), await opened(other, room / "file")
    async with trio.open_nursery() as nursery:
        for owner in (1, 2):
            nursery.start_soon(lock, greedy, theirs, F_WRLCK, 0, 9, owner, True)
        await until_waiting(2)
        with refused(errno.ENOLCK):
            await lock(greedy, theirs, F_WRLCK, owner=3, wait=True)
        with refused(errno.ENOLCK):
            await flock_taken(greedy, theirs, root, mine)
        nursery.start_soon(lock, other, third, F_RDLCK, 20, 29, 1, True)
        await until_waiting(3)
        nursery.cancel_scope.cancel()
    assert greedy.session.data.files.share._waiters_left == 2
    greedy.end()


async def flock_taken(waiter: Asker, waiters: int, holder: Asker, holders: int) -> None:
    await flock(holder, holders, fcntl.LOCK_EX)
    await flock(waiter, waiters, fcntl.LOCK_EX, wait=True)


async def until_waiting(count: int) -> None:
    """Until so many of our threads are inside a blocking lock call (as the kernel tells)."""
    while waiting_threads() != count:
        await trio.sleep(0.002)


def waiting_threads() -> int:
    wanted = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            number, *arguments = (task / "syscall").read_text().split()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue
        # flock is 73 and fcntl 72 on x86-64, 32 and 25 elsewhere; F_OFD_SETLKW is 38.
        if number in ("73", "32") or (number in ("72", "25") and arguments[1] == "0x26"):
            wanted += 1
    return wanted


# ---------------------------------------------------------------- the pure part


def test_an_interrupt_before_the_wait_keeps_it_from_beginning() -> None:
    calls = []
    wait = LockWait(lambda: calls.append(1))
    assert wait.interrupt()
    assert not wait.run()
    assert not calls


def test_a_foreign_signal_does_not_end_the_wait() -> None:
    attempts = iter([InterruptedError(), InterruptedError(), None])

    def block() -> None:
        if error := next(attempts):
            raise error

    wait = LockWait(block)
    assert wait.run()
    assert wait.acquired


def test_an_error_of_the_call_ends_the_wait() -> None:
    def block() -> None:
        raise OSError(errno.ENOLCK, "no locks")

    wait = LockWait(block)
    with refused(errno.ENOLCK):
        wait.run()
    assert wait.interrupt()


def test_probing_a_descriptor(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as mine, open(tmp_path / "file", "r+b") as theirs:
        set_range(theirs.fileno(), F_RDLCK, 5, RANGE_END)
        assert probe_range(mine.fileno(), F_RDLCK, 0, RANGE_END) is None
        assert probe_range(mine.fileno(), F_WRLCK, 0, 4) is None
        assert probe_range(mine.fileno(), F_WRLCK, 0, 5) == RangeLock(F_RDLCK, 5, RANGE_END, -1)


operations = st.lists(
    st.tuples(st.sampled_from([F_RDLCK, F_WRLCK, F_UNLCK]), st.integers(0, 30), st.integers(0, 30)), max_size=12
)


@given(operations)
def test_held_ranges_are_what_a_byte_by_byte_table_says(steps: list[tuple[int, int, int]]) -> None:
    held, table = HeldRanges(), dict.fromkeys(range(31), F_UNLCK)
    for kind, first, second in steps:
        start, end = min(first, second), max(first, second)
        held.set(RangeLock(kind, start, end, 1))
        table.update(dict.fromkeys(range(start, end + 1), kind))
        locks = list(held)
        assert bool(held) == any(kind != F_UNLCK for kind in table.values())
        assert {at: lock.kind for lock in locks for at in range(lock.start, lock.end + 1)} == {
            at: kind for at, kind in table.items() if kind != F_UNLCK
        }
        for left, right in itertools.pairwise(locks):
            assert left.end < right.start
            assert left.end + 1 < right.start or left.kind != right.kind
        inside = held.within(10, 20)
        assert {at: lock.kind for lock in inside for at in range(lock.start, lock.end + 1)} == {
            at: kind for at, kind in table.items() if kind != F_UNLCK and 10 <= at <= 20
        }
        blocker = held.blocker(F_RDLCK, 10, 20)
        assert (blocker is not None) == any(table[at] == F_WRLCK for at in range(10, 21))
        blocker = held.blocker(F_WRLCK, 10, 20)
        assert (blocker is not None) == any(table[at] != F_UNLCK for at in range(10, 21))
