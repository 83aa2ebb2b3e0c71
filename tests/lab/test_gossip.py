"""Real nodes tell each other how they are: who is busy, who is quiet, who is dead, and who is none of them."""

from __future__ import annotations

from typing import Final

import pytest

from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab

BALANCES = True  # nobody has guests here, and what status says is compared

HOGS: Final = 3
BUSY: Final = f"for each in $(seq {HOGS}); do (while :; do :; done) & done; wait"
FORGE: Final = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for data in (b"", b"gossip", b"og" + bytes(1398), b"og\\x00\\x00\\x00" + bytes(50)):
        sock.sendto(data, ("{address}", 5428))
"""


def says(cluster: Cluster, node: int, words: str) -> str:
    done = cluster.try_run(node, f"mosctl {words}")
    return (done.stdout + done.stderr).strip()


def load_of(cluster: Cluster, seen_from: int, node: int) -> int:
    """-1 where it is not told."""
    said = says(cluster, seen_from, f"getload {node}")
    return int(said.removeprefix("load=")) if said.startswith("load=") else -1


@pytest.fixture
def talking(cluster: Cluster) -> Cluster:
    """All know all."""
    pairs = [(one, other) for one in (1, 2, 3) for other in (1, 2, 3)]
    wait_until(lambda: all(load_of(cluster, one, other) >= 0 for one, other in pairs), "all know all")
    return cluster


def test_a_busy_node_is_seen_and_a_quiet_one_is_not(talking: Cluster) -> None:
    talking.run(2, "mosctl setspeed 15000")  # the yardstick: 100 for each
    busy = talking.lab.popen(2, BUSY)
    wait_until(lambda: load_of(talking, 1, 2) >= 100 * HOGS - 50, "node 1 sees the load of node 2")
    wait_until(lambda: load_of(talking, 1, 3) < 100, "node 3 is idle")
    assert says(talking, 1, "getspeed 2") == "speed=15000"
    assert says(talking, 1, "getmem 2").startswith("free memory = ")

    talking.run(2, "mosctl quiet; mosctl block")
    wait_until(lambda: says(talking, 1, "status 2") == "up,block,quiet", "node 1 hears that node 2 is quiet")
    assert "mosctl: the node does not tell its load" in says(talking, 1, "getload 2")
    assert load_of(talking, 2, 1) >= 0  # it goes on listening
    talking.run(2, "mosctl noquiet; mosctl noblock")
    wait_until(lambda: load_of(talking, 1, 2) >= 100 * HOGS - 50, "it speaks again")
    talking.lab.end(busy)
    wait_until(lambda: load_of(talking, 1, 2) < 100, "node 2 is idle again")


def test_what_a_stranger_says_changes_nothing(talking: Cluster) -> None:
    before = talking.ask(1, "mignode")["gossip"]
    known = talking.run(1, "cat /mfs/proc/hpc/nodes/[23]/status")
    talking.python(3, FORGE.format(address=talking.address(1)))
    wait_until(lambda: talking.ask(1, "mignode")["gossip"].get("forged", 0) >= before.get("forged", 0) + 4, "4 forged")
    assert talking.run(1, "cat /mfs/proc/hpc/nodes/[23]/status") == known
    assert talking.log(1).count(f"gossip from {talking.address(3)}: ") == 1


def test_a_dead_node_is_noticed_and_seen_again(talking: Cluster) -> None:
    talking.kill(3)
    for node in (1, 2):
        wait_until(lambda node=node: says(talking, node, "isup 3") == "no", f"node {node} sees that node 3 is dead")
        assert talking.run(node, "cat /mfs/proc/hpc/nodes/3/cpus") == "-101\n"
        assert says(talking, node, "getload 3") == "mosctl: the node is down"
    talking.start(3)
    wait_until(lambda: load_of(talking, 1, 3) >= 0 and load_of(talking, 3, 1) >= 0, "node 3 is back")
