"""Who belongs to the cluster, by what the nodes say of themselves: the rules of omdiscd.

Each node says that it is here, again and again, and what others have said it keeps and passes on as it was signed; so
all come to know the same of everybody, also of who is silent at the moment.  Of a node the later statement holds, by
its serial; a node that hears something later of itself that is not so says again how it is, with a higher one.

    silent   is not gone: it stays in the map (mignode says that it is down), until it has been silent for a day
    left     said by itself when it ends, or by another one for who is silent; it counts 15 s later, so that a restart
             of omdiscd closes nobody's files
    twice    while somebody is heard who says he is node N, nobody else becomes it; of two that have both been accepted
             (the network was cut in two) the one that has not been there for long gives up, else the higher address
    address  that two nodes say they have: the later statement holds, and the other node is out of the map

The map follows from the statements alone, so nodes that know the same make the same map, and its digest is in what
they say: who hears another digest passes on what it knows.  Pure: no socket, no clock.  Called by discoveryport.py.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from mignode.discoverywords import SERIAL_MAX, VERSION, Kind, Said
from omfs.net.nodemap import digest_of

PERIOD_S: Final = 5.0
PER_NODE_S: Final = 0.1  # so that a node hears ten statements a second at most, however many nodes there are
SILENT_PERIODS: Final = 4
PROBES: Final = 3
PROBE_EVERY_S: Final = 1.0
LEAVE_GRACE_S: Final = 15.0
SETTLED_AFTER_S: Final = 60.0
CALM_S: Final = 1.0  # a map is made when nothing has changed for so long, so that ten that come make one map
CALM_MAX_S: Final = 5.0
ANSWER_WITHIN_S: Final = 1.0  # by chance, so that not all answer at the same moment
UNLIKE_FOR_S: Final = 3.0  # digests differ for a moment whenever somebody comes
PASSED_ON_MAX: Final = 64  # statements at a time
TELLERS: Final = 3  # so many nodes a second tell one that knows something else
KNOWN_MAX: Final = 4096
OUTBID_EVERY_S: Final = 60.0

_NOW: Final = float("-inf")
_NEVER: Final = float("inf")

Clock: TypeAlias = float
Nodes: TypeAlias = dict[int, tuple[str, ...]]


class Verdict(enum.Enum):
    """What became of a statement."""

    NEWS = "news"
    KNOWN = "known"
    OLD = "old"
    ASKED = "asked"
    OWN = "own"
    STRANGER = "stranger"
    REFUSED = "refused"
    RIVAL = "rival"
    TAKEN = "taken"
    CROWD = "crowd"


class Outgoing(NamedTuple):
    """*what*: a statement of ours, or a sealed one of another.  *to*: an address; "" = all."""

    what: Said | bytes
    to: str = ""


@dataclass(slots=True)
class _Known:
    """Of another.  *datagram*: as it was sealed.  *before*: where it was when it left, which counts until *until_s*."""

    said: Said
    datagram: bytes
    heard_s: Clock  # from itself, or news of it
    source: str = ""
    before: tuple[str, ...] = ()
    until_s: Clock = 0.0
    is_unlike: bool = False


class Roll:
    """What this node knows of all.  All *now* are of one monotonic clock."""

    def __init__(
        self, node: int, addresses: tuple[str, ...], serial: int, now: Clock, *, word: str = "",
        refused: Collection[int] = (), forget_after_s: float = 86400.0, chance: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.node = node
        self.addresses = addresses
        self.serial = serial
        self.taken_by = ""  # the address of the node that has our id
        self._word = word
        self._refused = frozenset(refused)
        self._forget_after_s = forget_after_s
        self._chance = chance or random.Random()
        self._known: dict[int, _Known] = {}
        self._probes = 0
        self._claimed_s: Clock | None = None
        self._next_s = now
        self._replies: dict[tuple[int, str], Clock] = {}  # about whom, to whom: when
        self._outbid_s = now - OUTBID_EVERY_S
        self._tick_s = now
        self._made: Nodes = {}
        self._digest = b""
        self._changed_s = self._first_change_s = now
        self._published: Nodes = {}
        self._look_at_s = _NOW  # when there may be another map: making one of thousands of nodes takes milliseconds

    # ------------------------------------------------------------ what is known

    @property
    def is_here(self) -> bool:
        """Whether nobody has contradicted, so that we are that node."""
        return self._claimed_s is not None

    @property
    def period_s(self) -> float:
        return max(PERIOD_S, PER_NODE_S * (1 + len(self._known)))

    def recall(self, said: Said, datagram: bytes, now: Clock) -> None:
        """What was known when this node was here last."""
        if said.node == self.node:
            self.serial = max(self.serial, said.serial + 1)
        elif self._is_ours(said) and said.kind is not Kind.ASK:
            self._known[said.node] = _Known(said, datagram, now)
            self._look_at_s = _NOW

    def kept(self) -> list[bytes]:
        """What to know the next time."""
        return [known.datagram for known in self._known.values()]

    def silent(self, now: Clock) -> list[int]:
        """Members that have not been heard for a while."""
        members = self._members(now)
        return [node for node in sorted(members) if node in self._known and not self._is_heard(self._known[node], now)]

    def conflicts(self, now: Clock) -> list[str]:
        """Who is not in the map because another one says it has its address; for people."""
        members = self._members(now)
        lost = [(node, addresses[0]) for node, (_, addresses) in self._claims(now).items() if node not in members]
        return [f"node {node} says it has {address}, and another node said so later" for node, address in lost]

    def fresh_map(self, now: Clock) -> Nodes | None:
        """The nodes to put in force, once for each change, when things have calmed down."""
        self._look(now)
        is_calm = now - self._changed_s >= CALM_S or now - self._first_change_s >= CALM_MAX_S
        if not self.is_here or not is_calm or self._made == self._published:
            return None
        self._published = self._made
        return self._made

    def _look(self, now: Clock) -> None:
        if now < self._look_at_s:
            return
        ends = (known.until_s for known in self._known.values() if known.until_s > now)
        self._look_at_s = min(ends, default=_NEVER)
        made = self._members(now)
        if made != self._made or not self._digest:
            if self._made == self._published:
                self._first_change_s = now
            self._made, self._digest, self._changed_s = made, digest_of(made), now
            self._next_s = min(self._next_s, now + self._chance.uniform(0.0, self._spread_s()))

    def _members(self, now: Clock) -> Nodes:
        """By id.  Who claimed an address later has it; of two at once, the lower id."""
        members: Nodes = {}
        taken: set[str] = set()
        claims = self._claims(now)
        for node in sorted(claims, key=lambda one: (-claims[one][0], one)):
            addresses = claims[node][1]
            if addresses[0] not in taken:
                members[node] = tuple(one for one in addresses if one not in taken)
                taken |= set(addresses)
        return dict(sorted(members.items()))

    def _claims(self, now: Clock) -> dict[int, tuple[int, tuple[str, ...]]]:
        claims = {self.node: (self.serial, self.addresses)} if self.is_here else {}
        for node, known in self._known.items():
            if known.said.kind is Kind.HERE:
                claims[node] = (known.said.serial, known.said.addresses)
            elif now < known.until_s:
                claims[node] = (known.said.serial, known.before)
        return claims

    def _is_heard(self, known: _Known, now: Clock) -> bool:
        return now - known.heard_s <= SILENT_PERIODS * self.period_s

    def _is_ours(self, said: Said) -> bool:
        return said.word == self._word and not {said.node, said.sender} & self._refused

    # ------------------------------------------------------------ hearing

    def take(self, said: Said, datagram: bytes, source: str, now: Clock) -> tuple[Verdict, list[Outgoing]]:
        """*source*: the address that it came from, which is not its sender's where it was passed on."""
        if self.taken_by:
            return Verdict.TAKEN, []
        if said.word != self._word:
            return Verdict.STRANGER, []
        if not self._is_ours(said):
            return Verdict.REFUSED, []
        if said.node == self.node:
            return self._of_ourselves(said, source, now)
        if said.kind is Kind.ASK:
            if self.is_here:
                self._reply_soon(self.node, source, now)
            return Verdict.ASKED, []
        return self._of_another(said, datagram, source, now), []

    def _of_ourselves(self, said: Said, source: str, now: Clock) -> tuple[Verdict, list[Outgoing]]:
        is_another = source in said.addresses and source not in self.addresses
        is_before = said.serial < self.serial or (said.serial == self.serial and said.addresses == self.addresses)
        if is_another and not is_before and self._gives_up(said):
            self.taken_by = source
            return Verdict.TAKEN, self.leave(now) if self.is_here else []
        if not is_before:
            self._outbid(said.serial)
        if said.kind is Kind.ASK:
            if is_another and self.is_here:
                self._reply_soon(self.node, source, now)
            return Verdict.ASKED, []
        verdict = Verdict.RIVAL if is_another and self.is_here else Verdict.OWN
        return verdict, [] if is_before or not self.is_here else self._announce(now)

    def _gives_up(self, said: Said) -> bool:
        """To another machine that says it is our node: who has been it for long stays, and of two the lower address.

        It says so with a serial that is later than ours, as an answer: else it may be what was said long ago, by us.
        """
        if not self.is_here:
            return said.kind is Kind.HERE or _number(said.addresses[0]) < _number(self.addresses[0])
        if said.kind is Kind.ASK:
            return False
        return (not said.settled, _number(said.addresses[0])) < (not self._is_settled, _number(self.addresses[0]))

    def _of_another(self, said: Said, datagram: bytes, source: str, now: Clock) -> Verdict:
        known = self._known.get(said.node)
        is_itself = said.kind is Kind.HERE and source in said.addresses
        verdict = Verdict.NEWS
        if known is None:
            if len(self._known) >= KNOWN_MAX:
                return Verdict.CROWD
            self._known[said.node] = known = _Known(said, datagram, now)
        elif _is_same(said, known.said):
            verdict = Verdict.KNOWN
            if is_itself:
                known.said, known.datagram, known.heard_s = said, datagram, now
        elif _age(said) <= _age(known.said):
            return self._of_another_before(said, known, source if is_itself else "", now)
        elif self._is_rival(said, known, now):
            return Verdict.RIVAL
        else:
            self._accept(said, datagram, known, now)
        if verdict is Verdict.NEWS:
            self._look_at_s = _NOW
        self._note(said, known, is_itself, source, now)
        return verdict

    def _of_another_before(self, said: Said, known: _Known, source: str, now: Clock) -> Verdict:
        """What was true once; who says it of itself is told what is known since, and says how it is now."""
        if source and self._is_rival(said, known, now):
            return Verdict.RIVAL
        if source:
            self._reply_soon(said.node, source, now)
        return Verdict.OLD

    def _is_rival(self, said: Said, known: _Known, now: Clock) -> bool:
        """Another machine, while the one that we know is heard."""
        return (
            said.kind is Kind.HERE is known.said.kind
            and said.addresses[0] != known.said.addresses[0]
            and known.source != ""
            and self._is_heard(known, now)
        )

    def _accept(self, said: Said, datagram: bytes, known: _Known, now: Clock) -> None:
        if said.kind is Kind.LEFT and known.said.kind is Kind.HERE:
            known.before, known.until_s = known.said.addresses, now + LEAVE_GRACE_S
        known.said, known.datagram, known.heard_s = said, datagram, now

    def _note(self, said: Said, known: _Known, is_itself: bool, source: str, now: Clock) -> None:
        self._look(now)
        if is_itself:
            known.source = source
            known.is_unlike = said.digest != self._digest
        if said.kind is Kind.HERE and set(said.addresses) & set(self.addresses) and said.serial >= self.serial:
            self._defend(said, now)

    def _defend(self, said: Said, now: Clock) -> None:
        """Somebody was, or is, at an address that this machine has now."""
        if now - self._outbid_s >= OUTBID_EVERY_S:
            self._outbid_s = now
            self._outbid(said.serial)
            self._next_s = now

    def _outbid(self, serial: int) -> None:
        self.serial = min(serial + 1, SERIAL_MAX)
        self._look_at_s = _NOW

    def _reply_soon(self, node: int, to: str, now: Clock) -> None:
        self._replies.setdefault((node, to), now + self._chance.uniform(0.0, self._spread_s()))

    def _spread_s(self) -> float:
        return min(ANSWER_WITHIN_S, 0.01 * len(self._known))

    # ------------------------------------------------------------ saying

    def tick(self, now: Clock) -> list[Outgoing]:
        """Several times a second."""
        self._look(now)
        outgoing = list(self._due_replies(now))
        if now >= self._next_s:
            outgoing += self._announce(now) if self.is_here else self._probe(now)
        if self.is_here:
            outgoing += self._age_out(now)
            outgoing += self._tell_who_differs(now, now - self._tick_s)
        self._tick_s = now
        return outgoing

    def leave(self, now: Clock) -> list[Outgoing]:
        """We end."""
        self._outbid(self.serial)
        return [Outgoing(self._left(self.node, self.serial))]

    def forget(self, node: int, now: Clock) -> list[Outgoing]:
        """Say for *node* that it has left; one that has not says so.  Nothing to say: it is no member."""
        known = self._known.get(node)
        if known is None or known.said.kind is not Kind.HERE:
            return []
        return [Outgoing(self._left(node, known.said.serial))]

    def move(self, addresses: tuple[str, ...], now: Clock) -> list[Outgoing]:
        """This machine has other addresses now.  That we leave first tells us from another machine with our id."""
        self.addresses = addresses
        self._look_at_s = _NOW
        if not self.is_here:
            return []
        left = self.leave(now)
        self._outbid(self.serial)
        return [*left, *self._announce(now)]

    @property
    def _is_settled(self) -> bool:
        return self._claimed_s is not None and self._tick_s - self._claimed_s > SETTLED_AFTER_S

    def _probe(self, now: Clock) -> list[Outgoing]:
        if self._probes == PROBES:
            for serial, addresses in self._claims(now).values():
                if serial >= self.serial and set(addresses) & set(self.addresses):
                    self._outbid(serial)  # whoever was at this address before
            self._claimed_s, self._look_at_s = now, _NOW
            return self._announce(now)
        self._probes += 1
        self._next_s = now + PROBE_EVERY_S
        return [Outgoing(self._own(Kind.ASK))]

    def _announce(self, now: Clock) -> list[Outgoing]:
        self._look(now)
        self._next_s = now + self.period_s * self._chance.uniform(0.9, 1.1)
        return [Outgoing(self._own(Kind.HERE))]

    def _own(self, kind: Kind) -> Said:
        settled, digest = self._is_settled, self._digest
        return Said(VERSION, kind, self.node, self.node, self.serial, self._word, self.addresses, settled, digest)

    def _left(self, node: int, serial: int) -> Said:
        return Said(VERSION, Kind.LEFT, self.node, node, serial, self._word)

    def _due_replies(self, now: Clock) -> Iterator[Outgoing]:
        for (node, to), due_s in list(self._replies.items()):
            if now >= due_s:
                del self._replies[node, to]
                yield Outgoing(self._own(Kind.HERE) if node == self.node else self._known[node].datagram, to)

    def _age_out(self, now: Clock) -> list[Outgoing]:
        if self._forget_after_s <= 0:
            return []
        gone = [node for node, known in self._known.items() if now - known.heard_s > self._forget_after_s]
        return [one for node in gone for one in self.forget(node, now)]

    def _tell_who_differs(self, now: Clock, passed_s: float) -> list[Outgoing]:
        """All that we know, or a part by chance; some of the nodes do so, to one that makes another map of it."""
        unlike = [one for one in self._known.values() if one.is_unlike and self._is_heard(one, now)]
        is_calm = now - self._changed_s >= UNLIKE_FOR_S
        if not unlike or not is_calm or self._chance.random() > TELLERS * passed_s / (1 + len(self._known)):
            return []
        to = self._chance.choice(unlike).source
        datagrams = self.kept()
        chosen = self._chance.sample(datagrams, min(PASSED_ON_MAX, len(datagrams)))
        return [Outgoing(self._own(Kind.HERE), to), *(Outgoing(datagram, to) for datagram in chosen)]


def _age(said: Said) -> tuple[int, bool]:
    """What is greater was said later: who has left has first been there."""
    return said.serial, said.kind is Kind.LEFT


def _is_same(said: Said, other: Said) -> bool:
    return _age(said) == _age(other) and said.addresses == other.addresses


def _number(address: str) -> tuple[int, ...]:
    return tuple(map(int, address.split(".")))


# ---------------------------------------------------------------- as a map


def map_lines(nodes: Mapping[int, tuple[str, ...]]) -> list[str]:
    """Nodes side by side at addresses side by side in one line, as a map has at most 256."""
    ranges: list[tuple[int, str, int]] = []
    for node, (address, *_) in sorted(nodes.items()):
        if ranges and _continues(ranges[-1], node, address):
            first, begins, count = ranges[-1]
            ranges[-1] = (first, begins, count + 1)
        else:
            ranges.append((node, address, 1))
    lines = [f"{node} {address} {count}" for node, address, count in ranges]
    return lines + [f"{node} {other} ALIAS" for node, (_, *more) in sorted(nodes.items()) for other in more]


def _continues(before: tuple[int, str, int], node: int, address: str) -> bool:
    first, begins, count = before
    *network, last = _number(begins)
    return node == first + count and _number(address) == (*network, last + count)
