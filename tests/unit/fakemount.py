"""A mount as mignode sees it: a control socket that takes places and tells them, and the replica behind it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import trio

from omfs.kernel import processes
from omfs.kernel.processes import Identity
from omfs.magic.places import Key, Place, Places
from omfs.net import control


class _Push(msgspec.Struct, forbid_unknown_fields=True):
    places: list[Place]
    gone: list[Key]
    fork_events: bool
    all: bool


class FakeMount:
    """The replica, and every message that changed it."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self.places = Places()
        self.places.replace_all(places)
        self.pushes: list[_Push] = []
        self.gate = trio.Event()  # nothing is applied or answered before it is set
        self.gate.set()
        self.dfsa: bool | None = None
        self._changed = trio.Event()

    def selected(self, pid: int) -> int:
        """What the mount would answer for this process now."""
        key = processes.identify(pid)
        assert key is not None
        place = self.places.nearest(key, lambda one: processes.parent_of(Identity(*one)))
        return place.selected if place else 0

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    async def serve(self, run_dir: Path, *, task_status: trio.TaskStatus[None]) -> None:
        handlers: dict[str, control.Handler] = {"place": self._place, "places": self._tell}
        await control.serve(run_dir / "mount.sock", handlers, task_status=task_status)

    async def _place(self, arguments: control.Arguments) -> dict[str, Any]:
        await self.gate.wait()
        push = msgspec.convert(arguments, _Push)
        self.pushes.append(push)
        if push.all:
            self.places.replace_all(push.places)
        for place in push.places:
            self.places.put(place)
        for key in push.gone:
            self.places.remove(key)
        self._changed.set()
        self._changed = trio.Event()
        return {}

    async def _tell(self, _: control.Arguments) -> dict[str, Any]:
        await self.gate.wait()
        return {"places": list(self.places)} | ({} if self.dfsa is None else {"dfsa": self.dfsa})


@contextlib.asynccontextmanager
async def mounted(run_dir: Path, places: Iterable[Place] = ()) -> AsyncIterator[FakeMount]:
    """A mount that listens in *run_dir*."""
    mount = FakeMount(places)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: mount.serve(run_dir, task_status=task_status))
        yield mount
        nursery.cancel_scope.cancel()
