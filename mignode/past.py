"""What is told of a guest's past to the node that it comes to, so that it is judged by its whole life; pure.

How long it has worked, how often it was moved by balancing lately, and what it reads and writes where (dfsa/hints.py).
One thing is left out: what it did with the files of the node that it leaves.  There nobody tells those from its pipes;
at the next one the mount counts them, and they are right from its second look on.

Whole numbers in small units, as it goes over the wire and into the guest's folder, where it outlives mignode.
Called by guestusage.py and balance.py; words.py has it in Arrive.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from dfsa.hints import NOTHING, Memory, Rates, Remembered

UNREST_MAX: Final = 8.0
_NODES_MAX: Final = 64  # those with the most
_MS: Final = 1000
_LARGEST: Final = (1 << 62) - 1

_Amount = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
_Node = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class OfNode(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Faded amounts, and the time in which they came together."""

    node: _Node
    read_bytes: _Amount
    written_bytes: _Amount
    calls: _Amount
    seen_ms: _Amount


class Past(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """*unrest_thousandths*: of a move that nobody has asked for."""

    worked_ms: _Amount = 0
    unrest_thousandths: Annotated[int, msgspec.Meta(ge=0, le=round(UNREST_MAX * _MS))] = 0
    seen_ms: _Amount = 0
    files: Annotated[tuple[OfNode, ...], msgspec.Meta(max_length=_NODES_MAX)] = ()

    @property
    def worked_s(self) -> float:
        return self.worked_ms / _MS

    @property
    def unrest(self) -> float:
        return self.unrest_thousandths / _MS

    def remembered(self) -> Memory:
        """For dfsa.hints."""
        return Memory(self.seen_ms / _MS, {one.node: _remembered(one) for one in self.files})


def told(worked_s: float, unrest: float, memory: Memory, here: int) -> Past:
    """*here*: the node that has looked, of whose own files nothing is said."""
    others = sorted((node for node in memory.by_node if node != here), key=lambda node: _weight(memory, node))
    known = {here: Remembered(NOTHING, 0.0)} | {node: memory.by_node[node] for node in others[1 - _NODES_MAX :]}
    files = tuple(_of_node(node, one) for node, one in sorted(known.items()))
    thousandths = round(min(UNREST_MAX, max(0.0, unrest)) * _MS)
    return Past(_whole(worked_s * _MS), thousandths, _whole(memory.seen_s * _MS), files)


def _weight(memory: Memory, node: int) -> float:
    return sum(memory.by_node[node].amounts)


def _whole(amount: float) -> int:
    return max(0, min(_LARGEST, round(amount)))


def _of_node(node: int, one: Remembered) -> OfNode:
    read, written, calls = map(_whole, one.amounts)
    return OfNode(node, read, written, calls, _whole(one.seen_s * _MS))


def _remembered(one: OfNode) -> Remembered:
    return Remembered(Rates(one.read_bytes, one.written_bytes, one.calls), one.seen_ms / _MS)
