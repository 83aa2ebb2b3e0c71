"""The recipes for pools, docs/recipes, as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab

BALANCES = True  # who sleeps is not moved by it

RECIPES: Final = Path(__file__).resolve().parents[2] / "docs" / "recipes"
SERVER_POOL: Final = RECIPES / "server-pool.sh"
ADAPTIVE_POOL: Final = RECIPES / "adaptive-pool.sh"


@pytest.fixture(autouse=True)
def _open(cluster: Cluster) -> Iterator[None]:
    """All nodes take guests, before and after."""
    yield
    for node in (1, 2, 3):
        cluster.run(node, "mosctl noblock")


@contextmanager
def guest_at(cluster: Cluster, node: int) -> Iterator[str]:
    """One of node 1 that runs at *node*: its pid."""
    process = cluster.lab.popen(1, "mosrun sleep 1000 < /dev/null & echo $!; wait")
    try:
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        cluster.run(1, f"migrate {pid} {node}")
        assert where(cluster, pid) == node
        yield pid
    finally:
        cluster.try_run(1, f"kill -9 {pid}")
        cluster.lab.end(process)


def where(cluster: Cluster, pid: str) -> int:
    return int(cluster.run(1, f"cat /mfs/proc/{pid}/where"))


def knows(cluster: Cluster, node: int, status: str) -> None:
    """Node 1 has heard how *node* is."""
    wait_until(lambda: cluster.run(1, f"mosctl status {node}") == status + "\n", f"node {node} is {status}")


def test_a_server_pool_has_guests_on_servers_only(cluster: Cluster) -> None:
    with guest_at(cluster, 3) as pid:
        for node in (1, 2, 3):
            cluster.run(node, f"{SERVER_POOL} 2,7-9")
        knows(cluster, 2, "up")
        knows(cluster, 3, "up,block")
        assert where(cluster, pid) == 0, "the workstation's guest was sent home"
        refused = cluster.try_run(1, f"migrate {pid} 3")
        assert refused.returncode == 1
        assert where(cluster, pid) == 0
        cluster.run(1, f"migrate {pid} 2")
        assert where(cluster, pid) == 2
        for node in (1, 2, 3):
            cluster.run(node, f"{SERVER_POOL} 1-3")
        knows(cluster, 3, "up")
        cluster.run(1, f"migrate {pid} 3")
        assert where(cluster, pid) == 3


def test_an_adaptive_pool_gives_the_workstation_back(cluster: Cluster) -> None:
    cluster.run(3, f"{ADAPTIVE_POOL} leave; {ADAPTIVE_POOL} leave; {ADAPTIVE_POOL} join")
    with guest_at(cluster, 3) as pid:
        cluster.run(3, f"{ADAPTIVE_POOL} join")
        assert where(cluster, pid) == 3, "to join again changes nothing"
        cluster.run(3, f"{ADAPTIVE_POOL} leave")
        assert where(cluster, pid) == 0
        knows(cluster, 3, "up,block")
        assert cluster.try_run(1, f"migrate {pid} 3").returncode == 1


def test_it_follows_who_sits_there(cluster: Cluster) -> None:
    cluster.run(3, f"{ADAPTIVE_POOL} auto")
    assert cluster.run(3, "mosctl status") == "up\n", "nobody has a terminal there"
    with guest_at(cluster, 3) as pid:
        cluster.run(3, f"script -qec '{ADAPTIVE_POOL} auto 5' /dev/null < /dev/null")
        assert where(cluster, pid) == 0
        knows(cluster, 3, "up,block")
    cluster.run(3, f"{ADAPTIVE_POOL} auto 5")
    assert cluster.run(3, "mosctl status") == "up\n", "who sat there has gone, with his terminal"


def test_what_is_not_understood_is_refused(cluster: Cluster) -> None:
    wrong = (
        f"{SERVER_POOL}",
        f"{SERVER_POOL} all",
        f"{ADAPTIVE_POOL}",
        f"{ADAPTIVE_POOL} auto x",
        f"{ADAPTIVE_POOL} go",
    )
    told = cluster.run(3, "; ".join(f"{command} 2>&1 || echo $?" for command in wrong)).splitlines()
    assert [line.split()[0] for line in told] == ["usage:", "2"] * len(wrong)
    assert cluster.run(3, "mosctl status") == "up\n"
