"""Rates from totals: right from the second look on, fading, and never misled by who starts anew."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dfsa.hints import Hints, Rates, Totals, local

STEPS = st.floats(0.01, 100)
AMOUNTS = st.integers(0, 2**40)
TOTALS = st.builds(Totals, AMOUNTS, AMOUNTS, AMOUNTS)
KEPT = st.floats(0.5, 1)


@given(st.lists(STEPS, min_size=1, max_size=20), st.builds(Totals, *[st.integers(0, 10**6)] * 3), KEPT)
def test_a_steady_rate_is_found_however_often_one_looks(steps: list[float], rate: Totals, kept: float) -> None:
    hints = Hints(2, kept)
    now = 0.0
    hints.look(now, {2: Totals(0, 0, 0)})
    for step in steps:
        now += step
        hints.look(now, {2: Totals(*(part * now for part in rate))})  # type: ignore[arg-type]
        if any(rate):
            assert hints.rates()[2] == pytest.approx(rate)
        else:
            assert hints.rates() == {}


@given(st.lists(st.tuples(STEPS, st.dictionaries(st.integers(1, 3), TOTALS)), max_size=20), KEPT)
def test_whatever_is_told_rates_are_no_more_than_what_happened(
    looks: list[tuple[float, dict[int, Totals]]], kept: float
) -> None:
    hints, now = Hints(2, kept), 0.0
    for step, totals in looks:
        now += step
        hints.look(now, totals)
        for rates in hints.rates().values():
            assert all(0 <= part <= 2**40 / 0.01 * 1.001 for part in rates)
            assert max(rates) > 0


def test_what_has_ended_fades_as_the_original_ages() -> None:
    hints = Hints(2, 0.5)
    hints.look(0, {})
    hints.look(2, {2: Totals(100, 40, 20)})
    assert hints.rates() == {2: Rates(50, 20, 10)}
    hints.look(4, {})  # half of the 100 is left, over half of the first 2 s and the next 2 s
    assert hints.rates() == {2: Rates(50 / 3, 20 / 3, 10 / 3)}
    hints.look(400, {})
    assert hints.rates() == {}


def test_who_starts_anew_counts_from_zero() -> None:
    hints = Hints(2, 1)
    hints.look(0, {2: Totals(1000, 1000, 1000)})
    hints.look(1, {2: Totals(1100, 1000, 1001)})
    hints.look(2, {2: Totals(7, 0, 2)})
    assert hints.rates() == {2: Rates(107 / 2, 0, 3 / 2)}


def test_a_node_that_is_new_counts_from_zero_and_one_look_tells_nothing() -> None:
    hints = Hints(2, 1)
    hints.look(10, {})
    assert hints.rates() == {}
    hints.look(12, {3: Totals(10, 0, 4)})
    assert hints.rates() == {3: Rates(5, 0, 2)}


def test_time_goes_on() -> None:
    hints = Hints(2, 1)
    hints.look(10, {})
    with pytest.raises(ValueError, match="0 s since"):
        hints.look(10, {})


def test_what_is_not_for_other_nodes_is_local() -> None:
    whole = Rates(100, 10, 7)
    assert local(whole, {}) == whole
    assert local(whole, {2: Rates(30, 20, 1), 3: Rates(30, 0, 1)}) == Rates(40, 0, 5)
