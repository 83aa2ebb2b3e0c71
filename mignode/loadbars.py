"""Bars of what the nodes are and do, as lines of text: what mosmon shows (pure).

`parse` takes /mfs/proc/hpc/info; `picture` draws so many rows and columns, whatever the terminal is.  Three layouts, as
in the original's monitor: node numbers across (WIDE), downwards with a gap (VERTICAL), downwards without (NARROW).
What it does not do: read anything, colours (a segment has a style's name), keys.  Called by cli/mosmon.py.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from mignode.nodeinfo import UP

AXIS_COLUMNS: Final = 8
SHORTEST_BAR_ROWS: Final = 3
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
_MIB: Final = 1 << 20
_ROUND: Final = (1, 1.5, 2, 3, 5, 7, 10)
_HIGH: Final = 0.75  # of the scale: shown in another colour


class Sample(NamedTuple):
    """One node; None: not told.  Units as in openmosix-interfaces.md "Control files"."""

    node: int
    status: int
    cpus: int | None = None
    speed: int | None = None
    load: int | None = None
    mem: int | None = None
    rmem: int | None = None
    tmem: int | None = None
    util: int | None = None
    frozen: int | None = None

    @property
    def is_up(self) -> bool:
        return bool(self.status & UP)


def parse(text: str) -> list[Sample]:
    """Sorted by node.  Words that are no number of ours are left out: later versions may say more."""
    found = []
    for line in text.splitlines():
        pairs = (word.split("=", 1) for word in line.split() if "=" in word)
        numbers = {
            name: int(value)
            for name, value in pairs
            if name in Sample._fields and value.removeprefix("-").isascii() and value.removeprefix("-").isdigit()
        }
        if "node" in numbers and "status" in numbers:
            found.append(Sample(**numbers))
    return sorted(found)


# ---------------------------------------------------------------- what is shown


class Bar(NamedTuple):
    """*whole*: what *value* is a part of; 0 where it is of nothing."""

    value: float
    whole: float = 0


class Quantity(NamedTuple):
    """*least*: what the scale reaches at least; *is_fixed*: and at most."""

    title: str
    of: Callable[[Sample], Bar | None]
    least: float
    is_fixed: bool = False


def _load(one: Sample) -> Bar | None:
    return None if one.load is None else Bar(one.load)


def _load_and_frozen(one: Sample) -> Bar | None:
    return None if one.load is None else Bar(one.load + (one.frozen or 0))


def _speed(one: Sample) -> Bar | None:
    return None if one.speed is None else Bar(one.speed)


def _memory(one: Sample) -> Bar | None:
    return None if one.mem is None or one.tmem is None else Bar((one.tmem - one.mem) / _MIB, one.tmem / _MIB)


def _raw_memory(one: Sample) -> Bar | None:
    return None if one.rmem is None or one.tmem is None else Bar((one.tmem - one.rmem) / _MIB, one.tmem / _MIB)


def _utilisation(one: Sample) -> Bar | None:
    return None if one.util is None else Bar(one.util)


QUANTITIES: Final = {
    "l": Quantity("Load", _load, 100),
    "L": Quantity("Load, with who is frozen", _load_and_frozen, 100),
    "s": Quantity("Speed", _speed, 1000),
    "m": Quantity("Memory used, MB", _memory, 1),
    "r": Quantity("Raw memory used, MB", _raw_memory, 1),
    "u": Quantity("Utilizability, %", _utilisation, 100, is_fixed=True),
}


class Layout(enum.Enum):
    WIDE = "w"
    VERTICAL = "v"
    NARROW = "V"
    AUTO = "a"


class View(NamedTuple):
    """What the keys have chosen; *first*: the first node shown, of those that there are."""

    quantity: str = "l"
    layout: Layout = Layout.AUTO
    first: int = 0
    shows_dead: bool = False


class Segment(NamedTuple):
    """*style*: "", "bar", "high", "whole", "dead", "label"."""

    text: str
    style: str = ""


Line = tuple[Segment, ...]


def chosen(samples: Sequence[Sample], view: View) -> list[Sample]:
    """The nodes that have a bar."""
    return [one for one in samples if one.is_up or view.shows_dead]


def column_width(layout: Layout, nodes: Sequence[Sample]) -> int:
    """Of a node, with its gap."""
    if layout is Layout.WIDE:
        return max((len(str(one.node)) for one in nodes), default=1) + 2
    return 2 if layout is Layout.VERTICAL else 1


def layout_for(nodes: Sequence[Sample], view: View, columns: int) -> Layout:
    """AUTO: the first in which all have room, or else the last."""
    if view.layout is not Layout.AUTO:
        return view.layout
    for layout in (Layout.WIDE, Layout.VERTICAL):
        if len(nodes) * column_width(layout, nodes) <= columns - AXIS_COLUMNS:
            return layout
    return Layout.NARROW


def fitting(nodes: Sequence[Sample], view: View, columns: int) -> int:
    """How many have room beside each other; 1 at least."""
    return max((columns - AXIS_COLUMNS) // column_width(layout_for(nodes, view, columns), nodes), 1)


def scale(bars: Sequence[Bar | None], quantity: Quantity) -> float:
    """What the top of the picture stands for: a round number."""
    most = max((max(bar.value, bar.whole) for bar in bars if bar is not None), default=0)
    if quantity.is_fixed or most <= quantity.least:
        return quantity.least
    unit = 1.0
    while unit * 10 <= most:
        unit *= 10
    return next(unit * factor for factor in _ROUND if unit * factor >= most)


# ---------------------------------------------------------------- drawing


def picture(samples: Sequence[Sample], view: View, rows: int, columns: int) -> list[Line]:
    """*rows* lines, none longer than *columns*."""
    nodes = chosen(samples, view)
    layout = layout_for(nodes, view, columns)
    shown = nodes[view.first : view.first + fitting(nodes, view, columns)]
    width = column_width(layout, nodes)
    labels = _labels(shown, layout, width)
    bar_rows = max(rows - len(labels) - 1, SHORTEST_BAR_ROWS)
    quantity = QUANTITIES[view.quantity]
    bars = [quantity.of(one) if one.is_up else None for one in shown]
    top = scale(bars, quantity)
    lines = [
        (
            _tick(row, bar_rows, top),
            *(_cell(one, bar, row, bar_rows, top, width) for one, bar in zip(shown, bars, strict=True)),
        )
        for row in range(bar_rows, 0, -1)
    ]
    floor = Segment(f"{'0':>{AXIS_COLUMNS - 1}}└" + "─" * (len(shown) * width), "label")
    lines += [(floor,), *labels]
    return [_cut(line, columns) for line in lines[:rows]]


def _tick(row: int, rows: int, top: float) -> Segment:
    """The axis: numbers at the top and in the middle."""
    number = f"{top * row / rows:.0f}" if row == rows or (row == (rows + 1) // 2 and rows > SHORTEST_BAR_ROWS) else ""
    return Segment(f"{number:>{AXIS_COLUMNS - 1}}{'┤' if number else '│'}", "label")


def _cell(one: Sample, bar: Bar | None, row: int, rows: int, top: float, width: int) -> Segment:
    """One node's part of a line; *row*: from 1, at the bottom."""
    thick = max(width - 1, 1)
    gap = " " * (width - thick)
    if not one.is_up:
        return Segment(f"{'DAED'[row - 1] if row <= 4 else ' ':^{thick}}{gap}", "dead")
    if bar is None:
        return Segment(f"{'?' if row == 1 else ' ':^{thick}}{gap}", "label")
    eighths = min(max(round(8 * (bar.value * rows / top - (row - 1))), 0), 8)
    if eighths == 0 and bar.whole * rows / top > row - 0.5:
        return Segment("░" * thick + gap, "whole")
    return Segment(_EIGHTHS[eighths] * thick + gap, "high" if bar.value > _HIGH * (bar.whole or top) else "bar")


def _labels(shown: Sequence[Sample], layout: Layout, width: int) -> list[Line]:
    margin = Segment(" " * AXIS_COLUMNS)
    names = [str(one.node) for one in shown]
    if layout is Layout.WIDE:
        return [(margin, Segment("".join(f"{name:^{width - 1}} " for name in names), "label"))]
    tall = max(map(len, names), default=1)
    return [(margin, Segment("".join(_upright(names, row, tall, width)), "label")) for row in range(tall)]


def _upright(names: Sequence[str], row: int, tall: int, width: int) -> Iterator[str]:
    for name in names:
        yield f"{name.rjust(tall)[row]:<{width}}"


def _cut(line: Line, columns: int) -> Line:
    left, kept = columns, []
    for segment in line:
        kept.append(Segment(segment.text[:left], segment.style))
        left -= len(kept[-1].text)
    return tuple(kept)


def totals(samples: Sequence[Sample]) -> str:
    """Of the nodes that are up."""
    up = [one for one in samples if one.is_up]
    return f"[Total {len(up)}] [CPUs {sum(one.cpus or 0 for one in up)}]"
