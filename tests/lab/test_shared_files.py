"""Programs of three nodes at work on one file: mappings by turns, appends, counters under locks; nothing is lost."""

from __future__ import annotations

import os
import struct

import pytest

from tests.lab.agents import Agent, number_from
from tests.lab.cluster import Cluster
from tests.watch.deadline import LAB_TIMEOUT_S

LAB_OPTIONS = ("--dfsa", "0")  # the owner's own programs go through /mfs too
TURNS = number_from("OMFS_TURNS", 200)
RECORDS = number_from("OMFS_RECORDS", 10_000)
LOCKED_TURNS = number_from("OMFS_LOCKED_TURNS", 100)

# "watched": a mapping that only reads; "kept" stays mapped and stores.  "unsynced" does so without a call, so nobody knows
# when to look for what it stored (docs/LIMITS.md): OMFS_MAPPINGS=unsynced shows it.
MAPPINGS = os.environ.get("OMFS_MAPPINGS", "anew remapped watched kept").split()

pytestmark = [pytest.mark.lab, pytest.mark.timeout(max(LAB_TIMEOUT_S, RECORDS // 50))]


@pytest.mark.parametrize("nodes", [(1, 3), (1, 2)], ids=["two holders", "holder and owner"])
@pytest.mark.parametrize("how", MAPPINGS)
def test_mappings_of_two_nodes_take_turns_on_one_page(cluster: Cluster, how: str, nodes: tuple[int, int]) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(2, f"head -c 4096 /dev/zero > {here.native}/page")
    page = f"{here.remote}/page"
    if how == "watched":
        writer = Agent(cluster.lab, nodes[0], "mmapturns.py", page, "0", "anew")
        watcher = Agent(cluster.lab, nodes[1], "mmapturns.py", page, "1", how)
        for turn in range(TURNS):
            assert watcher.ask("turn") == turn, f"{watcher.name} does not see turn {turn} of {writer.name}"
            writer.ask("turn")
        return
    agents = [Agent(cluster.lab, node, "mmapturns.py", page, str(slot), how) for slot, node in enumerate(nodes)]
    for turn in range(TURNS):
        assert agents[turn % 2].ask("turn") == turn, f"turn {turn} of {agents[turn % 2].name}: an increment is lost"
    reader = f"print(open('{page}', 'rb').read()[2040:2064].hex())"
    for node in (*nodes, 3):
        counts = struct.unpack("<3q", bytes.fromhex(cluster.python(node, reader)))
        assert counts == (TURNS, TURNS - TURNS // 2, TURNS // 2), f"node {node}"


def test_appends_of_three_nodes_are_neither_lost_nor_torn_while_others_read(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    path, each = f"{here.remote}/log", RECORDS // 3
    cluster.run(2, f"touch {here.native}/log")
    readers = [cluster.start_program(node, "records.py", "tail", path, str(3 * each)) for node in (1, 3)]
    writers = [cluster.start_program(n, "records.py", "append", path, f"node{n}", str(each)) for n in (1, 2, 3)]
    for program in (*writers, *readers):
        program.wait_success(timeout_s=max(240, RECORDS // 50))
    for node in (1, 2, 3):
        cluster.program(node, "records.py", "tail", path, str(3 * each))


@pytest.mark.parametrize("kind", ["flock", "posix"])
def test_a_counter_that_is_read_from_caches_loses_nothing_under_a_lock(cluster: Cluster, kind: str) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(2, f"printf 0 > {here.native}/counter")
    paths = (f"{here.remote}/counter", f"{here.remote}/lock")
    programs = [cluster.start_program(n, "lockedcounter.py", *paths, str(LOCKED_TURNS), kind) for n in (1, 2, 3)]
    for program in programs:
        program.wait_success(timeout_s=240)
    for node in (1, 2, 3):
        assert cluster.run(node, f"cat {here.remote}/counter") == str(3 * LOCKED_TURNS)
