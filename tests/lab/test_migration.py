"""Real programs are moved from node to node and home again while they work, and what comes out is what always does.

Each program (migrants.py) is run twice on node 1: once without mosrun, then by mosrun, moved all the time until it was
moved often enough.  As an ordinary user, some as root.
"""

from __future__ import annotations

import itertools
from typing import Final

import pytest

from tests.lab.cluster import PROGRAMS, Cluster, Program
from tests.lab.migrants import COMMANDS, FILES, PYTHON

MOVED_WITHIN_S: Final = 600.0  # a move of much memory, or many files, takes seconds
pytestmark = [pytest.mark.lab, pytest.mark.timeout(MOVED_WITHIN_S + 120)]

ROUTE: Final = ("2", "3", "home")
MOVES: Final = 10
AS_ROOT: Final = ("C", "threads", "bash with children and pipes", "its own terminal")
ALICE, BOB = "1001:1001", "1002:1002"

MOVED: Final = """
mosrun {command} > out 2> err & moved=$!
until [ -e err ] && grep -q begun out; do sleep 0.1; kill -0 $moved; done
for node in {route}; do
    migrate $moved $node || {{ cat /mfs/proc/$moved/journey out err >&2; exit 1; }}
done
touch enough
wait $moved || {{ echo "status $?" >&2; cat err >&2; exit 1; }}
cat out
"""


def prepare(cluster: Cluster) -> str:
    """A directory of node 1 with all that the programs need."""
    directory = cluster.fresh_dir(1).native
    files = "".join(f"cat > {directory}/{name} <<'THE END'\n{text}\nTHE END\n" for name, text in FILES.items())
    cluster.run(1, files + f"chmod 755 {directory}/*")
    return directory


def routed() -> str:
    return " ".join(itertools.islice(itertools.cycle(ROUTE), MOVES))


def run_both(cluster: Cluster, directory: str, command: str, user: str | None) -> tuple[str, str]:
    """What the program prints without mosrun, and what it prints when it is moved."""
    right = cluster.run(1, f"cd {directory}; touch enough; {command}", user=user)
    cluster.run(1, f"cd {directory}; rm -rf enough tree; chown {user or 'root'} .")
    script = f"cd {directory}" + MOVED.format(command=command, route=routed())
    return right, cluster.run(1, script, user=user, timeout_s=MOVED_WITHIN_S)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_moved_program_does_is_what_it_does_without(cluster: Cluster, name: str) -> None:
    directory = prepare(cluster)
    if COMMANDS[name].startswith("./"):
        program = COMMANDS[name].removeprefix("./")
        cluster.run(1, f"cd {directory}; gcc -O1 -pthread -o {program} {program}.c")
    user = None if name in AS_ROOT else ALICE
    right, moved = run_both(cluster, directory, COMMANDS[name], user)
    assert moved == right


def test_a_thousand_open_files_on_three_nodes(cluster: Cluster) -> None:
    directory = prepare(cluster)
    places = " ".join(cluster.fresh_dir(node).remote for node in (1, 2, 3))
    right, moved = run_both(cluster, directory, f"{PYTHON} files.py {places}", ALICE)
    assert moved == right


def test_what_a_program_holds_goes_along(cluster: Cluster) -> None:
    """One guest with all that docs/migration.md says is moved; two of its watches are on the nodes that it comes to."""
    program = cluster.fresh_dir(1)
    watched = [cluster.fresh_dir(node) for node in (2, 3)]
    for place in (program, *watched):
        cluster.run(place.owner, f"chown {ALICE} {place.native}")
    command = f"mosrun {PYTHON} {PROGRAMS}/holdsall.py {' '.join(one.remote for one in watched)}"
    guest = Program(cluster.lab, cluster.lab.popen(1, f"cd {program.native}; exec {command}", user=ALICE))
    pid = guest.next_line()
    guest.send_line("look")
    assert guest.next_line() == "ok"
    for node in (*ROUTE, "3", "2"):
        cluster.run(1, f"migrate {pid} {node}", user=ALICE)
        guest.send_line("look")
        assert (node, guest.next_line()) == (node, "ok")
    guest.finish()


def test_nobody_moves_what_is_not_his(cluster: Cluster) -> None:
    directory = prepare(cluster)
    done = cluster.try_run(
        1,
        f"""
        cd {directory}
        setpriv --reuid 1001 --regid 1001 --clear-groups mosrun {PYTHON} work.py > out & moved=$!
        until grep -q begun out; do sleep 0.1; kill -0 $moved; done
        status=0; setpriv --reuid 1002 --regid 1002 --clear-groups migrate $moved 2 2>&1 || status=$?
        touch enough; wait $moved; exit $status
        """,
    )
    assert (done.returncode, "not yours" in done.stdout) == (1, True), done.stdout + done.stderr
