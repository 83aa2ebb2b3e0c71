"""Guests that are moved by nobody but the cluster itself, and those that it must not move."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from omfs.cli import demo
from omfs.lab.pressure import are_processors_short
from tests.lab.agents import number_from
from tests.lab.cluster import PROGRAMS, Cluster, wait_until

CALM_S = number_from("OMFS_CALM_S", 10)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400 + CALM_S)]

BALANCES = True

SCAN = """
import os, sys
print(os.getpid(), flush=True)
while True:
    file = os.open(sys.argv[1], os.O_RDONLY)
    while os.read(file, 1 << 20):
        pass
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
"""
SELDOM = """
import os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
while True:
    os.pread(file, 1500000, 0)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(0.5)
"""
MEASURED = {"overheads": [200] + [1] * 11 + [350_000, 41], "mfscosts": [1] * 4 + [10_000, 1]}  # 3 MB a second: 0.03 s
HOG, AWK = (PROGRAMS / "timewaster.awk").read_text(), "awk -f"


@contextmanager
def guests(
    cluster: Cluster, program: str, *arguments: str, count: int = 1, before: str = ":", runs: str = "python3"
) -> Iterator[list[str]]:
    """Their pids at home, on node 1."""
    directory = cluster.fresh_dir(1).native
    cluster.run(1, f"cat > {directory}/program <<'THE END'\n{program}\nTHE END")
    start = f"mosrun {runs} {directory}/program {' '.join(arguments)} > /dev/null 2>&1 < /dev/null & echo $!"
    script = f"{before}; for i in $(seq {count}); do {start}; done"
    process = cluster.lab.popen(1, f"{{ {script}; }}; read line")
    try:
        assert process.stdout is not None
        pids = [process.stdout.readline().strip() for _ in range(count)]
        yield pids
    finally:
        cluster.try_run(1, f"kill -9 {' '.join(pids)}")
        cluster.lab.end(process)


def where(cluster: Cluster, pid: str) -> int:
    """0 at home; an answer may be late while it is on its way."""
    told = cluster.try_run(1, f"cat /mfs/proc/{pid}/where").stdout.strip()
    return int(told) if told else -1


def why(cluster: Cluster, pid: str) -> str:
    return cluster.try_run(1, f"mosctl why {pid}").stdout


def came_after_s(cluster: Cluster, pid: str) -> float | None:
    """Since its start, as its home tells it; None: it has not come to node 2 yet."""
    said = cluster.try_run(1, f"mosctl why --json {pid}").stdout
    decision = json.loads(said) if said else {"here": 1}
    return decision["came_after_s"] if decision["here"] == 2 else None


def test_a_scan_goes_to_its_data_and_why_is_told(cluster: Cluster) -> None:
    place = cluster.fresh_dir(2)
    cluster.run(2, f"dd if=/dev/zero of={place.native}/data bs=1M count=64 2> /dev/null")
    is_busy, at_home = are_processors_short(), "-h -l python3"  # its first place is not to be there by chance
    with guests(cluster, SCAN, f"{place.remote}/data", runs=at_home) as [pid]:
        wait_until(lambda: came_after_s(cluster, pid) is not None, "it is told that it has come to its data")
        came_s, is_busy = came_after_s(cluster, pid), is_busy or are_processors_short()
        assert came_s is not None
        is_soon, said = demo.is_soon(came_s, is_busy=is_busy)
        print(said, file=sys.stderr)  # shown by pytest -rP
        assert is_soon, said
        assert where(cluster, pid) == 2
        wait_until(lambda: "on node 2 stays" in why(cluster, pid), "it is told why it is there")
        cluster.run(1, f"migrate {pid} balance")
        assert where(cluster, pid) == 2
        assert cluster.run(1, f"migrate {pid} 3; cat /mfs/proc/{pid}/where") == "3\n"  # before balancing has it back
        cluster.run(1, f"until migrate {pid} balance 2> said; do grep -q 'not known yet' said; sleep 0.2; done")
        wait_until(lambda: where(cluster, pid) == 2, "it is where its data are, again")


@contextmanager
def tuned(cluster: Cluster, values: dict[str, list[int]]) -> Iterator[None]:
    """As if `tune` had measured that; what moves have shown before does not count then."""
    admin = "/mfs/proc/hpc/admin"
    try:
        for name, numbers in values.items():
            cluster.run(1, f"echo {' '.join(map(str, numbers))} > {admin}/{name}")
        yield
    finally:
        for name, numbers in values.items():
            cluster.run(1, f"echo {' '.join('0' for _ in numbers)} > {admin}/{name}")


def test_who_reads_seldom_stays_away_from_its_data(cluster: Cluster) -> None:
    """It would be better off there, and is told that this is not worth a move."""
    place = cluster.fresh_dir(2)
    cluster.run(2, f"head -c 1500000 /dev/zero > {place.native}/data")
    begun = guests(cluster, SELDOM, f"{place.remote}/data", before="mosctl stay > /dev/null")  # at home
    with tuned(cluster, MEASURED), begun as [pid]:
        wait_until(lambda: "nobody leaves this node (stay)" in why(cluster, pid), "it is known")
        cluster.run(1, "mosctl nostay")

        def is_too_little() -> bool:
            said = cluster.try_run(1, f"mosctl why --json {pid}").stdout
            decision = json.loads(said) if said else {"reason": ""}
            if decision["reason"] != "it would gain less than the move costs":
                return False
            files = {option["node"]: option["files_s"] for option in decision["options"]}
            return bool(files[2] < files[1] / 2)  # its program is on node 1

        try:
            wait_until(is_too_little, "node 2 would be better, and not worth a move")
        except AssertionError:
            raise AssertionError(told(cluster, [pid])) from None
        assert where(cluster, pid) == 0
        assert moves(cluster, [pid]) == [0]


def looks_after(cluster: Cluster, pid: str, reason: str) -> None:
    wait_until(lambda: reason in why(cluster, pid), f"it is told: {reason}")
    assert where(cluster, pid) == 0


def test_nobody_is_moved_who_may_not(cluster: Cluster) -> None:
    place = cluster.fresh_dir(2)
    cluster.run(2, f"dd if=/dev/zero of={place.native}/data bs=1M count=64 2> /dev/null")
    with guests(cluster, SCAN, f"{place.remote}/data", before="mosctl stay > /dev/null") as [pid]:
        looks_after(cluster, pid, "nobody leaves this node (stay)")
        cluster.run(1, f"echo 1 > /mfs/proc/{pid}/lock; mosctl nostay")
        looks_after(cluster, pid, "it is locked")
        cluster.run(
            1, f"echo 2 > /mfs/proc/{pid}/mignodes; echo 1 > /mfs/proc/{pid}/migfilter; echo 0 > /mfs/proc/{pid}/lock"
        )
        looks_after(cluster, pid, "its mask (migfilter)")
        cluster.run(2, "mosctl block")
        wait_until(lambda: cluster.run(1, "mosctl status 2") == "up,block\n", "node 1 has heard of it")
        cluster.run(1, f"echo 0 > /mfs/proc/{pid}/migfilter")
        looks_after(cluster, pid, "the node takes no guests (block)")
        cluster.run(2, "mosctl noblock")
        wait_until(lambda: where(cluster, pid) == 2, "it goes as soon as it may")


def spread(cluster: Cluster, pids: list[str]) -> list[int]:
    """How many on each node."""
    places = [where(cluster, pid) for pid in pids]
    return [places.count(node) for node in (0, 2, 3)]


def moves(cluster: Cluster, pids: list[str]) -> list[int]:
    return list(map(int, cluster.run(1, "cat " + " ".join(f"/mfs/proc/{pid}/nmigs" for pid in pids)).split()))


def told(cluster: Cluster, pids: list[str]) -> str:
    return "\n".join([str(spread(cluster, pids)), *(why(cluster, pid) for pid in pids)])


def test_hogs_spread_out_and_stay(cluster: Cluster) -> None:
    """Within 10 %: as many on each node, so that each hog gets as much."""
    cpus = int(cluster.run(1, "cat /mfs/proc/hpc/nodes/1/cpus"))
    with guests(cluster, HOG, count=3 * cpus, runs=AWK) as pids:
        try:
            wait_until(lambda: spread(cluster, pids) == [cpus] * 3, "there are as many on each node", 240)
        except AssertionError:
            raise AssertionError(told(cluster, pids)) from None
        assert sum(moves(cluster, pids)) <= 4 * cpus  # half of it is what it takes


def test_nobody_goes_to_and_fro(cluster: Cluster) -> None:
    """Hogs that can't be spread evenly, and who reads data of other nodes: OMFS_CALM_S seconds of it."""
    places = [cluster.fresh_dir(node) for node in (2, 3)]
    for place in places:
        cluster.run(place.owner, f"dd if=/dev/zero of={place.native}/data bs=1M count=64 2> /dev/null")
    with (
        guests(cluster, SCAN, f"{places[0].remote}/data") as [second],
        guests(cluster, SCAN, f"{places[1].remote}/data") as [third],
        guests(cluster, HOG, count=4, runs=AWK) as hogs,
    ):
        wait_until(lambda: where(cluster, second) == 2, "one is where its data are", 120)
        wait_until(lambda: where(cluster, third) == 3, "so is the other one", 120)
        wait_until(lambda: max(spread(cluster, hogs)) <= 2, "the hogs are spread out", 120)
        everybody = [second, third, *hogs]
        before = moves(cluster, everybody)
        time.sleep(CALM_S)
        more = [after - then for after, then in zip(moves(cluster, everybody), before, strict=True)]
        print(f"moves in {CALM_S:.0f} s: {more}", file=sys.stderr)  # shown by pytest -rP
        assert max(more) <= 1, told(cluster, everybody)
        assert (where(cluster, second), where(cluster, third)) == (2, 3)


@contextmanager
def speeds(cluster: Cluster, *wanted: int) -> Iterator[None]:
    """Of the nodes 1, 2, ..., as node 1 knows them; what is fast is cheap, whoever else works on this machine."""
    before = [cluster.run(node, "mosctl getspeed").strip().removeprefix("speed=") for node, _ in enumerate(wanted, 1)]
    try:
        for node, speed in enumerate(wanted, 1):
            cluster.run(node, f"mosctl setspeed {speed}")
            asked = f"mosctl getspeed {node}"
            wait_until(lambda asked=asked, speed=speed: cluster.run(1, asked) == f"speed={speed}\n", "it is known")
        yield
    finally:
        for node, speed in enumerate(before, 1):
            cluster.run(node, f"mosctl setspeed {speed}")


@contextmanager
def sleeper(cluster: Cluster, *options: str) -> Iterator[str]:
    pid = cluster.run(1, f"mosrun {' '.join(options)} sleep 1000 > /dev/null 2>&1 < /dev/null & echo $!").strip()
    try:
        wait_until(lambda: cluster.try_run(1, f"test -e /run/omfs/guests/1.{pid}.*/record").returncode == 0, "it runs")
        yield pid
    finally:
        cluster.try_run(1, f"kill -9 {pid}")


def test_a_program_goes_on_where_it_costs_least_from_its_start(cluster: Cluster) -> None:
    with speeds(cluster, 100, 10000, 60000):
        for options, node in (((), 3), (("-b",), 3), (("-j1-2",), 2), (("-h",), 0), (("-L",), 0), (("-i",), 0)):
            with sleeper(cluster, *options) as pid:
                wait_until(lambda pid=pid, node=node: where(cluster, pid) == node, f"{options}: it is on node {node}")
                if options in ((), ("-b",)):
                    wait_until(lambda pid=pid: "began on node 3: it costs least there" in why(cluster, pid), "and why")
                if options == ("-L",):
                    wait_until(lambda pid=pid: "began at home: it is locked" in why(cluster, pid), "and why")
    with speeds(cluster, 60000, 100, 100), sleeper(cluster) as pid:
        wait_until(lambda: "began at home: no other node is better" in why(cluster, pid), "it is told")
        assert where(cluster, pid) == 0
