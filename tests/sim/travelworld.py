"""Three nodes with the real rooms for guests (mignode/guesthouse.py), and one guest that is at home on the first.

Kernel, CRIU and inits are travelkernel.py's, lines are memory, the clock is trio's.  What a test wants to fail it says
of a node: `fails[step]` (travelkernel's steps), or `at[point]` (faultpoints.py), where a mignode can be killed; lines
are cut between two nodes.  At the end `settle` looks whether what is left is what the rules of handover.py promise.
"""

from __future__ import annotations

import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from mignode import body as bodies, desk, guesthouse, leaving, links, migrate, receive
from mignode.book import Entry, Settings as OfProcess
from mignode.deputies import Deputy
from mignode.faultpoints import FaultPoints
from mignode.guest import Guest
from mignode.guestfolder import GuestFolder, folders
from mignode.guesthouse import Guesthouse
from mignode.handover import Phase, Record, Stay
from mignode.images import ImageRoom
from mignode.journey import Journey, Journeys
from mignode.line import Line
from mignode.reasons import Reason
from mignode.traits import Traits, deputy_in
from omfs.config import Settings
from omfs.errors import BodyLost, NodeDown, OmfsError
from omfs.kernel.processes import Identity
from omfs.magic.places import Place
from omfs.net.transport import MemoryTransport, memory_transports
from tests.sim.travelkernel import INIT_PID, ROOT, Body, Criu, Init, Story

NODES: Final = (1, 2, 3)
HOME: Final = 1
NAME: Final = f"{HOME}.{ROOT}.99"
TRAITS: Final = Traits(NAME, HOME, ROOT, 1001, 1001, (), "one", b"prog", b"plan", ROOT)
SETTLED_S: Final = 100.0  # all that may be waited for is over
MOMENT_S: Final = 5.0
_TICKS: Final = 77  # of any process but mosrun


class Killed(BaseException):
    """Out of the task of a mignode that is not there any more."""


class Room(ImageRoom):
    """A directory instead of a tmpfs."""

    def __init__(self, run_dir: Path, limit_bytes: int) -> None:
        self._path = run_dir.with_name(run_dir.name + "-images")
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir()
        self.free = limit_bytes

    @property
    def path(self) -> Path:
        return self._path

    @property
    def free_bytes(self) -> int:
        return self.free


class Mosrun:
    """Its connection, as a Deputy has it."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.lives = True

    def say(self, word: Any) -> None:
        self.said.append(word)


class Registry:
    """Of mosrun, and of guests that leave and come.  What it knows of mosrun ends with its mignode."""

    def __init__(self, own_id: int, story: Story) -> None:
        self.own_id = own_id
        self.here = own_id
        self._story = story

    def entry_of(self, _: object) -> Any:
        return types.SimpleNamespace(settings=OfProcess(), place=types.SimpleNamespace(here=self.here))

    def moved(self, process: Identity, node: int) -> None:
        assert process == deputy_in(NAME)
        assert node != self.here
        self.here = node

    def departing(self, process: Identity) -> Entry:
        assert self._story.trees[process.pid].is_held, "what it does now nobody would know there"
        return Entry(Place(*process, HOME, self.own_id, self.own_id, "image"), OfProcess())

    async def arrived(self, entries: list[Entry]) -> None:
        root, init = (entry.place for entry in entries)
        assert init == root.passed_to((INIT_PID, _TICKS))
        assert (root.home, root.here, root.image) == (HOME, self.own_id, "image")
        self._story.trees[root.pid].is_known = True


class Move:
    """One that was asked for at home.  *error*: what `migrate` says."""

    def __init__(self) -> None:
        self.is_over = trio.Event()
        self.error: Exception | None = None


class Host:
    """A node: what outlives its mignode, and that mignode."""

    def __init__(self, world: World, number: int, folder: Path) -> None:
        self.number = number
        self.run_dir = folder / f"run{number}"
        self.run_dir.mkdir()
        self.inits: dict[str, Init] = {}
        self.fails: dict[str, Exception | Callable[[], object] | None] = {}  # by step: None, where it never ends
        self.at: dict[str, Callable[[], object]] = {}
        self.passed: list[str] = []
        self.house: Any = None
        self.has_no_power = False
        self.standing: Any = None
        self._world = world
        self._life: trio.Nursery | None = None
        self._has_ended = trio.Event()

    # ------------------------------------------------------------ its mignode

    async def start(self) -> None:
        """And return when it knows who was here."""
        await self._world.nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        standing: Any = types.SimpleNamespace(
            local=types.SimpleNamespace(node_id=self.number),
            node_map=types.SimpleNamespace(nodes={number: (f"node{number}",) for number in NODES}),
        )
        store: Any = types.SimpleNamespace(values=types.SimpleNamespace(block=False))
        registry: Any = Registry(self.number, self._world.story)
        settings = Settings(run_dir=str(self.run_dir), images_max_bytes=1 << 20)
        self._has_ended, self.standing = trio.Event(), standing
        try:
            async with trio.open_nursery() as self._life:
                hatchery: Any = None
                self.house = Guesthouse(standing, settings, hatchery, registry, self._world.journeys, store, self._life)
                for folder in folders(self.run_dir):
                    self.house._recover(folder)
                for deputy in self.house._deputies:
                    deputy.attach(self._world.mosrun)
                self._life.start_soon(self.house._vigil.run)
                task_status.started()
                await trio.sleep_forever()
        except* Killed:
            pass
        if self.kept.exists():  # what it did while it was being killed, no dead one does
            shutil.rmtree(self.run_dir)
            self.kept.rename(self.run_dir)
        self._has_ended.set()

    @property
    def kept(self) -> Path:
        return self.run_dir.with_suffix(".kept")

    def kill(self) -> None:
        """kill -9 of mignode; may be called by one of its own tasks."""
        assert self._life is not None
        self.house = None
        shutil.copytree(self.run_dir, self.kept)
        self._world.close_lines(self.number)
        for init in self.inits.values():
            if init.hold is not None:
                init.hold.asker_died()
        self._life.cancel_scope.cancel()

    async def restart(self) -> None:
        """After a kill."""
        await self._has_ended.wait()
        await trio.sleep(MOMENT_S)
        await self.start()

    def kill_and_restart(self) -> None:
        """As systemd does."""
        self.kill()
        self._world.nursery.start_soon(self.restart)

    def lose_power(self) -> None:
        """And nothing of the node is left."""
        self.has_no_power = True
        self.kill()
        for init in self.inits.values():
            init.end()
        shutil.rmtree(self.kept)
        self.kept.mkdir()

    # ------------------------------------------------------------ for travelkernel

    def body(self, init: Init) -> Any:
        house = self.house
        made = Body(init, self._world.story, self._step, lambda: self.house is not house)
        made.killed = lambda: self._world.killed.append(self.number)
        return made

    async def _step(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        if name in self.fails:
            failure = self.fails.pop(name)
            if failure is None:
                await trio.sleep_forever()
            elif callable(failure):
                failure()
            else:
                raise failure

    def living(self) -> list[Init]:
        return [init for init in self.inits.values() if not init.has_ended.is_set()]


class World:
    """The nodes and what is between them."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self.nursery = nursery
        self.story = Story()
        self.mosrun = Mosrun()
        self.journeys = Journeys()
        self.reasons: list[Reason] = []
        self.killed: list[int] = []
        self.cut_pairs: set[frozenset[int]] = set()
        self._lines: list[tuple[frozenset[int], tuple[MemoryTransport, ...]]] = []
        self.hosts = {number: Host(self, number, folder) for number in NODES}

    async def begin(self) -> None:
        """The guest is born, at home."""
        for host in self.hosts.values():
            await host.start()
        home = self.hosts[HOME]
        folder = GuestFolder(home.run_dir, NAME)
        folder.make()
        folder.traits, folder.record, folder.stay = TRAITS, Record(HOME), Stay(Phase.HERE, 1)
        init = home.inits[NAME] = Init()
        init.tree, init.has_run = self.story.tree(0, is_held=False, is_known=True), True
        deputy = home.house._deputies.add(Deputy(TRAITS))
        home.house._guests.add(Guest(folder, TRAITS, home.body(init), epoch=1))
        deputy.attach(self.mosrun)

    # ------------------------------------------------------------ lines

    async def dial(self, standing: Any, settings: Settings, node_id: int, deadline_s: float) -> Line:
        """In the place of line.dial_line."""
        here = standing.local.node_id
        pair = frozenset({here, node_id})
        await trio.lowlevel.checkpoint()
        if self.hosts[here].house is None or self.hosts[here].standing is not standing:
            raise NodeDown("a dead mignode asks")
        if pair in self.cut_pairs:
            await trio.sleep(deadline_s)
            raise NodeDown(f"node {node_id}: no answer within {deadline_s:g} s")
        target = self.hosts[node_id]
        if target.house is None or target._life is None:
            raise NodeDown(f"node {node_id}: connection refused")
        ends = memory_transports()
        self._lines.append((pair, ends))
        ours, theirs = map(Line, ends)
        ours.node_id, theirs.node_id = node_id, here
        ours.admit()
        theirs.admit()
        target._life.start_soon(self._serve, target, theirs)
        return ours

    async def _serve(self, host: Host, line: Line) -> None:
        try:
            word, bulk = await line.receive(30)
            await host.house._line(line, word, bulk)
        except (OmfsError, OSError):
            pass
        finally:
            line.close()

    def close_lines(self, node: int) -> None:
        """As the kernel does with a process's."""
        for pair, ends in self._lines:
            if node in pair:
                for end in ends:
                    end.close()

    def cut(self, one: int, other: int) -> None:
        """Pull the cable: nobody is told."""
        pair = frozenset({one, other})
        self.cut_pairs.add(pair)
        for other_pair, ends in self._lines:
            if other_pair == pair:
                for end in ends:
                    end.cut()

    def heal(self) -> None:
        self.cut_pairs.clear()

    # ------------------------------------------------------------ what is done, and what became of it

    def begin_move(self, node: int) -> Move:
        """`migrate PID node`."""
        move = Move()
        self.nursery.start_soon(self._move, node, move)
        return move

    async def _move(self, node: int, move: Move) -> None:
        asked = self.hosts[HOME].house

        async def ask() -> None:
            try:
                await asked.moves.move(deputy_in(NAME), node)
            except Exception as error:
                move.error = error

        try:
            await self._within_life_of(self.hosts[HOME], ask)
        finally:
            move.is_over.set()

    async def _within_life_of(self, host: Host, what: Callable[[], Any]) -> None:
        assert host._life is not None
        done = trio.Event()

        async def do() -> None:
            try:
                await what()
            finally:
                done.set()

        host._life.start_soon(do)
        await done.wait()

    async def move(self, node: int) -> None:
        """And it is there."""
        move = self.begin_move(node)
        await move.is_over.wait()
        assert move.error is None, move.error
        assert await self.settle(MOMENT_S) == node

    async def fail_to_move(self, node: int) -> Exception:
        """What is said; it runs on where it was."""
        before = self.where()
        move = self.begin_move(node)
        await move.is_over.wait()
        assert move.error is not None
        assert await self.settle() == before
        return move.error

    def where(self) -> int:
        """The node that has its one init."""
        [node] = [number for number, host in self.hosts.items() if host.living()]
        return node

    async def settle(self, within_s: float = SETTLED_S) -> int:
        """Nothing fails any more: one copy runs, home knows where, and nothing is left of others.  Returns where."""
        await self._calm(within_s)
        node = self.where()
        record, stay = (GuestFolder(self.hosts[number].run_dir, NAME) for number in (HOME, node))
        assert self.story.trees[max(self._running())].runs
        assert record.record is not None
        assert stay.stay is not None
        assert (record.record.node, record.record.source) == (node, 0)
        assert stay.stay == Stay(Phase.HERE, record.record.epoch)
        [init] = self.hosts[node].living()
        assert (init.is_frozen, init.kept, [*self.hosts[node].body(init).running()]) == (False, frozenset(), [])
        assert self._folders() == {HOME, node}
        assert [deputy.way.node_id for deputy in self.hosts[HOME].house._deputies] == [node]
        assert self.hosts[HOME].house._registry.here == node
        assert self.mosrun.said == []
        return node

    async def settle_without(self) -> str:
        """None runs, nothing is left, and mosrun was told why; "" where it died with its node."""
        await self._calm(SETTLED_S)
        assert self._running() == []
        assert [number for number, host in self.hosts.items() if host.living()] == []
        assert self._folders() == set()
        assert len(self.mosrun.said) <= 1
        return "".join(str(lost.reason) for lost in self.mosrun.said)

    async def _calm(self, within_s: float) -> None:
        self.heal()
        for host in self.hosts.values():
            host.fails.clear()
            if host.has_no_power:
                await host.restart()
        await trio.sleep(within_s)
        self.story.check()
        assert self.story.strangers == 0
        for host in self.hosts.values():
            assert list(host.house._images.path.iterdir()) == [], "images are left"

    def _running(self) -> list[int]:
        return [pid for pid, tree in self.story.trees.items() if tree.runs]

    def _folders(self) -> set[int]:
        return {number for number, host in self.hosts.items() if list(folders(host.run_dir))}

    def journey(self) -> Journey:
        """The last one, as home tells it."""
        journey = self.journeys.of(deputy_in(NAME))
        assert journey is not None
        return journey

    # ------------------------------------------------------------ in the places of others

    def host_of(self, folder: Path) -> Host:
        """*folder*: a guest's."""
        return next(host for host in self.hosts.values() if host.run_dir in folder.parents)

    async def hatch(self, hatchery: object, nursery: object, folder: Path, world: object) -> Any:
        """In the place of body.hatch."""
        host = self.host_of(folder)
        await host._step("hatch")
        init = host.inits[NAME] = Init()
        return host.body(init)

    async def connect(self, nursery: object, folder: Path) -> Any:
        """In the place of body.connect."""
        await trio.lowlevel.checkpoint()
        host = self.host_of(folder)
        if not host.living():
            raise BodyLost("the guest's init has ended")
        return host.body(host.inits[NAME])

    async def reasons_of(self, *_: object) -> list[Reason]:
        """In the place of migrate.reasons_of."""
        return self.reasons

    def passes(self, points: FaultPoints, point: str) -> None:
        """In the place of FaultPoints.at."""
        host = next(host for host in self.hosts.values() if host.run_dir == points._path.parent)
        if host.house is not None:
            host.passed.append(point)
            host.at.pop(point, lambda: None)()
            if host.house is None:
                raise Killed

    def decide_kept(self, descriptor: int, *, finish: bool) -> None:
        """In the place of criutalk.decide_kept: there is one that anybody can mean."""
        assert not finish
        for host in self.hosts.values():
            for init in host.living():
                if init.kept and init.hold is not None:
                    init.hold.undo()

    def _identify(self, pid: int) -> Identity | None:
        if pid == INIT_PID or pid in self.story.trees:
            return Identity(pid, _TICKS)
        return deputy_in(NAME) if pid == ROOT and self.mosrun.lives else None

    def replace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The outermost of the real ones."""

        for room in (migrate, desk, links):
            monkeypatch.setattr(room, "dial_line", self.dial)
        for room in (migrate, receive):
            monkeypatch.setattr(room, "Criu", Criu)
        monkeypatch.setattr(bodies, "hatch", self.hatch)
        monkeypatch.setattr(bodies, "connect", self.connect)
        monkeypatch.setattr(guesthouse, "ImageRoom", Room)
        monkeypatch.setattr(guesthouse, "find_criu", lambda _: None)
        monkeypatch.setattr(guesthouse.processes, "identify", self._identify)
        monkeypatch.setattr(migrate, "reasons_of", self.reasons_of)
        monkeypatch.setattr(migrate, "_relayed_by", lambda _: [])
        monkeypatch.setattr(receive, "check_reach", lambda *_: None)
        for name in ("bar", "lift_bar", "is_held"):
            monkeypatch.setattr(leaving, name, getattr(self.story, name))
        monkeypatch.setattr(leaving, "decide_kept", self.decide_kept)
        monkeypatch.setattr(FaultPoints, "at", lambda points, point: self.passes(points, point))
