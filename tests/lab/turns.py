"""How long the processes of a lab's nodes wait for a processor, which is no fault of theirs: for tests that look at a clock.

The kernel counts it for each thread (schedstat, sched-stats(5) of the kernel's documentation: the second number, ns).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from omfs.lab import state
from tests.lab.livelab import Lab


class Turns:
    """Of all that runs on some nodes now."""

    def __init__(self, lab: Lab, nodes: Iterable[int]) -> None:
        inits = filter(None, (state.alive(lab.paths.node(node).init) for node in nodes))
        self._processes = [pid for init in inits for pid in state.processes_inside(init)]
        self._before_ns: dict[tuple[int, str], int] = {}

    def mark(self) -> None:
        """From now on it is counted."""
        self._before_ns = self._waited_ns()

    def waited_s(self) -> float:
        """All of them together, since the mark; so no single thing was held up for longer by want of a processor."""
        now_ns = self._waited_ns()
        return sum(waited - self._before_ns.get(thread, 0) for thread, waited in now_ns.items()) / 1e9

    def _waited_ns(self) -> dict[tuple[int, str], int]:
        found = {}
        for pid in self._processes:
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as text:
                        found[pid, task] = int(text.read().split()[1])
        return found
