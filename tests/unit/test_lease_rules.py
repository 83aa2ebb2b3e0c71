"""The two tables of leases, row by row."""

from __future__ import annotations

import pytest

from omfs.cache.rules import DEMANDS, Demand, Use, may_hold
from omfs.wiretypes import Mode

ROWS = {
    # held by another: (looks, changes the object, changes a directory, changes a name in it)
    Mode.NONE: (Demand.NOTHING, Demand.NOTHING, Demand.NOTHING, Demand.NOTHING),
    Mode.SHARED: (Demand.NOTHING, Demand.GIVE_BACK, Demand.FORGET_NAMES, Demand.FORGET_NAMES),
    Mode.EXCLUSIVE: (Demand.SHARE, Demand.GIVE_BACK, Demand.GIVE_BACK, Demand.GIVE_BACK),
}


@pytest.mark.parametrize("use", list(Use))
@pytest.mark.parametrize("held", list(Mode))
def test_what_a_use_demands_of_another_holder(use: Use, held: Mode) -> None:
    assert DEMANDS[use, held] is ROWS[held][use]


def test_the_table_has_no_other_rows() -> None:
    assert set(DEMANDS) == {(use, mode) for use in Use for mode in Mode}


@pytest.mark.parametrize(
    ("mode", "others", "may"),
    [
        (Mode.NONE, Mode.NONE, True),
        (Mode.NONE, Mode.SHARED, True),
        (Mode.NONE, Mode.EXCLUSIVE, True),
        (Mode.SHARED, Mode.NONE, True),
        (Mode.SHARED, Mode.SHARED, True),
        (Mode.SHARED, Mode.EXCLUSIVE, False),
        (Mode.EXCLUSIVE, Mode.NONE, True),
        (Mode.EXCLUSIVE, Mode.SHARED, False),
        (Mode.EXCLUSIVE, Mode.EXCLUSIVE, False),
    ],
)
def test_who_may_hold_what_beside_whom(mode: Mode, others: Mode, may: bool) -> None:
    assert may_hold(mode, others) is may


def test_a_demand_leaves_only_what_may_be_held_beside_the_use() -> None:
    """After SHARE one may look, after GIVE_BACK one may hold EXCLUSIVE."""
    for (use, held), demand in DEMANDS.items():
        left = {Demand.SHARE: Mode.SHARED, Demand.GIVE_BACK: Mode.NONE}.get(demand, held)
        assert may_hold(Mode.SHARED if use is Use.LOOK else Mode.NONE, left)
        assert use is not Use.CHANGE or left is Mode.NONE
