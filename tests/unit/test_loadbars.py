"""What mosmon draws, as text."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mignode.loadbars import (
    QUANTITIES,
    Bar,
    Layout,
    Line,
    Sample,
    View,
    chosen,
    fitting,
    layout_for,
    parse,
    picture,
    scale,
    totals,
)

MIB = 1 << 20
INFO = """\
node=2 status=3 cpus=4 speed=10000 load=50 mem=1073741824 rmem=536870912 tmem=2147483648 util=97 age=0.0 version=omfs 1
node=1 status=3 cpus=2 speed=20000 load=200 mem=1 rmem=1 tmem=2 util=100 frozen=100 age=1.5
node=300 status=1
node=7 status=0x23
node=12 status=35 cpus=8 speed=9000
a line of a later version
"""
NODES = parse(INFO)


def text(lines: list[Line]) -> list[str]:
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def test_what_is_told_is_understood() -> None:
    assert [one.node for one in NODES] == [1, 2, 12, 300]
    assert NODES[1] == Sample(2, 3, 4, 10000, 50, 1 << 30, 1 << 29, 2 << 30, 97)
    assert NODES[3] == Sample(300, 1)
    assert [one.is_up for one in NODES] == [True, True, True, False]


def test_loads_side_by_side() -> None:
    assert text(picture(NODES, View(), 8, 40)) == [
        "    200┤███",
        "       │███",
        "       │███",
        "    100┤███",
        "       │███ ▄▄▄",
        "       │███ ███  ?",
        "      0└────────────",
        "         1   2  12",
    ]


@pytest.mark.parametrize(("key", "top", "heights"), [("s", 20000, (4, 2)), ("u", 100, (4, 4)), ("L", 300, (4, 1))])
def test_other_quantities(key: str, top: int, heights: tuple[int, int]) -> None:
    lines = picture(NODES[:2], View(key, Layout.NARROW), 6, 40)
    assert lines[0][0].text == f"{top:>7}┤"
    assert tuple(sum(line[node].text != " " for line in lines[:4]) for node in (1, 2)) == heights


def test_the_dead_are_shown_where_wanted() -> None:
    lines = text(picture(NODES, View(shows_dead=True, layout=Layout.NARROW), 9, 40))
    assert [line[8:] for line in lines] == ["█", "█  D", "█  E", "█▂ A", "██?D", "────", "   3", "  10", "1220"]


def test_numbers_downwards_with_a_gap() -> None:
    lines = text(picture(NODES, View(layout=Layout.VERTICAL), 6, 40))
    assert lines[-3:] == ["      0└──────", " " * 12 + "1", "        1 2 2"]


def test_memory_is_a_part_of_what_there_is() -> None:
    (node,) = parse(f"node=2 status=3 mem={512 * MIB} rmem={128 * MIB} tmem={1024 * MIB}")
    bars = {key: [line[1] for line in picture([node], View(key), 12, 40)[:10]] for key in "mr"}
    assert "".join(segment.text[0] for segment in bars["m"]) == "   ░░░▃███"
    assert {segment.style for segment in bars["m"] if segment.text[0] == "█"} == {"bar"}
    assert {segment.style for segment in bars["r"] if segment.text[0] == "█"} == {"high"}


@pytest.mark.parametrize(
    ("values", "key", "top"),
    [
        ([], "l", 100), ([None, Bar(3)], "l", 100), ([Bar(101)], "l", 150), ([Bar(310)], "l", 500),
        ([Bar(701)], "l", 1000), ([Bar(1, 1024)], "m", 1500), ([Bar(5), Bar(100)], "u", 100),
        ([Bar(20000)], "s", 20000),
    ],
)  # fmt: skip
def test_the_scale_is_round(values: list[Bar | None], key: str, top: float) -> None:
    assert scale(values, QUANTITIES[key]) == top


def test_what_fits_is_chosen() -> None:
    many = [Sample(node, 3, load=1) for node in range(1, 41)]
    assert layout_for(many[:18], View(), 80) is Layout.WIDE
    assert layout_for(many[:19], View(), 80) is Layout.VERTICAL
    assert layout_for(many, View(), 80) is Layout.NARROW
    assert layout_for(many, View(layout=Layout.WIDE), 80) is Layout.WIDE
    assert fitting(many, View(layout=Layout.WIDE), 80) == 18
    assert fitting([], View(), 3) == 1
    assert "39" in text(picture(many, View(layout=Layout.WIDE, first=38), 10, 80))[-1]


def test_totals() -> None:
    assert totals(NODES) == "[Total 3] [CPUs 14]"


@given(
    st.lists(
        st.builds(
            Sample, st.integers(1, 65535), st.integers(0, 127), load=st.none() | st.integers(0, 10**6),
            mem=st.none() | st.integers(0, 10**12), tmem=st.none() | st.integers(0, 10**12),
            rmem=st.none() | st.integers(0, 10**12), util=st.none() | st.integers(0, 100),
            speed=st.none() | st.integers(1, 65535),
        ),
        max_size=50,
    ),
    st.builds(
        View, st.sampled_from(sorted(QUANTITIES)), st.sampled_from(Layout), st.integers(0, 60), st.booleans()
    ),
    st.integers(1, 60),
    st.integers(1, 200),
)  # fmt: skip
def test_it_never_leaves_the_screen(nodes: list[Sample], view: View, rows: int, columns: int) -> None:
    lines = text(picture(nodes, view, rows, columns))
    assert len(lines) <= rows
    assert max(map(len, lines), default=0) <= columns
    assert len(chosen(nodes, view)) <= len(nodes)
