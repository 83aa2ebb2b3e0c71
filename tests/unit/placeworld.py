"""A small world of processes, and what the magic names are for each: slow and obvious.

Every process simply carries its own values; a child copies its parent's.  Beside it run the real book, the real replica
and what their callers keep to (mignode/registry.py, the mount), and `check` compares.  Steps of *meanwhile* happen in
the middle of a call, each time when it looks at a process or at the queue of fork events.  Called by test_places.py.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from mignode import book as real_book
from mignode.book import Change, Settings
from omfs.magic import names, places as real_places
from omfs.magic.names import Magic
from omfs.magic.places import Key, Place

OWN: Final = 1
INIT: Final = 1
PIDS: Final = range(2, 9)  # few, so that they are soon given again
NODES: Final = (0, 1, 2, 3, 900)
KINDS: Final = (
    *("fork", "fork", "fork", "orphan", "exec", "exit", "exit", "guest"),
    *("select", "select", "create", "create", "move", "set", "look", "look"),
    *("notice", "end seen", "fetch mount", "fetch book", "overflow"),
)
MEANWHILE: Final = ("fork", "fork", "exit", "exit", "exec", "orphan")


class Step(NamedTuple):
    kind: str
    who: int
    what: int
    meanwhile: tuple[Step, ...] = ()


@dataclasses.dataclass
class Process:
    pid: int
    start_ticks: int
    parent: Process | None = dataclasses.field(repr=False)
    image: str
    home: int = OWN
    here: int = OWN
    lastexec: int = OWN
    selected: int = 0
    magic: int = OWN  # of its last creation; where it began, if it never created anything
    settings: Settings = dataclasses.field(default_factory=lambda: real_book.Settings())
    is_reaper: bool = False
    is_lost: bool = False  # it is promised nothing: see World.exit and World.living
    mother: Process | None = dataclasses.field(default=None, repr=False)

    @property
    def key(self) -> Key:
        return self.pid, self.start_ticks

    def node_of(self, name: Magic, creates: bool) -> int:
        return {
            Magic.HERE: self.here,
            Magic.HOME: self.home,
            Magic.LASTEXEC: self.lastexec,
            Magic.SELECTED: self.selected or self.home,
            Magic.MAGIC: self.here if creates else self.magic,
        }[name]


@dataclasses.dataclass
class Rules:
    """What the callers keep to."""

    asks: bool = True  # the mount asks the registry about whom it has no entry of, where there are fork events
    tells_creations: bool = True
    catches_up: bool = True  # after forks were missed
    checks_entries: bool = True  # that the process is still there, when the registry takes its entries back


class World:
    def __init__(self, has_events: bool, rules: Rules) -> None:
        self.has_events = has_events
        self.rules = rules
        self.clock = 0
        self.init = Process(INIT, 0, None, "image 0", is_reaper=True)
        self.all = {INIT: self.init}
        self.queue: list[tuple[int, int]] = []  # fork events
        self.taken: set[int] = set()  # whose forks were told last
        self.missed: set[int] = set()  # whose forks will never be told
        self.has_overrun = False
        self.ended: list[Key] = []  # and not seen yet
        self.meanwhile: list[Step] = []
        self.busy: Process | None = None  # waits in a call
        self.book = real_book.Book(OWN, self)
        self.replica = real_places.Places(3)

    # ------------------------------------------------------------ what a call sees of the world

    def find(self, key: Key) -> Process | None:
        process = self.all.get(key[0])
        return process if process is not None and process.key == key else None

    def parent_of(self, key: Key) -> Key | None:
        self.pass_time()
        process = self.find(key)
        return None if process is None or process.parent is None else process.parent.key

    def children_of(self, key: Key) -> list[Key]:
        self.pass_time()
        return [process.key for process in self.all.values() if process.parent and process.parent.key == key]

    def identify(self, pid: int) -> Key | None:
        self.pass_time()
        process = self.all.get(pid)
        return None if process is None else process.key

    def forks(self) -> list[tuple[int, int]] | None:
        self.pass_time()
        queue, self.queue = self.queue, []
        self.taken = {child for _, child in queue}
        if self.has_overrun and self.rules.catches_up:
            self.missed |= self.taken
            self.has_overrun = False
            return None
        return queue

    def living(self) -> list[Key]:
        """Forks were missed: who still has its mother gets everything from her; others are lost, and what they fork."""
        self.missed |= self.taken
        for process in sorted(self.all.values(), key=lambda process: process.start_ticks):
            mother = process.mother
            if process.pid in self.missed and mother:
                process.is_lost |= mother.is_lost or self.find(mother.key) is None
        self.missed.clear()
        self.meanwhile.clear()
        return [process.key for process in self.all.values()]

    def pass_time(self) -> None:
        if self.meanwhile:
            step = self.meanwhile.pop()
            self.happens(step.kind, self.someone(step.who), step.what)

    # ------------------------------------------------------------ what processes do by themselves

    def someone(self, who: int) -> Process:
        processes = list(self.all.values())
        return processes[who % len(processes)]

    def happens(self, kind: str, process: Process, what: int) -> None:
        if process is self.busy:
            return
        match kind:
            case "fork":
                self.fork(process, what)
            case "exec":
                self.clock += 1
                process.image, process.lastexec = f"image {self.clock}", process.here
            case "exit" if process is not self.init:
                self.exit(process)
            case "orphan" if (child := self.fork(process, what)) and self.fork(child, what):
                self.exit(child)

    def fork(self, parent: Process, what: int) -> Process | None:
        free = [pid for pid in PIDS if pid not in self.all]
        if not free:
            return None
        self.clock += 1
        child = dataclasses.replace(
            parent,
            pid=free[what % len(free)],
            start_ticks=self.clock,
            parent=parent,
            mother=parent,
            settings=msgspec.structs.replace(parent.settings, nmigs=0),
            is_reaper=what % 2 == 0,
        )
        self.all[child.pid] = child
        self.queue += [(parent.pid, child.pid)] if self.has_events else []
        return child

    def ancestors(self, process: Process | None) -> Iterable[Process]:
        while process is not None:
            yield process
            process = process.parent

    def exit(self, process: Process) -> None:
        """Without fork events it takes along what its descendants have from it or through it: they are lost."""
        before = {other.key: self.giver(other) for other in self.all.values()}
        heirs = [other for other in self.all.values() if process in self.ancestors(other)]
        is_of_busy = self.busy in self.ancestors(process)
        del self.all[process.pid]
        self.ended.append(process.key)
        for other in self.all.values():
            if other.parent is process:
                other.parent = next(one for one in self.ancestors(process.parent) if one.is_reaper)
        if not self.has_events:
            for other in heirs:
                other.is_lost |= self.giver(other) != before[other.key] or is_of_busy

    def giver(self, process: Process) -> Key | None:
        return next((one.key for one in self.ancestors(process) if one.key in self.book), None)

    # ------------------------------------------------------------ the registry, and the mount beside it

    def apply(self, change: Change) -> None:
        for key in change.gone:
            self.replica.remove(key)
        for place in change.puts:
            self.replica.put(place)

    def notice(self) -> None:
        self.apply(self.book.notice())

    def place_of(self, process: Process) -> Place | None:
        """As the mount finds it."""
        place = self.replica.get(process.key)
        if place is not None or self.replica.is_ordinary(process.key):
            return place
        if self.has_events and self.rules.asks:
            self.notice()
            place = self.book.nearest(process.key)
        else:
            place = self.replica.nearest(process.key, self.parent_of)
        if place is None:
            self.replica.note_ordinary(process.key)
        return place

    def fetch_book(self) -> None:
        """The registry is started again: it takes its entries back, those of processes that are still there."""
        entries = [entry for entry in self.book if self.find(entry.place.key) or not self.rules.checks_entries]
        self.book = real_book.Book(OWN, self)
        self.book.take_back(entries)
        self.replica.replace_all(entry.place for entry in self.book)
        self.ended.clear()
        self.miss_forks()
        self.has_overrun = False
        if self.has_events and self.rules.catches_up:
            self.apply(self.book.catch_up())

    def miss_forks(self) -> None:
        """The kernel has more to tell than it can keep."""
        self.missed |= {child for _, child in self.queue}
        self.queue.clear()
        self.has_overrun = self.has_events

    # ------------------------------------------------------------ steps

    def step(self, step: Step) -> None:
        process = self.someone(step.who)
        if step.kind in MEANWHILE:
            self.happens(step.kind, process, step.what)
        else:
            self.meanwhile = list(step.meanwhile)
            self.busy = process
            self.call(step.kind, process, step.what)
            self.busy = None
            self.meanwhile = []
        self.check_known()

    def call(self, kind: str, process: Process, what: int) -> None:
        node = NODES[what % len(NODES)]
        match kind:
            case "select":
                self.apply(self.book.selected(process.key, node))
                process.selected = node
            case "create":
                if names.is_news(self.place_of(process)) and self.rules.tells_creations:
                    self.apply(self.book.created(process.key, process.here))
                process.magic = process.here
            case "move" if node:
                self.apply(self.book.moved(process.key, node, process.image))
                process.here = node
                process.settings = msgspec.structs.replace(process.settings, nmigs=process.settings.nmigs + 1)
            case "set":
                process.settings = msgspec.structs.replace(process.settings, mignodes=1 << node, lock=what % 2 == 0)
                self.apply(self.book.set_settings(process.key, process.settings))
            case "look":
                self.look(process)
            case "notice":
                self.notice()
            case "end seen" if self.ended:
                self.apply(self.book.exited(self.ended.pop(what % len(self.ended))))
            case "guest":
                self.guest_comes(process, what)
            case _:
                self.upset(kind)

    def upset(self, kind: str) -> None:
        match kind:
            case "fetch mount":
                self.replica = real_places.Places(3)
                self.replica.replace_all(entry.place for entry in self.book)
            case "fetch book":
                self.fetch_book()
            case "overflow":
                self.miss_forks()

    def guest_comes(self, parent: Process, what: int) -> None:
        guest = self.fork(parent, what)
        if guest is None:
            return
        guest.home, guest.here, guest.lastexec = 2 + what % 2, OWN, 1 + what % 3
        guest.selected, guest.magic = what % 4, 1 + what % 4
        guest.settings = real_book.Settings(nmigs=what)
        guest.is_reaper, guest.is_lost = True, False
        guest.image = f"guest {self.clock}"
        nodes = guest.home, guest.here, guest.lastexec
        place = Place(*guest.key, *nodes, guest.image, guest.selected, guest.magic)
        self.busy = guest
        self.apply(self.book.register(place, guest.settings))

    # ------------------------------------------------------------ what must hold

    def check_known(self) -> None:
        """Of everybody whom the mount does not have to ask about."""
        for process in self.all.values():
            if not self.has_events or process.key in self.replica or self.replica.is_ordinary(process.key):
                self.check(process, self.replica.nearest(process.key, self.parent_of))

    def look(self, process: Process) -> None:
        self.check(process, self.place_of(process))
        self.notice()
        entry = self.book.entry_of(process.key)
        assert process.is_lost or entry.settings == process.settings

    def check(self, process: Process, place: Place | None) -> None:
        if process.is_lost:
            return
        for name in Magic:
            for creates in (False, True):
                node = process.node_of(name, creates)
                assert names.resolve(name, place, process.image, OWN, creates) == node, (name, creates, process)
                assert f"node {node}" in names.explain(name, place, process.image, OWN, creates)
        departed = self.book.departing(process.key, process.image).place if process.key in self.book else None
        assert departed is None or (departed.lastexec, departed.magic) == (process.lastexec, process.magic)

    def finish(self) -> None:
        """Everybody looks, and when all ends are seen nothing is left of those who are gone."""
        for process in list(self.all.values()):
            self.look(process)
        self.notice()
        while self.ended:
            self.apply(self.book.exited(self.ended.pop()))
        self.check_known()
        entries = list(self.book)
        assert {entry.place.key for entry in entries} <= {process.key for process in self.all.values()}
        assert {place.key: place for place in self.replica} == {entry.place.key: entry.place for entry in entries}


def a_step(pick: Callable[[int], int], kinds: tuple[str, ...] = KINDS) -> Step:
    """A step; *pick* chooses below a number."""
    meanwhile = () if kinds is MEANWHILE else tuple(a_step(pick, MEANWHILE) for _ in range(max(0, pick(12) - 5)))
    return Step(kinds[pick(len(kinds))], pick(60), pick(60), meanwhile)


def first_broken(rules: Rules, seeds: range, steps: int = 40) -> int | None:
    """The first seed whose run shows a wrong node; None: none does."""
    for seed in seeds:
        world = World(seed % 3 > 0, rules)
        pick = random.Random(seed).randrange
        try:
            for _ in range(steps):
                world.step(a_step(pick))
            world.finish()
        except Exception:
            return seed
    return None
