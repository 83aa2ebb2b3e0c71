"""A cluster in which jobs come, run, read files and are moved, event by event; pure, and the same for the same seed.

It is what `mosctl simulate` runs, and what the tests and bench/placement.py measure strategies with (strategies.py).

Between two events every job goes on at a constant pace.  The processors of a node are shared among those who compute; a
node whose memory does not hold all jobs is THRASHING times slower; who reads files of another node waits for the
network.  A job that moves stands still as long as its memory takes.  Every second the strategy is asked; what it knows
of other nodes is as old as gossip would have it.

Units: seconds, bytes; speed 1 is the standard processor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from mignode.policy import SMOOTHED_OVER_S
from mignode.weighing import Costs

LOOK_S: Final = 1.0
AGES_S: Final = (1, 1, 2, 3)  # of what a node knows of another, by chance: gossip tells one node a second
THRASHING: Final = 10.0  # a node that swaps is that many times slower
_SHORT_S: Final = 1e-9


class Machine(NamedTuple):
    """A node as it was bought.  *stay*, *lstay*, *block*: as the administrator has set them."""

    node_id: int
    cpus: int = 1
    speed: float = 1.0
    memory: int = 4 << 30
    stay: bool = False
    lstay: bool = False
    block: bool = False


class Work(NamedTuple):
    """A job as it comes: so many standard seconds of CPU time, and files to be read meanwhile, in all."""

    name: str
    begins_s: float
    home: int
    cpu_s: float
    memory: int = 0
    files: tuple[tuple[int, float, float], ...] = ()
    """(node, bytes, calls)"""
    locked: bool = False
    mask: frozenset[int] | None = None
    """Where it may run; None: anywhere."""
    begins_at_home: bool = False
    """Its user has said so."""


@dataclass
class Job:
    """One that is there.  *began*: at which node; *done*: which part of its work is."""

    work: Work
    node: int
    began: int
    done: float = 0.0
    pace: float = 0.0  # parts per second
    arrives_s: float = 0.0  # it is on its way until then
    here_since_s: float = 0.0
    worked_s: float = 0.0
    unrest: float = 0.0
    ended_s: float = math.inf
    moves: list[tuple[float, int]] = field(default_factory=list)


class Strategy(Protocol):
    """*place*: where a new job begins.  *look*: who moves where now, in one second."""

    def place(self, cluster: Simulation, work: Work) -> int: ...

    def look(self, cluster: Simulation) -> list[tuple[Job, int]]: ...


def remote_s(work: Work, node: int, costs: Costs) -> float:
    """What it waits for the network in all, if it runs there."""
    away = [(amount, calls) for owner, amount, calls in work.files if owner != node]
    return sum(amount / costs.bytes_per_s + calls * costs.call_s for amount, calls in away)


class Usage(NamedTuple):
    """Of a node: *running*, by how much its jobs want to compute, and the memory that they take."""

    running: float
    memory: int


class Simulation:
    """One run.  *is_watched*: the strategy is asked every second, and nodes tell of each other."""

    def __init__(
        self, machines: Sequence[Machine], costs: Costs, strategy: Strategy, seed: int = 0, is_watched: bool = True
    ) -> None:
        self.machines = {machine.node_id: machine for machine in machines}
        self.costs = costs
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.jobs: list[Job] = []
        self.ended: list[Job] = []
        self._strategy = strategy
        self._is_watched = is_watched
        self._past: list[dict[int, Usage]] = []
        self._usages: dict[int, Usage] = {}  # as it is now, unless something has changed

    # ------------------------------------------------------------ what a strategy may know

    def on(self, node: int) -> list[Job]:
        """Who runs there, or is on the way."""
        return [job for job in self.jobs if job.node == node]

    def usage(self, node: int) -> Usage:
        """As it is now."""
        if not self._usages:
            running, memory = dict.fromkeys(self.machines, 0.0), dict.fromkeys(self.machines, 0)
            for job in self.jobs:
                running[job.node] += self.share(job)
                memory[job.node] += job.work.memory
            self._usages = {each: Usage(running[each], memory[each]) for each in self.machines}
        return self._usages[node]

    def known(self, observer: int, node: int) -> Usage:
        """What *observer* has heard of *node*: its load is an average, as nodes tell it; its memory is not."""
        if not self._past:
            return self.usage(node)
        age = 1 if observer == node else self.random.choice(AGES_S)
        return self._past[max(-len(self._past), -age)][node]

    def share(self, job: Job) -> float:
        """Of its time that it computes or wants to, where it is: what it adds to a node's load."""
        cpu_s, files_s = self._alone_s(job)
        return cpu_s / (cpu_s + files_s)

    def crowd(self, node: int) -> float:
        """How many times longer computing takes there than alone."""
        usage, machine = self.usage(node), self.machines[node]
        thrashing = THRASHING if usage.memory > machine.memory else 1.0
        return max(1.0, usage.running / machine.cpus) * thrashing

    def _alone_s(self, job: Job) -> tuple[float, float]:
        """What all its work takes: computing, and waiting for files."""
        return job.work.cpu_s / self.machines[job.node].speed, remote_s(job.work, job.node, self.costs)

    # ------------------------------------------------------------ the run

    def run(self, works: Sequence[Work], until_s: float = math.inf) -> list[Job]:
        """All of them, to their end or until then; those that have ended, and those that have not."""
        to_come = sorted(works, key=lambda work: work.begins_s, reverse=True)
        look_s = 0.0 if self._is_watched else math.inf
        while (to_come or self.jobs) and self.now_s < until_s:
            self._set_paces()
            next_s = min(look_s, self._next_end_s(), to_come[-1].begins_s if to_come else math.inf, until_s)
            self._go_on(max(next_s, self.now_s))
            while to_come and to_come[-1].begins_s <= self.now_s:
                self._begin(to_come.pop())
            if self.now_s >= look_s:
                look_s = self.now_s + LOOK_S
                if not self.jobs and to_come:
                    look_s = max(look_s, to_come[-1].begins_s)
                self._look()
        return self.ended + self.jobs

    def _begin(self, work: Work) -> None:
        """At home, but goes where the strategy says, after as long as that takes; it has no memory yet."""
        node = self._strategy.place(self, work)
        arrives_s = self.now_s + (2 * self.costs.move_s if node != work.home else 0.0)
        self.jobs.append(Job(work, node, node, arrives_s=arrives_s, here_since_s=arrives_s))
        self._usages = {}

    def _set_paces(self) -> None:
        crowds = {node: self.crowd(node) for node in self.machines}
        for job in self.jobs:
            cpu_s, files_s = self._alone_s(job)
            is_here = job.arrives_s <= self.now_s
            job.pace = 1 / (cpu_s * crowds[job.node] + files_s) if is_here else 0.0

    def _next_end_s(self) -> float:
        """The next moment at which a job's pace changes by itself."""
        moments = [self.now_s + (1 - job.done) / job.pace for job in self.jobs if job.pace]
        return min([*moments, *(job.arrives_s for job in self.jobs if job.arrives_s > self.now_s)], default=math.inf)

    def _go_on(self, to_s: float) -> None:
        passed_s, self.now_s = to_s - self.now_s, to_s
        for job in self.jobs:
            job.done += job.pace * passed_s
            job.worked_s += passed_s if job.pace else 0.0
        for job in [job for job in self.jobs if job.done >= 1 - _SHORT_S]:
            job.done, job.ended_s = 1.0, self.now_s
            self.jobs.remove(job)
            self.ended.append(job)
            self._usages = {}

    def _look(self) -> None:
        for job, node in self._strategy.look(self):
            self.move(job, node)
        seen = {node: self.usage(node) for node in self.machines}
        if self._past:
            seen = {node: _smoothed(self._past[-1][node], usage) for node, usage in seen.items()}
        self._past.append(seen)
        del self._past[: -max(AGES_S)]

    def move(self, job: Job, node: int) -> None:
        """To another node.  It stands still meanwhile, and counts as being there."""
        job.node = node
        self._usages = {}
        job.arrives_s = self.now_s + self.costs.move_s + job.work.memory / self.costs.memory_bytes_per_s
        job.here_since_s = job.arrives_s
        job.moves.append((self.now_s, node))


def _smoothed(before: Usage, now: Usage) -> Usage:
    part = 1 - math.exp(-LOOK_S / SMOOTHED_OVER_S)
    return now._replace(running=before.running + part * (now.running - before.running))


def alone_s(work: Work, machines: Sequence[Machine], costs: Costs) -> float:
    """What it would take with nobody else there, on the node that is best for it."""
    return min(work.cpu_s / machine.speed + remote_s(work, machine.node_id, costs) for machine in machines)


def mean_slowdown(jobs: Sequence[Job], machines: Sequence[Machine], costs: Costs) -> float:
    """How many times longer they took than alone; of those that have ended."""
    over = [(job.ended_s - job.work.begins_s) / alone_s(job.work, machines, costs) for job in jobs if job.done >= 1]
    return sum(over) / len(over) if over else math.nan
