"""Drives the world of leasemodel.py by a seed: much faster than Hypothesis, which only searches for what is short.

A run takes few objects and few kinds of calls, chosen anew each time, so that they meet.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from tests.unit.leasedisk import DIRECTORIES, FILES, NAMES, Call
from tests.unit.leasemodel import Rules, World
from tests.unit.leasenode import Node
from tests.unit.leasewrites import Broken

KINDS = ("stat", "list", "look", "read", "change", "seize", "chmod", "link", "unlink", "rename")
WRITING = ("open", "open", "append", "fsync", "close", "ask", "change", "chmod", "link", "unlink")
USING = ("write", "append", "fsync", "close", "ask")
OPEN = Call("open", FILES[0])
STEPS = 150
CLOCK_RATES = (1.0, 0.75, 1.3)


def a_call(kind: str, pick: Callable[[tuple[bytes, ...]], bytes]) -> Call:
    """A call of this kind, with objects and names as picked."""
    match kind:
        case "stat":
            return Call(kind, pick((*FILES, *DIRECTORIES)))
        case "read" | "change" | "seize" | "open" | "write" | "append" | "fsync" | "close" | "ask":
            return Call(kind, pick(FILES))
        case "chmod" | "list":
            return Call(kind, pick(DIRECTORIES))
        case "link":
            return Call(kind, pick(DIRECTORIES), pick(NAMES), pick(FILES))
        case "rename":
            return Call(kind, pick(DIRECTORIES), pick(NAMES), pick(DIRECTORIES), pick(NAMES))
    return Call(kind, pick(DIRECTORIES), pick(NAMES))


def open_first(world: World) -> None:
    """All nodes know of the first file, and the first node has it open for writing."""
    nodes = world.nodes
    for node, call in (*((node, Call("look", DIRECTORIES[0], NAMES[0])) for node in nodes), (nodes[0], OPEN)):
        node.call(call)
        while world.step(0):
            pass


class Run:
    """*is_calm*: nothing is cut or crashes, and no time passes that is not waited for.  *writes*: to open files.

    *kinds*: only these calls, and for longer: what takes several in a row in one directory.
    *clock_rates*: seconds of a node's clock in one of the owner's, one of these for each node.
    """

    def __init__(
        self,
        seed: int,
        rules: Rules,
        is_calm: bool = False,
        writes: bool = False,
        kinds: tuple[str, ...] = (),
        clock_rates: tuple[float, ...] = CLOCK_RATES,
    ) -> None:
        self._random = random.Random(seed)
        self.world = World(Node, self._random.choice((2, 2, 3)), rules)
        for node in self.world.nodes:
            node.clock_rate = self._random.choice(clock_rates)
        self._few = {self._random.choice(some) for some in (FILES, DIRECTORIES, NAMES)}
        self._kinds = [*self._random.sample(KINDS, 3), "look", self._random.choice(("stat", "read"))]
        if writes:
            self._few |= {FILES[0], NAMES[0]}  # the only file that is found from the beginning
            self._kinds = ["write", "write", *self._random.sample(WRITING, 4), "look", "stat", "read"]
            self.world.is_behind = self._random.random() < 0.3
            open_first(self.world)
        self._writes = writes
        self._steps = STEPS
        if kinds:
            self._kinds, self._steps = list(kinds), 4 * STEPS
        self._trouble = 0.0 if is_calm else self._random.choice((0.0, 0.02, 0.06))

    def _pick(self, some: tuple[bytes, ...]) -> bytes:
        few = [one for one in some if one in self._few]
        return self._random.choice(few if self._random.random() < 0.7 else some)

    def run(self) -> None:
        """Raises Broken."""
        for _ in range(self._steps):
            chance = self._random.random()
            node = self._random.choice(self.world.nodes)
            if chance < 0.15:
                call = a_call(self._random.choice(self._kinds), self._pick)
                writers = [one for one in self.world.nodes if one.behind.open_of(call.handle, 0)]
                (self._random.choice(writers) if call.kind in USING and writers else node).call(call)
            elif chance < 0.16:
                node.evict(self._pick(FILES))
            elif chance < 0.18 and self.world.tasks:
                self._random.choice(self.world.tasks).is_frozen = True
                self.world.write_table()
            elif chance < 0.19:
                self.world.moment += 1
            elif chance < 0.195:
                self.world.thaw()
            elif chance > 1 - self._trouble:
                self._make_trouble(node)
            elif node.is_connected or self._random.random() < 0.9:
                self.world.step(self._random.randrange(1000))
            else:
                node.connect()
        self.world.settle()

    def _make_trouble(self, node: Node) -> None:
        match self._random.randrange(11 if self._writes else 8):
            case 0:
                self.world.crash(node)
            case 1 | 8:
                self.world.restart_owner(is_power_cut=self._writes and self._random.random() < 0.3)
            case 2 | 3:
                self.world.pass_time(self._random.choice((1, 4, 9, 13)))
            case 4:
                node.ping()
            case 9 | 10:
                node.is_stalled = True
                for other in self.world.nodes:
                    other.ping()
                self.world.pass_time(self._random.choice((1, 4, 9, 13)))
            case _:
                node.cut()


def first_broken(
    rules: Rules,
    seeds: Iterable[int],
    kinds: tuple[str, ...] = (),
    writes: bool = False,
    clock_rates: tuple[float, ...] = CLOCK_RATES,
) -> tuple[int, str] | None:
    """The first seed with which the promise is broken, and how.  *kinds*: calm runs of only these calls."""
    for seed in seeds:
        try:
            Run(seed, rules, is_calm=bool(kinds), writes=writes, kinds=kinds, clock_rates=clock_rates).run()
        except (Broken, AssertionError, KeyError, ValueError) as error:
            return seed, f"{type(error).__name__}: {error}"
    return None


def refusals(rules: Rules, seeds: Iterable[int]) -> tuple[int, int]:
    """In calm runs: how often the owner refused a call of a circle, and how often a program was told so."""
    by_owner = told = 0
    for seed in seeds:
        run = Run(seed, rules, is_calm=True)
        run.run()
        by_owner += run.world.refusals
        told += run.world.refused_twice
    return by_owner, told
