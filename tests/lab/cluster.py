"""A lab with omfs mounted everywhere, in the words of the tests of real programs.

Thin over livelab.Lab: scripts stop at the first error, Python programs run inside a node, a scratch directory knows
its native and its remote path, and waits are for a condition with a deadline.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.lab.livelab import EXEC_TIMEOUT_S, Lab

PROGRAMS: Final = Path(__file__).parent / "programs"
ASK: Final = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1]); s.sendall(b'{"command": "%s"}\\n' % sys.argv[2].encode())
    print(s.makefile().readline())
"""


@dataclass(frozen=True)
class Place:
    """An empty directory of one node: its path there and its path from the others."""

    owner: int
    native: str

    @property
    def remote(self) -> str:
        return f"/mfs/{self.owner}{self.native}"


class Program:
    """A program that runs on a node while the test goes on."""

    def __init__(self, lab: Lab, process: subprocess.Popen[str]) -> None:
        self._lab = lab
        self._process = process
        self._buffer = ""

    def _read_more(self, timeout_s: float) -> bool:
        """Read what there is; False at the time-out.  AssertionError at the end of the output."""
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return False
        piece = stdout.buffer.raw.read(65536)  # type: ignore[attr-defined]
        assert piece, f"the program ended: {self._process.stderr and self._process.stderr.read()}"
        self._buffer += piece.decode()
        return True

    def has_line(self, within_s: float) -> bool:
        """Whether it prints a line within the time."""
        deadline = time.monotonic() + within_s
        while "\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not self._read_more(left):
                return False
        return True

    def wait_line(self, line: str, timeout_s: float = 60) -> None:
        """Wait for exactly this line; AssertionError if it does not come."""
        deadline = time.monotonic() + timeout_s
        while True:
            first, newline, rest = self._buffer.partition("\n")
            if newline:
                self._buffer = rest
                if first == line:
                    return
            elif not self.has_line(max(deadline - time.monotonic(), 0.0)):
                raise AssertionError(f"no line {line!r} within {timeout_s} s; printed {self._buffer!r}")

    def next_line(self, timeout_s: float = 60) -> str:
        """What it prints next, to the end of the line; AssertionError if nothing comes."""
        assert self.has_line(timeout_s), f"no line within {timeout_s} s; printed {self._buffer!r}"
        line, _, self._buffer = self._buffer.partition("\n")
        return line

    def send_line(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait_success(self, timeout_s: float = EXEC_TIMEOUT_S) -> str:
        """Its whole output; AssertionError when it fails."""
        out, err = self._process.communicate(timeout=timeout_s)
        assert self._process.returncode == 0, f"status {self._process.returncode}: {err}{out}"
        return self._buffer + out

    def wait(self, timeout_s: float = EXEC_TIMEOUT_S) -> int:
        return self._process.wait(timeout_s)

    def finish(self, timeout_s: float = EXEC_TIMEOUT_S) -> None:
        """Let it end: its standard input ends, and it must succeed."""
        self.wait_success(timeout_s)

    def kill(self) -> None:
        """SIGKILL to the program itself (omfs-lab exec passes SIGTERM on, a kill of exec would not reach it)."""
        self._process.send_signal(signal.SIGTERM)


class Cluster:
    """The lab in the tests' words."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    # ------------------------------------------------------------ programs

    def try_run(
        self, node: int, script: str, *, user: str | None = None, timeout_s: float = EXEC_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a bash script that stops at its first error; its status is the caller's to judge."""
        return self.lab.exec(node, f"set -euo pipefail\n{script}", user=user, timeout=timeout_s)

    def run(self, node: int, script: str, *, user: str | None = None, timeout_s: float = EXEC_TIMEOUT_S) -> str:
        """As try_run; it must succeed.  Returns what it printed."""
        done = self.try_run(node, script, user=user, timeout_s=timeout_s)
        assert done.returncode == 0, f"node {node}: status {done.returncode}\n{script}\n{done.stderr}{done.stdout}"
        return done.stdout

    def python(self, node: int, code: str, *, timeout_s: float = EXEC_TIMEOUT_S) -> str:
        done = self.lab.exec(node, ["python3", "-c", code], timeout=timeout_s)
        assert done.returncode == 0, f"node {node}: status {done.returncode}\n{done.stderr}{done.stdout}"
        return done.stdout

    def program(self, node: int, name: str, *arguments: str, timeout_s: float = EXEC_TIMEOUT_S) -> str:
        """Run one of tests/lab/programs; it must succeed."""
        done = self.lab.exec(node, ["python3", str(PROGRAMS / name), *arguments], timeout=timeout_s)
        assert done.returncode == 0, f"node {node}: {name}: {done.stderr}{done.stdout}"
        return done.stdout

    def start_program(self, node: int, name: str, *arguments: str) -> Program:
        return Program(self.lab, self.lab.popen(node, ["python3", str(PROGRAMS / name), *arguments]))

    def start_python(self, node: int, code: str, *, user: str | None = None) -> Program:
        return Program(self.lab, self.lab.popen(node, ["python3", "-c", code], user=user))

    def fresh_dir(self, node: int) -> Place:
        return Place(node, self.lab.fresh_dir(node))

    # ------------------------------------------------------------ daemons

    def status(self, node: int) -> dict[str, Any]:
        """omfs-admin status, whose exit status only says whether all are up."""
        done = self.try_run(node, "omfs-admin status --json")
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def requests_to(self, node: int, owner: int) -> int:
        """Requests that *node*'s mount has sent to *owner* so far."""
        return next(int(entry["requests"]) for entry in self.status(node)["nodes"] if entry["node_id"] == owner)

    def ask(self, node: int, daemon: str, command: str = "status") -> dict[str, Any]:
        """The answer of a daemon ("mount", "export") on its control socket; {} when nobody listens."""
        done = self.lab.exec(node, ["python3", "-c", ASK, f"/run/omfs/{daemon}.sock", command])
        answer: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return answer

    def export_pid(self, node: int) -> int:
        return int(self.ask(node, "export")["pid"])

    def mount_pid(self, node: int) -> int:
        return int(self.ask(node, "mount")["pid"])

    def wait_new_export(self, node: int, before: int) -> None:
        """Until another export than *before* answers."""
        wait_until(lambda: self.ask(node, "export").get("pid", before) != before, f"a new export on node {node}")

    def wait_up(self, node: int, owner: int) -> None:
        """Until *node*'s mount says that *owner* is up."""

        def is_up() -> bool:
            return any(e["node_id"] == owner and e["state"] == "up" for e in self.status(node)["nodes"])

        wait_until(is_up, f"node {owner} up as seen by node {node}")

    def log(self, node: int) -> str:
        return self.lab.paths.node(node).log.read_text()

    def address(self, node: int) -> str:
        return next(str(e["addresses"][0]) for e in self.status(node)["nodes"] if e["node_id"] == node)

    def hang_up(self, node: int) -> None:
        """SIGHUP to the mount (which passes it on to the export it started); returns when both have acted on it."""
        before = [int(self.ask(node, daemon)["reloads"]) for daemon in ("mount", "export")]
        self.run(node, f"kill -HUP {self.mount_pid(node)}")

        def have_acted() -> bool:
            return all(int(self.ask(node, d)["reloads"]) > n for d, n in zip(("mount", "export"), before, strict=True))

        wait_until(have_acted, f"node {node}'s daemons reload")

    def bytes_to(self, node: int, owner: int) -> int:
        """Bytes that *node*'s mount has sent to *owner* so far."""
        return next(int(entry["bytes_out"]) for entry in self.status(node)["nodes"] if entry["node_id"] == owner)

    # ------------------------------------------------------------ faults and settings

    def kill(self, node: int) -> None:
        self.lab.kill(node)

    def start(self, node: int) -> None:
        self.lab.start(node)

    def kill_daemon(self, node: int, pid: int) -> None:
        """SIGKILL, and until it is gone: what it held is free then, which may take a busy machine a moment."""
        self.run(node, f"kill -9 {pid}; while kill -0 {pid} 2> /dev/null; do sleep 0.02; done")

    @contextlib.contextmanager
    def cut(self, one: int, other: int) -> Iterator[None]:
        self.lab.cut(one, other)
        try:
            yield
        finally:
            self.lab.heal(one, other)

    @contextlib.contextmanager
    def _nobody_there_afterwards(self) -> Iterator[None]:
        """A test that fails may have left programs that have files open there: with them nothing can be unmounted."""
        try:
            yield
        except BaseException:
            self.lab.end_programs()
            raise

    @contextlib.contextmanager
    def mounted(self, node: int, options: str) -> Iterator[None]:
        """The node's /mfs mounted with other options than fstab's."""
        self.run(node, f"umount /mfs; mount -t fuse.omfs mfs_mnt /mfs -o {options}")
        try:
            with self._nobody_there_afterwards():
                yield
        finally:
            pid = self.mount_pid(node)
            self.run(node, f"umount -l /mfs; while kill -0 {pid} 2> /dev/null; do sleep 0.1; done; mount /mfs")

    @contextlib.contextmanager
    def export_configured(self, node: int, extra: str) -> Iterator[None]:
        """omfs.toml with *extra* at its end, and the daemons started anew with it."""
        self.run(node, f"cp /etc/omfs/omfs.toml /tmp/omfs.toml.old; cat >> /etc/omfs/omfs.toml <<'END'\n{extra}\nEND")
        try:
            self.run(node, "umount /mfs; mount /mfs")
            with self._nobody_there_afterwards():
                yield
        finally:
            self.run(node, "cp /tmp/omfs.toml.old /etc/omfs/omfs.toml; umount /mfs; mount /mfs")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Poll *condition*; AssertionError when it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)
