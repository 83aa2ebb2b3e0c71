"""Programs of three nodes work at random on shared things and record it: the history of what they did and saw.

Used by the tests of histories; the program is programs/history.py, the checker tests/linearizability.py.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, Final

from tests.lab.agents import Agent, chosen_seed
from tests.lab.cluster import Cluster, Place
from tests.linearizability import (
    UNKNOWN,
    Ascending,
    Log,
    Names,
    NotLinearizable,
    Operation,
    Register,
    Specification,
    check,
    check_promise,
    partition,
)

NODES: Final = (1, 2, 3)
EACH: Final = 3  # programs on a node
ENOUGH_WITHIN_S: Final = 60.0
FEWEST: Final = 20  # operations on each thing, for a history to say anything


class Recording:
    """The programs at work, and all that they did so far."""

    def __init__(self, cluster: Cluster, paths: dict[int, str], here: Place, things: Iterable[str]) -> None:
        self._cluster = cluster
        self._here = here
        self._things = tuple(things)
        self.rng = chosen_seed()
        self._make_things()
        self._agents = [
            Agent(
                cluster.lab, node, "history.py", paths[node], f"node{node}{'xyz'[number]}", str(3 * (node - 1) + number),
                str(self.rng.random()), *self._things,
            )
            for node in NODES
            for number in range(EACH)
        ]  # fmt: skip
        self._rows: list[list[Any]] = []
        self._phase_ends: list[float] = []

    def _make_things(self) -> None:
        script = [f"cd {self._here.native}", "mkdir -m 777 aside"]
        for thing in self._things:
            if thing.startswith("r"):
                script.append(f"printf '0;;;;;;;;;;;;;;;' > {thing}")
            else:
                script.append(f"touch {thing}" if thing.startswith("log") else f"mkdir -m 777 {thing}")
        self._cluster.run(self._here.owner, "\n".join(script))

    def keep(self) -> None:
        """They open the files, and leave them open."""
        for agent in self._agents:
            agent.send("keep")
        for agent in self._agents:
            agent.receive()

    def begin(self) -> None:
        for agent in self._agents:
            agent.send("go")

    def end(self) -> None:
        for agent in self._agents:
            agent.send("stop")
        for agent in self._agents:
            self._rows += agent.receive()
        self._phase_ends.append(time.monotonic())

    def run(self, seconds: float) -> None:
        """So long, and again where a busy machine did too little in that time."""
        deadline = time.monotonic() + ENOUGH_WITHIN_S
        while True:
            self.begin()
            time.sleep(seconds)
            self.end()
            done = Counter(row[0] for row in self._rows)
            if all(done[thing] >= FEWEST for thing in self._things) or time.monotonic() > deadline:
                return

    def stop(self) -> None:
        for agent in self._agents:
            agent.stop()

    def history(self) -> dict[str, list[Operation]]:
        """By thing.  What nobody knows may have happened until the end of the phase after that in which it failed."""
        logs = {thing: self._log(thing) for thing in self._things if thing.startswith("log")}
        operations = []
        for thing, who, called, returned, action, argument, result in self._rows:
            if action == "read" and thing in logs:
                action, result = "count", count_in(logs[thing], *result)
            if result == "?":
                result = UNKNOWN
                later = [end for end in self._phase_ends if end > returned]
                returned = later[1] if len(later) > 1 else later[0]
            frozen = tuple(argument) if isinstance(argument, list) else argument
            operations.append(Operation(who, called, returned, thing, action, frozen, result))
        parts = partition(operations)
        for thing in self._things:
            assert len(parts[thing]) >= FEWEST, f"{thing}: too little was done to say anything"
        return parts

    def specification(self, thing: str) -> Specification:
        if thing.endswith(" times"):
            return Ascending()
        if thing.startswith("log"):
            text = self._log(thing).decode()
            return Log([line.rstrip() for line in text.splitlines()])
        return Register("0") if thing.startswith("r") else Names()

    def _log(self, thing: str) -> bytes:
        return self._cluster.run(self._here.owner, f"cat {self._here.native}/{thing}").encode()

    def check(self) -> dict[str, list[Operation]]:
        """One order explains all, for each thing; where not, whether at least the promise was kept is said too."""
        history = self.history()
        for thing, operations in history.items():
            specification = self.specification(thing)
            try:
                check(operations, specification)
            except NotLinearizable as error:
                error.add_note(verdict_on_promise(operations, specification))
                raise
        return history


def verdict_on_promise(operations: list[Operation], specification: Specification) -> str:
    """A look that is wrong only while a change is in flight is another fault than one that is wrong after it returned."""
    try:
        check_promise(operations, specification)
    except NotLinearizable as error:
        return f"and what had returned was not seen either:\n{error}"
    return "but whatever had returned was seen by all that started later"


def count_in(log: bytes, length: int, digest: int) -> Hashable:
    """How many records somebody has read, if those were the first of *log*."""
    if length <= len(log) and zlib.crc32(log[:length]) == digest:
        return length / 32
    return f"{length} bytes that are not the beginning of the log"
