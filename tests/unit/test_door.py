"""guests.sock: who comes in, what becomes of a program that can't begin, and who comes back for his guest."""

from __future__ import annotations

import errno
import math
import os
import signal
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mignode import body as bodies, door as door_module
from mignode.bodywords import Program
from mignode.deputies import Deputies
from mignode.deputywords import SOCKET, Attend, Attended, Call, Called, Refused, Relayed, Run, Started
from mignode.door import Door
from mignode.filewords import FilesPlan, Kind
from mignode.guest import Guest
from mignode.guestfolder import GuestFolder, folders
from mignode.guests import Guests
from mignode.handover import Phase, Record, Stay
from mignode.mosrunoptions import Options
from mignode.record import guest_name
from omfs.errors import BodyLost
from omfs.kernel import processes
from tests.unit.mosrunend import MosrunEnd

HERE = 1
RUN = Run(
    b"/bin/prog", (b"prog", b"arg"), (b"A=1",), b"/", FilesPlan((Kind.PIPE, Kind.PIPE, Kind.PIPE)), Options(),
    ignored=(1,), blocked=(2,),
)  # fmt: skip


class Body:
    """An init without a program yet."""

    pid = 1 << 30
    proc = -1
    root_status = None

    def __init__(self) -> None:
        self.root = 0
        self.program: Program | None = None
        self.failure: OSError | None = None
        self.told: list[object] = []
        self._changed = trio.lowlevel.ParkingLot()
        self.has_ended = trio.Event()
        self._frames_in, self.frames = trio.open_memory_channel[bytes](math.inf)

    async def set_last_pid(self, number: int) -> None:
        await trio.lowlevel.checkpoint()

    async def run(self, program: Program, plan: bytes, filter_: bytes, listening: object) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        self.program, self.root = program, program.pid

    def send_frame(self, frame: bytes) -> None:
        self.told.append(frame)
        self._changed.unpark_all()

    def way_is_open(self) -> None:
        self.told.append("open")

    def way_is_lost(self) -> None:
        self.told.append("lost")

    async def signal(self, pid: int, number: int) -> None:
        self.told.append((pid, number))
        self._changed.unpark_all()

    async def wait_told(self, what: object) -> None:
        while what not in self.told:
            await self._changed.park()

    async def wait_gone(self) -> None:
        await self.has_ended.wait()
        raise BodyLost("ended")

    async def wait_lost(self) -> None:
        await self.has_ended.wait()

    async def end(self) -> None:
        self.has_ended.set()


class Inn:
    """A door, and what is behind it."""

    def __init__(self, nursery: trio.Nursery, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.body = Body()
        self.refusal: OSError | None = None
        self.ends: list[trio.socket.SocketType] = []
        self.deputies = Deputies()
        hatchery: Any = None
        self.guests = Guests(hatchery, nursery, self._arrived, lambda guest: None, lambda guest: None)
        standing: Any = types.SimpleNamespace(local=types.SimpleNamespace(node_id=HERE))
        self.door = Door(standing, run_dir, self.guests, self.deputies)

    def _arrived(self, guest: Guest) -> None:
        """As guesthouse.py does."""
        deputy = self.deputies.get(guest.name)
        way: Any = types.SimpleNamespace(
            node_id=HERE, send_frame=guest.send_frame, meet=guest.meet, deputy_lost=guest.deputy_lost
        )
        assert deputy is not None
        deputy.found(way)

    async def hatch(self, *_: object) -> Any:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        return self.body

    async def come_in(self) -> MosrunEnd:
        end = trio.socket.socket(trio.socket.AF_UNIX)
        await end.connect(str(self.run_dir / SOCKET))
        self.ends.append(end)
        return MosrunEnd(end)


@pytest.fixture
async def inn(nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inn]:
    made = Inn(nursery, tmp_path)
    monkeypatch.setattr(bodies, "hatch", made.hatch)
    with trio.CancelScope() as running:
        async with trio.open_nursery() as doors:
            await doors.start(made.door.run)
            yield made
            for end in made.ends:
                end.close()
            running.cancel()


def our_name() -> str:
    process = processes.identify(os.getpid())
    assert process is not None
    return guest_name(HERE, *process)


async def test_a_program_begins_as_who_asked(inn: Inn) -> None:
    mosrun = await inn.come_in()
    await mosrun.say(RUN)
    assert await mosrun.hear() == Started(our_name())
    program = inn.body.program
    assert program is not None
    assert (program.file, program.argv, program.pid) == (b"/bin/prog", (b"prog", b"arg"), os.getpid())
    assert (program.birthright.uids[0], program.birthright.ignored, program.birthright.blocked) == (
        os.getuid(),
        (1,),
        (2,),
    )
    folder = GuestFolder(inn.run_dir, our_name())
    assert (folder.record, folder.stay) == (Record(HERE), Stay(Phase.HERE, 1))
    assert folder.traits is not None
    assert (folder.traits.uid, folder.traits.command) == (os.getuid(), b"prog")
    await mosrun.say(Relayed(b"typed"))
    [guest] = inn.guests
    deputy = inn.deputies.get(guest.name)
    assert deputy is not None
    deputy.send_frame(b"shown")
    assert await mosrun.hear() == Relayed(b"shown")
    await inn.body.wait_told(b"typed")
    assert inn.body.told == ["lost", "open", b"typed"]
    await mosrun.close()


async def test_its_calls_are_done_by_mosrun(inn: Inn, nursery: trio.Nursery) -> None:
    mosrun = await inn.come_in()
    await mosrun.say(RUN)
    await mosrun.hear()
    deputy = inn.deputies.get(our_name())
    assert deputy is not None

    async def answer() -> None:
        call = await mosrun.hear()
        assert isinstance(call, Call)
        await mosrun.say(Called(call.number, 7))

    nursery.start_soon(answer)
    assert await deputy.ask(os.getpid(), "kill", (1, 0)) == 7
    await mosrun.close()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
async def test_what_can_not_be_executed_is_the_programs_fault(inn: Inn, number: int) -> None:
    inn.body.failure = OSError(number, os.strerror(number))
    mosrun = await inn.come_in()
    await mosrun.say(RUN)
    assert await mosrun.hear() == Refused(number, os.strerror(number), True)
    await mosrun.wait_closed()
    assert inn.body.has_ended.is_set()
    assert [list(inn.guests), list(inn.deputies), list(folders(inn.run_dir))] == [[], [], []]


async def test_a_world_that_can_not_be_made_is_ours(inn: Inn) -> None:
    inn.refusal = OSError(errno.ENOSPC, "No space left on device")
    mosrun = await inn.come_in()
    await mosrun.say(RUN)
    assert await mosrun.hear() == Refused(errno.ENOSPC, "No space left on device", False)
    await mosrun.wait_closed()
    assert list(folders(inn.run_dir)) == []


async def test_who_is_there_already_is_not_begun_twice(inn: Inn) -> None:
    first, second = await inn.come_in(), await inn.come_in()
    await first.say(RUN)
    await first.hear()
    await second.say(RUN)
    assert (await second.hear()).errno == errno.EEXIST
    await second.wait_closed()
    assert [guest.name for guest in inn.guests] == [our_name()]
    await first.close()


async def test_a_mosrun_that_ends_takes_its_guest_along(inn: Inn) -> None:
    mosrun = await inn.come_in()
    await mosrun.say(RUN)
    await mosrun.hear()
    await mosrun.close()
    await inn.body.wait_told((os.getpid(), signal.SIGKILL))
    deputy = inn.deputies.get(our_name())
    assert deputy is not None
    assert deputy.is_orphan


async def test_a_mosrun_comes_back(inn: Inn) -> None:
    """Its older connection, which ends later, is of no account."""
    older, newer = await inn.come_in(), await inn.come_in()
    await older.say(RUN)
    await older.hear()
    await newer.say(Attend(our_name(), os.getpid()))
    assert await newer.hear() == Attended()
    await older.close()
    await newer.say(Relayed(b"it"))
    await inn.body.wait_told(b"it")
    deputy = inn.deputies.get(our_name())
    assert deputy is not None
    assert not deputy.is_orphan
    await newer.close()


@pytest.mark.parametrize(("who", "number"), [("1.1.1", errno.ESRCH), ("nobody", errno.ESRCH)])
async def test_who_has_no_guest(inn: Inn, who: str, number: int) -> None:
    mosrun = await inn.come_in()
    await mosrun.say(Attend(who, os.getpid()))
    assert (await mosrun.hear()).errno == number
    await mosrun.wait_closed()


async def test_the_guest_of_another_process(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pid of one that has ended."""
    mosrun, other = await inn.come_in(), await inn.come_in()
    await mosrun.say(RUN)
    await mosrun.hear()
    monkeypatch.setattr(door_module, "guest_name", lambda *_: "1.1.1")
    await other.say(Attend(our_name(), os.getpid()))
    assert (await other.hear()).errno == errno.EPERM
    await mosrun.close()


async def test_who_says_nothing_or_nonsense_is_closed(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = await inn.come_in()
    await strange.stream.send_all(b"\xff" * 100)
    await strange.wait_closed()
    other = await inn.come_in()
    await other.say(Attended())
    await other.wait_closed()
    with monkeypatch.context() as hurry:
        hurry.setattr(door_module, "ASK_WITHIN_S", 0.01)
        silent = await inn.come_in()
        await silent.wait_closed()
    mosrun = await inn.come_in()
    await mosrun.say(RUN)
    await mosrun.hear()
    await mosrun.say(RUN)
    await mosrun.wait_closed()
