"""Programs on the nodes that a test talks to, line by line, outside of oMFS; and how long the machine stood still."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from typing import Any, Final

from tests.lab.cluster import PROGRAMS
from tests.lab.livelab import Lab

Call = tuple[Any, ...]


class Agent:
    """One of tests/lab/programs that answers each line with a line of JSON.

    When an answer has come, the calls it is about have returned: what is asked of another agent then starts later.
    Reading has no time-out of its own: the test's deadline interrupts it, with the stacks of the lab.
    """

    def __init__(self, lab: Lab, node: int, program: str, *arguments: str, environment: str = "") -> None:
        self.node = node
        self.name = f"{program} on node {node}"
        self._process = lab.popen(node, ["env", *environment.split(), "python3", str(PROGRAMS / program), *arguments])

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.name} ended: {self._process.stderr and self._process.stderr.read()}"
        return json.loads(line)

    def stop(self) -> None:
        """It ends when its input does."""
        self._process.communicate()

    def ask(self, value: object) -> Any:
        self.send(json.dumps(value))
        return self.receive()

    def send_call(self, *calls: Call) -> None:
        """As `call`; the results are for `receive`."""
        self.send(json.dumps(calls))

    def call(self, *calls: Call) -> list[Any]:
        """The results of calls of programs/calls.py."""
        results: list[Any] = self.ask(calls)
        return results


def number_from(variable: str, normally: int) -> int:
    """How much of it: the environment says more for the long run."""
    return int(os.environ.get(variable, normally))


def chosen_seed() -> random.Random:
    """From OMFS_SEED, or a new one; it is printed where a failure shows it."""
    seed = number_from("OMFS_SEED", random.randrange(1 << 32))
    print(f"to repeat the choices: OMFS_SEED={seed}", file=sys.stderr)
    return random.Random(seed)


class Witness:
    """A thread that only sleeps, and so knows when the machine let nobody run."""

    PERIOD_S: Final = 0.002
    ON_TIME_S: Final = 0.005

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []  # (due, woken), in order
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness")

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            due = time.monotonic() + self.PERIOD_S
            time.sleep(self.PERIOD_S)
            woken = time.monotonic()
            if woken - due > self.ON_TIME_S:
                self._late.append((due, woken))

    def stalled_s(self, since: float, until: float) -> float:
        """How much of that time the machine stood still for the witness."""
        overlaps = (min(woken, until) - max(due, since) for due, woken in self._late)
        return sum(overlap for overlap in overlaps if overlap > 0)
