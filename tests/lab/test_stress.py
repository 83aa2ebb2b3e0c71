"""openMosix's stress programs, as guests of three nodes at once that are moved all the time, at random.

Each works until it has been moved often enough, and to the end of what it is at then; what it prints is what it prints
without mosrun.
"""

from __future__ import annotations

import random
from typing import Final

import pytest

from tests.lab.cluster import PROGRAMS, Cluster, wait_until

pytestmark = pytest.mark.lab

MOVES: Final = 6  # of each
SEED: Final = 20040229
ALICE: Final = "1001:1001"
BUILT: Final = ("eatmem", "forkit")
COMMANDS: Final = {
    "distkeygen": f"/usr/bin/python3 {PROGRAMS}/distkeygen.py",
    "portfolio": f"perl {PROGRAMS}/portfolio.pl",
    "eatmem": "./eatmem",
    "timewaster": f"awk -f {PROGRAMS}/timewaster.awk",
    "forkit": "./forkit",
    "mfstest": f"bash {PROGRAMS}/mfstest.sh {{places}}",
}
GUEST: Final = """
cd {directory}
rm -f enough
mosrun {command} > out 2> err & moved=$!
until [ -e err ] && grep -q begun out; do sleep 0.1; kill -0 $moved; done
for node in {route}; do
    migrate $moved $node || {{ echo "to node $node:"; cat /mfs/proc/$moved/journey err; exit 1; }} >&2
done
touch enough
wait $moved || {{ echo "status $?"; cat err; exit 1; }} >&2
cat out
"""


def route_of(chance: random.Random, home: int) -> str:
    """Each is another node than the one before."""
    nodes = [home]
    for _ in range(MOVES):
        nodes.append(chance.choice([node for node in (1, 2, 3) if node != nodes[-1]]))
    return " ".join(map(str, nodes[1:]))


def test_they_run_to_their_end_under_random_migrations(cluster: Cluster) -> None:
    chance = random.Random(SEED)
    places = " ".join(cluster.fresh_dir(node).remote for node in (1, 2, 3))
    right, guests = {}, {}
    for number, (name, command) in enumerate(COMMANDS.items()):
        home, command = number % 3 + 1, command.format(places=places)
        directory = cluster.fresh_dir(home).native
        build = f"gcc -O1 -o {name} {PROGRAMS}/{name}.c" if name in BUILT else ":"
        cluster.run(home, f"cd {directory}; {build}; chown {ALICE} .")
        right[name] = cluster.run(home, f"cd {directory}; touch enough; {command}", user=ALICE)
        script = GUEST.format(directory=directory, command=command, route=route_of(chance, home))
        guests[name] = home, script
    running = {
        name: cluster.lab.popen(home, f"set -euo pipefail\n{script}", user=ALICE)
        for name, (home, script) in guests.items()
    }
    ended = {name: process.communicate(timeout=450) for name, process in running.items()}
    assert {name: said for name, (out, said) in ended.items() if running[name].returncode} == {}
    assert {name: out for name, (out, _) in ended.items()} == right
    for node in (1, 2, 3):
        wait_until(lambda node=node: cluster.try_run(node, "pgrep -x omfs-guest").stdout == "", f"no guest on {node}")
