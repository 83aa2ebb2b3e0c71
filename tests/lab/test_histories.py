"""What programs of three nodes see of shared files and names, recorded and checked: it has one order that explains all.

Three programs on each node work at once; the times of their calls are of one clock.  OMFS_HISTORY_S says how long
they work, OMFS_KILLS how many daemons are killed meanwhile, OMFS_SEED repeats the choices.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Hashable

import pytest

from tests.lab.agents import number_from
from tests.lab.cluster import Cluster, wait_until
from tests.lab.recording import NODES, Recording
from tests.linearizability import UNKNOWN, NotLinearizable, Operation, check
from tests.watch.deadline import LAB_TIMEOUT_S

LAB_OPTIONS = (
    "--dfsa",
    "0",
)  # the owner's own programs go through /mfs too, so that the promise for them is the strict one
OWNER = 2
HISTORY_S = number_from("OMFS_HISTORY_S", 6)
BURSTS = number_from("OMFS_BURSTS", 1)
QUIET_S = 2.1
KILLS = number_from("OMFS_KILLS", 2)
THINGS = ("r0", "r1", "log0", "log1", "files", "links")

pytestmark = [pytest.mark.lab, pytest.mark.timeout(max(LAB_TIMEOUT_S, 2 * HISTORY_S, 30 * KILLS))]


def record_through_mfs(cluster: Cluster) -> Recording:
    here = cluster.fresh_dir(OWNER)
    return Recording(cluster, dict.fromkeys(NODES, here.remote), here, THINGS)


# ---------------------------------------------------------------- what is seen is in order


def test_what_three_nodes_see_has_one_order(cluster: Cluster) -> None:
    recording = record_through_mfs(cluster)
    recording.run(HISTORY_S)
    history = recording.check()
    for thing, plant in PLANTS.items():
        planted = plant(history[thing], recording.rng)
        with pytest.raises(NotLinearizable, match=f"not linearizable: .*{thing}"):
            check(planted, recording.specification(thing))


def test_who_kept_a_quiet_file_open_sees_it_grow(cluster: Cluster) -> None:
    """It is read through the page cache, as it was quiet when it was opened; then everybody appends to it."""
    for _ in range(BURSTS):
        here = cluster.fresh_dir(OWNER)
        recording = Recording(cluster, dict.fromkeys(NODES, here.remote), here, ("log0", "log1", "r1"))
        time.sleep(QUIET_S)  # so long after its last change a file is not cached
        recording.keep()
        recording.run(1)
        recording.check()
        recording.stop()


def test_it_has_one_order_when_daemons_are_killed(cluster: Cluster) -> None:
    """kill -9 of an export or a mount, again and again: what fails says so, and what was done stays done."""
    recording = record_through_mfs(cluster)
    for _ in range(KILLS):
        recording.begin()
        time.sleep(recording.rng.random())  # at any moment
        kill_something(cluster, recording.rng)
        time.sleep(0.5)  # some work with the new one
        recording.end()
    recording.run(1)
    recording.check()


def kill_something(cluster: Cluster, rng: random.Random) -> None:
    """The owner's export, or anybody's mount; returns when there is another."""
    if rng.random() < 0.5:
        before = cluster.export_pid(OWNER)
        cluster.kill_daemon(OWNER, before)
        cluster.wait_new_export(OWNER, before)
    else:
        node = rng.choice(NODES)
        cluster.kill_daemon(node, cluster.mount_pid(node))
        cluster.run(node, "mount /mfs", timeout_s=60)
    for node in NODES:
        wait_until(lambda node=node: cluster.try_run(node, f"ls /mfs/{OWNER}/srv").returncode == 0, f"/mfs on {node}")  # type: ignore[misc]


# ---------------------------------------------------------------- what is planted is found


def stale_read(history: list[Operation], rng: random.Random) -> list[Operation]:
    """A read that gives what an acknowledged write had replaced before the read began."""
    writes = [one for one in history if one.action == "write" and one.result is not UNKNOWN]
    first = min(writes, key=lambda one: one.returned)
    second = min((one for one in writes if one.called > first.returned), key=lambda one: one.returned)
    reads = [one for one in history if one.action == "read" and one.called > second.returned]
    return instead(history, rng.choice(reads), first.argument)


def stale_count(history: list[Operation], rng: random.Random) -> list[Operation]:
    """A log that is shorter than it was before."""
    counts = sorted((one for one in history if one.action == "count"), key=lambda one: one.called)
    earlier = counts[len(counts) // 2]
    assert isinstance(earlier.result, float)
    later = rng.choice([one for one in counts if one.called > earlier.returned])
    return instead(history, later, earlier.result - 1)


def stale_name(history: list[Operation], rng: random.Random) -> list[Operation]:
    """A name that still leads to what was removed long ago, and had been seen under no name since."""
    looks = sorted((one for one in history if one.action == "look"), key=lambda one: one.called)
    seen_late = {one.result for one in looks[len(looks) // 2 :]}
    last: dict[Hashable, list[Operation]] = {}
    for one in looks[len(looks) * 3 // 4 :]:
        last.setdefault(one.argument, []).append(one)
    old = next(
        one
        for one in looks
        if one.result not in seen_late and not str(one.result).startswith("mode") and one.argument in last
    )
    return instead(history, rng.choice(last[old.argument]), old.result)


def earlier_time(history: list[Operation], rng: random.Random) -> list[Operation]:
    """An mtime that is older than one that was seen before."""
    looks = sorted(history, key=lambda one: one.called)
    first = looks[0]
    later = rng.choice([one for one in looks if one.called > first.returned])
    assert isinstance(first.result, int)
    return instead(history, later, first.result - 1)


def instead(history: list[Operation], wrong: Operation, result: Hashable) -> list[Operation]:
    return [dataclasses.replace(one, result=result) if one is wrong else one for one in history]


PLANTS = {
    "r0": stale_read, "r1": stale_read, "log0": stale_count, "files": stale_name, "links": stale_name,
    "r0 times": earlier_time,
}  # fmt: skip
