"""A guest goes from node to node by the real rooms of mignode: it arrives, or whatever fails, one copy of it runs on.

The rules are handover.py's, and a model of them goes through everything that may happen (tests/unit/handovermodel.py);
here it is the code that follows them.  With a real kernel: tests/lab/test_handover_faults.py.
"""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from mignode import migrate
from mignode.images import Images
from mignode.past import OfNode, Past
from mignode.reasons import Kind, Reason
from mignode.words import StillHere
from omfs.errors import CriuEnded, HandoverRefused, RemoteFailure
from tests.sim.travelworld import HOME, NAME, World

SOURCE: Final = ("began", "prepared", "dumped", "sent", "restored", "kept", "barred", "committed", "ran")
DESTINATION: Final = ("arrived", "hatched", "received", "rebuilt", "held", "decided", "written", "let-run")
STAGES: Final = (
    "looked whether it can move", "prepared a place there", "dumped and sent", "restored there", "committed",
    "released", "ended here",
)  # fmt: skip
ASKING: Final = ("restored", "kept", "barred")
"""Points of a source whose destination has its copy: it goes on, and does not hear that the other is dead."""
COMMITTED: Final = ("committed", "ran", "decided", "written", "let-run")
"""Points behind the point of no return."""
MEASURED_APART_S: Final = 0.05  # the stages and the freeze have clocks of their own
PASSING: Final = [*((2, point) for point in SOURCE), *((3, point) for point in DESTINATION)]
"""Of a guest that goes from node 2 to node 3."""


@pytest.fixture
async def world(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_take_no_time: None
) -> World:
    made = World(nursery, tmp_path)
    made.replace(monkeypatch)
    await made.begin()
    return made


async def test_it_goes_from_node_to_node_and_home(world: World, autojump_clock: object) -> None:
    for node in (2, 3, 2, HOME, 3, HOME):
        await world.move(node)
        journey = world.journey()
        assert journey.state.value == "arrived"
        assert tuple(stage.name for stage in journey.stages) == STAGES
        sent = {stage.name: stage.bytes for stage in journey.stages if stage.bytes}
        assert (list(sent), sum(sent.values())) == (["dumped and sent"], journey.sent_bytes)
        lasted = [stage.seconds for stage in journey.stages]  # it is frozen in the third, and runs in the sixth
        assert sum(lasted[2:6]) + MEASURED_APART_S >= journey.frozen_s >= sum(lasted[3:5]) - MEASURED_APART_S
        assert min(lasted[3:5]) > 0
        assert journey.age_s > 0, "its home knows how old it is"
    assert world.hosts[HOME].passed[: len(SOURCE)] == list(SOURCE)
    assert world.hosts[2].passed[: len(DESTINATION)] == list(DESTINATION)


async def test_what_is_known_of_it_goes_along_and_outlives_a_mignode(world: World, autojump_clock: object) -> None:
    past = Past(worked_ms=70_000, unrest_thousandths=1500, seen_ms=50_000, files=(OfNode(3, 1, 2, 3, 4),))
    house = world.hosts[HOME].house
    assert house is not None
    guest = house._guests.get(NAME)
    assert guest is not None
    guest.past = past
    await world.move(2)
    assert past_at(world, 2) == past
    world.hosts[2].kill_and_restart()
    assert await world.settle() == 2
    assert past_at(world, 2) == past
    await world.move(3)
    assert past_at(world, 3) == past


def past_at(world: World, node: int) -> Past | None:
    house = world.hosts[node].house
    guest = house._guests.get(NAME) if house is not None else None
    return guest.past if guest is not None else None


async def test_where_it_is_already(world: World, autojump_clock: object) -> None:
    await world.move(HOME)
    await world.move(2)
    await world.move(2)
    assert world.hosts[2].passed == list(DESTINATION)


# ---------------------------------------------------------------- a stage that fails, or never ends

STEPS: Final = [
    (HOME, "pids"), (HOME, "dump"), (HOME, "freeze files"), (HOME, "keep"), (2, "hatch"), (2, "prepare files"),
    (2, "last pid"), (2, "restore"), (2, "given"), (2, "adopt"), (2, "finish"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "step"), STEPS)
async def test_a_stage_fails(world: World, autojump_clock: object, node: int, step: str) -> None:
    world.hosts[node].fails[step] = OSError(errno.EIO, "the step failed")
    said = await world.fail_to_move(2)
    assert "\n" not in str(said)
    assert world.journey().state.value == "stayed"
    await world.move(2)


@pytest.mark.parametrize(("node", "step"), STEPS)
async def test_a_stage_never_ends(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch, node: int, step: str
) -> None:
    monkeypatch.setattr(migrate, "DUMP_S", 2.0)  # each ms of which is looked for more to send
    world.hosts[node].fails[step] = None
    said = "gave it back" if step == "finish" else "within"  # behind the commit it is the other node that says why
    assert said in str(await world.fail_to_move(2))
    await world.move(2)


async def test_the_images_never_get_there(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other end lives, and takes each piece: but it would take all night."""
    real = Images.send

    async def send(images: Images, line: Any, *rest: Any) -> int:
        while True:
            await line.send(StillHere(), deadline_s=1)
            await trio.sleep(5)

    monkeypatch.setattr(migrate, "DUMP_S", 20.0)
    monkeypatch.setattr(Images, "send", send)
    assert "did not take its images within 20 s" in str(await world.fail_to_move(2))
    monkeypatch.setattr(Images, "send", real)
    await world.move(2)


async def test_who_can_not_move_is_not_touched(world: World, autojump_clock: object) -> None:
    world.reasons.append(Reason(Kind.LOCK, Kind.LOCK.value))
    said = await world.fail_to_move(2)
    assert isinstance(said, RemoteFailure)
    assert said.errno == errno.EROFS
    assert world.hosts[HOME].passed == world.hosts[2].passed == []


async def test_it_moves_once_at_a_time(world: World, autojump_clock: object) -> None:
    first, second = world.begin_move(2), world.begin_move(3)
    await first.is_over.wait()
    await second.is_over.wait()
    assert [type(move.error) for move in (first, second)].count(HandoverRefused) == 1
    assert await world.settle() in (2, 3)


async def test_no_room_for_images(world: World, autojump_clock: object) -> None:
    for node in (HOME, 2):
        world.hosts[node].house._images.free = -1
        assert "no room" in str(await world.fail_to_move(2))
        world.hosts[node].house._images.free = 1 << 20


async def test_who_takes_no_guests(world: World, autojump_clock: object) -> None:
    world.hosts[2].house._store.values.block = True
    assert "takes no guests" in str(await world.fail_to_move(2))
    await world.move(3)
    world.hosts[HOME].house._store.values.block = True
    await world.move(HOME)


async def test_who_is_blocked_meanwhile(world: World, autojump_clock: object) -> None:
    def block() -> None:
        world.hosts[2].house._store.values.block = True

    world.hosts[2].at["rebuilt"] = block
    assert "takes no guests" in str(await world.fail_to_move(2))


# ---------------------------------------------------------------- CRIU is killed


def kill_criu(world: World, node: int) -> None:
    [init] = world.hosts[node].living()
    assert init.hold is not None
    init.hold.undo()


@pytest.mark.parametrize(
    ("point", "after"),
    [("dumped", HOME), ("sent", HOME), ("restored", HOME), ("kept", HOME), ("barred", 2), ("committed", 2)],
)
async def test_criu_is_killed_at_the_source(world: World, autojump_clock: object, point: str, after: int) -> None:
    """What it dumped goes on at once, unless that is barred."""
    world.hosts[HOME].at[point] = lambda: kill_criu(world, HOME)
    move = world.begin_move(2)
    await move.is_over.wait()
    assert (move.error is None) == (after == 2)
    assert await world.settle() == after


@pytest.mark.parametrize("survives", [True, False])
async def test_criu_is_killed_in_the_middle_of_a_dump(world: World, autojump_clock: object, survives: bool) -> None:
    """A program that had its code run just then may end by that: nobody says that it is still there."""
    home = world.hosts[HOME]

    def killed() -> None:
        [init] = home.living()
        if not survives:
            init.root_ends(signal.SIGTRAP)
        raise CriuEnded("criu was killed by signal 9 when it was to dump process 1")

    home.fails["dump"] = killed
    move = world.begin_move(2)
    await move.is_over.wait()
    journey = world.journey()
    if survives:
        assert (journey.state.value, "was killed by signal 9" in journey.reason) == ("stayed", True)
        await world.move(2)
    else:
        assert journey.state.value == "lost"
        assert journey.reason == "it has ended (SIGTRAP): criu was killed while it was dumped"
        assert await world.settle_without() == ""


@pytest.mark.parametrize("point", ["held", "decided", "written"])
async def test_criu_is_killed_at_the_destination(world: World, autojump_clock: object, point: str) -> None:
    """Behind the commit, too: the guest is given back."""
    world.hosts[2].at[point] = lambda: kill_criu(world, 2)
    await world.fail_to_move(2)
    await world.move(2)


# ---------------------------------------------------------------- mignode is killed

KILLED: Final = [
    *((HOME, HOME, point, 2) for point in SOURCE),
    *((HOME, 2, point, 2) for point in DESTINATION),
    *((2, 2, point, 3) for point in SOURCE),
    *((2, 3, point, 3) for point in DESTINATION),
    *((2, 2, point, HOME) for point in SOURCE),
    *((2, HOME, point, HOME) for point in DESTINATION),
]
GIVEN_BACK: Final = ("decided", "written")
"""Points of a destination that is committed, and does not run it yet."""


@pytest.mark.parametrize(("source", "killed", "point", "destination"), KILLED)
async def test_a_mignode_is_killed(
    world: World, autojump_clock: object, source: int, killed: int, point: str, destination: int
) -> None:
    if source != HOME:
        await world.move(source)
    world.hosts[killed].at[point] = world.hosts[killed].kill_and_restart
    move = world.begin_move(destination)
    await move.is_over.wait()
    expected = destination if point in COMMITTED and point not in GIVEN_BACK else source
    assert await world.settle() == expected
    await world.move(3 if expected == 2 else 2)


@pytest.mark.parametrize(
    ("passing", "point"), [*((2, point) for point in SOURCE), *((3, point) for point in DESTINATION)]
)
async def test_homes_mignode_is_killed_while_it_goes_elsewhere(
    world: World, autojump_clock: object, passing: int, point: str
) -> None:
    await world.move(2)
    world.hosts[passing].at[point] = world.hosts[HOME].kill_and_restart
    move = world.begin_move(3)
    await move.is_over.wait()
    assert await world.settle() in ((3,) if point in COMMITTED else (2, 3))


# ---------------------------------------------------------------- the network is cut


@pytest.mark.parametrize("cut", [(2, 3), (HOME, 2), (HOME, 3)])
@pytest.mark.parametrize(("passing", "point"), PASSING)
async def test_two_nodes_lose_each_other(
    world: World, autojump_clock: object, passing: int, point: str, cut: tuple[int, int]
) -> None:
    """For half of the time in which a guest is given up."""
    await world.move(2)
    world.hosts[passing].at[point] = lambda: world.cut(*cut)
    world.begin_move(3)
    await trio.sleep(30)
    assert await world.settle() in (2, 3)


@pytest.mark.parametrize(("passing", "point"), PASSING)
async def test_home_is_lost(world: World, autojump_clock: object, passing: int, point: str) -> None:
    """For so long that the guest is given up: it runs nowhere, and mosrun says so."""

    def cut() -> None:
        world.cut(HOME, 2)
        world.cut(HOME, 3)

    await world.move(2)
    world.hosts[passing].at[point] = cut
    world.begin_move(3)
    await trio.sleep(250)
    assert "was silent" in await world.settle_without()


# ---------------------------------------------------------------- power


@pytest.mark.parametrize(("passing", "point"), PASSING)
@pytest.mark.parametrize("lost", [HOME, 2, 3])
async def test_a_node_dies(world: World, autojump_clock: object, lost: int, passing: int, point: str) -> None:
    await world.move(2)
    world.hosts[passing].at[point] = world.hosts[lost].lose_power
    world.begin_move(3)
    await trio.sleep(250)
    if lost == 2 and point in COMMITTED:
        assert await world.settle() == 3
    elif lost == 3 and point not in (*ASKING, *COMMITTED):
        assert await world.settle() == 2
    else:
        assert ("was silent" in await world.settle_without()) == (lost != HOME)
