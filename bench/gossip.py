"""Gossip among thousands of simulated nodes: how old is what they know, what does it cost, when is a dead node noticed.

The boards are the daemon's own (mignode/gossip.py) and so are the sizes (gossipwords.py, with a certificate beside the
message); what is simulated is the clock and the network, which loses datagrams and has no delay.  Seconds are
simulated ones.  All begin knowing nothing, and ages are looked at in the last quarter of a run.  What a node has heard
of the last hundred seconds depends on those alone, so ages below a hundred are right once a run is that long; what was
never heard is older.  `python -m bench.gossip` makes the table of docs/PERFORMANCE.md; 5000 nodes take 9 GB, and for
each loss three quarters of an hour of a processor that does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import sys
from dataclasses import dataclass, field
from typing import Final

from mignode.gossip import PERIOD_S, Board, Message
from mignode.gossipwords import DATAGRAM_MAX_BYTES, encode
from mignode.nodeinfo import NodeInfo

OVERHEAD_BYTES: Final = 5 + 440 + 64  # of a sealed datagram: head, certificate, signature
HEADERS_BYTES: Final = 28  # IPv4 and UDP
LOOKED_AT: Final = 20  # nodes whose knowledge is measured, every so often
LOOKED_EVERY_S: Final = 5
TOLD: Final = 20  # times in a run
SIZED_EVERY: Final = 97  # datagrams are encoded to learn their size
INFO: Final = NodeInfo(
    node=1, incarnation=1_790_000_000, seq=1, load=345, speed=22500, cpus=16, mem_free=60 << 30, mem_raw_free=9 << 30,
    mem_total=64 << 30, util=97, version="0.1.0",
)  # fmt: skip


@dataclass
class Found:
    """Of one run; the times are in seconds.  *ages*: inf of what was never heard.

    *false_alarms*: of the living that were looked at, how many counted as down.  *noticed*: for each living node that
    knew of the dead one, when it counted as down there; *unnoticed*: for how many it never did.
    """

    ages: list[float] = field(default_factory=list)
    false_alarms: int = 0
    datagrams: float = 0.0  # per node and second
    bytes_each: float = 0.0  # with all headers
    noticed: list[float] = field(default_factory=list)
    unnoticed: int = 0

    def age(self, part: float) -> float:
        return _part(self.ages, part)


class Cluster:
    """Nodes 1 to *nodes*, in periods that begin at different moments."""

    def __init__(self, nodes: int, loss: float, chance: random.Random) -> None:
        self._chance = chance
        self._loss = loss
        everybody = range(1, nodes + 1)
        self.boards = {node: Board(node, 1, everybody, random.Random(chance.random())) for node in everybody}
        self._begins = sorted((chance.random() * PERIOD_S, node) for node in everybody)
        self.dead: set[int] = set()
        self.sent = 0
        self.sized: list[int] = []
        self.now_s = 0.0

    def run_period(self) -> None:
        began_s = self.now_s
        for after_s, node in self._begins:
            if node not in self.dead:
                self.now_s = began_s + after_s
                for message in self.boards[node].tick(INFO, self.now_s):
                    self._carry(message)
        self.now_s = began_s + PERIOD_S

    def _carry(self, message: Message) -> None:
        self.sent += 1
        if self.sent % SIZED_EVERY == 0:
            room = DATAGRAM_MAX_BYTES - OVERHEAD_BYTES
            self.sized.append(len(encode(message, room)) + OVERHEAD_BYTES + HEADERS_BYTES)
        if message.to in self.dead or self._chance.random() < self._loss:
            return
        _, answer = self.boards[message.to].receive(message, self.now_s)
        if answer is not None:
            self._carry(answer)

    def living(self) -> list[int]:
        return [node for node in self.boards if node not in self.dead]

    def look(self) -> tuple[list[float], int]:
        """The ages of what some know of all others, and how many of those count as down; all live."""
        ages, downs = [], 0
        for node in self._chance.sample(list(self.boards), min(LOOKED_AT, len(self.boards))):
            known = list(self.boards[node].known(self.now_s))
            downs += sum(not info.is_up for info in known)
            ages += [info.age_s for info in known] + [math.inf] * (len(self.boards) - 1 - len(known))
        return ages, downs


def simulate(nodes: int, loss: float, seconds: int, wait_noticed_s: int, seed: int = 1) -> Found:
    """So many seconds, of which the last quarter is looked at; then a node dies, and it is seen who notices."""
    chance = random.Random(seed)
    cluster, found = Cluster(nodes, loss, chance), Found()
    for second in range(1, seconds + 1):
        cluster.run_period()
        if second > seconds * 3 // 4 and second % LOOKED_EVERY_S == 0:
            ages, downs = cluster.look()
            found.ages += ages
            found.false_alarms += downs
        if second % max(1, seconds // TOLD) == 0:
            _tell(nodes, loss, second, cluster.look()[0])
    found.datagrams = cluster.sent / nodes / seconds
    found.bytes_each = sum(cluster.sized) / len(cluster.sized) if cluster.sized else 0.0
    _kill_one(cluster, found, wait_noticed_s)
    found.ages.sort()
    return found


def _kill_one(cluster: Cluster, found: Found, wait_s: int) -> None:
    victim = len(cluster.boards)
    cluster.dead.add(victim)
    died_s = cluster.now_s
    waiting = set(cluster.living())
    while waiting and cluster.now_s - died_s < wait_s:
        cluster.run_period()
        for node in list(waiting):
            info = cluster.boards[node].of(victim, cluster.now_s)
            if info is None:
                waiting.remove(node)
            elif not info.is_up:
                waiting.remove(node)
                found.noticed.append(cluster.now_s - died_s)
    found.unnoticed = len(waiting)
    found.noticed.sort()


def _tell(nodes: int, loss: float, second: int, ages: list[float]) -> None:
    """How it goes on, to standard error."""
    ages.sort()
    shown = _ages(ages)
    print(f"{nodes} nodes, {loss:.0%} lost, after {second} s: {shown}", file=sys.stderr, flush=True)


def _part(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def _ages(ordered: list[float]) -> str:
    ages = (_part(ordered, part) for part in (0.5, 0.9, 0.99))
    return ", ".join("-" if math.isinf(age) else f"{age:.1f}" for age in ages)


HEAD: Final = """\
| nodes | lost | age: half, 90 %, 99 % below | datagrams/s | bytes/s | false alarms | dead noticed: half, all |
| ---: | ---: | --- | ---: | ---: | ---: | --- |"""


def row(nodes: int, loss: float, found: Found) -> str:
    alarms = found.false_alarms / max(1, len(found.ages))
    when = f"{_part(found.noticed, 0.5):.0f} s, {_part(found.noticed, 1.0):.0f} s"
    missed = f" (but {found.unnoticed})" if found.unnoticed else ""
    return (
        f"| {nodes} | {loss:.0%} | {_ages(found.ages)} s | {found.datagrams:.2f} | "
        f"{found.datagrams * found.bytes_each:.0f} | {alarms:.4%} | {when}{missed} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gossip", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 20, 200, 1000, 5000], metavar="N")
    parser.add_argument("--loss", type=float, nargs="+", default=[0.0, 0.1, 0.3], metavar="PART")
    parser.add_argument("--seconds", type=int, default=0, help="how long, simulated (default: by the size)")
    arguments = parser.parse_args()
    gc.disable()  # nothing here is in a circle, and looking through 25 million records takes most of the time
    print(HEAD, flush=True)
    for nodes in arguments.nodes:
        for loss in arguments.loss:
            seconds = arguments.seconds or 100 + int(nodes * (0.25 + loss / 2))  # until 99 % have settled
            print(row(nodes, loss, simulate(nodes, loss, seconds, wait_noticed_s=120)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
