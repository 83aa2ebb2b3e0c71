"""Where the jobs of a simulation run: nobody moves, by chance, in turn, the least loaded, the best price, and as we do.

All but Balancing place a job once.  `best_assignment` finds out by trying what nobody could know: the best of all
placements.  Pure.  Called by simulate.py, tests and bench/placement.py.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from mignode.book import Settings
from mignode.policy import (
    UNKNOWN,
    Cluster,
    Decision,
    Guest,
    Node,
    Sent,
    decide,
    first_place,
    new_guest,
)
from mignode.simulation import Job, Machine, Simulation, Work, mean_slowdown
from mignode.weighing import Amount, Costs, Demand, Load, terms

PLACEMENTS_MAX: Final = 5_000  # of ten jobs each: some seconds
_CALM_S: Final = 600.0


class AtHome:
    """Each runs where it was started."""

    def place(self, cluster: Simulation, work: Work) -> int:
        return work.home

    def look(self, cluster: Simulation) -> list[tuple[Job, int]]:
        return []


class ByChance(AtHome):
    def place(self, cluster: Simulation, work: Work) -> int:
        return cluster.random.choice(list(cluster.machines))


class InTurn(AtHome):
    """Round robin, as PVM."""

    def __init__(self) -> None:
        self._last = -1

    def place(self, cluster: Simulation, work: Work) -> int:
        self._last = (self._last + 1) % len(cluster.machines)
        return list(cluster.machines)[self._last]


class LeastLoaded(AtHome):
    """Once, where the fewest want each processor's time, by its speed; at home where no node is better."""

    def place(self, cluster: Simulation, work: Work) -> int:
        return min(cluster.machines, key=lambda node: (_crowd(load_of(cluster, node, work.home)), node != work.home))


def _crowd(load: Load) -> float:
    """With one more."""
    return (load.running + 1) / load.cpus / load.speed


class BestPrice(AtHome):
    """Once, by policy.first_place: what the job will do is not known at the start."""

    def __init__(self) -> None:
        self._sent: dict[int, Sent] = defaultdict(Sent)

    def place(self, cluster: Simulation, work: Work) -> int:
        sent = self._sent[work.home]
        nodes = sent.corrected(seen_from(cluster, work.home), cluster.now_s)
        view = Cluster(work.home, nodes, cluster.costs, cluster.random.random())
        target = work.home
        if not work.begins_at_home:
            target = first_place(view, new_guest(work.name, work.home, _settings(work))).target
        sent.goes_on(cluster.now_s, work.name, target, UNKNOWN)
        return target


class AllKnowing(AtHome):
    """Once, by what it will cost of processors, memory and files, which nobody can know; loads as they are now."""

    def place(self, cluster: Simulation, work: Work) -> int:
        demand = _whole_demand(work)
        return min(cluster.machines, key=lambda node: terms(demand, node, load_of(cluster, node), cluster.costs).total)


class Assigned(AtHome):
    """As somebody says who knows all."""

    def __init__(self, nodes: dict[str, int]) -> None:
        self._nodes = nodes

    def place(self, cluster: Simulation, work: Work) -> int:
        return self._nodes[work.name]


class Balancing(AtHome):
    """policy.decide, on each node for its own.  *first*: where they begin.  *decisions*: the last of each."""

    def __init__(self, first: AtHome) -> None:
        self.place = first.place  # type: ignore[method-assign]
        self.decisions: dict[str, Decision] = {}
        self._sent: dict[int, Sent] = defaultdict(Sent)

    def look(self, cluster: Simulation) -> list[tuple[Job, int]]:
        found = []
        for node in cluster.machines:
            jobs = {job.work.name: job for job in cluster.on(node) if job.arrives_s <= cluster.now_s}
            if not jobs:
                continue
            nodes = self._sent[node].corrected(seen_from(cluster, node), cluster.now_s)
            view = Cluster(node, nodes, cluster.costs, cluster.random.random())
            for decision in decide(view, guests := [_guest(cluster, job) for job in jobs.values()]):
                self.decisions[decision.guest] = decision
                if decision.moves:
                    demand = next(guest.demand for guest in guests if guest.name == decision.guest)
                    self._sent[node].note(cluster.now_s, node, decision.target, demand)
                    job = jobs[decision.guest]
                    job.unrest = _unrest(cluster, job) + 1
                    found.append((job, decision.target))
        return found


def _unrest(cluster: Simulation, job: Job) -> float:
    return float(job.unrest * 0.5 ** ((cluster.now_s - job.here_since_s) / _CALM_S))


def load_of(cluster: Simulation, node: int, observer: int = 0) -> Load:
    machine, usage = cluster.machines[node], cluster.known(observer or node, node)
    free = max(0, machine.memory - usage.memory)
    return Load(machine.cpus, machine.speed, usage.running, machine.memory, free)


def seen_from(cluster: Simulation, observer: int) -> dict[int, Node]:
    """What the policy there is told of all nodes."""
    return {
        node: Node(node, load_of(cluster, node, observer), True, machine.stay, machine.lstay, machine.block)
        for node, machine in cluster.machines.items()
    }


def _whole_demand(work: Work) -> Demand:
    """As if all of it was done in a second."""
    files = {node: Amount(amount, calls) for node, amount, calls in work.files}
    return Demand(work.cpu_s, 1.0, work.memory, files)


def _guest(cluster: Simulation, job: Job) -> Guest:
    """As the node where it runs would measure it."""
    work, share = job.work, cluster.share(job)
    files = {node: Amount(amount * job.pace, calls * job.pace) for node, amount, calls in work.files}
    return Guest(
        work.name,
        work.home,
        Demand(work.cpu_s * job.pace, share, work.memory, files),
        job.worked_s,
        cluster.now_s - job.here_since_s,
        _unrest(cluster, job),
        _settings(work),
    )


def _settings(work: Work) -> Settings:
    mask = sum(1 << (node - 1) for node in work.mask or ())
    return Settings(lock=work.locked, migfilter=work.mask is not None, migpolicy=True, mignodes=mask)


def best_assignment(works: Sequence[Work], machines: Sequence[Machine], costs: Costs) -> tuple[float, dict[str, int]]:
    """The least mean slowdown of all placements without moves, by trying them; ValueError where they are too many."""
    nodes, names = [machine.node_id for machine in machines], [work.name for work in works]
    if len(nodes) ** len(names) > PLACEMENTS_MAX:
        raise ValueError(f"{len(nodes)} nodes and {len(names)} jobs have more than {PLACEMENTS_MAX} placements")
    best: tuple[float, dict[str, int]] = (math.inf, {})
    for chosen in itertools.product(nodes, repeat=len(names)):
        placed = dict(zip(names, chosen, strict=True))
        jobs = Simulation(machines, costs, Assigned(placed), is_watched=False).run(works)
        best = min(best, (mean_slowdown(jobs, machines, costs), placed), key=lambda one: one[0])
    return best


STRATEGIES: Final[dict[str, Callable[[], AtHome]]] = {
    "nobody moves": AtHome,
    "by chance": ByChance,
    "in turn": InTurn,
    "least loaded": LeastLoaded,
    "best price": BestPrice,
    "all-knowing price": AllKnowing,
    "at home, balancing": lambda: Balancing(AtHome()),
    "in turn, balancing": lambda: Balancing(InTurn()),
    "best price, balancing": lambda: Balancing(BestPrice()),
    "all-knowing price, balancing": lambda: Balancing(AllKnowing()),
}
