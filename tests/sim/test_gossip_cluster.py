"""Up to two hundred simulated nodes: what they know is young, it costs each the same, and all notice a dead one.

The same simulation as bench/gossip.py makes tables of, to 5000 nodes.  Chance is seeded: it is the same every time.
"""

from __future__ import annotations

import math
import random

import pytest

from bench import gossip


@pytest.mark.parametrize(("nodes", "loss", "half_s", "noticed_s"), [(200, 0.1, 14, 40), (50, 0.3, 10, 50)])
def test_many_nodes(nodes: int, loss: float, half_s: float, noticed_s: float) -> None:
    found = gossip.simulate(nodes, loss, seconds=40, wait_noticed_s=60)
    assert len(found.ages) == 2 * gossip.LOOKED_AT * (nodes - 1)
    assert found.age(0.9) < math.inf  # most of the others are known
    assert found.age(0.5) < half_s
    assert found.datagrams < 2.5  # what a node asks, and what it answers
    assert found.bytes_each <= gossip.DATAGRAM_MAX_BYTES + gossip.HEADERS_BYTES
    assert found.false_alarms <= len(found.ages) / 1000  # who has just begun does not know yet how much gets lost
    assert found.unnoticed == 0
    assert found.noticed[-1] < noticed_s


def test_what_was_never_heard_is_older_than_the_rest() -> None:
    cluster = gossip.Cluster(200, 0.0, random.Random(1))
    for _ in range(3):
        cluster.run_period()
    ages, downs = cluster.look()
    assert len(ages) == gossip.LOOKED_AT * 199
    assert 0 < ages.count(math.inf) < len(ages)
    assert downs == 0


def test_a_row_of_the_table() -> None:
    found = gossip.simulate(3, 0.0, seconds=40, wait_noticed_s=30)
    assert gossip.row(3, 0.0, found).startswith("| 3 | 0% | ")
    assert "-" not in gossip.row(3, 0.0, found)
    assert gossip.row(3, 0.0, found).count("|") == gossip.HEAD.split("\n")[0].count("|")
