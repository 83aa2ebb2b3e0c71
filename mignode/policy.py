"""Which guest of this node should run elsewhere; pure: what is known of nodes and guests in, decisions and reasons out.

Every guest gets a decision, with all its terms (`mosctl why`); at most one of them is to move, for what the others know
is wrong as soon as one has moved.

    what may not be    the lock, the mask, stay, lstay, block, nodes that are down or of which nothing is known: these
                       are never weighed; its home always takes a guest
    what is gained     the seconds that its work would take less there (weighing.py), for as long as it is expected to
                       go on: what has worked for long will work for as long again
    what it costs      that it stands still while its memory goes over
    when it moves      the gain is GAIN_OVER_COST times the cost, and GAIN_LEAST of what its work takes here
    no ping-pong       it has been here for a while, which doubles with each move that nobody has asked for; several
                       nodes that see one idle one take turns, by chance
    a start            of a program that nobody knows yet: as one that computes, where that costs least now.  It must
                       save GAIN_FIRST of that, and, until balancing would look at it, what the move costs
    memory             where a node's free memory runs out that decides alone: who is the least that helps goes to where
                       he is best off among those with room ("memory ushering")

Called by balance.py and strategies.py; firstplace.py has it asked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from mignode.book import Settings
from mignode.guestsettings import allows
from mignode.weighing import Costs, Demand, Load, moving_s, terms

GAIN_OVER_COST: Final = 2.0
GAIN_LEAST: Final = 0.2
GAIN_LEAST_S: Final = 0.05  # per second
GAIN_FIRST: Final = 0.25  # of a program that has only just begun: that mosrun starts it is load, too
RESIDENCE_S: Final = 3.0  # the first look at what it does takes two seconds
RESIDENCE_MAX_S: Final = 600.0
COSTS_OF_MOVING: Final = 2.0  # it stays at least for so many times what a move takes
RESTLESS: Final = 1.4  # and so much longer for each time that it was moved lately; twice is worse in bench/placement.py
LIFE_MAX_S: Final = 3600.0
RESERVE: Final = 1 / 16  # of a node's memory that is to be free
SMOOTHED_OVER_S: Final = 4.0  # a node's load is the average of so long (load.py)
FORGOTTEN_S: Final = 12.0
UNKNOWN: Final = Demand(1.0, 1.0, 16 << 20, {})  # of a program that has only just begun
ALIKE: Final = 1.05  # places that cost so much more are as good, and taken by turns
TOLD_MAX: Final = 8  # options that are told of, the best first


class Node(NamedTuple):
    """*age_s*: of what is known of its load; `is_known`: that is new enough to count."""

    node_id: int
    load: Load
    is_known: bool = True
    stay: bool = False
    lstay: bool = False
    block: bool = False


class Guest(NamedTuple):
    """*worked_s*: how long it has done something.  *here_s*: since it came, was moved, or could not.

    *unrest*: how often it was moved by balancing lately.  *must_stay*: why it can't move, as far as that is known.
    *is_new*: what is known of the load here is without it.
    """

    name: str
    home: int
    demand: Demand
    worked_s: float
    here_s: float
    unrest: float = 0.0
    settings: Settings = Settings()
    must_stay: str = ""
    is_new: bool = False


class Option(msgspec.Struct, frozen=True):
    """Seconds that the work of one second here takes there; *refused*: why it may not go there."""

    node: int
    cpu_s: float = 0.0
    files_s: float = 0.0
    memory_s: float = 0.0
    refused: str = ""

    @property
    def total_s(self) -> float:
        return self.cpu_s + self.files_s + self.memory_s


class Decision(msgspec.Struct, frozen=True):
    """*target* is where it should run: *here*, where it stays.  *reason*: why, in words; *options*: the best first.

    *began*: the one by which it began where it did, where that was for us to decide; that one *is_first*.
    """

    guest: str
    here: int
    target: int
    reason: str
    moving_s: float
    life_s: float
    gain_s: float
    options: tuple[Option, ...] = ()
    judged_as: str = ""  # its class of decay, in words
    is_first: bool = False
    began: Decision | None = None

    @property
    def moves(self) -> bool:
        return self.target != self.here


def told(decision: Decision) -> str:
    """A line of JSON, as /mfs/proc/<pid>/decision has it."""
    return msgspec.json.encode(decision).decode()


def told_with(last: str, began: Decision | None) -> str:
    """The *last* decision, which is told already ("": there is none), and the one by which it began."""
    if began is None:
        return last
    if not last:
        return told(began)
    return told(msgspec.structs.replace(msgspec.json.decode(last, type=Decision), began=began))


class Sent:
    """Who was sent where lately, or has begun: the loads that are known are averages, and old, and do not have him yet.

    Who has begun counts nowhere until it is said where he goes on: what the average has of him by then is taken off.
    As long as one is under way, which may be long on crowded nodes, no average changes: neither fades what it lacks.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._begun: dict[str, _Part] = {}

    def note(self, now_s: float, here: int, to: int, demand: Demand, name: str = "") -> None:
        self._parts += [_Part(name, now_s, to, 1.0, demand), _Part(name, now_s, here, -1.0, demand)]

    def departs(self, now_s: float, name: str) -> None:
        """Who was noted, or goes on elsewhere, is under way until he has `arrived`, or can't go: `forget`."""
        parts = [part._replace(since_s=math.inf, unseen=part.unseen_at(now_s)) for part in self._parts_of(name)]
        self.forget(name)
        self._parts += parts

    def arrived(self, now_s: float, name: str) -> None:
        parts = [part._replace(since_s=min(part.since_s, now_s)) for part in self._parts_of(name)]
        self.forget(name)
        self._parts += parts

    def begins(self, now_s: float, name: str, here: int, demand: Demand) -> None:
        self._begun[name] = _Part(name, now_s, here, 1.0, demand)

    def goes_on(self, now_s: float, name: str, node: int, demand: Demand) -> None:
        """The last word on who has begun; he may be there already."""
        begun = self._begun.get(name)
        self.forget(name)
        if begun is not None and begun.node == node:
            self._parts.append(begun)
            return
        self._parts.append(_Part(name, now_s, node, 1.0, demand))
        if begun is not None:
            self._parts.append(begun._replace(since_s=now_s, unseen=begun.unseen_at(now_s) - 1))

    def forget(self, name: str) -> None:
        """It has ended, or goes on where it began."""
        self._begun.pop(name, None)
        self._parts = [part for part in self._parts if part.name != name]

    def _parts_of(self, name: str) -> list[_Part]:
        return [part for part in self._parts if part.name == name]

    def corrected(self, nodes: Mapping[int, Node], now_s: float) -> dict[int, Node]:
        self._parts = [part for part in self._parts if now_s - part.since_s < FORGOTTEN_S]
        found = dict(nodes)
        shares = [(part, part.unseen_at(now_s)) for part in self._parts]
        shares += [(part, part.unseen_at(now_s) - 1) for part in self._begun.values()]
        for part, share in shares:
            if part.node in found:
                found[part.node] = _with(found[part.node], share, part.demand)
        return found


class _Part(NamedTuple):
    """*unseen*: how much of the *demand* the node's average did not have *since_s*; below 0: still had.

    *since_s* is infinite as long as it neither runs there yet nor has left.
    """

    name: str
    since_s: float
    node: int
    unseen: float
    demand: Demand

    def unseen_at(self, now_s: float) -> float:
        return self.unseen * math.exp(min(0.0, self.since_s - now_s) / SMOOTHED_OVER_S)


def _with(node: Node, share: float, demand: Demand) -> Node:
    load = node.load
    running = max(0.0, load.running + share * demand.running)
    free = min(load.memory_total, max(0, load.memory_free - int(max(0.0, share) * demand.memory)))
    return node._replace(load=load._replace(running=running, memory_free=free))


class Cluster(NamedTuple):
    """As *here* sees it.  *turn*: 0 to 1, by chance, new for each look."""

    here: int
    nodes: Mapping[int, Node]
    costs: Costs = Costs()
    turn: float = 0.0


def decide(cluster: Cluster, guests: Iterable[Guest]) -> list[Decision]:
    """One for each of the *guests*, who all run here; at most one of them moves."""
    weighed = [(guest, _weigh(cluster, guest)) for guest in guests]
    leaver = _usher(cluster, weighed) if is_short_of_memory(cluster.nodes[cluster.here].load) else None
    if leaver is None:
        wish = max((one for _, one in weighed if one.moves), key=_profit, default=None)
        return [_turned(one, wish) for _, one in weighed]
    return [
        leaver if one.guest == leaver.guest else _staying(one, "another one leaves, for memory") for _, one in weighed
    ]


def best_place(cluster: Cluster, guest: Guest) -> Decision:
    """Where its user, who asks for it, gets the most: what it costs, and how long it has been here, do not count."""
    options = _options(cluster, guest)
    best = _best(options)
    reason = "no other node is better" if best.node == cluster.here else "it is best there"
    return _decision(cluster, guest, options, best.node, reason)


def new_guest(name: str, here: int, settings: Settings, demand: Demand = UNKNOWN) -> Guest:
    """As `first_place` has it: it goes on until balancing may look at it."""
    return Guest(name, here, demand, RESIDENCE_S, 0.0, settings=settings, is_new=True)


def first_place(cluster: Cluster, guest: Guest, *, at_any_gain: bool = False) -> Decision:
    """Where a `new_guest` goes on; *at_any_gain*: its user has asked for the best."""
    options = _options(cluster, guest)
    best, here = _best(options), next(option for option in options if option.node == cluster.here)
    alike = [one for one in options if not one.refused and one.total_s <= ALIKE * best.total_s]
    if here in alike:
        reason = _refusal(options) or "no other node is better"
        return _first(_decision(cluster, guest, options, cluster.here, reason))
    target = alike[min(len(alike) - 1, int(cluster.turn * len(alike)))]
    decision = _first(_decision(cluster, guest, options, target.node, "it costs least there"))
    saved = here.total_s - target.total_s
    if not at_any_gain and (saved < GAIN_FIRST * here.total_s or decision.gain_s < decision.moving_s):
        return _staying(decision, "it would gain less than the move costs")
    return decision


def by_price(cluster: Cluster, wanted: Collection[int]) -> list[int]:
    """Those that its user has named, for one that has only just begun: the cheapest first, the unknown at the end."""
    nodes = [(cluster.nodes.get(node), node) for node in wanted]
    known = {number: _price(cluster, node) for node, number in nodes if node is not None and node.is_known}
    return sorted(wanted, key=lambda node: known.get(node, math.inf))


def _price(cluster: Cluster, node: Node) -> float:
    return terms(UNKNOWN, node.node_id, node.load, cluster.costs).total


def refused(decision: Decision, why: str) -> Decision:
    """It could not go."""
    return _staying(decision, f"node {decision.target} was best, but {why}")


def _first(decision: Decision) -> Decision:
    return msgspec.structs.replace(decision, is_first=True)


def is_short_of_memory(load: Load) -> bool:
    return load.memory_free < load.memory_total * RESERVE


def residence_s(guest: Guest, costs: Costs) -> float:
    """So long it stays, at least."""
    least = max(RESIDENCE_S, COSTS_OF_MOVING * moving_s(guest.demand, costs))
    return float(min(RESIDENCE_MAX_S, least * RESTLESS**guest.unrest))


# ---------------------------------------------------------------- what may be


def why_not(cluster: Cluster, guest: Guest, node: Node) -> str:
    """Why balancing may not have it run there; "": it may.  Where it is it may stay."""
    here = cluster.nodes[cluster.here]
    if node.node_id == cluster.here:
        return ""
    if guest.must_stay:
        return guest.must_stay
    if guest.settings.lock:
        return "it is locked"
    if here.stay:
        return "nobody leaves this node (stay)"
    if here.lstay and guest.home == cluster.here:
        return "processes of this node stay at home (lstay)"
    if not node.is_known:
        return "nothing new is known of the node"
    if node.node_id == guest.home:
        return ""
    if node.block:
        return "the node takes no guests (block)"
    return "" if allows(guest.settings, node.node_id) else "its mask (migfilter)"


# ---------------------------------------------------------------- one guest


def _options(cluster: Cluster, guest: Guest) -> list[Option]:
    """All nodes, the cheapest first; who is refused at the end."""
    found = [_option(cluster, guest, node) for node in cluster.nodes.values()]
    return sorted(found, key=lambda option: (bool(option.refused), option.total_s, option.node != cluster.here))


def _option(cluster: Cluster, guest: Guest, node: Node) -> Option:
    if refused := why_not(cluster, guest, node):
        return Option(node.node_id, refused=refused)
    demand, load = guest.demand, node.load
    if node.node_id == cluster.here and not guest.is_new:
        load = load.without(demand.running, demand.memory)
    return Option(node.node_id, *terms(demand, node.node_id, load, cluster.costs))


def _best(options: list[Option]) -> Option:
    return options[0]  # where it is is never refused


def _decision(cluster: Cluster, guest: Guest, options: list[Option], target: int, reason: str) -> Decision:
    life_s = min(LIFE_MAX_S, guest.worked_s)
    costs = {option.node: option.total_s for option in options}
    gain_s = life_s * (costs[cluster.here] - costs[target])
    told = options[:TOLD_MAX]
    told += [option for option in options[TOLD_MAX:] if option.node in (cluster.here, target)]
    return Decision(
        guest.name, cluster.here, target, reason, moving_s(guest.demand, cluster.costs), life_s, gain_s, tuple(told)
    )


def _weigh(cluster: Cluster, guest: Guest) -> Decision:
    """As if it were alone."""
    options = _options(cluster, guest)
    best, here = _best(options), next(option for option in options if option.node == cluster.here)
    moves = _decision(cluster, guest, options, best.node, "it gains more than the move costs")
    saved = here.total_s - best.total_s
    if best is here:
        return _staying(moves, _refusal(options) or "no other node is better")
    if saved < max(GAIN_LEAST_S, GAIN_LEAST * here.total_s) or moves.gain_s < GAIN_OVER_COST * moves.moving_s:
        return _staying(moves, "it would gain less than the move costs")
    if guest.here_s < residence_s(guest, cluster.costs):
        return _staying(moves, f"it has been here for less than {residence_s(guest, cluster.costs):.0f} s")
    if here.cpu_s - best.cpu_s > here.files_s - best.files_s and cluster.turn >= _share(cluster, best.node):
        return _staying(moves, "it is another node's turn")
    return moves


def _refusal(options: list[Option]) -> str:
    """If it is the same everywhere else."""
    said = {option.refused for option in options[1:]}
    return said.pop() if len(said) == 1 else ""


def _share(cluster: Cluster, target: int) -> float:
    """How likely this node should be to send somebody there now, with others who want to, so that one does."""
    crowd, there = _crowd(cluster.nodes[cluster.here]), _crowd(cluster.nodes[target])
    known = [_crowd(node) for node in cluster.nodes.values() if node.is_known]
    senders = sum(other >= crowd for other in known)
    takers = sum(other <= there for other in known)
    return takers / max(1, senders)


def _crowd(node: Node) -> float:
    return node.load.running / node.load.cpus / node.load.speed


def _profit(decision: Decision) -> float:
    return decision.gain_s - decision.moving_s


def _turned(decision: Decision, wish: Decision | None) -> Decision:
    if not decision.moves or decision is wish:
        return decision
    return _staying(decision, "another one goes first")


def _staying(decision: Decision, reason: str) -> Decision:
    return msgspec.structs.replace(decision, target=decision.here, reason=reason)


# ---------------------------------------------------------------- memory


def _usher(cluster: Cluster, weighed: list[tuple[Guest, Decision]]) -> Decision | None:
    """Who is to leave: the least whose memory is enough, else the largest; None: nobody can."""
    here = cluster.nodes[cluster.here].load
    needed = here.memory_total * RESERVE - here.memory_free
    ways = [(guest, way) for guest, _ in weighed if (way := _way_out(cluster, guest)) is not None]
    if not ways:
        return None
    enough = [pair for pair in ways if pair[0].demand.memory >= needed]
    if enough:
        return min(enough, key=lambda pair: pair[0].demand.memory)[1]
    return max(ways, key=lambda pair: pair[0].demand.memory)[1]


def _way_out(cluster: Cluster, guest: Guest) -> Decision | None:
    """To where it is best off among the nodes with room for it."""
    if not guest.demand.memory or guest.here_s < RESIDENCE_S:
        return None
    options = _options(cluster, guest)
    for option in options:
        if option.node != cluster.here and not option.refused and _has_room(cluster.nodes[option.node], guest):
            return _decision(cluster, guest, options, option.node, "this node's memory runs out")
    return None


def _has_room(node: Node, guest: Guest) -> bool:
    """And stays well above where it would send somebody away itself."""
    return node.load.memory_free - guest.demand.memory >= 2 * RESERVE * node.load.memory_total
