"""Everybody goes home, or comes; and what a node knows of a guest that runs elsewhere: by the real rooms."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import trio

from mignode import homeward, moves
from mignode.reasons import Kind, Reason, told
from mignode.traits import deputy_in
from omfs.errors import CheckpointError, NodeDown, RemoteFailure
from omfs.kernel.processes import Identity
from tests.sim.travelworld import HOME, NAME, World

STAYS = [Reason(Kind.LOCK, Kind.LOCK.value)]


@pytest.fixture
async def world(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_take_no_time: None
) -> World:
    made = World(nursery, tmp_path)
    made.replace(monkeypatch)
    monkeypatch.setattr(moves, "reasons_of", made.reasons_of)
    await made.begin()
    return made


def house(world: World, node: int) -> Any:
    return world.hosts[node].house


# ---------------------------------------------------------------- expel, bring


async def test_strangers_are_sent_home(world: World, autojump_clock: object) -> None:
    await house(world, HOME).leaving.expel()
    assert world.where() == HOME, "who is at home is no stranger"
    await world.move(2)
    await house(world, 2).leaving.expel()
    assert await world.settle() == HOME


async def test_who_is_just_coming_is_sent_home_too(world: World, autojump_clock: object) -> None:
    expelled = trio.Event()

    async def expel() -> None:
        await house(world, 2).leaving.expel()
        expelled.set()

    world.hosts[2].at["held"] = lambda: world.nursery.start_soon(expel)
    world.begin_move(2)
    await expelled.wait()
    assert await world.settle() == HOME


async def test_ours_are_brought_home(world: World, autojump_clock: object) -> None:
    await house(world, HOME).leaving.bring()
    await world.move(3)
    await house(world, HOME).leaving.bring()
    assert await world.settle() == HOME


async def test_who_is_on_its_way_elsewhere_is_brought_home_after_that(world: World, autojump_clock: object) -> None:
    await world.move(2)
    brought = trio.Event()

    async def bring() -> None:
        await house(world, HOME).leaving.bring()
        brought.set()

    world.hosts[2].at["prepared"] = lambda: world.nursery.start_soon(bring)
    world.begin_move(3)
    await brought.wait()
    assert await world.settle() == HOME


@pytest.mark.parametrize(("node", "what"), [(2, "expel"), (HOME, "bring")])
async def test_who_can_not_move_is_counted(world: World, autojump_clock: object, node: int, what: str) -> None:
    await world.move(2)
    world.reasons.extend(STAYS)
    with pytest.raises(RemoteFailure, match="1 can't") as caught:
        await getattr(house(world, node).leaving, what)()
    assert caught.value.errno == errno.EBUSY
    world.reasons.clear()
    assert await world.settle() == 2


@pytest.mark.parametrize(("node", "what"), [(2, "expel"), (HOME, "bring")])
async def test_nobody_waits_for_ever(world: World, autojump_clock: object, node: int, what: str) -> None:
    await world.move(2)
    world.hosts[HOME].fails["restore"] = None
    began_s = trio.current_time()
    with pytest.raises(RemoteFailure, match="1 can't"):
        await getattr(house(world, node).leaving, what)()
    assert trio.current_time() - began_s <= homeward.WITHIN_S
    assert await world.settle() == 2


# ---------------------------------------------------------------- moves


async def test_why_is_asked_where_it_runs(world: World, autojump_clock: object) -> None:
    deputy = deputy_in(NAME)
    assert await house(world, HOME).moves.why(deputy, is_brief=False) == ""
    await world.move(2)
    world.reasons.extend(STAYS)
    assert await house(world, HOME).moves.why(deputy, is_brief=False) == told(STAYS)
    world.cut(HOME, 2)
    with pytest.raises((NodeDown, TimeoutError)):
        await house(world, HOME).moves.why(deputy, is_brief=False)


async def test_where_nobody_can_go(world: World, autojump_clock: object) -> None:
    for node, number in ((9, errno.EINVAL), (2, errno.EROFS)):
        world.reasons.extend(STAYS)
        said = await world.fail_to_move(node)
        assert isinstance(said, RemoteFailure)
        assert said.errno == number
        world.reasons.clear()


async def test_a_process_that_is_no_guest(world: World, autojump_clock: object) -> None:
    other = Identity(1 << 30, 1)
    await house(world, HOME).moves.move(other, HOME)
    with pytest.raises(RemoteFailure, match="not started by mosrun") as caught:
        await house(world, HOME).moves.move(other, 2)
    assert caught.value.errno == errno.EROFS
    assert await house(world, HOME).moves.setting(other, "lock") is None
    assert not await house(world, HOME).moves.change_setting(other, "lock", 1)


async def test_a_guest_that_asks_for_its_own_move_is_answered_first(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be frozen in that write; its file may be open a moment longer, so it is tried again."""
    monkeypatch.setattr(moves.Moves, "_is_within", lambda *_: True)
    here = house(world, HOME).moves
    world.reasons.extend(STAYS)
    with pytest.raises(RemoteFailure, match="lock") as caught:
        await here.move(deputy_in(NAME), 2, by=1)
    assert caught.value.errno == errno.EROFS
    world.reasons.clear()
    world.hosts[HOME].fails["dump"] = CheckpointError("a file of /proc is open")
    await here.move(deputy_in(NAME), 2, by=1)
    assert world.where() == HOME
    assert await world.settle() == 2


async def test_who_asks_while_it_is_on_its_way(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves.Moves, "_is_within", lambda *_: True)
    failures: list[Exception] = []

    async def ask() -> None:
        try:
            await house(world, HOME).moves.move(deputy_in(NAME), 3, by=1)
        except Exception as error:
            failures.append(error)

    world.hosts[HOME].at["prepared"] = lambda: world.nursery.start_soon(ask)
    await world.move(2)
    assert ["on its way" in str(error) for error in failures] == [True]


# ---------------------------------------------------------------- its end, and its deputy's


async def test_its_init_is_killed_away(world: World, autojump_clock: object) -> None:
    await world.move(2)
    [init] = world.hosts[2].living()
    init.end()
    assert await world.settle_without() == "it was killed on node 2"


async def test_its_init_is_killed_at_home(world: World, autojump_clock: object) -> None:
    [init] = world.hosts[HOME].living()
    init.end()
    assert await world.settle_without() == "it was killed"


async def test_mosrun_dies(world: World, autojump_clock: object) -> None:
    """Its guest is killed where it runs."""
    await world.move(2)
    [deputy] = house(world, HOME)._deputies
    world.mosrun.lives = False
    assert deputy.detach(world.mosrun)
    await trio.sleep(5)
    assert world.killed == [2]
