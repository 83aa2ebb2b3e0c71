"""A guest's locks at the owner of the file, while it moves from node to node: always its own, and nobody else's.

The kernel's locks are real ones.  Where a native process stands still while a lock goes over
(omfs/kernel/standstill.py) nothing else happens in the machine's step.
"""

# ruff: noqa: ASYNC240 - nothing else runs in these tests

from __future__ import annotations

import errno
import fcntl
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from omfs import wire
from omfs.export.movinglocks import MovingLocks
from omfs.export.movingopens import FLOCK, OFD, NativeOpen, OpenLock, file_id
from omfs.export.openloans import loan_of
from omfs.export.rangeowners import Arrival, NativeLock
from omfs.export.ranges import F_RDLCK, F_UNLCK, F_WRLCK
from omfs.export.service import ExportService
from omfs.kernel.filelocks import RANGE_END, RangeLock, probe_range, set_range
from tests.unit.exportroom import Asker, FakeSession, refused, serving
from tests.unit.lockholders import OPERATIONS, FlockNative, FlockOfNode, Holder, Native, OfNode, answered

pytestmark = pytest.mark.lab

BYTES: Final = 4
HOME: Final = 1  # the owner of the file
INSIDE: Final = 7  # the guest's process, by its number in there
NUMBER: Final = 3  # of its descriptor
kinds = st.sampled_from((F_RDLCK, F_WRLCK))
places = st.integers(0, BYTES - 1)


class Guests(RuleBasedStateMachine):
    """One guest, and two others that want the same locks: *source* and *coming* are its copies but for *guest*."""

    native: type[Native] = Native
    of_node: type[OfNode] = OfNode
    descriptor = -1  # of whose open file the locks are

    def __init__(self) -> None:
        super().__init__()
        self.room = tempfile.TemporaryDirectory()
        self.path = Path(self.room.name, "file")
        self.path.write_bytes(bytes(BYTES))
        self.serving = serving(Path(self.room.name, "state"))
        self.service = self.serving.__enter__()
        self.askers = {node: Asker(self.service, FakeSession(node)) for node in (2, 3, 4)}
        self.handle = b""
        for part in ["", *self.path.parts[1:]]:
            for asker in self.askers.values():
                found = answered(asker, wire.LookUp(self.handle, os.fsencode(part), wire.Caller(0, 0)) if part else
                                 wire.AttachTree(wire.Caller(0, 0)))  # fmt: skip
            self.handle = found.handle
        self.at = HOME
        self.guest: Holder = self.native(self.path)
        self.others: list[Holder] = [self.native(self.path), self.of_node(self.askers[4], self.handle)]
        self.eye = os.open(self.path, os.O_RDWR)
        self.attempt = 0
        self.to = 0  # where it is going to
        self.coming: Holder | None = None
        self.source: Holder | None = None  # the copy that has not been killed yet
        self.arrival: Arrival | None = None

    @initialize(at=st.sampled_from((HOME, 2, 3)), kind=kinds, start=places, end=places)
    def begin(self, at: int, kind: int, start: int, end: int) -> None:
        if at != HOME:
            self.guest.end()
            self.at, self.guest = at, self.of_node(self.askers[at], self.handle)
        self.guest_locks(kind, start, end)

    def teardown(self) -> None:
        for native in (self.guest, self.coming, self.source, *self.others):
            if isinstance(native, Native):
                native.end()
        for asker in self.askers.values():
            asker.end()
        os.close(self.eye)
        self.serving.__exit__(None, None, None)
        self.room.cleanup()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Of a lock."""
        return min(start, end), max(start, end)

    # ------------------------------------------------------------ what programs do

    def runs_freely(self) -> bool:
        """Not frozen, nor waiting until its locks are where it is."""
        return not self.to and not (self.source is not None and self.arrival is not None)

    @precondition(runs_freely)
    @rule(kind=kinds, start=places, end=places)
    def guest_locks(self, kind: int, start: int, end: int) -> None:
        start, end = self.span(start, end)
        allowed = all(other.allows(kind, start, end) for other in self.others)
        assert self.guest.lock(kind, start, end) is allowed

    @precondition(runs_freely)
    @rule(start=places, end=places)
    def guest_unlocks(self, start: int, end: int) -> None:
        start, end = self.span(start, end)
        assert self.guest.lock(F_UNLCK, start, end)

    @rule(who=st.integers(0, 1), kind=kinds, start=places, end=places)
    def another_locks(self, who: int, kind: int, start: int, end: int) -> None:
        start, end = self.span(start, end)
        allowed = self.guest.allows(kind, start, end) and self.others[1 - who].allows(kind, start, end)
        assert self.others[who].lock(kind, start, end) is allowed

    @rule(who=st.integers(0, 1))
    def another_unlocks(self, who: int) -> None:
        assert self.others[who].lock(F_UNLCK, 0, RANGE_END)

    # ------------------------------------------------------------ a move

    @property
    def moving(self) -> wire.Moving:
        return wire.Moving(f"guest/{self.attempt}", INSIDE, self.descriptor)

    @precondition(lambda self: not self.to and self.source is None)
    @rule(to=st.sampled_from((HOME, 2, 3)))
    def freeze(self, to: int) -> None:
        if to == self.at:
            to = to % 3 + 1
        self.to, self.attempt = to, self.attempt + 1
        if self.at == HOME:
            self.arrival = self.service.locks.arrivals[self.moving.attempt] = self.offered()
        else:
            for lock in self.guest.held:
                self.guest.ask(lock.kind, lock.start, lock.end, self.moving)

    def offered(self) -> Arrival:
        status = self.path.stat()
        file = (status.st_dev, status.st_ino)
        return Arrival([NativeLock(file, INSIDE, lock.kind, lock.start, lock.end) for lock in self.guest.held])

    @precondition(lambda self: self.to and self.coming is None)
    @rule()
    def restore(self) -> None:
        if self.to == HOME:
            self.coming = self.native(self.path, self.guest.held)
            self.arrival = Arrival()
            self.lend(self.coming, self.arrival)
        else:
            self.coming = self.of_node(self.askers[self.to], self.handle, self.guest.held)
            for lock in self.guest.held:
                self.coming.ask(lock.kind, lock.start, lock.end, self.moving)

    def lend(self, coming: Native, arrival: Arrival) -> None:
        for entry in self.service.locks.of_attempt(self.moving.attempt):
            arrival.lend(entry)
        for lock in self.guest.held:
            coming.ask(lock.kind, lock.start, lock.end)

    @precondition(lambda self: self.coming is not None)
    @rule()
    def run_there(self) -> None:
        assert self.coming is not None
        if self.to == HOME and self.arrival is not None:
            self.arrival.leave()
            self.arrival = None
        self.source, self.guest, self.coming = self.guest, self.coming, None
        self.at, self.to = self.to, 0

    @precondition(lambda self: self.source is not None)
    @rule()
    def kill_source(self) -> None:
        assert self.source is not None
        self.source.end()
        self.source = None
        if self.arrival is not None:
            assert not self.arrival.take()
            self.over()

    @precondition(lambda self: isinstance(self.source, OfNode))
    @rule()
    def source_dies(self) -> None:
        assert isinstance(self.source, OfNode)
        self.restart(self.source)
        self.source = None

    @precondition(lambda self: self.to)
    @rule(dies=st.booleans())
    def give_up(self, dies: bool) -> None:
        """What was restored is killed, or its node dies; the guest goes on where it was."""
        if isinstance(self.coming, OfNode) and dies:
            self.restart(self.coming)
        elif self.coming is not None:
            self.coming.end()
        if self.arrival is not None:
            if self.to == HOME:
                assert not self.arrival.take()
            else:
                self.arrival.leave()
            self.over()
        self.to, self.coming = 0, None

    def over(self) -> None:
        self.service.locks.arrivals.pop(self.moving.attempt, None)
        self.arrival = None

    def restart(self, copy: OfNode) -> None:
        node = copy.asker.session.node_id
        copy.asker.end()
        self.askers[node] = Asker(self.service, FakeSession(node))

    # ------------------------------------------------------------ what must hold

    @invariant()
    def its_locks_are_seen(self) -> None:
        for byte in range(BYTES):
            held = [lock.kind for lock in self.guest.held.within(byte, byte)]
            if held:
                assert self.is_locked(F_WRLCK, byte), f"byte {byte} can be written by others"
            if held == [F_WRLCK]:
                assert self.is_locked(F_RDLCK, byte), f"byte {byte} can be read by others"
            if not held and all(other.allows(F_WRLCK, byte, byte) for other in self.others):
                assert not self.is_locked(F_WRLCK, byte), f"byte {byte} is locked by nobody"

    def is_locked(self, kind: int, byte: int) -> bool:
        """For who wants it so."""
        return probe_range(self.eye, kind, byte, byte) is not None


class GuestsOfOpens(Guests):
    """Its locks are an open file's: of that others have copies."""

    descriptor = NUMBER
    flag = OFD

    def offered(self) -> Arrival:
        assert isinstance(self.guest, Native)
        return Arrival((), {(INSIDE, NUMBER): NativeOpen(os.getpid(), self.guest.fd, self.locks())})

    def locks(self) -> list[OpenLock]:
        return [OpenLock(self.flag, lock.kind, lock.start, lock.end) for lock in self.guest.held]

    def lend(self, coming: Native, arrival: Arrival) -> None:
        if not (locks := self.locks()):
            return
        native = NativeOpen(os.getpid(), coming.fd, locks)
        movers = self.service.locks.of_attempt(self.moving.attempt)
        loan = loan_of(native, self.service.locks.flocks.mover(self.moving), movers[0] if movers else None)
        arrival.copies += loan.pass_on()
        os.close(loan.copy)
        native.close()

    def over(self) -> None:
        for native in self.arrival.opens.values() if self.arrival is not None else ():
            native.close()
        super().over()


class GuestsOfFlocks(GuestsOfOpens):
    """All of the file, or nothing."""

    native = FlockNative
    of_node = FlockOfNode
    flag = FLOCK

    def span(self, start: int, end: int) -> tuple[int, int]:
        return 0, RANGE_END

    def is_locked(self, kind: int, byte: int) -> bool:
        try:
            fcntl.flock(self.eye, OPERATIONS[kind] | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.eye, fcntl.LOCK_UN)
        return False


for machine in (Guests, GuestsOfOpens, GuestsOfFlocks):
    machine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestGuests = Guests.TestCase
TestGuestsOfOpens = GuestsOfOpens.TestCase
TestGuestsOfFlocks = GuestsOfFlocks.TestCase


@pytest.mark.parametrize("outcome", ["runs", "is killed", "its node dies", "runs, and the node that it left dies"])
@pytest.mark.parametrize(("at", "to"), [(HOME, 2), (2, 3), (2, HOME)])
@pytest.mark.parametrize("machine", [Guests, GuestsOfOpens, GuestsOfFlocks])
def test_each_way(machine: type[Guests], at: int, to: int, outcome: str) -> None:
    """Others try after each step."""
    guests = machine()
    steps: list[Callable[[], None]] = [lambda: guests.freeze(to), guests.restore]
    if outcome.startswith("runs"):
        steps += [guests.run_there]
        steps += [guests.source_dies if at != HOME and "dies" in outcome else guests.kill_source]
        steps += [lambda: guests.guest_unlocks(0, 0), lambda: guests.guest_locks(F_WRLCK, 2, 2)]
    else:
        steps += [lambda: guests.give_up("dies" in outcome)]
        steps += [lambda: guests.guest_unlocks(0, 0), lambda: guests.guest_locks(F_WRLCK, 2, 2)]
    try:
        guests.begin(at, F_WRLCK, 0, 1)
        guests.guest_locks(F_RDLCK, 3, 3)
        for step in steps:
            step()
            for who in (0, 1):
                guests.another_locks(who, F_WRLCK, 0, 0)
                guests.another_locks(who, F_WRLCK, 3, 3)
                guests.another_locks(who, F_RDLCK, 1, 3)
                guests.its_locks_are_seen()
                guests.another_unlocks(who)
    finally:
        guests.teardown()


# ---------------------------------------------------------------- refused, held up, lost


@pytest.fixture
def other(service: ExportService) -> Any:
    asker = Asker(service, FakeSession(3))
    yield asker
    asker.end()


async def opened(asker: Asker, path: Path) -> int:
    path.touch()
    return await asker.open((await asker.walk(path)).handle, os.O_RDWR)


def range_of(open_id: int, kind: int, moving: wire.Moving | None, wait: bool = False, owner: int = 1) -> wire.LockRange:
    return wire.LockRange(open_id, owner, kind, 0, 9, 5, wait=wait, moving=moving)


async def test_only_what_is_held_is_taken_over(root: Asker, other: Asker, tmp_path: Path) -> None:
    mine, theirs = await opened(root, tmp_path / "file"), await opened(other, tmp_path / "file")
    moving = wire.Moving("guest/2", INSIDE)
    with refused(errno.EAGAIN):
        await root.ask(range_of(mine, F_RDLCK, moving))
    await root.ask(range_of(mine, F_RDLCK, None))
    await root.ask(range_of(mine, F_RDLCK, moving))
    for wrong in (wire.Moving("guest/3", INSIDE), wire.Moving("guest/2", INSIDE + 1)):
        with refused(errno.EAGAIN):
            await other.ask(range_of(theirs, F_RDLCK, wrong, wait=True))
    with refused(errno.EAGAIN):
        await other.ask(range_of(theirs, F_WRLCK, moving, wait=True))
    await other.ask(range_of(theirs, F_RDLCK, moving, wait=True))


async def test_who_runs_waits_until_its_locks_are_there(root: Asker, service: ExportService, tmp_path: Path) -> None:
    mine = await opened(root, tmp_path / "file")
    status = (tmp_path / "file").stat()
    moving = wire.Moving("guest/2", INSIDE)
    arrival = Arrival([NativeLock((status.st_dev, status.st_ino), INSIDE, F_WRLCK, 0, 9)])
    service.locks.arrivals["guest/2"] = arrival
    await root.ask(range_of(mine, F_WRLCK, moving, wait=True))
    unlocking = root.begin(range_of(mine, F_UNLCK, None))
    probing = root.begin(wire.ProbeRange(mine, 1, F_WRLCK, 0, 9))
    assert inspect.iscoroutine(unlocking)
    assert inspect.iscoroutine(probing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: unlocking)
        nursery.start_soon(lambda: probing)
        await trio.testing.wait_all_tasks_blocked()
        assert arrival.take() == []
    with (tmp_path / "file").open("rb+") as eye:
        assert probe_range(eye.fileno(), F_WRLCK, 0, RANGE_END) is None


async def test_nobody_waits_in_the_kernel_while_locks_go_over(
    root: Asker, other: Asker, service: ExportService, tmp_path: Path
) -> None:
    mine, theirs = await opened(root, tmp_path / "file"), await opened(other, tmp_path / "file")
    await root.ask(range_of(mine, F_WRLCK, None))
    (entry,) = service.locks.of_file((await root.walk(tmp_path / "file")).handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.ask, range_of(theirs, F_WRLCK, None, wait=True))
        await trio.testing.wait_all_tasks_blocked()
        async with service.locks.halted([file_id(entry.fd)]):
            set_range(entry.fd, F_UNLCK, 0, RANGE_END)  # free for a moment
            await trio.testing.wait_all_tasks_blocked()
            set_range(entry.fd, F_WRLCK, 0, 9)
        await trio.testing.wait_all_tasks_blocked()
        assert service.locks.of_file(entry.handle)[0].is_waited_on or len(service.locks.of_file(entry.handle)) > 1
        await root.ask(range_of(mine, F_UNLCK, None))
    with refused(errno.EAGAIN):
        await root.ask(range_of(mine, F_WRLCK, None))


async def test_who_comes_through_a_mount_is_lent_nothing(
    root: Asker, other: Asker, service: ExportService, tmp_path: Path
) -> None:
    mine, theirs = await opened(root, tmp_path / "file"), await opened(other, tmp_path / "file")
    moving = wire.Moving("guest/2", INSIDE)
    await root.ask(range_of(mine, F_WRLCK, None))
    await root.ask(range_of(mine, F_WRLCK, moving))
    moves = MovingLocks(service.locks, lambda key, reason: None)
    lent: list[dict[str, int]] = []

    async def lend() -> None:
        lent.append(await moves.lend({"attempt": "guest/2", "namespace": 0}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lend)
        await other.ask(range_of(theirs, F_WRLCK, moving, wait=True))
    assert lent == [{"lent": 0}]
    assert await moves.settle({"guest": "guest", "ended": False}) == {"settled": True}
    assert probe_of(tmp_path / "file") is not None
    await root.ask(wire.ReleaseLocks(mine, 1))
    assert probe_of(tmp_path / "file") is not None


def probe_of(path: Path) -> RangeLock | None:
    with path.open("rb+") as eye:
        return probe_range(eye.fileno(), F_RDLCK, 0, RANGE_END)


async def test_a_lock_that_somebody_else_got_is_lost_for_all_to_see(
    root: Asker, service: ExportService, tmp_path: Path
) -> None:
    mine = await opened(root, tmp_path / "file")
    lost: list[bytes] = []
    moves = MovingLocks(service.locks, lambda key, reason: lost.append(key))
    with (tmp_path / "file").open("rb+") as native:
        set_range(native.fileno(), F_WRLCK, 0, 9)
        offered = {"pid": os.getpid(), "descriptor": native.fileno(), "process": INSIDE, "kind": F_WRLCK, "start": 0}
        await moves.offer({"attempt": "guest/2", "namespace": 0, "locks": [{**offered, "end": 9}]})
        await root.ask(range_of(mine, F_WRLCK, wire.Moving("guest/2", INSIDE), wait=True))
        assert await moves.settle({"guest": "guest", "ended": True}) == {"settled": True}
    assert lost == [root.session.key]
    assert await moves.settle({"guest": "guest", "ended": True}) == {"settled": False}
