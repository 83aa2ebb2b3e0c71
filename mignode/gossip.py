"""Gossip: what one node knows of all others, whom it tells each period, and what it believes of what it hears.

Each period a node asks one other, chosen at random among those that are up (now and then among all): it sends what it
is itself and a window of the youngest it knows, and gets the same back.  So the cost of a node is the same however
many there are; what grows is the age of what it knows.  Who does not answer for several periods, and of whom nobody has
anything newer, is suspected; that goes round like other news but first, as does whatever contradicts it; a few of those
who hear of it ask for themselves.  What nothing contradicts for long enough is down for everybody.  How many tries a
suspicion takes depends on how many answers get lost.

Records of a node are ordered by (incarnation, seq) and carry an age, so clocks are never compared.  A datagram counts
once, and only in the life of the node that it was meant for: it says which incarnation of the receiver it is for, and
has a number.  So nothing that was recorded earlier or elsewhere can be said again; who does not know our incarnation
yet hears it in the answer.

Pure: no I/O and no clock; the same code runs in the daemon (gossipport.py) and in the simulation of thousands of nodes.
Invariant: nothing that comes in makes a record older than it was, or of a node that is not in the map.
"""

from __future__ import annotations

import enum
import math
import random
from bisect import insort
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from mignode.nodeinfo import CONFIGURED, UP, NodeInfo

PERIOD_S: Final = 1.0  # the original's
WINDOW: Final = 18  # records in a datagram: so many fit beside a certificate (gossipwords.py)
URGENT: Final = 9  # of them, at most, news of who is suspected and who is not after all
RELAYED_S: Final = 20.0  # what is older is not worth telling: the windows age out
STRANGE_ASKS: Final = 1 / 8  # now and then any node is asked, up or not, or two halves would never find each other
LONELY_ASKS: Final = 8  # a period, of who knows nobody that is up: one of 256 in the map may be
ASKED_AGAIN: Final = 3 / 4  # of the periods in which somebody has not answered
LOOKERS: Final = 4  # so many of those who hear of a suspicion ask the suspected themselves: their way may be better
ANSWERS_MAX: Final = 16  # a period; two are unusual
TRIES_MIN, TRIES_MAX = 3, 20
FALSE_ALARMS: Final = 1e-6  # so rarely may chance alone make tries fail
GOODBYES: Final = 3

_LOSS_WEIGHT: Final = 1 / 32
_LOSS_MIN: Final = 0.01
_LOSS_FIRST: Final = 0.1


class Said(NamedTuple):
    """A record on its way.  *suspected_s*: for how long its node has been suspected, below 0 where it is not."""

    info: NodeInfo  # its age_s is not used
    age_s: float
    suspected_s: float = -1.0


class Message(NamedTuple):
    """A datagram.  *to_incarnation*: of the receiver, 0 where it is not known.  The first record is the sender's."""

    sender: int
    incarnation: int
    number: int
    to: int
    to_incarnation: int
    asks: bool
    records: tuple[Said, ...]


class Verdict(enum.Enum):
    """What became of a datagram."""

    BELIEVED = "believed"
    EARLY = "early"  # it is not for this life of ours: answered, so that the sender learns of it, and not believed
    REPLAYED = "replayed"
    MISDIRECTED = "misdirected"
    STRANGER = "stranger"  # its sender is not in the map


class _Known:
    """What is known of a node.  *born_s*: when it was true, by our clock.  *told*: times that it was sent as news."""

    __slots__ = ("born_s", "info", "suspected_s", "told")

    def __init__(self, info: NodeInfo, born_s: float, suspected_s: float) -> None:
        self.info = info
        self.born_s = born_s
        self.suspected_s = suspected_s  # since when, by our clock; inf: it is not
        self.told = -1  # no news

    @property
    def is_suspected(self) -> bool:
        return self.suspected_s != math.inf

    @property
    def is_well(self) -> bool:
        return bool(self.info.status & UP) and not self.is_suspected


class Board:
    """One node's knowledge of all."""

    def __init__(self, own: int, incarnation: int, nodes: Iterable[int], chance: random.Random) -> None:
        """*nodes*: of the map.  *chance*: what is chosen by it need not be secret."""
        self._own = own
        self.incarnation = incarnation
        self._chance = chance
        self._seq = 0
        self._number = 0
        self._info: NodeInfo | None = None
        self._known: dict[int, _Known] = {}
        self._heard: dict[int, tuple[int, int]] = {}  # the last datagram of each: incarnation and number
        self._recent: list[tuple[float, int]] = []  # (born, node), the youngest last; some are outdated
        self._news: list[int] = []  # nodes with news, the youngest last
        self._living: list[int] = []  # who was up when we last looked; some may not be any more
        self._is_living: set[int] = set()
        self._asked: set[int] = set()  # in this period, and not answered yet
        self._unanswered: dict[int, int] = {}  # how often, since anything newer was heard; they are asked again
        self._doubted: list[int] = []  # others suspect them, and we shall look for ourselves
        self._answers = 0
        self._loss = _LOSS_FIRST
        self.set_map(nodes)

    def set_map(self, nodes: Iterable[int]) -> None:
        """Nobody else is asked, told or believed."""
        self._others = sorted(set(nodes) - {self._own})
        inside = set(self._others)
        for gone in [node for node in self._known if node not in inside]:
            del self._known[gone]
            self._unanswered.pop(gone, None)
        self._asked &= inside
        self._inside = inside
        self._recent = [pair for pair in self._recent if pair[1] in inside]
        self._living = [node for node in self._living if node in inside]
        self._is_living &= inside
        size = math.log2(len(inside) + 1)
        self._news_sent = math.ceil(3 * size)  # with so many tellings of each who hears it everybody does
        self.suspected_at_most_s = 4.0 + 1.5 * size  # to hear of it, to look, and for the contradiction to come back
        self.age_max_s = 60.0 + 0.5 * len(inside)  # nothing newer from anywhere: down, also if nobody suspects it

    # ------------------------------------------------------------ what is known

    def of(self, node: int, now_s: float) -> NodeInfo | None:
        """None where nothing was ever heard."""
        known = self._known.get(node)
        if known is None:
            return None
        status = known.info.status if self._is_up(known, now_s) else CONFIGURED
        return msgspec.structs.replace(known.info, age_s=max(0.0, now_s - known.born_s), status=status)

    def known(self, now_s: float) -> Iterator[NodeInfo]:
        """Of all others of whom anything was heard."""
        for node in self._others:
            info = self.of(node, now_s)
            if info is not None:
                yield info

    def _is_up(self, known: _Known, now_s: float) -> bool:
        return bool(
            known.info.status & UP
            and now_s - known.suspected_s < self.suspected_at_most_s
            and now_s - known.born_s < self.age_max_s
        )

    # ------------------------------------------------------------ telling

    def unanswered(self, node: int) -> int:
        """How often it was asked without an answer."""
        return self._unanswered.get(node, 0)

    def tick(self, info: NodeInfo, now_s: float) -> list[Message]:
        """A period has begun; *info* is what this node is now.  The datagrams to send."""
        self._answers = 0
        self._count_unanswered(now_s)
        self._seq += 1
        self._info = msgspec.structs.replace(info, node=self._own, incarnation=self.incarnation, seq=self._seq)
        messages = []
        for node in self._choose(now_s):
            self._asked.add(node)
            messages.append(self._message(node, True, now_s))
        return messages

    def goodbye(self, now_s: float) -> list[Message]:
        """This node ends now: nobody need find out."""
        if self._info is None:
            return []
        self._seq += 1
        self._info = msgspec.structs.replace(self._info, seq=self._seq, status=CONFIGURED)
        living = [node for node in self._living if self._is_up(self._known[node], now_s)]
        chosen = self._chance.sample(living, min(GOODBYES, len(living)))
        return [self._message(node, False, now_s) for node in chosen]

    def _message(self, to: int, asks: bool, now_s: float, to_incarnation: int = 0) -> Message:
        assert self._info is not None
        self._number += 1
        known = self._known.get(to)
        to_incarnation = to_incarnation or (known.info.incarnation if known is not None else 0)
        records = (Said(self._info, 0.0), *self._window(to, now_s))
        return Message(self._own, self.incarnation, self._number, to, to_incarnation, asks, records)

    def _choose(self, now_s: float) -> list[int]:
        """Whom to ask in this period."""
        if not self._others:
            return []
        while self._doubted:
            node = self._doubted.pop()
            if node in self._inside:
                return [node]
        if self._unanswered and self._chance.random() < ASKED_AGAIN:
            return [next(iter(self._unanswered))]
        if self._chance.random() >= STRANGE_ASKS:
            found = self._living_one(now_s)
            if found is not None:
                return [found]
        lonely = self._living_one(now_s) is None
        return self._chance.sample(self._others, min(LONELY_ASKS if lonely else 1, len(self._others)))

    def _living_one(self, now_s: float) -> int | None:
        living = self._living
        while living:
            place = self._chance.randrange(len(living))
            node = living[place]
            known = self._known[node]
            if not known.is_suspected and self._is_up(known, now_s):
                return node
            living[place] = living[-1]
            living.pop()
            self._is_living.discard(node)
        return None

    def _window(self, to: int, now_s: float) -> Iterator[Said]:
        """News first, then the youngest."""
        said = {to}
        left = WINDOW - 1
        for node in reversed(self._news[-URGENT:]):
            known = self._known.get(node)
            if known is None:
                continue
            known.told += 1
            said.add(node)
            left -= 1
            yield _said(known, now_s)
        self._news = [node for node in self._news if self._is_news(node)]
        for born_s, node in reversed(self._recent):
            if left <= 0 or now_s - born_s > RELAYED_S:
                return
            known = self._known.get(node)
            if known is not None and known.born_s == born_s and node not in said:
                left -= 1
                said.add(node)
                yield _said(known, now_s)

    def _is_news(self, node: int) -> bool:
        known = self._known.get(node)
        return known is not None and 0 <= known.told < self._news_sent

    # ------------------------------------------------------------ who does not answer

    def _count_unanswered(self, now_s: float) -> None:
        for node in self._asked:
            known = self._known.get(node)
            if known is None or not self._is_up(known, now_s) or known.is_suspected:
                self._unanswered.pop(node, None)  # no news in that
                continue
            self._unanswered[node] = self._unanswered.get(node, 0) + 1
            if self._unanswered[node] >= self.tries:
                del self._unanswered[node]
                known.suspected_s = now_s
                self._spread(node, known)
        self._asked.clear()

    @property
    def tries(self) -> int:
        """So often a node is asked without an answer, or any newer record from anywhere, before it is suspected."""
        return max(TRIES_MIN, min(TRIES_MAX, math.ceil(math.log(FALSE_ALARMS) / math.log(self._loss))))

    def _answered(self, node: int) -> None:
        tries = self._unanswered.pop(node, 0)
        if node not in self._asked:
            return
        self._asked.remove(node)
        for lost in (*(1.0,) * tries, 0.0):
            self._loss += (lost - self._loss) * _LOSS_WEIGHT
        self._loss = min(0.99, max(_LOSS_MIN, self._loss))

    def _spread(self, node: int, known: _Known) -> None:
        known.told = 0
        if node in self._news:
            self._news.remove(node)
        self._news.append(node)

    # ------------------------------------------------------------ hearing

    def receive(self, message: Message, now_s: float) -> tuple[Verdict, Message | None]:
        """What became of it, and the answer to send.  *message* comes from its sender: that was looked at before."""
        if message.to != self._own:
            return Verdict.MISDIRECTED, None
        if message.sender not in self._inside:
            return Verdict.STRANGER, None
        if message.to_incarnation != self.incarnation:
            self._outlive(message.to_incarnation)
            return Verdict.EARLY, self._answer(message, now_s)
        mark = (message.incarnation, message.number)
        known = self._known.get(message.sender)
        if mark <= self._heard.get(message.sender, (0, 0)) or (known and message.incarnation < known.info.incarnation):
            return Verdict.REPLAYED, None
        self._heard[message.sender] = mark
        self._answered(message.sender)
        for said in message.records:
            self._merge(said, now_s)
        return Verdict.BELIEVED, self._answer(message, now_s)

    def _answer(self, message: Message, now_s: float) -> Message | None:
        if not message.asks or self._info is None or self._answers >= ANSWERS_MAX:
            return None
        self._answers += 1
        return self._message(message.sender, False, now_s, message.incarnation)

    def _outlive(self, incarnation: int) -> None:
        """We had that one before, and forgot: a state directory was lost, and the clock set back."""
        if incarnation > self.incarnation:
            self.incarnation = incarnation + 1

    def _contradict(self) -> None:
        """Somebody suspects us: what we say from now on is later than that, also before the next period."""
        if self._info is not None:
            self._seq += 1
            self._info = msgspec.structs.replace(self._info, seq=self._seq)

    def _merge(self, said: Said, now_s: float) -> None:
        info = said.info
        if info.node == self._own:
            self._outlive(info.incarnation)
            if said.suspected_s >= 0:
                self._contradict()
            return
        if info.node not in self._inside:
            return
        born_s = now_s - said.age_s
        suspected_s = now_s - said.suspected_s if said.suspected_s >= 0 else math.inf
        known = self._known.get(info.node)
        if known is None:
            known = self._known[info.node] = _Known(info, born_s, suspected_s)
            self._note_recent(known)
            return
        was_well = known.is_well
        is_newer = (info.incarnation, info.seq) > (known.info.incarnation, known.info.seq)
        if is_newer:
            known.info, known.born_s = info, born_s
            self._unanswered.pop(info.node, None)
            self._note_recent(known)
        # A suspicion is contradicted by whatever was true later, and by nothing else.
        fitting = [since_s for since_s in (known.suspected_s, suspected_s) if since_s > known.born_s]
        known.suspected_s = min(fitting, default=math.inf)
        if known.is_well != was_well or (suspected_s <= known.born_s and not self._is_news(info.node)):
            self._spread(info.node, known)
        if was_well and known.is_suspected and self._chance.random() < LOOKERS / len(self._others):
            self._doubted.append(info.node)

    def _note_recent(self, known: _Known) -> None:
        node = known.info.node
        if known.info.status & UP and node not in self._is_living:
            self._is_living.add(node)
            self._living.append(node)
        recent = self._recent
        if len(recent) >= 4 * WINDOW:
            valid = [pair for pair in recent if self._known[pair[1]].born_s == pair[0]]
            self._recent = recent = valid[-2 * WINDOW :]
        insort(recent, (known.born_s, node))


def _said(known: _Known, now_s: float) -> Said:
    suspected_s = now_s - known.suspected_s if known.is_suspected else -1.0
    return Said(known.info, now_s - known.born_s, suspected_s)
