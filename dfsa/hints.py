"""What a guest reads, writes and calls for, per node and second: hints for the decision where it should run.

Totals in, rates out.  Each new look at the totals counts fully, and what was before fades: in each decay interval
*kept* of it is left, as the original ages a process's statistics (openmosix-interfaces.md: slow 0.975, fast 0.926).  A
rate is what happened over the time it took, both faded alike: so it is right from the second look on, and it does not
matter how far apart the looks are.

What is known may be told to whoever looks from then on, on another node: `memory` out, `Hints` made of it.  A node may
be known for less long than the others; its rate is what happened over the time that it was.

Totals that have become less are those of somebody who started anew (a mount, a guest that moved): they count from
zero.  What is not told any more has come to its end, and fades.

Pure: no clock, no /proc.  The totals come from the mount's counters, for other nodes, and from /proc/<pid>/io, for
the guest as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

_FORGOTTEN_BELOW: Final = 1e-6  # bytes or calls: what is left of a node after days
_AS_LONG_AS_ALL: Final = 0.99  # a node that was looked at for so much of the time is as any


class Totals(NamedTuple):
    """Since somebody began to count."""

    read_bytes: int
    written_bytes: int
    calls: int


class Rates(NamedTuple):
    """Per second."""

    read_bytes: float
    written_bytes: float
    calls: float


class Remembered(NamedTuple):
    """Of one node: what happened, not yet per second, and in what time; both faded."""

    amounts: Rates
    seen_s: float


class Memory(NamedTuple):
    """*seen_s*: how long anybody has looked, faded; a node that is not here had nothing in that time."""

    seen_s: float = 0.0
    by_node: Mapping[int, Remembered] = {}


NOTHING: Final = Rates(0.0, 0.0, 0.0)


class Hints:
    """Of one guest."""

    def __init__(self, interval_s: float, kept: float, memory: Memory | None = None) -> None:
        """*memory*: what was known before.  The others as set_pace has them."""
        self.set_pace(interval_s, kept)
        self._looked_s: float | None = None
        self._last: Mapping[int, Totals] = {}
        self._seen_s, known = memory or Memory()
        self._known = dict(known)

    def set_pace(self, interval_s: float, kept: float) -> None:
        """From now on *kept*, above 0 and at most 1, of what was is left after *interval_s*, the decay interval."""
        self._interval_s = interval_s
        self._kept = kept

    def look(self, now_s: float, totals: Mapping[int, Totals]) -> None:
        """The *totals* by node at *now_s*, a monotonic clock that must have gone on since the last look."""
        if self._looked_s is not None:
            passed_s = now_s - self._looked_s
            if passed_s <= 0:
                raise ValueError(f"{passed_s} s since the last look")
            left = self._kept ** (passed_s / self._interval_s)
            nodes = self._known.keys() | totals.keys()
            found = {node: self._grown(node, left, passed_s, totals.get(node)) for node in nodes}
            self._seen_s = self._seen_s * left + passed_s
            self._known = {node: one for node, one in found.items() if self._is_worth_knowing(one)}
        self._looked_s = now_s
        self._last = dict(totals)

    def rates(self) -> dict[int, Rates]:
        """By node; nothing before the second look, and nothing of nodes without any."""
        return {
            node: Rates(*(part / one.seen_s for part in one.amounts))
            for node, one in self._known.items()
            if one.seen_s and max(one.amounts) >= _FORGOTTEN_BELOW
        }

    def memory(self) -> Memory:
        """All that is known now."""
        return Memory(self._seen_s, dict(self._known))

    def _is_worth_knowing(self, one: Remembered) -> bool:
        return max(one.amounts) >= _FORGOTTEN_BELOW or one.seen_s < _AS_LONG_AS_ALL * self._seen_s

    def _grown(self, node: int, left: float, passed_s: float, now: Totals | None) -> Remembered:
        old, seen_s = self._known.get(node, Remembered(NOTHING, self._seen_s))
        last = self._last.get(node, Totals(0, 0, 0))
        if now is None:
            now = last
        elif any(part < before for part, before in zip(now, last, strict=True)):
            last = Totals(0, 0, 0)
        amounts = Rates(*(was * left + part - before for was, part, before in zip(old, now, last, strict=True)))
        return Remembered(amounts, seen_s * left + passed_s)


def local(whole: Rates, by_node: Mapping[int, Rates]) -> Rates:
    """What of the *whole* guest's rates is not for other nodes: at the node where it runs, or no file at all."""
    elsewhere = [sum(parts) for parts in zip(*by_node.values(), strict=True)] or [0.0] * len(whole)
    return Rates(*(max(0.0, part - away) for part, away in zip(whole, elsewhere, strict=True)))
