"""Start and stop one node of a lab.

Starting is asynchronous: `start` returns a Boot at once, `wait_up` watches several.  Stopping is a power cut: the
cable first, then PID 1 by SIGKILL, which ends every process of the node at once; then this waits until the kernel
has let go of its disk, because a disk must never be mounted twice.  Called by cluster.py and faults.py.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from omfs.lab import network, state
from omfs.lab.state import LabError
from omfs.lab.topology import LabPaths, NodePaths

START_TIMEOUT_S: Final = 180.0  # a node is up in about a second; a very busy machine takes a hundred times as long
STOP_TIMEOUT_S: Final = 20.0


class Boot:
    """A node on its way up; its "build" process reports through a pipe."""

    def __init__(self, node: int, own: NodePaths, process: subprocess.Popen[bytes], report_fd: int) -> None:
        self.node = node
        self.own = own
        self.process = process
        self.report_fd = report_fd
        self.stage = "starting"
        self.result: str | None = None  # "up", or why it failed
        self._unread = b""

    def read(self) -> None:
        """Take in what was reported; sets *stage* or *result*."""
        data = os.read(self.report_fd, 4096)
        if not data:
            self.result = self.result or self._reason("")
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "stage":
                self.stage = rest
            else:
                self.result = "up" if word == "up" else self._reason(rest)

    def give_up(self) -> None:
        last = " | ".join(tail(self.own.log, 4))
        self.result = self._reason(f"not up within {START_TIMEOUT_S:.0f} s; its log ends with: {last}")

    def close(self) -> None:
        os.close(self.report_fd)
        if self.result == "up":
            self.process.wait()
        elif self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _reason(self, text: str) -> str:
        """One line for the user; where the node did not say why, what it logged last."""
        return f"node {self.node} failed at {self.stage}: {text or ' | '.join(tail(self.own.log, 4)) or 'no word why'}"


def start(paths: LabPaths, node: int, lock_fd: int) -> Boot:
    """Boot a node, on the disk it has or on a new one.  The caller holds the lab's lock as *lock_fd*."""
    own = paths.node(node)
    own.directory.mkdir(exist_ok=True)
    reader, writer = os.pipe()
    try:
        with own.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "omfs.lab.init", "build",
                 str(paths.base), paths.name, str(node), str(lock_fd), str(writer)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(lock_fd, writer), start_new_session=True, cwd="/",
            )  # fmt: skip
    finally:
        os.close(writer)
    return Boot(node, own, process, reader)


def wait_up(boots: Sequence[Boot], on_change: Callable[[Boot], None] = lambda boot: None) -> None:
    """Wait until all are up.  Raises LabError with the first failure; the others are left as they are then."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        for boot in boots:
            selector.register(boot.report_fd, selectors.EVENT_READ, boot)
        try:
            while waiting := [boot for boot in boots if boot.result is None]:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                for key, _ in ready:
                    _take_report(key.data, selector, on_change)
                if not ready and time.monotonic() > deadline:
                    waiting[0].give_up()
                    raise LabError(str(waiting[0].result))
        finally:
            for boot in boots:
                boot.close()


def _take_report(boot: Boot, selector: selectors.BaseSelector, on_change: Callable[[Boot], None]) -> None:
    boot.read()
    on_change(boot)
    if boot.result is not None:
        selector.unregister(boot.report_fd)
        if boot.result != "up":
            raise LabError(boot.result)


def cut_power(paths: LabPaths, node: int) -> None:
    """End everything of the node at once; its disk stays.  Fine where it is not running.  Raises LabError."""
    own = paths.node(node)
    if state.alive(paths.switch):
        network.disconnect_node(paths, node)  # first: or the dying sockets would say good-bye to the other nodes
    for record in (state.alive(own.boot), state.alive(own.init)):
        if record is not None:
            record.kill()
    if not state.wait_until(lambda: is_gone(own), STOP_TIMEOUT_S):
        raise LabError(f"node {node} does not end: {describe_remains(own)}")


def is_gone(own: NodePaths) -> bool:
    """No process of it and no mount of its disk is left."""
    return not (state.alive(own.boot) or state.alive(own.init) or loop_devices(own.disk))


def describe_remains(own: NodePaths) -> str:
    init = state.alive(own.init)
    pids = state.processes_inside(init) if init else []
    return f"processes {pids or 'none'}, loop devices {loop_devices(own.disk) or 'none'}"


def loop_devices(below: Path) -> list[str]:
    """Loop devices ("/dev/loop3") whose file is *below*, or is it."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = entry.read_text().rstrip("\n").removesuffix(" (deleted)")
        except OSError:  # it went away while we looked
            continue
        if Path(backing).is_relative_to(below):
            found.append(f"/dev/{entry.parent.parent.name}")
    return found


def tail(log: Path, lines: int) -> list[str]:
    """The last *lines* of a log."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.strip().splitlines()[-lines:]]
