"""What the next node is told of a guest: nothing of it is lost by a move, and nothing comes in that can't be."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, strategies as st

from dfsa.hints import Hints, Memory, Rates, Remembered, Totals
from mignode.past import UNREST_MAX, OfNode, Past, told

STEPS = st.floats(0.1, 50)
GROWTH = st.builds(Totals, *[st.integers(0, 2**30)] * 3)
KEPT = st.floats(0.5, 1)


def moved(hints: Hints, here: int, kept: float) -> Hints:
    """As the node has it that the guest comes to, from *here*."""
    packed = msgspec.msgpack.encode(told(1.5, 0.5, hints.memory(), here))
    return Hints(2, kept, msgspec.msgpack.decode(packed, type=Past).remembered())


@given(st.lists(st.tuples(STEPS, GROWTH), min_size=2, max_size=12), st.integers(0, 11), KEPT)
def test_a_guest_that_moved_is_judged_as_one_that_stayed(
    looks: list[tuple[float, Totals]], moves_behind: int, kept: float
) -> None:
    """By what it does with a third node's files; the next node counts anew, from when it is there."""
    stayed, now_s, total = Hints(2, kept), 0.0, Totals(0, 0, 0)
    there, base = Hints(2, kept), Totals(0, 0, 0)
    stayed.look(now_s, {3: total})
    there.look(now_s, {3: total})
    for number, (step_s, growth) in enumerate(looks):
        now_s += step_s
        total = Totals(*(before + more for before, more in zip(total, growth, strict=True)))
        stayed.look(now_s, {3: total})
        there.look(now_s, {3: Totals(*(all_ - before for all_, before in zip(total, base, strict=True)))})
        if number == moves_behind:
            there, base = moved(there, 1, kept), total
            there.look(now_s, {3: Totals(0, 0, 0)})
    expected, found = stayed.rates(), there.rates()
    for node, rates in expected.items():
        assert found.get(node, Rates(0, 0, 0)) == pytest.approx(rates, rel=0.05, abs=5)


@given(st.floats(1, 1e5), st.floats(1, 1e9), KEPT)
def test_of_the_node_that_it_has_left_nothing_is_believed(seen_s: float, amount: float, kept: float) -> None:
    """What it read there from pipes was taken for files: the mount of the next node counts those, from the start."""
    before = Memory(seen_s, {1: Remembered(Rates(amount, 0, amount), seen_s), 2: Remembered(Rates(8, 8, 8), seen_s)})
    past = told(10, 0, before, 1)
    hints = Hints(2, kept, past.remembered())
    hints.look(0, {1: Totals(0, 0, 0)})
    assert 1 not in hints.rates()
    hints.look(2, {1: Totals(2000, 0, 20)})
    assert hints.rates()[1] == pytest.approx(Rates(1000, 0, 10))
    assert hints.rates()[2].calls == pytest.approx(8 * kept / (seen_s * kept + 2), rel=0.02)


def test_who_was_looked_at_for_less_long_is_as_any_after_a_while() -> None:
    hints = Hints(2, 0.5, told(0, 0, Memory(4, {1: Remembered(Rates(9, 9, 9), 4)}), 1).remembered())
    for now_s in range(0, 60, 2):
        hints.look(now_s, {})
    assert hints.memory().by_node == {}
    hints.look(60, {1: Totals(100, 0, 0)})
    assert hints.rates()[1].read_bytes == pytest.approx(25, rel=0.01)


def test_only_nodes_with_the_most_are_told_of() -> None:
    known = {node: Remembered(Rates(node, 0, 0), 9) for node in range(1, 200)}
    past = told(1, 99, Memory(9, known), 150)
    assert [one.node for one in past.files] == [*range(136, 150), 150, *range(151, 200)]
    assert next(one for one in past.files if one.node == 150) == OfNode(150, 0, 0, 0, 0)
    assert past.unrest == UNREST_MAX
    assert past.worked_s == 1


@given(st.floats(0, 1e300), st.floats(-1, 1e300), st.floats(0, 1e300))
def test_whatever_is_told_another_node_believes(worked_s: float, unrest: float, amount: float) -> None:
    past = told(worked_s, unrest, Memory(amount, {2: Remembered(Rates(amount, 0, 0), amount)}), 1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(past), type=Past) == past
    assert msgspec.json.decode(msgspec.json.encode(past), type=Past) == past


@pytest.mark.parametrize(
    "packed",
    [[-1, 0, 0, []], [0, 8001, 0, []], [0, 0, 0, [[0, 0, 0, 0, 0]]], [0, 0, 0, [[1, 0, 0, 0]]], [0, 0, 0, [], 1],
     [1.5, 0, 0, []], [0, 0, 0, [[1, 0, 0, 0, 0]] * 65]],
    ids=["negative", "unrest", "node", "short", "long", "fraction", "many"],
)  # fmt: skip
def test_what_is_no_past(packed: list[object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=Past)
