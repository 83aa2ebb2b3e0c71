"""`make bench ARGS=--moves`: what moving costs: the freeze that a process sees, an empty one from end to end, starting.

And what it brings: a program at its data against the same through /mfs.  Three lab nodes on this machine, so whoever is
frozen waits for processors that three nodes share.  What runs inside is moved.py.  Called by run.py.

Calls are compared with the same calls of no guest on the same node and *by the same path*: a longer path takes longer,
and /mfs/2/x is two names and two mounts longer than x.  What that costs is shown beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import nodes
from bench.guestcalls import SOURCE, parsed

SIZES: Final = (5, 100, 500)  # MiB
MOVES: Final = 12
READ_MIB: Final = 200
AIMS: Final = {"empty": 120.0, "frozen_5": 60.0, "frozen_100": 250.0, "frozen_500": 1200.0}  # ms
CALLS: Final = ("open+close", "stat", "pread", "getppid", "fork+wait")
AIM_OF_CALLS: Final = {"open+close": 1.1, "stat": 1.1}  # times as long as outside
ROUNDS: Final = 5  # in turns: the least of each is one that nobody disturbed

_PLACE: Final = "/srv/moves"
_PROGRAM: Final = f"{_PLACE}/guestcalls"
_FILE: Final = f"{_PLACE}/file"


def measure(quick: bool) -> dict[str, list[float]]:
    """In nodes that are up; figures by row."""
    for node in (1, 2):
        nodes.on(node, "mkdir", "-p", _PLACE)
        nodes.on(node, "gcc", "-O2", "-pthread", "-o", _PROGRAM, str(SOURCE))
        nodes.on(node, "sh", "-c", f"echo x > {_FILE}")
    nodes.on(2, "sh", "-c", f"cd {_PLACE}; head -c {READ_MIB}M /dev/urandom > data; cp data data.2")
    sizes = ",".join(map(str, SIZES[:2] if quick else SIZES))
    answer = nodes.program(1, "moved", "moves", f"/mfs/2{_PLACE}/data", sizes, str(3 if quick else MOVES))
    found: dict[str, list[float]] = json.loads(answer)
    for _ in range(1 if quick else ROUNDS):
        for where, said in _calls_everywhere():
            for name, cost in parsed(said).items():
                found.setdefault(f"{where}_{name}", []).append(cost)
    return found


def _calls_everywhere() -> Iterator[tuple[str, str]]:
    """Where guestcalls ran, and what it said."""
    size = ("2000", "100", "1")
    there = f"/mfs/2{_FILE}"
    yield "by_short_path", nodes.on(2, _PROGRAM, _FILE, *size)
    yield "outside_away", nodes.on(2, _PROGRAM, there, *size)
    yield "guest_away", nodes.program(1, "moved", "said", "2", f"/mfs/2{_PROGRAM}", there, *size)
    yield "outside_home", nodes.on(1, _PROGRAM, _FILE, *size)
    yield "guest_home", nodes.program(1, "moved", "said", "0", _PROGRAM, _FILE, *size)


def shown(found: dict[str, list[float]]) -> list[str]:
    """A table in Markdown."""
    middle = {row: statistics.median(figures) for row, figures in found.items()}
    lines = ["| what | figure | aim |", "| --- | ---: | --- |"]

    def row(text: str, figure: str, name: str = "") -> None:
        aim = f"{AIMS[name]:.0f} ms {'ok' if middle[name] <= AIMS[name] else 'NO'}" if name in AIMS else ""
        lines.append(f"| {text} | {figure} | {aim} |")

    row("an empty process, from asking until it runs there", f"{middle['empty']:.0f} ms", "empty")
    for name in (name for name in middle if name.startswith("frozen_")):
        row(f"freeze that a process with {name.partition('_')[2]} MiB sees", f"{middle[name]:.0f} ms", name)
    row("true, started natively", f"{middle['start_native']:.1f} ms")
    row("true, started by mosrun", f"{middle['start']:.0f} ms")
    for call in CALLS:
        for where, place in (("home", "at home"), ("away", "away, on a file of the node where it runs")):
            lines.append(_compared(found, call, where, place))
    for call in ("open+close", "stat"):
        short, long = (min(found[f"{way}_{call}"]) for way in ("by_short_path", "outside_away"))
        row(f"{call} outside, by {_FILE} and by /mfs/2{_FILE}", f"{short:.0f} ns, {long:.0f} ns")
    row("sequential read of a file of node 2, from node 1", f"{middle['read_remote']:.0f} MB/s")
    row("the same by a program that was moved to node 2", f"{middle['read_there']:.0f} MB/s")
    return lines


def _compared(found: dict[str, list[float]], call: str, where: str, place: str) -> str:
    inside, outside = (min(found[f"{who}_{where}_{call}"]) for who in ("guest", "outside"))
    aim = AIM_OF_CALLS.get(call)
    said = f"{100 * (aim - 1):.0f} % {'ok' if inside <= aim * outside else 'NO'}" if aim else ""
    much = "" if inside > 2 * outside else f": {100 * (inside / outside - 1):+.1f} %"
    return f"| {call} in a guest {place} | {inside:.0f} ns, outside {outside:.0f} ns{much} | {said} |"


def run(quick: bool, path: Path | None) -> None:
    """Raises BenchError."""
    nodes.up(3)
    found = measure(quick)
    print("\n".join(shown(found)))
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.flush()
