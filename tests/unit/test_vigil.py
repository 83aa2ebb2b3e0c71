"""Home's watch: a deputy that does not come back, and a guest whose node has it no more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from mignode.deputies import Deputies, Deputy
from mignode.guestfolder import GuestFolder
from mignode.handover import Phase, Record, Stay
from mignode.record import guest_name
from mignode.traits import Traits
from mignode.vigil import Vigil
from omfs.kernel import processes

HERE, AWAY, TIMEOUT_S = 1, 2, 60.0
ENDED = (1 << 30, 1)  # a process that is not there


class Way:
    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.told: list[str] = []

    def meet(self, home: object) -> None:
        pass

    def deputy_lost(self) -> None:
        self.told.append("lost")


class Watched:
    """A deputy of *process*, under a vigil."""

    def __init__(self, nursery: trio.Nursery, run_dir: Path, process: tuple[int, int]) -> None:
        name = guest_name(HERE, *process)
        self.deputies = Deputies()
        self.deputy = self.deputies.add(
            Deputy(Traits(name, HERE, process[0], 0, 0, (), "one", b"prog", b"", process[0]))
        )
        self.folder = GuestFolder(run_dir, name)
        self.given_up: list[tuple[str, float]] = []
        nursery.start_soon(Vigil(self.deputies, run_dir, HERE, TIMEOUT_S, self._give_up).run)

    def _give_up(self, deputy: Deputy, why: str) -> None:
        self.given_up.append((why, trio.current_time()))
        self.deputies.remove(deputy.traits.name)

    def connect(self) -> Any:
        stream: Any = object()
        self.deputy.attach(stream)
        return stream


@pytest.fixture
def watched(nursery: trio.Nursery, tmp_path: Path) -> Callable[[tuple[int, int]], Watched]:
    return lambda process: Watched(nursery, tmp_path, process)


def ourselves() -> tuple[int, int]:
    process = processes.identify(os.getpid())
    assert process is not None
    return process.pid, process.start_ticks


async def test_a_deputy_that_has_died_is_lost_at_once(
    watched: Callable[[tuple[int, int]], Watched], autojump_clock: object
) -> None:
    one, way = watched(ENDED), Way(HERE)
    one.deputy.found(way)  # type: ignore[arg-type]
    stream = one.connect()
    await trio.sleep(5)
    assert not one.deputy.is_orphan
    one.deputy.detach(stream)
    await trio.sleep(2)
    assert one.deputy.is_orphan
    assert way.told == ["lost"]


async def test_one_that_lives_may_come_back_for_a_while(
    watched: Callable[[tuple[int, int]], Watched], autojump_clock: object
) -> None:
    one = watched(ourselves())
    await trio.sleep(TIMEOUT_S - 2)
    stream = one.connect()
    await trio.sleep(10)
    one.deputy.detach(stream)
    await trio.sleep(TIMEOUT_S - 2)
    assert not one.deputy.is_orphan
    await trio.sleep(5)
    assert one.deputy.is_orphan


async def test_a_guest_that_nobody_has_is_given_up(
    watched: Callable[[tuple[int, int]], Watched], autojump_clock: object
) -> None:
    one = watched(ourselves())
    one.connect()
    one.folder.record = Record(AWAY)
    began_s = trio.current_time()
    await trio.sleep(TIMEOUT_S * 2)
    [(why, at_s)] = one.given_up
    assert f"node {AWAY}" in why
    assert TIMEOUT_S < at_s - began_s < TIMEOUT_S + 3


async def test_whose_node_says_so_or_changes_is_not(
    watched: Callable[[tuple[int, int]], Watched], autojump_clock: object
) -> None:
    one = watched(ourselves())
    one.connect()
    for node in (AWAY, 3, AWAY):  # each time it may take that long until there is a way
        one.folder.record = Record(node)
        await trio.sleep(TIMEOUT_S - 5)
    one.deputy.found(Way(AWAY))  # type: ignore[arg-type]
    await trio.sleep(TIMEOUT_S * 2)
    assert one.given_up == []
    one.deputy.lost(one.deputy.way)  # type: ignore[arg-type]
    one.folder.record, one.folder.stay = Record(HERE), Stay(Phase.LEAVING, 1, 2)
    await trio.sleep(TIMEOUT_S * 2)
    assert one.given_up == [], "a copy here is settled by who has it"
