"""What it costs a guest to run at a node, in seconds; pure: facts in, terms out.

The work that a guest has done here in its last second would take some other time at another node:

    cpu     its CPU time at that node's speed, times the price of a processor there
    files   its bytes and calls of files on other nodes than that one, at the network's speed
    memory  the price of its memory there, where memory is short

A price is an opportunity cost (Amir, Awerbuch, Barak, Borgstrom, Keren, IEEE TPDS 2000): what the resource costs who
takes it and those who are there, so that processors and memory can be added up.  Memory's is exponential in how much is
used, as theirs.  A processor's is how long it takes until it is one's turn, which is known exactly; their exponential
was 3 to 6 % worse in bench/placement.py.  It is 1 on an idle node.  All is compared within one look, with the guest's
own load taken off the node where it runs and put onto the candidate.

Units: bytes, seconds; speed 1 is the standard processor; `running` are processes that run or want to.
Called by policy.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

OTHERS: Final = 0.5  # what the others there lose counts half: with 1 there are more moves and no less waiting
_STEEPNESS: Final = 1e6  # memory: a price of 1/60 at 70 % used, 1/4 at 90 %, 1 at 100 %, 4 at 110 %


class Amount(NamedTuple):
    """Of files, per second."""

    bytes: float
    calls: float


class Load(NamedTuple):
    """What a node has and what of it is used."""

    cpus: int
    speed: float
    running: float
    memory_total: int
    memory_free: int

    def without(self, running: float, memory: int) -> Load:
        """As it is when somebody has left."""
        free = min(self.memory_total, self.memory_free + memory)
        return self._replace(running=max(0.0, self.running - running), memory_free=free)


class Demand(NamedTuple):
    """What a guest uses where it runs.

    *cpu*: standard seconds of CPU time that it got in a second.  *running*: how many of its threads ran or wanted to.
    *files*: by the node that has them; those of where it runs are among them.
    """

    cpu: float
    running: float
    memory: int
    files: Mapping[int, Amount]


class Costs(NamedTuple):
    """Of this cluster, as measured: by `tune`, or by moves themselves (tuning.py)."""

    bytes_per_s: float = 100e6  # of files of another node
    call_s: float = 0.0002
    move_s: float = 0.35  # of a guest without memory, from the order until it runs there
    memory_bytes_per_s: float = 100e6  # of a guest that moves


class Terms(NamedTuple):
    """Seconds that the work of one second here takes there."""

    cpu: float
    files: float
    memory: float

    @property
    def total(self) -> float:
        return self.cpu + self.files + self.memory


def terms(demand: Demand, node: int, rest: Load, costs: Costs) -> Terms:
    """At *node*, where *rest* is what it has without this guest."""
    return Terms(
        cpu=demand.cpu / max(1.0, demand.running) / rest.speed * processor_price(rest, demand.running),
        files=files_s(demand, node, costs),
        memory=memory_s(rest, demand),
    )


def processor_price(rest: Load, running: float) -> float:
    """How many times longer CPU time takes who comes with so many threads that run, and a part of what others lose."""
    crowd = max(1.0, (rest.running + running) / rest.cpus)
    return crowd + OTHERS * (crowd - 1)


def files_s(demand: Demand, node: int, costs: Costs) -> float:
    """For the files of all other nodes."""
    away = [amount for owner, amount in demand.files.items() if owner != node]
    return sum(one.bytes / costs.bytes_per_s + one.calls * costs.call_s for one in away)


def memory_s(rest: Load, demand: Demand) -> float:
    """What its memory makes everybody wait for, there; who does nothing is not charged for it in time."""
    if not rest.memory_total or not demand.memory:
        return 0.0
    before = rest.memory_total - rest.memory_free
    price = _price((before + demand.memory) / rest.memory_total) - _price(before / rest.memory_total)
    return min(1.0, demand.cpu + demand.running) * price


def _price(used: float) -> float:
    return float(_STEEPNESS ** (used - 1.0))


def moving_s(demand: Demand, costs: Costs) -> float:
    """How long it does not run while it moves."""
    return costs.move_s + demand.memory / costs.memory_bytes_per_s
