"""nomfs, with real mounts, leases and an owner: others are refused, lose nothing that was written, and come back."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from omfs import wire
from omfs.cache.table import LeaseTable
from omfs.errors import ControlError, LockLost, NotServed, OmfsError, RemoteFailure
from omfs.export.leasing import Leasing
from omfs.export.nomfs import FLAG, Nomfs
from omfs.mount.callers import ROOT
from omfs.net.server import Answer, Buffer, Session
from omfs.wiretypes import Mode
from tests.sim.line import OWNER, SETTINGS, Attempt, Line, Pair, attempt, look_up, make_directory, wait_until_blocked
from tests.sim.mounts import FIRST, SECOND, TERM_S, Mounted, Owner

ON, OFF = {"on": True}, {"on": False}
RECONNECTED_S = SETTINGS.reconnect_interval_s + 0.2
REASON = "node 2 serves no files at the moment \\(nomfs\\)"


async def refused(mount: Mounted) -> None:
    """The mount hears so, and why."""
    with pytest.raises(NotServed, match=REASON) as caught:
        await mount.size()
    assert caught.value.errno == errno.EACCES
    assert mount.peer.state == "down"


def go_away(mount: Mounted) -> None:
    """Both ends notice, and it can't connect until `come_back`."""
    mount.line.server = None
    mount.line.reset()


def come_back(mount: Mounted, owner: Owner) -> None:
    mount.line.server = owner.server


# ---------------------------------------------------------------- on and off


async def test_others_are_refused_and_let_in_again(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    owner.path.write_bytes(b"content")
    reading = await second.open(os.O_RDONLY)
    assert await owner.nomfs.switch({}) == OFF
    begun_s = trio.current_time()
    assert await owner.nomfs.switch(ON) == ON == await owner.nomfs.switch({})
    assert trio.current_time() - begun_s < 0.1, "whoever answers need not be waited for"
    assert owner.server.sessions == {}
    assert len(owner.leasing.owner) == 0
    for mount in (first, second):
        await refused(mount)
    await trio.sleep(100)
    await refused(first)

    assert await owner.nomfs.switch(OFF) == OFF
    await trio.sleep(RECONNECTED_S)
    assert await first.size() == 7
    assert await second.read_all(reading) == b"content", "opened again by its handle"
    assert first.peer.epoch == 1


async def test_who_comes_anew_is_refused_and_then_let_in(owner: Owner, autojump_clock: MockClock) -> None:
    await owner.nomfs.switch(ON)
    late = Mounted(owner.nursery, Line(owner.nursery, owner.server), FIRST)
    with pytest.raises(NotServed, match=REASON):
        await late.walk_to(owner.path)
    await owner.nomfs.switch(OFF)
    await trio.sleep(RECONNECTED_S)
    await late.walk_to(owner.path)
    assert await late.size() == 0


async def test_what_is_unsent_is_there_when_it_holds(owner: Owner, autojump_clock: MockClock) -> None:
    first = await owner.mount(FIRST)
    fh = await first.open(os.O_WRONLY)
    assert first.answered(first.write(fh, 0, b"answered early"))
    assert owner.path.read_bytes() == b""
    await owner.nomfs.switch(ON)
    assert owner.path.read_bytes() == b"answered early"
    assert first.mode is Mode.NONE
    assert await first.written(fh, 0, b"ANSWERED") == errno.EACCES
    await owner.nomfs.switch(OFF)
    await trio.sleep(RECONNECTED_S)
    assert await first.flush(fh) == 0
    assert await first.written(fh, 0, b"ANSWERED") == 0
    assert await first.flush(fh) == 0
    assert owner.path.read_bytes() == b"ANSWERED early"


async def test_locks_end(owner: Owner, autojump_clock: MockClock) -> None:
    first = await owner.mount(FIRST)
    await first.open(os.O_RDWR)
    [file] = first.node.files[first.file]
    await file.locks.lock_file(fcntl.LOCK_EX, wait=False)
    with owner.path.open() as native:
        with pytest.raises(BlockingIOError):
            fcntl.flock(native, fcntl.LOCK_SH | fcntl.LOCK_NB)
        await owner.nomfs.switch(ON)
        fcntl.flock(native, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await owner.nomfs.switch(OFF)
        await trio.sleep(RECONNECTED_S)
        with pytest.raises(LockLost):
            await file.read(0, 1)


async def test_open_files_end(owner: Owner, autojump_clock: MockClock) -> None:
    """So one that is removed meanwhile is gone."""
    first = await owner.mount(FIRST)
    await first.open(os.O_RDWR)
    [file] = first.node.files[first.file]
    await owner.nomfs.switch(ON)
    owner.path.unlink()
    await owner.nomfs.switch(OFF)
    await trio.sleep(RECONNECTED_S)
    with pytest.raises(RemoteFailure) as caught:
        await file.read(0, 1)
    assert caught.value.errno == errno.ESTALE


async def test_this_node_s_own_mount_is_served(owner: Owner, autojump_clock: MockClock) -> None:
    own, first = await owner.mount(OWNER), await owner.mount(FIRST)
    fh = await own.open(os.O_RDWR)
    assert own.mode is Mode.EXCLUSIVE
    await owner.nomfs.switch(ON)
    assert own.mode is Mode.EXCLUSIVE
    assert await own.written(fh, 0, b"mine") == await own.flush(fh) == 0
    await refused(first)
    assert own.peer.epoch == 0
    own.line.reset()
    assert await own.size() == 4, "also when it connects again"
    another = await owner.mount(OWNER)
    assert await another.size() == 4
    assert own.peer.epoch == 0


@pytest.mark.parametrize("wrong", [1, 0, "on", [], {}])
async def test_a_command_that_makes_no_sense_changes_nothing(
    owner: Owner, autojump_clock: MockClock, wrong: object
) -> None:
    for holds in (OFF, ON):
        await owner.nomfs.switch(holds)
        with pytest.raises(ControlError):
            await owner.nomfs.switch({"on": wrong})
        assert await owner.nomfs.switch({}) == holds


async def test_what_can_t_be_noted_is_not_done(owner: Owner, autojump_clock: MockClock, tmp_path: Path) -> None:
    first = await owner.mount(FIRST)
    nomfs = Nomfs(tmp_path / "gone", owner.server, owner.leasing, TERM_S)
    with pytest.raises(ControlError, match="nothing has changed"):
        await nomfs.switch(ON)
    assert await nomfs.switch({}) == OFF
    assert await first.size() == 0


# ---------------------------------------------------------------- holders that do not answer


async def test_a_holder_that_is_cut_off_is_waited_for_a_term(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    first.line.cut()
    begun_s = trio.current_time()
    switching = Attempt(owner.nursery, lambda: owner.nomfs.switch(ON))
    await trio.sleep(TERM_S / 2)
    with pytest.raises(RemoteFailure, match=REASON):  # refused at once, though it is not over
        await second.size()
    assert owner.nomfs.is_on
    with pytest.raises(NotServed, match=REASON):
        await owner.mount(SECOND)
    assert await switching.wait() == ON
    assert TERM_S / 2 < trio.current_time() - begun_s <= TERM_S
    assert owner.server.sessions == {}
    first.line.heal()
    await trio.sleep(2 * TERM_S)
    await refused(first)
    await refused(second)


async def test_a_holder_that_is_heard_and_does_not_give_back(owner: Owner, autojump_clock: MockClock) -> None:
    first = await owner.mount(FIRST)

    async def never(_: wire.Recall) -> None:
        await trio.sleep_forever()

    first.peer.on_recall = never
    begun_s = trio.current_time()
    assert await owner.nomfs.switch(ON) == ON
    assert trio.current_time() - begun_s == pytest.approx(TERM_S, abs=1)
    assert owner.server.sessions == {}
    assert owner.leasing.has_ghosts, "until its term is over changes wait for it"
    await refused(first)


async def test_a_holder_may_connect_again_to_give_back(owner: Owner, autojump_clock: MockClock) -> None:
    first = await owner.mount(FIRST)
    fh = await first.open(os.O_WRONLY)
    assert first.answered(first.write(fh, 0, b"unsent"))
    go_away(first)
    switching = Attempt(owner.nursery, lambda: owner.nomfs.switch(ON))
    await trio.sleep(2)
    come_back(first, owner)
    assert await switching.wait() == ON
    assert trio.current_time() < TERM_S
    assert owner.path.read_bytes() == b"unsent"
    await refused(first)


async def test_switched_off_while_somebody_is_waited_for(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    go_away(first)
    switching = [Attempt(owner.nursery, lambda: owner.nomfs.switch(ON)) for _ in range(2)]
    await trio.sleep(1)
    assert await owner.nomfs.switch(OFF) == OFF
    assert [await one.wait() for one in switching] == [OFF, OFF]
    assert trio.current_time() < 2
    come_back(first, owner)
    assert await second.size() == await first.size() == 0
    await trio.sleep(2 * TERM_S)
    assert first.peer.epoch == second.peer.epoch == 0, "their sessions live on"


@pytest.mark.parametrize("seed", range(10))
async def test_switched_on_and_off_quickly(owner: Owner, autojump_clock: MockClock, seed: int) -> None:
    chance = random.Random(seed)
    mounts = [await owner.mount(FIRST), await owner.mount(SECOND)]
    switching = []
    holds = OFF
    for _ in range(20):
        holds = chance.choice((ON, OFF))
        switching.append(Attempt(owner.nursery, lambda holds=holds: owner.nomfs.switch(holds)))
        await trio.sleep(chance.choice((0, 0, 0.001, 0.5, RECONNECTED_S)))
    for one in switching:
        assert isinstance(await one.wait(), dict)
    assert await owner.nomfs.switch({}) == holds
    if holds == ON:
        for mount in mounts:
            await refused(mount)
        await owner.nomfs.switch(OFF)
    await trio.sleep(RECONNECTED_S)
    for mount in mounts:
        assert await mount.size() == 0


# ---------------------------------------------------------------- the export is started again


async def test_it_outlives_the_export(owner: Owner, autojump_clock: MockClock) -> None:
    first = await owner.mount(FIRST)
    await owner.nomfs.switch(ON)
    await owner.restart()
    assert owner.nomfs.is_on
    await refused(first)
    assert await owner.nomfs.switch(ON) == ON
    await owner.nomfs.switch(OFF)
    await owner.restart()
    assert not owner.nomfs.is_on
    await trio.sleep(RECONNECTED_S)
    assert await first.size() == 0


async def test_an_export_that_ends_while_it_closes_goes_on(owner: Owner, autojump_clock: MockClock) -> None:
    """Who held something is let in until it has sent what it has; nobody else is."""
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    await second.node.give_back_all()
    fh = await first.open(os.O_WRONLY)
    await trio.sleep(1)  # until the table knows
    assert first.answered(first.write(fh, 0, b"unsent"))
    for mount in (first, second):
        go_away(mount)
    Attempt(owner.nursery, lambda: owner.nomfs.switch(ON))
    await wait_until_blocked()
    await owner.restart()
    assert await owner.nomfs.switch(ON) == ON
    assert owner.path.read_bytes() == b"unsent"
    assert len(owner.leasing.owner) == 0
    assert owner.server.sessions == {}
    await trio.sleep(RECONNECTED_S)
    await refused(first)
    await refused(second)
    await owner.nomfs.switch(OFF)
    await trio.sleep(RECONNECTED_S)
    assert await first.flush(fh) == 0


# ---------------------------------------------------------------- what is under way


@pytest.fixture
async def nomfs(pair: Pair, tmp_path: Path) -> Iterator[Nomfs]:  # type: ignore[misc]
    """In front of a service that is as slow as a test wants."""
    leasing = Leasing(LeaseTable.open(tmp_path / "leases", "boot"), TERM_S, pair.server.end_session)
    made = Nomfs(tmp_path, pair.server, leasing, TERM_S)
    pair.nursery.start_soon(made.run)
    yield made
    leasing.close()


async def test_what_was_asked_before_is_executed_and_the_rest_is_refused(
    pair: Pair, nomfs: Nomfs, autojump_clock: MockClock
) -> None:
    changing = attempt(pair, make_directory(b"slow"))
    locking = attempt(pair, wire.LockFile(open_id=5, operation=fcntl.LOCK_EX, wait=True))
    await wait_until_blocked()
    switching = Attempt(pair.nursery, lambda: nomfs.switch(ON))
    await wait_until_blocked()
    for request in (look_up(b"x"), make_directory(b"y"), wire.OpenFile(b"file", os.O_RDONLY, ROOT)):
        with pytest.raises(RemoteFailure, match=REASON) as caught:
            await pair.ask(request)
        assert caught.value.errno == errno.EACCES
    assert await pair.ask(wire.SyncFile(5, False)) == wire.Done(), "what is written may be finished"
    assert not switching.is_over
    pair.service.release.set()
    assert await changing.wait() == wire.Done()
    assert await switching.wait() == ON
    assert trio.current_time() < 1, "nobody waits for whoever waits for a lock"
    assert isinstance(await locking.wait(), NotServed)
    assert sorted(pair.names()) == [b"", b"", b"slow"]
    assert pair.service.cancelled == 1


async def test_what_is_finished_meanwhile_is_answered_too(
    pair: Pair, nomfs: Nomfs, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = trio.Event()
    answer = pair.service.answer

    async def store() -> Answer:
        await stored.wait()
        return wire.Done(), b""

    def slowly(session: Session, request: wire.Request, bulk: Buffer) -> Any:
        return store() if isinstance(request, wire.SyncFile) else answer(session, request, bulk)

    monkeypatch.setattr(pair.service, "answer", slowly)
    changing = attempt(pair, make_directory(b"slow"))
    await wait_until_blocked()
    switching = Attempt(pair.nursery, lambda: nomfs.switch(ON))
    await wait_until_blocked()
    finishing = attempt(pair, wire.SyncFile(5, False))
    await wait_until_blocked()
    pair.service.release.set()
    assert await changing.wait() == wire.Done()
    await wait_until_blocked()
    with pytest.raises(RemoteFailure, match=REASON):  # or it would never be over
        await pair.ask(wire.SyncFile(5, False))
    assert not switching.is_over
    stored.set()
    assert await finishing.wait() == wire.Done()
    assert await switching.wait() == ON


async def test_the_last_recall_comes_behind_the_last_answer(owner: Owner, autojump_clock: MockClock) -> None:
    """First waits for third, which gives nothing back for a while.  Its own caches are taken at once, and once more."""
    first, third = await owner.mount(FIRST), await owner.mount(SECOND)
    gate, told = trio.Event(), []

    async def late(recall: wire.Recall) -> None:
        await gate.wait()
        await third.operations.recaller.recall(third.node, recall)

    def seen(recall: wire.Recall) -> None:
        told.append(type(recall))
        first.operations.recaller.seen(first.node, recall)

    async def change() -> None:
        await first.node.set_xattr(first.file, b"user.x", b"y", 0, ROOT)
        told.append(wire.SetXattr)

    third.peer.on_recall, first.peer.on_recall_seen = late, seen
    await third.size()
    Attempt(owner.nursery, change)
    await wait_until_blocked()
    switching = Attempt(owner.nursery, lambda: owner.nomfs.switch(ON))
    await wait_until_blocked()
    assert told == [wire.RecallAll]
    gate.set()
    assert await switching.wait() == ON
    assert told == [wire.RecallAll, wire.SetXattr, wire.RecallAll]


async def test_a_request_that_takes_too_long_is_given_up(pair: Pair, nomfs: Nomfs, autojump_clock: MockClock) -> None:
    changing = attempt(pair, make_directory(b"slow"))
    await wait_until_blocked()
    begun_s = trio.current_time()
    assert await nomfs.switch(ON) == ON
    assert trio.current_time() - begun_s == pytest.approx(TERM_S, abs=0.5)
    assert isinstance(await changing.wait(), NotServed)


class Busy:
    """A node that never stops: it notes what its programs were told, and ends when it is refused."""

    def __init__(self, mount: Mounted, number: int) -> None:
        self._mount = mount
        self._number = number
        self.written = 0
        self.made: dict[bytes, bool] = {}

    async def write(self, chance: random.Random) -> None:
        """A byte after the other, each told as written, at places that are this node's."""
        fh = await self._mount.open(os.O_RDWR)
        while await self._mount.written(fh, self._place(self.written), b"#") == 0:
            self.written += 1
            await trio.sleep(chance.choice((0, 0, 0.0001, 0.002)))

    def _place(self, count: int) -> int:
        return 2 * count + self._number

    async def make(self, chance: random.Random, parent: bytes) -> None:
        """Directories; *made* says of each whether it is there."""
        is_refused = False
        while not is_refused:
            name = b"%d-%d" % (self._number, len(self.made))
            try:
                await self._mount.node.make_directory(parent, name, 0o700, 0, ROOT)
            except OmfsError as error:
                is_refused = error.errno == errno.EACCES
            self.made[name] = not is_refused
            await trio.sleep(chance.choice((0, 0.0001)))

    def check(self, path: Path) -> None:
        data = path.read_bytes()
        assert self.written > 0
        assert all(data[self._place(count)] == ord("#") for count in range(self.written))
        assert self.made == {name: (path.parent / os.fsdecode(name)).exists() for name in self.made}


@pytest.mark.parametrize("seed", range(12))
async def test_what_programs_were_told_is_so(owner: Owner, autojump_clock: MockClock, seed: int) -> None:
    """Two nodes that write and make directories when it is switched on, at any moment."""
    chance = random.Random(seed)
    busy = []
    async with trio.open_nursery() as nursery:
        for number, node_id in enumerate((FIRST, SECOND)):
            mount = await owner.mount(node_id)
            parent = await mount.node.root()
            for name in owner.path.parent.parts[1:]:
                parent = (await mount.node.look_up(parent, os.fsencode(name), ROOT)).handle
            one = Busy(mount, number)
            busy.append(one)
            nursery.start_soon(one.write, chance)
            nursery.start_soon(one.make, chance, parent)
        await trio.sleep(chance.uniform(0.005, 0.05))
        assert await owner.nomfs.switch(ON) == ON
        content = owner.path.read_bytes()
    assert owner.path.read_bytes() == content, "nothing comes later"
    for one in busy:
        one.check(owner.path)


async def test_it_may_be_on_from_the_beginning(owner: Owner, autojump_clock: MockClock) -> None:
    """Whoever wants that leaves the file before the first start."""
    owner.state.joinpath(FLAG).touch()
    await owner.restart()
    assert await owner.nomfs.switch({}) == ON
