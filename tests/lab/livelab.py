"""A real lab for tests: what the `lab` fixture gives, and what is checked behind it.

It uses the command line, as a user does; only what a user has no command for (stacks of hung daemons, what is left on
the machine) looks at omfs.lab and /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from omfs.lab import limits, node as lab_node, state, topology

COMMAND: Final = (str(Path(sys.prefix) / "bin" / "omfs-lab"),)
EXEC_TIMEOUT_S: Final = 120.0
STACKS_WITHIN_S: Final = 3.0
_HEARD: Final = """
test -d /mfs/proc || exit 0  # not mounted
for node in {nodes}; do
    until stat -f /mfs/$node && dd if=/dev/zero of=/mfs/$node/tmp/heard bs=256k count=1 conv=fsync; do sleep 0.1; done
    rm /mfs/$node/tmp/heard
done > /dev/null 2>&1
"""
"""Until each node has answered over the one connection, and over that for much data."""


class Lab:
    """One lab, by its name; every command goes to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paths = topology.LabPaths(name)
        self.nodes = 0
        self._serial = 0
        self._namespaces: set[str] = set()
        self._running: list[subprocess.Popen[str]] = []
        self._was_cut = False

    # ------------------------------------------------------------ commands of omfs-lab

    def command(self, verb: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Any omfs-lab command; with *check* it must succeed."""
        done = subprocess.run(
            [*COMMAND, verb, "--name", self.name, *arguments], capture_output=True, text=True, check=False, timeout=300
        )
        assert not check or done.returncode == 0, f"omfs-lab {verb}: {done.stderr}\n{self.logs()}"
        return done

    def up(self, *options: str, nodes: int = 3) -> None:
        self.command("up", "-n", str(nodes), *options)
        self.nodes = nodes
        self.note_namespaces()

    def down(self) -> None:
        self.note_namespaces()
        self.command("down")

    def kill(self, node: int) -> None:
        self.command("kill", str(node))

    def start(self, node: int) -> None:
        self.command("start", str(node))
        self.note_namespaces()

    def cut(self, one: int, other: int) -> None:
        self._was_cut = True
        self.command("cut", str(one), str(other))

    def heal(self, *pair: int) -> None:
        self.command("heal", *map(str, pair))

    def status(self) -> list[dict[str, object]]:
        nodes = json.loads(self.command("status", "--json").stdout)["nodes"]
        assert isinstance(nodes, list)
        return nodes

    # ------------------------------------------------------------ commands on a node

    def exec(
        self,
        node: int,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        input: str | None = None,
        timeout: float = EXEC_TIMEOUT_S,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program (argv) or a bash script (str) on a node and wait; with *check* it must succeed.

        Output is text, undecodable bytes as surrogates.  TimeoutExpired after *timeout* seconds; then all of it is
        killed.
        """
        process = self.popen(node, command, user=user)
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            self.end(process)
            raise
        self._running.remove(process)
        assert not check or process.returncode == 0, f"node {node}: {command}: {process.returncode}: {err}{out}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def out(self, node: int, command: str | Sequence[str], *, user: str | None = None) -> str:
        """What a command that must succeed prints, without the white space around it."""
        return self.exec(node, command, user=user, check=True).stdout.strip()

    def popen(self, node: int, command: str | Sequence[str], *, user: str | None = None) -> subprocess.Popen[str]:
        """Start a program or script on a node, with pipes; it is killed at the end of the test where it still runs."""
        argv = ["bash", "-c", command] if isinstance(command, str) else [*command]
        who = ["--user", user] if user else []
        process = subprocess.Popen(
            [*COMMAND, "exec", "--name", self.name, str(node), *who, "--", *argv],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="surrogateescape", start_new_session=True,
        )  # fmt: skip
        self._running.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        """Kill what `popen` started, with everything in its process group, and close its pipes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if process in self._running:
            self._running.remove(process)

    def fresh_dir(self, node: int = 1) -> str:
        """A new empty directory on a node, writable for all; seen from the others below /mfs/<node>."""
        self._serial += 1
        path = f"/srv/test{self._serial}"
        self.exec(node, ["mkdir", "-m", "777", path], check=True)
        return path

    def end_programs(self) -> None:
        """All that `popen` started and that still runs."""
        for process in list(self._running):
            self.end(process)

    # ------------------------------------------------------------ between tests

    def restore(self) -> None:
        """After a test: nothing it started runs on, all nodes are up, no cut is left."""
        self.end_programs()
        if self._was_cut:
            self.heal()
        for node in range(1, self.nodes + 1):
            if not state.alive(self.paths.node(node).init):
                self.start(node)
        if self._was_cut:
            self._wait_heard()
        self._was_cut = False

    def _wait_heard(self) -> None:
        """What was silent before the cut was healed may be given up as silent still, a moment later."""
        nodes = range(1, self.nodes + 1)
        for node in nodes:
            others = " ".join(str(other) for other in nodes if other != node)
            self.exec(node, _HEARD.format(nodes=others), check=True)

    def reboot(self) -> None:
        """After a test that hung: every node from the start."""
        for node in range(1, self.nodes + 1):
            if state.alive(self.paths.node(node).init):
                self.kill(node)
        self.restore()

    def note_namespaces(self) -> None:
        """Remember what `remains` is to look for."""
        records = [state.alive(self.paths.switch)]
        records += [state.alive(self.paths.node(node).init) for node in range(1, self.nodes + 1)]
        for record in filter(None, records):
            for kind in ("net",) if record == records[0] else ("net", "mnt", "pid"):
                with contextlib.suppress(OSError):
                    self._namespaces.add(os.readlink(f"/proc/{record.pid}/ns/{kind}"))

    # ------------------------------------------------------------ what hangs

    def logs(self, lines: int = 60) -> str:
        """The ends of all logs, as far as there are any."""
        texts = []
        for path in sorted(self.paths.directory.glob("**/log")):
            texts.append(f"--- {path}\n" + "\n".join(lab_node.tail(path, lines)))
        for path in self._stack_files():
            texts.append(f"--- {path}\n" + "\n".join(lab_node.tail(path, lines)))
        return "\n".join(texts)

    def _stack_files(self) -> list[Path]:
        """Where the daemons write their stacks (cli/daemonlog.py), as the host sees it."""
        inits = [state.alive(self.paths.node(node).init) for node in range(1, self.nodes + 1)]
        directories = [Path(f"/proc/{init.pid}/root/run/omfs") for init in inits if init]
        return [path for directory in directories for path in sorted(directory.glob("*.stacks"))]

    def stacks(self) -> str:
        """Where every process of the lab is: Python stacks (by SIGUSR2) and the kernel's."""
        texts = []
        for node in range(1, self.nodes + 1):
            init = state.alive(self.paths.node(node).init)
            for pid in state.processes_inside(init) if init else ():
                with contextlib.suppress(OSError):
                    texts.append(f"node {node}: {_describe_process(pid)}")
                    if _catches(pid, signal.SIGUSR2):
                        os.kill(pid, signal.SIGUSR2)
        _wait_quiet(self._stack_files())
        return "\n".join(texts) + "\n" + self.logs(lines=400)

    # ------------------------------------------------------------ what is left

    def remains(self) -> list[str]:
        """Everything of this lab that is still on the machine; empty after `down`."""
        directory = str(self.paths.directory)
        found = [f"file {directory}"] if self.paths.directory.exists() else []
        found += [f"loop device {device}" for device in lab_node.loop_devices(self.paths.directory)]
        for node in range(1, self.nodes + 1):
            found += [f"control group {group}" for group in limits.directories(self.paths, node).values()]
        others = _processes_of_other_labs(self.name)  # the numbers of ended namespaces are used again
        inside = {
            int(entry) for entry in filter(str.isdigit, os.listdir("/proc")) if self._has_ours(Path("/proc", entry))
        }
        for pid in _not_of_others(inside - others):
            with contextlib.suppress(OSError):
                found.append(f"process {_describe_process(pid)}")
        spaces = self._namespaces | {os.readlink("/proc/self/ns/mnt")}  # others copied what was mounted when they began
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/mnt") not in spaces:
                    continue
                if directory in Path("/proc", entry, "mountinfo").read_text():
                    found.append(f"mount seen by process {entry}")
        return found

    def _has_ours(self, process: Path) -> bool:
        """Whether it is in a namespace of ours, or holds one."""
        with contextlib.suppress(OSError):
            spaces = {os.readlink(process / "ns" / kind) for kind in ("net", "mnt", "pid")}
            spaces |= {os.readlink(fd) for fd in (process / "fd").iterdir()}
            return bool(spaces & self._namespaces)
        return False


def wait_for(lab: Lab, process: subprocess.Popen[str], line: str) -> None:
    """Read what a program prints until it is *line*."""
    assert process.stdout is not None
    for got in process.stdout:
        if got.rstrip("\n") == line:
            return
    raise AssertionError(f"ended without printing {line!r}: {process.stderr.read() if process.stderr else ''}")


def _describe_process(pid: int) -> str:
    process = Path("/proc", str(pid))
    command = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    lines = [f"{pid} {command or process.joinpath('comm').read_text().strip()}"]
    for task in sorted(process.joinpath("task").iterdir()):
        with contextlib.suppress(OSError):
            wchan = task.joinpath("wchan").read_text()
            stack = task.joinpath("stack").read_text().rstrip()
            where = task.joinpath("stat").read_text().rpartition(") ")[2][0]
            lines.append(f"  thread {task.name} {where} in {wchan}")
            lines += [f"    {line}" for line in stack.splitlines()]
    return "\n".join(lines)


def _processes_of_other_labs(name: str) -> set[int]:
    found: set[int] = set()
    for other in set(state.existing_labs()) - {name}:
        directory = topology.LabPaths(other).directory
        for record in filter(None, map(state.alive, directory.glob("**/*.process"))):
            found |= {record.pid, *state.processes_inside(record)}
    return found


def _not_of_others(inside: set[int]) -> list[int]:
    """Without those that some program has started which is none of *inside*, nor us, nor above us: other tests do so.

    What a lab leaves behind descends from us, or from nobody that still lives.
    """
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(") ")[2].split()[1])
    us, above = os.getpid(), {0}
    while us:
        above.add(us)
        us = parents.get(us, 0)

    def first_outside(pid: int) -> int:
        while pid in inside:
            pid = parents.get(pid, 0)
        return pid

    def descends_from_us(pid: int) -> bool:
        while pid not in above:
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in sorted(inside) if (outside := first_outside(pid)) in above or descends_from_us(outside)]


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal, so that it may be sent (proc(5), SigCgt)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _wait_quiet(logs: list[Path]) -> None:
    """Until no log has grown for a moment: faulthandler writes and does not tell when it is done."""
    deadline = time.monotonic() + STACKS_WITHIN_S
    sizes: list[int] = []
    while time.monotonic() < deadline:
        time.sleep(0.3)
        before, sizes = sizes, [path.stat().st_size for path in logs if path.exists()]
        if sizes == before:
            return
