"""`make bench ARGS=--day`: a day's mixed work on three nodes, where it was started, and moved by the nodes themselves.

Everything is started at once on node 1: compiles, compressions, POV-Ray, and a scan of data on each of the other two
nodes.  Each node has 0.4 of a processor (omfs-lab's limits), which nobody else uses: so three nodes fit on two real
processors, and a job that leaves a crowded node gets what no other one had.  Daemons, moves and serving files
cost out of the same.  A round is first with `mosctl stay` on all nodes, then with balancing, or the other way round.
What runs inside is dayjobs.py.  Called by run.py.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bench import nodes
from bench.dayjobs import SCANNED_NODES
from omfs.lab import topology

PROCESSORS: Final = 0.4
ROUNDS: Final = 3
SCANNED_MIB: Final = 800
NODES: Final = (1, 2, 3)
STAYING, BALANCED = "stay", "balanced"

_MOVED: Final = re.compile(r"guest 1\.([0-9]+)\.[0-9]+ goes to node ([0-9]+):")


class Run(msgspec.Struct, frozen=True):
    """*ended_s*: of each job, since all were started.  *moves*: the nodes it was sent to, one after the other.

    *file_bytes*: between mounts and exports; *wire_bytes*: all that the nodes have received, moves too.
    """

    ended_s: dict[str, float]
    moves: dict[str, list[int]]
    file_bytes: int
    wire_bytes: int


class Counts(NamedTuple):
    file_bytes: int
    wire_bytes: int


def count() -> Counts:
    files = wire = 0
    for node in NODES:
        status = json.loads(nodes.on(node, "sh", "-c", "omfs-admin status --json || :"))
        files += sum(int(entry["bytes_in"]) + int(entry["bytes_out"]) for entry in status["nodes"])
        wire += int(nodes.on(node, "cat", "/sys/class/net/eth0/statistics/rx_bytes"))
    return Counts(files, wire)


def moves_in(text: str, pids: dict[int, str]) -> dict[str, list[int]]:
    """What the logs of the nodes say; in the order in which they say it."""
    found: dict[str, list[int]] = {}
    for pid, node in _MOVED.findall(text):
        if int(pid) in pids:
            found.setdefault(pids[int(pid)], []).append(int(node))
    return found


def logged() -> list[str]:
    return [topology.LabPaths(nodes.NAME).node(node).log.read_text() for node in NODES]


def run_once(place: str, how: str, part: int) -> Run:
    """All jobs, on fresh files."""
    for node in NODES:
        nodes.on(node, "mosctl", "stay" if how == STAYING else "nostay")
    nodes.program(1, "dayjobs", "inputs", place)
    for node in SCANNED_NODES:
        nodes.program(node, "dayjobs", "data", place, str(SCANNED_MIB // part))
    lengths, before = [len(text) for text in logged()], count()
    jobs: dict[str, tuple[float, int]] = json.loads(nodes.program(1, "dayjobs", "run", place, str(part)))
    after = count()
    said = "".join(text[length:] for text, length in zip(logged(), lengths, strict=True))
    for node in NODES:
        nodes.on(node, "rm", "-r", place)
    return Run(
        {name: ended_s for name, (ended_s, _) in jobs.items()},
        moves_in(said, {pid: name for name, (_, pid) in jobs.items()}),
        after.file_bytes - before.file_bytes,
        after.wire_bytes - before.wire_bytes,
    )


# ---------------------------------------------------------------- the table


def kind_of(job: str) -> str:
    return job.split()[0]


def shown(found: dict[str, list[Run]]) -> list[str]:
    """A table in Markdown: medians of the rounds; of a kind, of its jobs' mean."""
    lines = ["| what | all stay on node 1 | balanced | |", "| --- | ---: | ---: | --- |"]

    def row(text: str, figures: dict[str, list[float]], decimals: int, is_time: bool = True) -> None:
        stay, balanced = (statistics.median(figures[how]) for how in (STAYING, BALANCED))
        compared = f"{stay / balanced:.2f} times as fast" if is_time else f"{balanced - stay:+.{decimals}f}"
        lines.append(f"| {text} | {stay:.{decimals}f} | {balanced:.{decimals}f} | {compared} |")

    row("all done, s", {how: [max(run.ended_s.values()) for run in runs] for how, runs in found.items()}, 1)
    row("a job done, mean, s", {how: [_mean(run, "") for run in runs] for how, runs in found.items()}, 1)
    for kind in dict.fromkeys(kind_of(job) for job in found[STAYING][0].ended_s):
        row(f"{kind}, mean, s", {how: [_mean(run, kind) for run in runs] for how, runs in found.items()}, 1)
    row("moves", {how: [float(_moves(run)) for run in runs] for how, runs in found.items()}, 0, is_time=False)
    for text, name in (
        ("bytes of files between nodes, MB", "file_bytes"),
        ("all bytes between nodes, MB", "wire_bytes"),
    ):
        row(text, {how: [getattr(run, name) / 1e6 for run in runs] for how, runs in found.items()}, 0, is_time=False)
    return lines


def _mean(run: Run, kind: str) -> float:
    return statistics.mean(ended_s for job, ended_s in run.ended_s.items() if kind in ("", kind_of(job)))


def _moves(run: Run) -> int:
    return sum(map(len, run.moves.values()))


def told(runs: list[Run]) -> list[str]:
    """Who was moved where, of the last round."""
    return [f"{job}: to node {', '.join(map(str, targets))}" for job, targets in sorted(runs[-1].moves.items())]


def run(quick: bool, rounds: int | None, path: Path | None) -> None:
    """Raises BenchError."""
    count_of_rounds = rounds or (1 if quick else ROUNDS)
    nodes.up(len(NODES), "--processors", str(PROCESSORS))
    found: dict[str, list[Run]] = {STAYING: [], BALANCED: []}
    busy = os.getloadavg()[0]
    for number in range(count_of_rounds):
        for how in (STAYING, BALANCED) if number % 2 == 0 else (BALANCED, STAYING):
            done = run_once(f"/srv/day{number}{how}", how, 5 if quick else 1)
            found[how].append(done)
            print(
                f"==> round {number + 1}, {how}: {max(done.ended_s.values()):.1f} s, {_moves(done)} moves", flush=True
            )
    title = f"{PROCESSORS:g} of a processor each; {count_of_rounds} rounds; load of the machine before: {busy:.1f}"
    print("\n".join([title, "", *shown(found), "", *told(found[BALANCED])]), flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode({"title": title, "runs": found}), indent=2) + b"\n")
