"""What a run of the benchmark measures: single calls, real programs, or two nodes that take turns.

A suite prepares its files where a contender stores them, runs its program inside the nodes (workloads.py, programs.py,
pingpong.py) and gives figures by row and contender.  Called by run.py.
"""

from __future__ import annotations

import json
from typing import Final, Protocol

from bench import nodes, programs
from bench.contenders import Contender, Native, Omfs
from bench.nodes import CLIENT
from bench.pingpong import PINGPONG
from bench.programs import PROGRAMS
from bench.workloads import WORKLOADS

Figures = dict[str, float]  # row -> figure


class Suite(Protocol):
    rows: dict[str, tuple[str, str]]
    rounds: int  # unless the user says otherwise
    node_count: int
    title: str

    def start(self) -> list[str]:
        """Make what all contenders share, in the running nodes; lines for the user, about what is not measured."""

    def measure(self, contender: Contender, place: str) -> Figures:
        """One contender's round, in a fresh directory named *place*, removed again."""

    def disqualified(self, contender: Contender) -> set[str]:
        """Rows in which it gave a wrong answer in any round: its figures there do not count."""

    def measure_together(self, contenders: list[Contender], place: str) -> dict[str, Figures]:
        """What has to be measured in turn, at the end of a round: contender -> figures."""


class Calls:
    rows = WORKLOADS
    rounds = 5
    node_count = 2

    def __init__(self, quick: bool) -> None:
        files, big_mib = (200, 205) if quick else (1000, 1024)
        self.title = f"{files} files of 4 KiB, one of {big_mib} MiB"
        self._sizes = ("--files", str(files), "--big-mib", str(big_mib))

    def start(self) -> list[str]:
        return []

    def measure(self, contender: Contender, place: str) -> Figures:
        node, origin = contender.origin()
        nodes.program(node, "workloads", "prepare", f"{origin}/{place}", *self._sizes)
        answer = nodes.program(CLIENT, "workloads", "measure", f"{contender.seen_at()}/{place}", *self._sizes)
        nodes.program(node, "workloads", "remove", f"{origin}/{place}", *self._sizes)
        figures: Figures = json.loads(answer)
        return figures

    def disqualified(self, contender: Contender) -> set[str]:
        return set()

    def measure_together(self, contenders: list[Contender], place: str) -> dict[str, Figures]:
        return {}


class Programs:
    rows = PROGRAMS
    rounds = 3
    node_count = 2
    _INPUTS: Final = f"{nodes.DISK}/inputs"  # on node 1, read natively by all

    def __init__(self, quick: bool) -> None:
        self._part = ("--part", "5" if quick else "1")
        sizes = programs.Sizes().shared(5 if quick else 1)
        self.title = (
            f"PostMark {sizes.postmark_files} files, {sizes.postmark_transactions} transactions; "
            f"{sizes.archived} files archived, {sizes.tracked} + {sizes.commits} in git; dbench {sizes.dbench_s} s"
        )

    def start(self) -> list[str]:
        nodes.program(CLIENT, "programs", "inputs", self._INPUTS, *self._part)
        missing = [package for package in programs.PACKAGES if not programs.is_here(package)]
        return [f"{package} is not installed: its rows are left out" for package in missing]

    def measure(self, contender: Contender, place: str) -> Figures:
        node, origin = contender.origin()
        nodes.program(node, "programs", "prepare", f"{origin}/{place}")
        seen = f"{contender.seen_at()}/{place}"
        answer = nodes.program(CLIENT, "programs", "measure", seen, self._INPUTS, *self._part)
        nodes.program(node, "programs", "remove", f"{origin}/{place}")
        figures: Figures = json.loads(answer)
        return figures

    def disqualified(self, contender: Contender) -> set[str]:
        return set()

    def measure_together(self, contenders: list[Contender], place: str) -> dict[str, Figures]:
        """PostMark on node 1's own tree, under its own path and under oMFS's."""
        omfs = [contender for contender in contenders if isinstance(contender, Omfs)]
        if not omfs or not any(isinstance(contender, Native) for contender in contenders):
            return {}
        native, own = f"{nodes.DISK}/{place}", f"{omfs[0].own_tree()}/{place}"
        nodes.on(CLIENT, "mkdir", native)
        figures = json.loads(nodes.program(CLIENT, "programs", "own", native, own, *self._part))
        nodes.program(CLIENT, "programs", "remove", native)
        names = (Native.name, Omfs.name)
        return {name: {"postmark_own": figure} for name, figure in zip(names, figures, strict=False)}


class Turns:
    rows = PINGPONG
    rounds = 5
    node_count = 3

    def __init__(self, quick: bool) -> None:
        self._count = 100 if quick else 500
        self.title = f"one file of 4 KiB, {2 * self._count} turns"
        self._stale: dict[str, set[str]] = {}

    def start(self) -> list[str]:
        return ["sshfs is not measured: two of its mounts don't see each other's changes for 20 s"]

    def measure(self, contender: Contender, place: str) -> Figures:
        other = contender.seen_by_another()
        if other is None:
            return {}
        figures = {}
        for row in self.rows:
            second = contender.origin() if row == "turn_owner" else other
            if row == "turn_owner" and second == other:
                continue  # here the other's mount is where the files are made
            if row in self.disqualified(contender):
                continue
            try:
                figures[row] = self._turns(contender, second, row, f"{place}-{row}")
            except nodes.StaleError as error:
                if isinstance(contender, Omfs):
                    raise
                self._stale.setdefault(contender.name, set()).add(row)
                print(f"{contender.name}, {self.rows[row][0]}: stale, does not count: {error}", flush=True)
        return figures

    def _turns(self, contender: Contender, second: tuple[int, str], row: str, place: str) -> float:
        """Node 1 and the *second* node and path take turns; milliseconds a turn."""
        node, origin = contender.origin()
        options = ["--turn", row, "--rounds", str(self._count)]
        nodes.program(node, "pingpong", "prepare", f"{origin}/{place}")
        first = (CLIENT, ["lead", f"{contender.seen_at()}/{place}", *options])
        answer = nodes.pair("pingpong", first, (second[0], ["follow", f"{second[1]}/{place}", *options]))
        nodes.on(node, "rm", "-r", f"{origin}/{place}")
        return float(json.loads(answer))

    def disqualified(self, contender: Contender) -> set[str]:
        return self._stale.get(contender.name, set())

    def measure_together(self, contenders: list[Contender], place: str) -> dict[str, Figures]:
        return {}
