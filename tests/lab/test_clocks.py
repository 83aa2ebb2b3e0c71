"""Nodes whose clocks are three hours apart work on one tree: the times of files are their owner's, so make is right.

The nodes of a lab share one kernel's clock.  What asks for the time is given another by a preloaded library, on one
node ahead, on another behind: the programs, and the daemons too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.lab.agents import Agent
from tests.lab.cluster import PROGRAMS, Cluster, Place
from tests.lab.livelab import Lab

pytestmark = pytest.mark.lab

OWNER = 2
SHIFTS_S = {1: 5400, 3: -5400}  # three hours between them
PRELOADED = "/root/shiftedclock.so"

MAKEFILE = """
OBJECTS = one.o two.o three.o
all: sum.txt
sum.txt: $(OBJECTS)
\tcat $(OBJECTS) > sum.txt
%.o: %.c common.h
\tcat common.h $< > $@
"""


@dataclass(frozen=True)
class ShiftedNode:
    """A node on which everything that is started here believes in another time."""

    cluster: Cluster
    node: int

    def run(self, script: str) -> str:
        return self.cluster.run(self.node, f"export {self.settings()}\n{script}")

    def settings(self) -> str:
        return f"LD_PRELOAD={PRELOADED} CLOCK_SHIFT_S={SHIFTS_S[self.node]}"

    def clock_s(self) -> float:
        return float(self.run("date +%s.%N"))


@pytest.fixture(scope="module")
def module_shifted(module_lab: Lab) -> dict[int, ShiftedNode]:
    """The nodes with wrong clocks, their daemons started anew with them; that stays until the module's lab goes."""
    cluster = Cluster(module_lab)
    nodes = {node: ShiftedNode(cluster, node) for node in SHIFTS_S}
    for node, one in nodes.items():
        cluster.run(node, f"cc -shared -fPIC -O2 -Wall -Werror -o {PRELOADED} {PROGRAMS / 'shiftedclock.c'}")
        one.run("umount /mfs; mount /mfs")
        for pid in (cluster.mount_pid(node), cluster.export_pid(node)):
            cluster.run(node, f"tr '\\0' '\\n' < /proc/{pid}/environ | grep -qx CLOCK_SHIFT_S={SHIFTS_S[node]}")
    return nodes


@pytest.fixture
def shifted(cluster: Cluster, module_shifted: dict[int, ShiftedNode]) -> dict[int, ShiftedNode]:
    """The same for one test, after which the cluster is put right."""
    return module_shifted


def test_the_clocks_are_three_hours_apart(cluster: Cluster, shifted: dict[int, ShiftedNode]) -> None:
    """Or the others would prove nothing; in Python too, which is what the daemons are."""
    right = float(cluster.run(OWNER, "date +%s.%N"))
    for node, one in shifted.items():
        assert abs(one.clock_s() - right - SHIFTS_S[node]) < 600
        assert abs(float(one.run("python3 -c 'import time; print(time.time())'")) - right - SHIFTS_S[node]) < 600


def test_make_builds_what_has_changed_and_nothing_else(cluster: Cluster, shifted: dict[int, ShiftedNode]) -> None:
    here = cluster.fresh_dir(OWNER)
    ahead, behind = shifted[1], shifted[3]
    write = "\n".join(f"echo {name} > {here.remote}/{name}" for name in ("one.c", "two.c", "three.c", "common.h"))
    ahead.run(f"{write}\ncat > {here.remote}/Makefile <<'END'\n{MAKEFILE}\nEND")
    everything = {"one.o", "two.o", "three.o", "sum.txt"}
    assert built_by(behind, here) == everything
    steps = [
        ("echo more >> two.c", {"two.o", "sum.txt"}),
        ("touch common.h", everything),
        ("echo fresh > three.new && mv three.new three.c", {"three.o", "sum.txt"}),
        ("rm one.o", {"one.o", "sum.txt"}),
        ("cat one.c > again && cp again one.c", {"one.o", "sum.txt"}),
        ("truncate -s 3 two.c", {"two.o", "sum.txt"}),
        ("chmod 600 two.c", set[str]()),
    ]
    for change, due in steps:
        for changing, building in ((ahead, behind), (behind, ahead)):
            changing.run(f"cd {here.remote} && {change}")
            assert built_by(building, here) == due, f"after {change!r} on node {changing.node}"
            for one in (ahead, behind):
                assert built_by(one, here) == set(), f"node {one.node} after {change!r} on node {changing.node}"
    views = [cluster.run(node, f"cd {path} && stat -c '%n %.9Y %.9Z' *") for node, path in paths_of(here)]
    assert views[0] == views[1] == views[2]
    assert float(cluster.run(OWNER, f"cd {here.native} && stat -c %.9Y * | sort -n | tail -1")) <= float(
        cluster.run(OWNER, "date +%s.%N")
    )


def built_by(one: ShiftedNode, here: Place) -> set[str]:
    """What make makes there; the sources may seem to come from the future, which make says and bears."""
    output = one.run(f"make --no-builtin-rules -C {here.remote} 2>&1")
    return set(re.findall(r"> (\S+)$", output, re.MULTILINE))


def paths_of(here: Place) -> list[tuple[int, str]]:
    return [(1, here.remote), (OWNER, here.native), (3, here.remote)]


def test_times_never_go_back_whoever_changes_a_file(cluster: Cluster, shifted: dict[int, ShiftedNode]) -> None:
    here = cluster.fresh_dir(OWNER)
    truth = Agent(cluster.lab, OWNER, "calls.py", here.native)
    agents = [
        Agent(cluster.lab, node, "calls.py", here.remote, environment=one.settings()) for node, one in shifted.items()
    ]
    assert agents[0].call(("create", "file", "text")) == [None]
    last = dict.fromkeys((".", "file"), (0, 0))
    for number in range(40):
        changing = agents[number % 2]
        change = [("write", "file", "next", 0), ("append", "file", "more"), ("truncate", "file", 2 + number)][
            number % 3
        ]
        assert changing.call(change, ("symlink", "x", f"name{number}")) == [None, None]
        views = [agent.call(("facts", "."), ("facts", "file")) for agent in (changing, agents[1 - number % 2], truth)]
        assert views[0] == views[1] == views[2], f"after change {number}"
        for path, facts in zip(last, views[0], strict=True):
            times = (facts["mtime"], facts["ctime"])
            assert times > last[path], f"{path} after change {number}"
            last[path] = times
    (now_ns,) = truth.call(("wall_clock",))
    assert max(last.values()) <= (now_ns, now_ns)
