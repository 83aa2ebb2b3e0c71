"""What `tune` measures, as admin/overheads and admin/mfscosts have it, and what of it the decisions use; pure.

Both files are integers in microseconds, 0 where nobody has measured.  Of the original's 14 overheads only the last two
are known; the others are what moving and being away costs here.  A MiB stands for a KB, of which many fit into one of
our microseconds.

Called by cli/tune.py and balance.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from mignode.weighing import Costs

PAGE_BYTES: Final = 4096
MIB: Final = 1 << 20
US_PER_S: Final = 1e6
LEAST_US, MOST_US = 1, 2**31 - 1  # 0 would say that nobody has measured it

OVERHEADS: Final = {
    "round_trip": "the smallest request to the other node, and its answer",
    "start": "a program's start by mosrun, until its first byte is there",
    "call_home": "a system call that home answers, at home",
    "call_away": "the same, away",
    "byte_home": "a byte to a program's input and back from its output, at home",
    "byte_away": "the same, away",
    "input_mib": "a MiB to its input, away",
    "output_mib": "a MiB from its output, away",
    "signal_away": "a signal to a program that is away, until it has answered",
    "open_away": "open and close of a file of its home, away",
    "fork_away": "fork and wait, away",
    "freeze": "an empty program that moves: how long it does not run",
    "move": "an empty program that moves: until it runs there",
    "move_page": "each page that it has written to",
}
MFSCOSTS: Final = {
    "look_up": "attributes of a file that was not looked at before",
    "read_file": "open, read of 4 KiB and close of such a file",
    "create_file": "a new file with 4 KiB",
    "remove_file": "its removal",
    "read_mib": "a MiB of a large file, read in order",
    "write_mib": "a MiB of a large file, written in order",
}
_ROUND_TRIP, _MOVE, _MOVE_PAGE = (list(OVERHEADS).index(name) for name in ("round_trip", "move", "move_page"))
_READ_MIB: Final = list(MFSCOSTS).index("read_mib")


class Tuned(NamedTuple):
    """The values of the two files."""

    overheads: tuple[int, ...]
    mfscosts: tuple[int, ...]


def tuned(measured_s: Mapping[str, float]) -> Tuned:
    """Of seconds, by name.  KeyError where one of them was not measured."""
    return Tuned(*(tuple(_whole_us(measured_s[name]) for name in names) for names in (OVERHEADS, MFSCOSTS)))


def _whole_us(seconds: float) -> int:
    return min(MOST_US, max(LEAST_US, round(seconds * US_PER_S)))


def page_s(small_s: Sequence[float], large_s: Sequence[float], more_bytes: int) -> float:
    """What a page adds to a move: of so long ones as it was, and with so much more memory."""
    more_s = statistics.median(large_s) - statistics.median(small_s)
    return max(0.0, more_s) * PAGE_BYTES / more_bytes


def costs(overheads: Sequence[int], mfscosts: Sequence[int], learned_bytes_per_s: float = 0.0) -> Costs:
    """For the decisions: what was measured, else what the last moves have shown (0: nothing yet)."""
    found = Costs()
    if learned_bytes_per_s:
        found = found._replace(bytes_per_s=learned_bytes_per_s, memory_bytes_per_s=learned_bytes_per_s)
    if overheads[_ROUND_TRIP]:
        found = found._replace(call_s=overheads[_ROUND_TRIP] / US_PER_S)
    if overheads[_MOVE]:
        found = found._replace(move_s=overheads[_MOVE] / US_PER_S)
    if overheads[_MOVE_PAGE]:
        found = found._replace(memory_bytes_per_s=PAGE_BYTES * US_PER_S / overheads[_MOVE_PAGE])
    if mfscosts[_READ_MIB]:
        found = found._replace(bytes_per_s=MIB * US_PER_S / mfscosts[_READ_MIB])
    return found


def learned(sent_bytes: int, seconds: float, crowd: float) -> float:
    """Bytes a second, of a move that has taken so long.

    *crowd*: how many wanted each processor of the busier node, 1 or more.  The move waited for it as they did, and its
    guest lost only the part that it would have had; else a crowded node would find that moves are dear, and keep its
    crowd.  That it was the network can't be seen, so nothing is taken for faster than what nobody has measured.
    """
    rate = sent_bytes / seconds
    return max(rate, min(rate * crowd, Costs().memory_bytes_per_s))


def shown(pair: str, found: Tuned) -> str:
    """A table for people, and the two files as `mosctl gettune` has them."""
    rows = [f"{pair}, in microseconds:"]
    for names, values in zip((OVERHEADS, MFSCOSTS), found, strict=True):
        rows += [f"{value:>9}  {what}" for what, value in zip(names.values(), values, strict=True)]
    return "\n".join([*rows, *(f"{name}: {written(values)}" for name, values in found._asdict().items())])


def written(values: Sequence[int]) -> str:
    """As the control file has them."""
    return " ".join(map(str, values))
