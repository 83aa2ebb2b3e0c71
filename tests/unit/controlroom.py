"""The control files of one node, as the mount asks for them: mignode's rooms, without guests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from mignode.adminvalues import AdminStore
from mignode.controls import Controls
from mignode.deputies import Deputies
from mignode.guestfiles import GuestFiles
from mignode.guestsettings import GuestSettings
from mignode.homeward import Homeward
from mignode.hpcfiles import HpcFiles
from mignode.moves import Moves
from mignode.processfiles import ProcessFiles
from mignode.registry import Registry
from omfs.config import Settings
from omfs.standing import Standing
from tests.unit.noguests import no_transit, nobody

OWN = 2
NOBODY = 65534
SELF = os.getpid()

Answer = dict[str, Any]


@dataclass(frozen=True)
class Room:
    """The control files of node 2 of three."""

    controls: Controls
    registry: Registry
    store: AdminStore

    async def read(self, file: str, pid: int = SELF, uid: int = 0) -> Answer:
        scope = "hpc" if "/" in file or file in ("info", "remote") else "process"
        return await self._ask("read_control", scope=scope, file=file, pid=pid, uid=uid)

    async def write(self, file: str, text: str, pid: int = SELF, uid: int = 0) -> Answer:
        scope = "hpc" if "/" in file or file in ("info", "remote") else "process"
        return await self._ask("write_control", scope=scope, file=file, pid=pid, text=text, uid=uid)

    async def _ask(self, command: str, **arguments: object) -> Answer:
        answer = await self.controls.handlers[command](arguments)
        assert isinstance(answer, dict)
        return answer

    def everything(self) -> tuple[object, ...]:
        return self.store.values, list(self.registry._book)


def standing_in(place: Path) -> Standing:
    (place / "map").write_text("1 192.0.2.1 1\n2 127.0.0.1 1\n3 192.0.2.3 1\n")
    return Standing(
        Settings(
            map=str(place / "map"), address="127.0.0.1", sec="none", run_dir=str(place), state_dir=str(place / "state")
        )
    )


@contextlib.asynccontextmanager
async def room(place: Path) -> AsyncIterator[Room]:
    standing, store, registry = standing_in(place), AdminStore(place / "state"), Registry(OWN, place)
    of_processes = ProcessFiles(registry, lambda: standing.node_map.nodes.keys())
    of_node = HpcFiles(standing, store, place)
    controls = Controls(of_processes, of_node)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(registry.run)
            guests, deputies = nobody(nursery), Deputies()
            journeys = of_processes.journeys
            settings = GuestSettings(registry)
            they = Moves(guests, deputies, registry, no_transit, journeys.note, settings)
            of_processes.moves, of_node.leaving = they, Homeward(guests, deputies, they, OWN)
            of_node.strangers = GuestFiles(guests, they, registry, str)
            yield Room(controls, registry, store)
            nursery.cancel_scope.cancel()
    finally:
        registry.close()


def refused(number: int) -> Callable[[Answer], bool]:
    return lambda answer: answer.get("errno") == number and bool(answer["reason"])
