"""mtop: the real top, in a /mfs/proc that is a directory of plain files; its live view in a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mignode.cli import mtop
from tests.cli.terminal import Screen
from tests.cli.test_mps import mfs, sleeper

__all__ = ["mfs", "sleeper"]

TOP = """\
top - 12:00:00 up 1 day
Tasks:   2 total

    PID USER     %CPU COMMAND
     17 root      9.0 sh
{pid:>7} root      1.0 sleep
"""


def test_two_columns_behind_the_pid(mfs: str, sleeper: int) -> None:
    lines = TOP.format(pid=sleeper).splitlines()
    shown = mtop.with_nodes(lines, Path(mfs.removeprefix("--mfs=")))
    assert shown[:3] == lines[:3]
    assert shown[3:] == [
        "    PID  NODE NMIGS USER     %CPU COMMAND",
        "     17     -     - root      9.0 sh",
        f"{sleeper:>7}    12     3 root      1.0 sleep",
    ]
    assert mtop.with_nodes(["no such column"], None) == ["no such column"]


def test_every_picture_is_printed(mfs: str, sleeper: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert mtop.main([mfs, "-n", "2", "-d", "0.1", "-p", str(sleeper)]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines() if line.endswith("sleep")]
    assert [row[:3] for row in rows] == [[str(sleeper), "12", "3"]] * 2


def test_without_a_cluster(sleeper: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert mtop.main([f"--mfs={tmp_path}", "-b", "-n", "1", "-p", str(sleeper)]) == 3
    told = capfd.readouterr()
    assert told.err.startswith("mtop: the cluster's file system is not mounted at ")
    assert f"{sleeper}     -     - " in told.out


def test_for_programs(
    mfs: str, sleeper: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One picture, whatever was said of how many, and top's own columns whatever the user has chosen."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / ".toprc").write_text("nonsense")
    words = ["--json", mfs, "-n", "3", "-p", f"{sleeper},{os.getpid()}"]
    assert mtop.main(words) == 0
    shown = {row["pid"]: row for row in json.loads(capfd.readouterr().out)}
    assert shown.keys() == {sleeper, os.getpid()}
    row = shown[sleeper]
    assert (row["command"], row["where"], row["nmigs"], row["ni"]) == ("sleep", 12, 3, 0)
    assert isinstance(row["virt"], int)
    assert isinstance(row["%cpu"], float)
    assert (shown[os.getpid()]["where"], shown[os.getpid()]["nmigs"]) == (None, None)
    assert mtop.main(["--json", f"--mfs={tmp_path / 'nowhere'}", "-p", str(sleeper)]) == 3
    (row,) = json.loads(capfd.readouterr().out)
    assert row["where"] is None


def test_names_that_look_like_numbers(mfs: str, sleeper: int) -> None:
    lines = ["    PID USER     %CPU COMMAND", f"{sleeper:>7} 1000      1.0 12 34"]
    (row,) = mtop.rows(lines, Path(mfs.removeprefix("--mfs=")))
    assert row == {"pid": sleeper, "user": "1000", "%cpu": 1.0, "command": "12 34", "where": 12, "nmigs": 3}


@pytest.mark.parametrize("words", [["--nonsense"], ["-d", "x"], ["-n", "0"], ["--json", "-Z"]])
def test_options_that_top_refuses(words: list[str], mfs: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Its words are passed on, with the status of wrong usage."""
    real = subprocess.run(
        ["top", "-b", *(word for word in words if word != "--json")], capture_output=True, text=True, check=False
    )
    assert mtop.main([mfs, *words]) == 2
    assert capfd.readouterr() == ("", real.stderr)
    assert real.stderr.startswith("top: ")


def test_refused_on_a_terminal(mfs: str) -> None:
    """What is wrong stays to be read, where the live view is no more."""
    screen = Screen([sys.executable, "-m", "mignode.cli.mtop", mfs, "-d", "x"])
    try:
        assert screen.wait_end() == 2
        screen.wait_for("top: bad delay interval 'x'")
    finally:
        screen.close()


def test_on_a_terminal(mfs: str, sleeper: int) -> None:
    screen = Screen([sys.executable, "-m", "mignode.cli.mtop", mfs, "-d", "0.5", "-p", str(sleeper)])
    try:
        screen.wait_for(f"{sleeper}    12     3 root")
        screen.press("M")
        screen.wait_for("NODE NMIGS")
        screen.press("q")
        assert screen.wait_end() == 0
    finally:
        screen.close()
