"""A guest's class of decay and its past, on real nodes: wherever it is, it is what it was said to be, for as long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.cluster import Cluster, Place, wait_until

pytestmark = pytest.mark.lab

LAB_NODES = 2

HOG = "while :; do :; done"
CHANGING = """
echo 1 > /proc/hpc/decay/iojob && echo 1 > /proc/hpc/decay/execonce
cat /proc/hpc/decay/iojob > begun
until test -e go-on; do sleep 0.1; done
echo 1 > /proc/hpc/decay/fast
echo > went-on
until test -e execute; do sleep 0.1; done
exec bash -c 'until test -e again; do sleep 0.1; done; exec sleep 600'
"""


@contextmanager
def guest(cluster: Cluster, script: str, how: str) -> Iterator[tuple[str, Place]]:
    """Its pid at home, on node 1, and its directory there."""
    place = cluster.fresh_dir(1)
    cluster.run(1, f"cd {place.native} && cat > script <<'THE END'\n{script}\nTHE END")
    start = f"cd {place.native} && {{ {how} bash script > out 2>&1 < /dev/null & echo $!; read line; }}"
    process = cluster.lab.popen(1, start)
    try:
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        yield pid, place
    finally:
        cluster.try_run(1, f"kill -9 {pid}")
        cluster.lab.end(process)


def why(cluster: Cluster, pid: str) -> str:
    return cluster.try_run(1, f"mosctl why {pid}").stdout


def life_s(cluster: Cluster, pid: str, node: int) -> int:
    """How long it is expected to go on, as that node sees it; -1: it has not said yet."""
    said = why(cluster, pid)
    found = re.search("expected to go on for ([0-9]+) s", said)
    return int(found[1]) if found and f"on node {node} " in said else -1


def class_of(cluster: Cluster, pid: str, node: int = 1) -> str:
    return cluster.run(node, f"cat /mfs/proc/{pid}/decay").strip()


def test_a_guest_that_moves_is_judged_by_its_whole_life(cluster: Cluster) -> None:
    with guest(cluster, HOG, "mosrun -c -d 900 -t 7") as (pid, _):
        wait_until(lambda: life_s(cluster, pid, 1) >= 4, "it has worked for a while")
        assert class_of(cluster, pid) == "cpujob own:900:7"
        judged = "judged as cpujob (its files do not count), 900/1000 of its past kept every 7 s"
        wait_until(lambda: judged in why(cluster, pid), "its class is told")
        before_s = life_s(cluster, pid, 1)
        cluster.run(1, f"migrate {pid} 2")
        wait_until(lambda: life_s(cluster, pid, 2) >= 0, "it was looked at where it is")
        assert life_s(cluster, pid, 2) >= before_s
        assert judged in why(cluster, pid)


def test_it_says_itself_what_it_is_and_that_ends_as_it_says(cluster: Cluster) -> None:
    with guest(cluster, CHANGING, "mosrun") as (pid, place):
        wait_until(lambda: cluster.try_run(1, f"cat {place.native}/begun").stdout == "1\n", "it has said so")
        assert class_of(cluster, pid) == "iojob execonce"
        cluster.run(1, f"migrate {pid} 2")
        cluster.run(1, f"touch {place.native}/go-on")
        wait_until(lambda: cluster.try_run(1, f"test -e {place.native}/went-on").returncode == 0, "it went on")
        assert class_of(cluster, pid) == "iojob fast execonce"
        cluster.run(1, f"touch {place.native}/execute")
        wait_until(lambda: class_of(cluster, pid) == "iojob fast", "it holds for another program")
        cluster.run(1, f"echo own:500:3 > /mfs/proc/{pid}/decay")
        wait_until(lambda: "500/1000 of its past kept every 3 s" in why(cluster, pid), "its user has changed it")
        cluster.run(1, f"touch {place.native}/again")
        wait_until(lambda: class_of(cluster, pid) == "default", "it ended with its program")
