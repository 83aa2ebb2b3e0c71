"""What bench/day.py makes of logs and figures, and that its jobs are what they say."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.day import BALANCED, STAYING, Run, moves_in, shown, told
from bench.dayjobs import jobs, make_data

LOG = """\
10:00:01 mignode[12]: guest 1.40.77 goes to node 2: it gains more than the move costs
10:00:02 mignode[12]: guest 1.41.78 goes to node 3: it gains more than the move costs
10:00:03 mignode[12]: guest 1.41.78 stays: no
10:00:04 mignode[12]: guest 1.99.78 goes to node 3: an earlier one
10:00:09 mignode[12]: guest 1.40.77 goes to node 1: it gains more than the move costs
"""


def run(ended_s: float, file_bytes: int, moves: dict[str, list[int]]) -> Run:
    return Run({"compile 1": ended_s, "compile 2": ended_s / 2, "scan node 2": 10.0}, moves, file_bytes, 2 * file_bytes)


def test_moves_are_those_of_our_jobs() -> None:
    assert moves_in(LOG, {40: "compile 1", 41: "scan node 2"}) == {"compile 1": [2, 1], "scan node 2": [3]}


def test_the_table_has_medians_of_the_rounds() -> None:
    found = {
        STAYING: [run(300.0, 900_000_000, {}), run(200.0, 800_000_000, {}), run(100.0, 700_000_000, {})],
        BALANCED: [run(100.0, 100_000_000, {"compile 1": [2, 3]})] * 3,
    }
    lines = shown(found)
    assert "| all done, s | 200.0 | 100.0 | 2.00 times as fast |" in lines
    assert "| compile, mean, s | 150.0 | 75.0 | 2.00 times as fast |" in lines
    assert "| scan, mean, s | 10.0 | 10.0 | 1.00 times as fast |" in lines
    assert "| moves | 0 | 2 | +2 |" in lines
    assert "| bytes of files between nodes, MB | 800 | 100 | -700 |" in lines
    assert told(found[BALANCED]) == ["compile 1: to node 2, 3"]


def test_the_jobs_are_shell_commands(tmp_path: Path) -> None:
    for part in (1, 5):
        for command, _ in jobs(tmp_path, part).values():
            subprocess.run(["/bin/sh", "-n", "-c", command], check=True)


def test_the_data_are_as_large_as_told(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 16)
    assert sum(file.stat().st_size for file in (tmp_path / "data").iterdir()) == 16 << 20
