"""Nodes with limits of their own: what mignode tells of them, and who leaves when a node's memory runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mignode import nodefacts
from omfs.kernel import controlgroups
from omfs.lab import limits
from tests.lab.cluster import Cluster, wait_until

MIB = 1 << 20
LIMIT_MIB = 1536
PROCESSORS = 1.5
SHORT_MIB = LIMIT_MIB / 16  # mignode/policy.py: RESERVE

BALANCES = True
LAB_OPTIONS = ("--memory", f"{LIMIT_MIB}M", "--processors", str(PROCESSORS))

HOLDER = """
import os, sys, time

memory = bytearray(os.urandom(4096)) * (int(sys.argv[1]) * 256)
print("has it", flush=True)
time.sleep(1000)
"""
# Takes all that the node has but for so much; the last of it at once: it must not be short by less meanwhile.
FILLER = """
import sys, time
left, safe, pieces = int(sys.argv[1]) << 20, int(sys.argv[2]) << 20, []
def free():
    told = [int(open("/mfs/proc/hpc/nodes/1/mem").read())]
    while len(told) < 3 or max(told[-3:]) - min(told[-3:]) > 1 << 20:  # it tells all that was taken
        time.sleep(1)
        told.append(int(open("/mfs/proc/hpc/nodes/1/mem").read()))
    return told[-1]
while (much := free() - safe) > 2 << 20:
    pieces.append(bytearray(b"x") * much)
pieces.append(bytearray(b"x") * (free() - left))
free()
print("full", flush=True)
time.sleep(1000)
"""


def _can_limit() -> bool:
    places = [controlgroups.hierarchy(controller) for controller in (controlgroups.MEMORY, controlgroups.CPU)]
    return all(place is not None and os.access(place.mount, os.W_OK) for place in places)


pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(not _can_limit(), reason="no control groups for memory and cpu that we may make groups in"),
]


MOSRUN = "mosrun -h -l"  # it does not go on elsewhere from its start, where memory is already short


@contextmanager
def holding(cluster: Cluster, start: str, program: str, *arguments: object) -> Iterator[str]:
    """The pid of a program on node 1 that has said that it has its memory."""
    directory = cluster.fresh_dir(1).native
    cluster.run(1, f"cat > {directory}/program.py <<'THE END'\n{program}\nTHE END")
    words = " ".join(map(str, arguments))
    process = cluster.lab.popen(1, f"echo $$; exec {start} python3 {directory}/program.py {words} 2>&1")
    try:
        assert process.stdout is not None
        pid, said = process.stdout.readline().strip(), process.stdout.readline()
        assert said in ("has it\n", "full\n"), said
        yield pid
    finally:
        cluster.try_run(1, f"kill -9 {pid}")
        cluster.lab.end(process)


def where(cluster: Cluster, pid: str) -> int:
    told = cluster.try_run(1, f"cat /mfs/proc/{pid}/where").stdout.strip()
    return int(told) if told else -1


def test_a_node_tells_what_it_may_use(cluster: Cluster) -> None:
    told = cluster.run(1, "cd /mfs/proc/hpc/nodes/1; cat cpus tmem speed").split()
    cpus = min(2, os.cpu_count() or 1)
    assert told[:2] == [str(cpus), str(LIMIT_MIB * MIB)]
    assert int(told[2]) == round(nodefacts.measured_speed() * min(1.0, PROCESSORS / cpus))
    wait_until(lambda: cluster.try_run(1, "cat /mfs/proc/hpc/nodes/2/tmem").stdout == told[1] + "\n", "node 2 tells it")
    assert set(limits.directories(cluster.lab.paths, 1)) == {"cpu", "memory"}
    assert "/omfs-lab/" in cluster.run(1, "cat /proc/self/cgroup"), "what is run by exec counts too"


def test_the_least_whose_memory_is_enough_leaves(cluster: Cluster) -> None:
    with (
        holding(cluster, MOSRUN, HOLDER, 1) as small,
        holding(cluster, MOSRUN, HOLDER, 100) as middle,
        holding(cluster, MOSRUN, HOLDER, 300) as large,
    ):
        # Short by some 30 MiB: the small one would not help, the large one need not go.  While the last is taken it is
        # short by less for a moment, so nobody leaves before that is told.
        cluster.run(1, "mosctl stay")
        with holding(cluster, "", FILLER, int(SHORT_MIB) - 30, int(SHORT_MIB) + 80):
            assert where(cluster, middle) == 0
            cluster.run(1, "mosctl nostay")
            wait_until(lambda: where(cluster, middle) in (2, 3), "who is enough has left")
            assert where(cluster, small) == where(cluster, large) == 0
            told = cluster.run(1, f"mosctl why {small}; mosctl why {large}")
            assert told.count("on node 1 stays") == 2
        assert "goes to node" in cluster.log(1)
        assert cluster.log(1).count("memory runs out") == 1
