"""omfs-lab demo: three nodes, a few real programs across them, and what they print.

Each command is shown as it is typed on its node, with its output; one that does not give what it should makes the demo
fail.  Whatever happens, Ctrl-C too, the lab is taken down at the end.  Called by `make demo` through cli/lab.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import Final

from rich.console import Console
from rich.markup import escape

from omfs.errors import ConfigError
from omfs.lab import cluster
from omfs.lab.pressure import are_processors_short
from omfs.lab.topology import LabPaths, LabPlan

NAME: Final = "demo"
_PROGRAMS: Final = {"git": "git", "sqlite3": "sqlite3", "flock": "util-linux"}
_FINISH_TIMEOUT_S: Final = 120.0

_HOW_TO_GO_ON: Final = """\
To go on by hand (as root; they are in [bold].venv/bin[/]):
  omfs-lab up -n 3            three nodes again
  omfs-lab shell 1            a shell on node 1; try: ls /mfs; omfs-admin status
  omfs-lab exec 2 -- CMD      one command on node 2
  omfs-lab kill 3             a power cut; then: omfs-lab start 3
  omfs-lab cut 1 2            a broken network; then: omfs-lab heal
  omfs-lab down               all of it is gone"""

_MAKE_REPOSITORY: Final = """\
git init -q /srv/repo && cd /srv/repo && cp /etc/*.conf . && git add . &&
git -c user.name=demo -c user.email=demo@node2 commit -qm 'First commit, made on node 2' && git log --oneline"""

_INSERT: Final = """\
for i in $(seq 25); do
    sqlite3 -cmd '.timeout 30000' /mfs/3/srv/visits.db "insert into visits values('{who}', $i)" || exit 1
done; echo '25 rows written'"""


_TRAVEL: Final = """\
mkfifo /tmp/go
mosrun sh -c 'while read line; do echo $line on $(cat /mfs/here/etc/hostname); done' </tmp/go >/tmp/said &
exec 3>/tmp/go; step() { echo step $1 >&3; until [ "$(wc -l </tmp/said)" = $1 ]; do sleep 0.1; done; }
step 1; migrate $! 2; step 2; migrate $! 3; step 3; migrate $! home; step 4
exec 3>&-; wait $!; cat /tmp/said"""


_SCAN: Final = """\
cat > /srv/scan.py <<'END'
import os, sys, time
for number in range(1, 10000):
    began, size = time.monotonic(), 0
    with open(sys.argv[1], "rb", buffering=0) as data:
        while part := data.read(1 << 20):
            size += len(part)
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # as if the memory were too small for all of it
    rate = size / 1e6 / (time.monotonic() - began)
    print(f"pass {number} on {open('/mfs/here/etc/hostname').read().strip()}: {rate:.0f} MB/s", flush=True)
END"""
_FOLLOW: Final = """\
mosrun python3 /srv/scan.py /mfs/2/srv/data > /tmp/passes &
pid=$!; until mosctl why $pid 2>/dev/null | grep -q 'came to node 2'; do sleep 0.1; done
mosctl why $pid
passes() { until [ $(grep -c node2 /tmp/passes) -ge $1 ]; do sleep 0.1; done; }
passes 5; omfs-admin status --json > /tmp/then; passes 55; omfs-admin status --json > /tmp/now
kill $pid; wait $pid; grep -m 3 node1 /tmp/passes; echo ...; tail -n 3 /tmp/passes"""
_CAME: Final = re.compile(r"^it came to node 2 ([0-9.]+) s after its start$", re.MULTILINE)
SOON_S: Final = 10.0
_FETCHED: Final = """\
import json
then, now = (json.load(open(f"/tmp/{name}"))["nodes"][1]["bytes_in"] for name in ("then", "now"))
print(then // 1000000, (now - then) // 1000000)"""


class Failed(Exception):
    """A command did not give what it should."""


class Stage:
    """Where the demo plays: runs commands on the nodes and shows them."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def title(self, text: str) -> None:
        self.console.print(f"\n[bold cyan]{text}[/]")

    def show(self, node: int, script: str) -> str:
        """Run a script on a node, show it and what it prints; gives that.  Raises Failed where it fails."""
        return self.finish(node, script, self.begin(node, script))

    def ask(self, node: int, script: str) -> str:
        """What a script prints, without showing either.  Raises Failed where it fails."""
        process = self._start(node, script)
        return self._output(node, script, process)

    def begin(self, node: int, script: str) -> subprocess.Popen[str]:
        """Show a script and start it."""
        prompt, *rest = script.splitlines()
        self.console.print(f"[bold green]node{node}#[/] {escape(prompt)}", *(escape(line) for line in rest), sep="\n")
        return self._start(node, script)

    @staticmethod
    def _start(node: int, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "omfs.cli.lab", "exec", "--name", NAME, str(node), "--", "bash", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"},
        )  # fmt: skip

    def finish(self, node: int, script: str, process: subprocess.Popen[str]) -> str:
        """Wait for a script; show and give what it prints.  Raises Failed where it fails or hangs."""
        return self._output(node, script, process, shown=True)

    def _output(self, node: int, script: str, process: subprocess.Popen[str], *, shown: bool = False) -> str:
        try:
            output, _ = process.communicate(timeout=_FINISH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failed(f"node{node}: no end within {_FINISH_TIMEOUT_S:.0f} s: {script}") from None
        if output and shown:
            self.console.print(escape(output.rstrip("\n")))
        if process.returncode:
            raise Failed(f"node{node}: exit status {process.returncode}: {script}")
        return output

    def expect(self, met: bool, what: str) -> None:
        """Say that something holds, or raise Failed."""
        if not met:
            raise Failed(f"not so: {what}")
        self.console.print(f"[green]✓[/] {escape(what)}")


def run() -> int:
    """The whole demo; gives the exit status: 0 only if everything was as it should be."""
    console = Console(highlight=False, soft_wrap=True)
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise ConfigError(f"the demo shows {program}, which is missing; install it with: apt install {package}")
    paths = LabPaths(NAME)
    cluster.down(paths)  # of a demo that was killed
    stage = Stage(console)
    stage.title("Three nodes on this machine, each with a disk, an address and daemons of its own")
    try:
        with console.status("omfs-lab up -n 3"):
            cluster.up(LabPlan(name=NAME), paths)
        for part in (_look_around, _copy, _checksums, _magic, _git, _sqlite, _locks, _move, _follow):
            part(stage)
    except Failed as failure:
        console.print(f"[bold red]failed:[/] {escape(str(failure))}")
        return 1
    finally:
        with console.status("omfs-lab down"):
            cluster.take_down(paths)
    console.print("\n[bold]All as it should be, and everything is taken down again.[/]\n")
    console.print(_HOW_TO_GO_ON)
    return 0


def _look_around(stage: Stage) -> None:
    seen = stage.show(1, "ls /mfs; cat /mfs/[1-3]/etc/hostname")
    stage.expect(seen.split()[:3] == ["1", "2", "3"], "the nodes are there")
    stage.expect(seen.split()[-3:] == ["node1", "node2", "node3"], "/mfs/N is node N's own tree")
    stage.show(1, "omfs-admin status")


def _copy(stage: Stage) -> None:
    stage.title("cp: from node 1 to node 2's disk, as if it were here")
    stage.show(1, "uptime > /tmp/note; cp -v /tmp/note /mfs/2/srv/note")
    here = stage.show(1, "cat /tmp/note")
    stage.expect(stage.show(2, "cat /srv/note") == here, "node 2 has the same text on its own disk")


def _checksums(stage: Stage) -> None:
    stage.title("A big file, written by node 1 to node 2, and its checksum on all three")
    stage.show(1, "dd if=/dev/urandom of=/mfs/2/srv/big bs=1M count=100 conv=fsync status=none; ls -lh /mfs/2/srv/big")
    sums = [stage.show(node, f"sha256sum {path}").split()[0] for node, path in _BIG_FILE.items()]
    stage.expect(len(set(sums)) == 1, "the same on all three")


_BIG_FILE: Final = {1: "/mfs/2/srv/big", 2: "/srv/big", 3: "/mfs/2/srv/big"}


def _magic(stage: Stage) -> None:
    stage.title("Names that depend on who asks: here is where a process runs, selected is what it chose")
    script = "cat /mfs/here/etc/hostname; echo 3 > /mfs/proc/self/selected; cat /mfs/selected/etc/hostname"
    for node in (1, 2):
        stage.expect(stage.show(node, script).split() == [f"node{node}", "node3"], "each goes where it should")
    stage.show(1, "echo 3 > /mfs/proc/self/selected; omfs-admin where /mfs/selected/srv")


def _git(stage: Stage) -> None:
    stage.title("git: node 1 clones from node 2 to node 3")
    there = stage.show(2, _MAKE_REPOSITORY)
    stage.show(1, "git clone -q /mfs/2/srv/repo /mfs/3/srv/clone")
    stage.expect(stage.show(3, "git -C /srv/clone log --oneline") == there, "node 3 has the commit")
    stage.show(
        1, "git -C /mfs/3/srv/clone fsck --full --no-progress && git -C /mfs/3/srv/clone status --short --branch"
    )


def _sqlite(stage: Stage) -> None:
    stage.title("sqlite3: nodes 1 and 2 write to one database on node 3 at the same time")
    stage.show(3, "sqlite3 /srv/visits.db 'create table visits(who text, number int)'")
    scripts = {node: _INSERT.format(who=f"node{node}") for node in (1, 2)}
    writers = {node: stage.begin(node, script) for node, script in scripts.items()}
    for node, writer in writers.items():
        stage.finish(node, scripts[node], writer)
    rows = stage.show(
        3, "sqlite3 /srv/visits.db 'select who, count(*) from visits group by who; pragma integrity_check'"
    )
    stage.expect(rows.split() == ["node1|25", "node2|25", "ok"], "no row is lost, and the database is sound")


def _locks(stage: Stage) -> None:
    stage.title("flock: a lock that node 1 holds on node 2's file holds for everybody")
    script = "flock /mfs/2/srv/lock sh -c 'echo node 1 has the lock; cat'"
    holder = stage.begin(1, script)
    assert holder.stdout is not None
    stage.console.print(escape(holder.stdout.readline().rstrip("\n")))
    attempt = "flock -n {} echo 'got it' || echo 'somebody has it'"
    for node, path in ((3, "/mfs/2/srv/lock"), (2, "/srv/lock")):
        stage.expect(stage.show(node, attempt.format(path)) == "somebody has it\n", f"node {node} does not get it")
    stage.finish(1, script, holder)  # its input ends, and so does it
    stage.expect(stage.show(3, attempt.format("/mfs/2/srv/lock")) == "got it\n", "now node 3 gets it")


def _move(stage: Stage) -> None:
    stage.title("A program moves while it runs: to node 2, to node 3, and home; its output stays where it is")
    said = stage.show(1, _TRAVEL).splitlines()
    stage.expect(said == [f"step {1 + i} on node{node}" for i, node in enumerate((1, 2, 3, 1))], "it was everywhere")


def is_soon(came_s: float, *, is_busy: bool) -> tuple[bool, str]:
    """And what is said of it; a machine that is busy is no reason to fail."""
    late = f", and not within {SOON_S:.0f}" if came_s > SOON_S else ""
    whose = ": this machine is busy" if late and is_busy else ""
    return not late or is_busy, f"it was beside its data after {came_s:.1f} s{late}{whose}"


def _follow(stage: Stage) -> None:
    stage.title("A program that reads much on node 2 is moved there by itself; nobody says so")
    stage.show(2, "truncate -s 20M /srv/data")
    stage.show(1, _SCAN)
    is_busy = are_processors_short()
    said = stage.show(1, _FOLLOW)
    came = _CAME.search(said)
    stage.expect(came is not None, "it is told when it came there")
    assert came is not None
    stage.expect(*is_soon(float(came[1]), is_busy=is_busy or are_processors_short()))
    passes = [line.split() for line in stage.ask(1, "cat /tmp/passes").splitlines()]
    stage.expect(
        [int(words[1]) for words in passes] == list(range(1, len(passes) + 1)), "no pass is lost or told twice"
    )
    rates = {
        node: [line for line in passes if line[3] == f"{node}:" and float(line[4]) > 0] for node in ("node1", "node2")
    }
    stage.expect(
        all(rates.values()), "both rates are told: that of node 1, from where it was read first, and that of node 2"
    )
    before, after = stage.ask(1, f"python3 -c '{_FETCHED}'").split()
    stage.expect(
        int(after) < 100,
        f"node 1 had fetched {before} MB for it, and {after} MB in fifty more passes there, of 21 MB each",
    )
