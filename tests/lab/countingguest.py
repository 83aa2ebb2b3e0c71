"""A guest that counts, and faults in its migrations: for the tests of what happens when something dies.

It writes each number to a file at home, by O_APPEND, and to its standard output.  Two copies of it, one that was taken
back to an older state, or a byte that was lost, show as numbers that do not follow each other.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from omfs.lab import state
from tests.lab.cluster import Cluster, wait_until

HOME: Final = 1
PROGRAM: Final = """
import os, sys, time
numbers = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
n = 0
while True:
    n += 1
    os.write(numbers, b"%d\\n" % n)
    print(n, flush=True)
    time.sleep(0.01)
"""
_BEGIN: Final = """
cat > {path}/count.py
mosrun python3 {path}/count.py {path}/numbers > {path}/stdout 2> {path}/stderr < /dev/null &
echo $! > {path}/pid
set +e
wait $!
echo $? > {path}/status
"""
_COUNTS_ON: Final = """
cd {path}
before=$(wc -l < numbers)
until [ $(wc -l < numbers) -gt $((before + 5)) ]; do
    [ -e status ] && echo ended with $(cat status): $(cat stderr) && exit 1
    sleep 0.05
done
head -n -1 stdout > said; awk '$1 != NR {{ print "stdout", NR, $0; exit 1 }}' said
head -n -1 numbers > written; awk '$1 != NR {{ print "numbers", NR, $0; exit 1 }}' written
"""
_DIED: Final = "until ! [ -e /run/omfs/fault ] && ! kill -0 {pid} 2>/dev/null; do sleep 0.02; done; mignode"
_STOPPED: Final = "until grep -q '^State:.T' /proc/{pid}/status; do sleep 0.02; done"


class CountingGuest:
    """Of a cluster; begun at node 1."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.path = cluster.fresh_dir(HOME).native
        begun = cluster.lab.popen(HOME, f"set -e\n{_BEGIN.format(path=self.path)}")
        assert begun.stdin is not None
        begun.stdin.write(PROGRAM)
        begun.stdin.close()
        cluster.run(HOME, f"until [ -s {self.path}/numbers ]; do sleep 0.05; done")
        self.pid = int(cluster.run(HOME, f"cat {self.path}/pid"))

    # ------------------------------------------------------------ moving it

    def start_move(self, node: int) -> subprocess.Popen[str]:
        """`migrate` that goes on."""
        return self._cluster.lab.popen(HOME, ["migrate", str(self.pid), str(node)])

    def move(self, node: int) -> None:
        done = self._cluster.lab.exec(HOME, ["migrate", str(self.pid), str(node)])
        assert done.returncode == 0, done.stderr
        assert self.node() == node

    def fail_to_move(self, node: int) -> str:
        """What `migrate` says: one line, and the guest stays where it was."""
        before = self.node()
        done = self._cluster.lab.exec(HOME, ["migrate", str(self.pid), str(node)])
        return self._refusal(done.returncode, done.stderr, before)

    def _refusal(self, status: int, said: str, before: int) -> str:
        assert status == 1, said
        assert said.count("\n") == 1, said
        assert self.check() == before
        return said.strip()

    # ------------------------------------------------------------ where it is, and how

    def node(self) -> int:
        """Where its one init is, as soon as the one that it came from has ended."""
        found: list[int] = []

        def is_one() -> bool:
            found[:] = [node for node, (inits, _) in self._survey().items() if inits]
            return len(found) == 1

        wait_until(is_one, "one node has an init of a guest")
        return found[0]

    def _survey(self) -> dict[int, tuple[int, int]]:
        """By node that is up: how many inits of guests and folders are there."""
        return {node: self._survey_of(node) for node in range(1, self._cluster.lab.nodes + 1) if self._is_up(node)}

    def _is_up(self, node: int) -> bool:
        return state.alive(self._cluster.lab.paths.node(node).init)

    def _survey_of(self, node: int) -> tuple[int, int]:
        inits, folders = self._cluster.lab.out(node, "pgrep -xc omfs-guest; ls /run/omfs/guests 2>&- | wc -l").split()
        return int(inits), int(folders)

    def check(self) -> int:
        """It counts on, without a gap; soon there is one copy of it, and nothing of any other, and home says where.

        Returns where.
        """
        done = self._cluster.try_run(HOME, _COUNTS_ON.format(path=self.path))
        assert done.returncode == 0, done.stdout
        found: list[int] = []

        def is_alone() -> bool:
            survey = self._survey()
            found[:] = [node for node, (inits, _) in survey.items() if inits]
            folders = {node for node, (_, folders) in survey.items() if folders}
            return sum(inits for inits, _ in survey.values()) == 1 and folders == {HOME, *found}

        wait_until(is_alone, "one init of the guest, and nothing left of other copies")
        where = 0 if found[0] == HOME else found[0]
        known = f'until [ "$(cat /mfs/proc/{self.pid}/where)" = {where} ]; do sleep 0.1; done'
        self._cluster.run(HOME, known, timeout_s=60)
        return found[0]

    def wait_status(self) -> str:
        """mosrun's, when it has ended."""
        return self._cluster.run(
            HOME, f"until [ -s {self.path}/status ]; do sleep 0.1; done; cat {self.path}/status"
        ).strip()

    def wait_killed(self) -> str:
        """mosrun ends as if the program had been killed; what it says."""
        script = f"until [ -s {self.path}/status ]; do sleep 0.1; done; cat {self.path}/status {self.path}/stderr"
        status, _, said = self._cluster.run(HOME, script, timeout_s=90).partition("\n")
        assert status == "137", said
        assert said.count("\n") == 1, said
        return said.strip()

    # ------------------------------------------------------------ faults

    def mignode(self, node: int) -> int:
        """Its pid."""
        return int(self._cluster.ask(node, "mignode")["pid"])

    def _arm(self, node: int, point: str, action: str) -> int:
        self._cluster.run(node, f"echo {point} {action} > /run/omfs/fault")
        return self.mignode(node)

    def die_at(self, node: int, point: str, destination: int) -> int:
        """Move it; *node*'s mignode is killed at that point (faultpoints.py), and started again; where it is then."""
        pid = self._arm(node, point, "kill")
        moving = self.start_move(destination)
        self._cluster.run(node, _DIED.format(pid=pid))
        moving.communicate(timeout=120)
        return self.check()

    @contextmanager
    def standing_at(self, node: int, point: str, destination: int) -> Iterator[subprocess.Popen[str]]:
        """Move it; *node*'s mignode stands still at that point, until this context ends."""
        pid = self._arm(node, point, "stop")
        moving = self.start_move(destination)
        try:
            self._cluster.run(node, _STOPPED.format(pid=pid))
            yield moving
        finally:
            self._cluster.lab.exec(node, f"rm -f /run/omfs/fault; kill -CONT {pid}")

    def end_of(self, moving: subprocess.Popen[str]) -> tuple[int, str]:
        """Its status, and what it said."""
        said = moving.communicate(timeout=120)[1]
        return moving.returncode, said

    def refusal_of(self, moving: subprocess.Popen[str], before: int) -> str:
        """As fail_to_move."""
        return self._refusal(*self.end_of(moving), before)

    def restart(self, node: int) -> None:
        """kill -9 and a new one."""
        self._cluster.run(node, f"kill -9 {self.mignode(node)}; until mignode; do sleep 0.1; done")
