"""What `tune` has measured, as the control files have it, and what the decisions make of it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mignode.adminvalues import AdminValues
from mignode.tuning import MFSCOSTS, MIB, MOST_US, OVERHEADS, PAGE_BYTES, costs, learned, page_s, shown, tuned, written
from mignode.weighing import Costs
from omfs.magic.controlfiles import OF_ADMIN

NONE = AdminValues()
NAMES = [*OVERHEADS, *MFSCOSTS]
FILES = {file.name: file.kind for file in OF_ADMIN}


def with_overheads(**measured: int) -> tuple[int, ...]:
    return tuple(measured.get(name, 0) for name in OVERHEADS)


def with_mfscosts(**measured: int) -> tuple[int, ...]:
    return tuple(measured.get(name, 0) for name in MFSCOSTS)


@given(st.lists(st.floats(0, 1e5), min_size=len(NAMES), max_size=len(NAMES)))
def test_the_control_files_take_whatever_was_measured(seconds: list[float]) -> None:
    found = tuned(dict(zip(NAMES, seconds, strict=True)))
    for name, values in found._asdict().items():
        assert FILES[name].parse(written(values)) == values
        assert 0 < min(values) <= max(values) <= MOST_US, "0 is for what nobody has measured"


def test_the_last_overheads_are_those_of_the_original() -> None:
    assert list(OVERHEADS)[-2:] == ["move", "move_page"]
    assert (len(OVERHEADS), len(MFSCOSTS)) == (len(NONE.overheads), len(NONE.mfscosts))
    measured = dict.fromkeys(NAMES, 1.0) | {"move": 0.12, "move_page": 5e-6}
    assert tuned(measured).overheads[-2:] == (120_000, 5)


def test_what_was_not_measured_is_not_told() -> None:
    with pytest.raises(KeyError):
        tuned(dict.fromkeys(NAMES[1:], 1.0))


def test_a_page_is_what_more_memory_takes_longer() -> None:
    more_bytes = 1000 * PAGE_BYTES
    assert page_s([0.1, 0.1, 9.0], [0.3, 0.3, 0.0], more_bytes) == pytest.approx(0.0002)
    assert page_s([0.3], [0.1], more_bytes) == 0.0, "noise"


def test_before_anything_is_known() -> None:
    assert costs(NONE.overheads, NONE.mfscosts) == Costs()


def test_what_moves_have_shown_holds_until_it_is_measured() -> None:
    shown_by_moves = costs(NONE.overheads, NONE.mfscosts, 50e6)
    assert shown_by_moves == Costs()._replace(bytes_per_s=50e6, memory_bytes_per_s=50e6)
    measured = costs(with_overheads(move_page=40), with_mfscosts(read_mib=4000), 50e6)
    assert (measured.memory_bytes_per_s, measured.bytes_per_s) == (PAGE_BYTES * 1e6 / 40, MIB * 1e6 / 4000)


@pytest.mark.parametrize(
    ("seconds", "crowd", "shown_mb"), [(5.0, 1.0, 20.0), (5.0, 3.0, 60.0), (5.0, 9.0, 100.0), (0.5, 9.0, 200.0)]
)
def test_a_move_that_waited_for_the_processor_says_less_of_the_network(
    seconds: float, crowd: float, shown_mb: float
) -> None:
    assert learned(100_000_000, seconds, crowd) == shown_mb * 1e6


def test_each_measured_cost_has_its_place() -> None:
    assert costs(with_overheads(move=90_000), NONE.mfscosts).move_s == 0.09
    assert costs(with_overheads(round_trip=310), NONE.mfscosts).call_s == 0.00031


def test_it_is_shown_as_gettune_has_it() -> None:
    lines = shown("node 1 with node 2", tuned(dict.fromkeys(NAMES, 0.001))).splitlines()
    assert lines[0] == "node 1 with node 2, in microseconds:"
    assert lines[1] == f"     1000  {OVERHEADS['round_trip']}"
    assert lines[-2:] == ["overheads: " + " ".join(["1000"] * 14), "mfscosts: " + " ".join(["1000"] * 6)]
