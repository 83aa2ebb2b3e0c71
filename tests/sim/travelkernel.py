"""In the places of the kernel, CRIU and a guest's init: copies of one guest, and who holds them.

A `Tree` is a copy; `Story` sees to the promise of a handover whenever something changes.  An `Init` outlives the
mignode that is connected to it by a `Body`; `Criu` dumps and restores by a file with one number.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from mignode.body import Prepared
from mignode.bodytime import in_time
from omfs.errors import BodyLost, CheckpointError

ROOT: Final = (1 << 22) - 1  # of the guest, inside; the last that Linux gives
IMAGE: Final = "steps.img"
_FINISH_S: Final = 60.0
_FIRST_PID: Final = 1 << 30  # the machine has none like that
INIT_PID: Final = _FIRST_PID - 1


class Story:
    """What the guest has done, wherever it ran."""

    def __init__(self) -> None:
        self.steps = 0
        self.strangers = 0
        """Steps of copies that the registry of their node did not know."""
        self.trees: dict[int, Tree] = {}

    def tree(self, steps: int, *, is_held: bool, is_known: bool = False) -> Tree:
        tree = self.trees[_FIRST_PID + len(self.trees)] = Tree(self, steps, is_held, is_known)
        self.check()
        return tree

    def check(self) -> None:
        """One copy runs at most, and it goes on where the last one was; it makes a step."""
        running = [tree for tree in self.trees.values() if tree.runs]
        assert len(running) <= 1, "two copies run"
        for tree in running:
            self.strangers += not tree.is_known
            assert tree.steps == self.steps, f"a copy that has made {tree.steps} steps runs; it were {self.steps}"
            tree.steps += 1
            self.steps += 1

    def pid_of(self, tree: Tree) -> int:
        return next(pid for pid, one in self.trees.items() if one is tree)

    # ---- bar.py

    def bar(self, pids: tuple[int, ...]) -> None:
        for pid in pids:
            self.trees[pid].change(is_barred=True)

    def lift_bar(self, pids: tuple[int, ...], stopped: tuple[int, ...] = ()) -> None:
        for pid in pids:
            self.trees[pid].change(is_barred=False)

    def is_held(self, pids: tuple[int, ...]) -> bool:
        return all(self.trees[pid].is_held for pid in pids)


class Tree:
    """All processes of one copy."""

    def __init__(self, story: Story, steps: int, is_held: bool, is_known: bool) -> None:
        self.steps = steps
        self.is_known = is_known
        self.is_alive = True
        self.is_held = is_held
        self.is_barred = False
        self._story = story

    @property
    def runs(self) -> bool:
        return self.is_alive and not self.is_held and not self.is_barred

    def change(self, **changes: bool) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self._story.check()


class Hold:
    """A CRIU that holds a tree; also what checkpoint.Frozen and Restored are to who asked it."""

    socket = 0

    def __init__(self, init: Init, tree: Tree, *, is_restore: bool, step: Callable[[str], Awaitable[None]]) -> None:
        self.pid = ROOT
        self.is_over = trio.Event()
        self._init = init
        self._tree = tree
        self._is_restore = is_restore
        self._step = step
        init.hold = self

    async def finish(self) -> None:
        assert self._is_restore, "a dumped tree is killed with its init"
        await _within(_FINISH_S, "finish", self._step)
        if self.is_over.is_set():
            raise CheckpointError("criu has ended")
        self.is_over.set()
        self._init.has_run = True
        self._tree.change(is_held=False)

    def undo(self) -> None:
        """Also where it is killed, or its other end."""
        if not self.is_over.is_set():
            self.is_over.set()
            self._tree.change(**({"is_alive": False} if self._is_restore else {"is_held": False}))

    def asker_died(self) -> None:
        if self._is_restore or "criu" not in self._init.kept:
            self.undo()

    # ---- criutalk.Worker

    async def wait(self) -> int:
        await self.is_over.wait()
        return 0

    kill = undo


class Init:
    """Of one copy's namespaces."""

    def __init__(self) -> None:
        self.tree: Tree | None = None
        self.hold: Hold | None = None
        self.kept: frozenset[str] = frozenset()
        self.is_frozen = False
        self.has_run = False
        self.root_status: int | None = None
        self.has_ended = trio.Event()
        self.root_has_ended = trio.Event()

    def root_ends(self, status: int) -> None:
        assert self.tree is not None
        self.root_status = status
        self.tree.change(is_alive=False)
        self.root_has_ended.set()

    def end(self) -> None:
        """With all that is in there."""
        if self.tree is not None:
            self.tree.change(is_alive=False)
        self.has_ended.set()


class Body:
    """A mignode's connection to an init.  *step*: of the node; *is_dead*: whether that mignode is."""

    proc = -1

    def __init__(
        self, init: Init, story: Story, step: Callable[[str], Awaitable[None]], is_dead: Callable[[], bool]
    ) -> None:
        self.init = init
        self.is_dead = is_dead
        self.pid = INIT_PID
        self.root = ROOT if init.tree is not None else 0
        self.has_run = init.has_run
        self.story = story
        self._step = step
        self._frames_in, self.frames = trio.open_memory_channel[bytes](math.inf)
        self.heard: list[object] = []
        self.killed: Callable[[], None] = lambda: None

    async def step(self, name: str) -> None:
        """One of the init's, with the time that it has."""
        with in_time(f"its init did not {name}"):
            await self.only_step(name)

    async def only_step(self, name: str) -> None:
        if self.is_dead() or self.init.has_ended.is_set():
            raise BodyLost("the guest's init has ended")
        await self._step(name)

    @property
    def is_frozen(self) -> bool:
        return self.init.is_frozen

    @property
    def kept(self) -> frozenset[str]:
        return self.init.kept

    async def all_pids(self) -> dict[int, int]:
        await self.step("pids")
        tree = self.init.tree
        return {} if tree is None or not tree.is_alive else {ROOT: self.story.pid_of(tree)}

    async def external_files(self) -> tuple[str, ...]:
        return ()

    async def freeze_files(self) -> bytes:
        await self.step("freeze files")
        self.init.is_frozen = True
        return b"state"

    async def thaw_files(self) -> None:
        await self.step("thaw files")
        self.init.is_frozen = False

    async def prepare_files(self, plan: bytes, state: bytes) -> Prepared:
        assert state == b"state"
        await self.step("prepare files")
        return Prepared((), {})

    async def given(self) -> None:
        await self.step("given")

    async def adopt(self, pid: int) -> None:
        await self.step("adopt")
        self.root = pid

    async def set_last_pid(self, number: int) -> None:
        await self.step("last pid")

    async def keep(self, name: str, descriptors: tuple[int, ...]) -> None:
        await self.step("keep")
        self.init.kept = frozenset({name} if descriptors else ())

    async def fetch(self, name: str) -> list[int]:
        await self.step("fetch")
        return [os.open(os.devnull, os.O_RDONLY)] if name in self.init.kept else []

    def running(self) -> Mapping[int, Hold]:
        hold = self.init.hold
        return {} if hold is None or hold.is_over.is_set() else {1: hold}

    def starting(self, *_: object) -> Body:
        """A Start, of which Criu wants to know whose it is."""
        return self

    start_below = starting

    async def signal(self, pid: int, number: int) -> None:
        assert (pid, number) == (ROOT, signal.SIGKILL)
        self.killed()

    def send_frame(self, frame: bytes) -> None:
        self.heard.append(frame)

    def way_is_open(self) -> None:
        self.heard.append("open")

    def way_is_lost(self) -> None:
        self.heard.append("lost")

    async def end(self) -> None:
        if not self.is_dead():
            self.init.end()

    async def wait_lost(self) -> None:
        await self.init.has_ended.wait()

    @property
    def root_status(self) -> int | None:
        return self.init.root_status

    async def wait_root_ended(self) -> int:
        await self.init.root_has_ended.wait()
        assert self.init.root_status is not None
        return self.init.root_status

    async def wait_gone(self) -> None:
        """The guest is one process."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until, self.init.has_ended, nursery.cancel_scope)
            nursery.start_soon(self._until, self.init.root_has_ended, nursery.cancel_scope)
        if self.init.has_ended.is_set():
            raise BodyLost("the guest's init has ended")

    async def _until(self, event: trio.Event, waiting: trio.CancelScope) -> None:
        await event.wait()
        waiting.cancel()

    async def wait_told(self) -> None:
        await self.wait_gone()


def _image(images: int) -> Path:
    return Path(f"/proc/self/fd/{images}", IMAGE)


class Criu:
    """In the place of checkpoint.Criu."""

    def __init__(self, program: object, body: Any = None) -> None:
        self._body = body

    @asynccontextmanager
    async def dump(self, pid: int, images: int, tree: object, deadline_s: float) -> AsyncIterator[Hold]:
        body: Body = self._body
        found = body.init.tree
        assert found is not None
        await _within(deadline_s, "dump", body.only_step)
        hold = Hold(body.init, found, is_restore=False, step=body.only_step)
        found.change(is_held=True)
        _image(images).write_text(str(found.steps))
        async with self._until_over(hold):
            yield hold

    @asynccontextmanager
    async def restore(
        self, images: int, tree: object, deadline_s: float, *, inherited: Mapping[str, int]
    ) -> AsyncIterator[Hold]:
        body: Body = self._body
        await _within(deadline_s, "restore", body.only_step)
        steps = int(_image(images).read_text())
        body.init.tree = body.story.tree(steps, is_held=True)
        hold = Hold(body.init, body.init.tree, is_restore=True, step=body.only_step)
        async with self._until_over(hold):
            yield hold

    @asynccontextmanager
    async def _until_over(self, hold: Hold) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if not self._body.is_dead():
                hold.undo()


async def _within(deadline_s: float, what: str, step: Callable[[str], Awaitable[None]]) -> None:
    with trio.move_on_after(deadline_s):
        await step(what)
        return
    raise CheckpointError(f"criu did not {what} within {deadline_s:.0f} s")
