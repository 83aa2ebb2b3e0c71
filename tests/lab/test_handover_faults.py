"""kill -9 of every mignode that has to do with a migration, wherever CRIU and the inits are at another point: one copy
runs on, and nothing is lost.

All points, with fakes in their places: tests/sim/test_travel.py.  What else may fail: test_handover_surroundings.py.
"""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster
from tests.lab.countingguest import HOME, CountingGuest


def test_the_source_is_killed_at_home(cluster: Cluster) -> None:
    guest = CountingGuest(cluster)
    for point in ("began", "prepared", "dumped", "sent", "kept", "barred"):
        assert guest.die_at(HOME, point, 2) == HOME, point


@pytest.mark.parametrize("point", ["committed", "ran"])
def test_the_source_is_killed_after_the_commit(cluster: Cluster, point: str) -> None:
    guest = CountingGuest(cluster)
    assert guest.die_at(HOME, point, 2) == 2


def test_the_source_is_killed_away_from_home(cluster: Cluster) -> None:
    guest = CountingGuest(cluster)
    guest.move(2)
    for point, node in (("restored", 2), ("barred", 2), ("committed", 3)):
        assert guest.die_at(2, point, 3) == node, point


def test_the_destination_is_killed(cluster: Cluster) -> None:
    guest = CountingGuest(cluster)
    for point in ("arrived", "hatched", "received", "rebuilt", "held"):
        assert guest.die_at(2, point, 2) == HOME, point


def test_the_destination_is_killed_after_the_commit(cluster: Cluster) -> None:
    """Where its copy has not run yet it is given back."""
    guest = CountingGuest(cluster)
    for point, node in (("decided", HOME), ("written", HOME), ("let-run", 2)):
        assert guest.die_at(2, point, 2) == node, point


def test_home_is_killed_while_it_goes_from_node_to_node(cluster: Cluster) -> None:
    guest = CountingGuest(cluster)
    guest.move(2)
    before = 2
    for point in ("prepared", "barred", "committed"):
        after = 5 - before
        with guest.standing_at(before, point, after):
            guest.restart(HOME)
        before = guest.check()


def test_home_is_killed_as_it_takes_a_guest_back(cluster: Cluster) -> None:
    guest = CountingGuest(cluster)
    guest.move(2)
    assert guest.die_at(HOME, "held", HOME) == 2
    assert guest.die_at(HOME, "let-run", HOME) == HOME
