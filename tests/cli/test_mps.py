"""mps: the real ps, in a /mfs/proc that is a directory of plain files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mignode.cli import mps, mtop


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def mfs(tmp_path: Path, sleeper: int) -> str:
    """The sleeper runs on node 12; nothing is known of the others."""
    (tmp_path / "proc" / "hpc").mkdir(parents=True)
    folder = tmp_path / "proc" / str(sleeper)
    folder.mkdir()
    for name, text in {"where": "12", "nmigs": "3", "lock": "1", "cantmove": "uses io_uring, has a lease"}.items():
        (folder / name).write_text(text + "\n")
    return f"--mfs={tmp_path}"


@pytest.mark.parametrize(
    "words",
    [
        ["-ef"], ["aux"], ["-A"], ["axjf"], ["-e", "-o", "user,pid,comm"], ["-eo", "comm,pid"], ["-eLf"], ["-el"],
        ["-e", "ww"],
    ],
)  # fmt: skip
def test_a_column_behind_the_pid(words: list[str], mfs: str, sleeper: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert mps.main([*words, mfs]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    columns = heading.split()
    assert columns[columns.index("PID") + 1] == "NODE"
    edge = heading.index(" NODE") + len(" NODE")
    nodes = {line[: edge - 6].split()[-1]: line[edge - 5 : edge].strip() for line in lines}
    assert nodes[str(sleeper)] == "12"
    assert nodes[str(os.getpid())] == "-"


def test_all_else_is_what_ps_shows(mfs: str, sleeper: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-o", "user,pid,ppid,comm", "-p", f"{sleeper},{os.getpid()}"]
    assert mps.main([*words, mfs]) == 0
    shown = capsys.readouterr().out.splitlines()
    real = subprocess.run(["ps", *words], capture_output=True, text=True, check=True).stdout.splitlines()
    edge = shown[0].index(" NODE") - 1
    assert [line[:edge] + line[edge + 6 :] for line in shown] == real


def test_openmosix_columns(mfs: str, sleeper: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert mps.main(["--ominfo", mfs, "-p", f"{sleeper},{os.getpid()}"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["PID", "NODE", "NMIGS", "LOCK", "COMMAND", "CANTMOVE"]
    rows = {line.split()[0]: line.split(maxsplit=5) for line in lines}
    assert rows[str(sleeper)][1:] == ["12", "3", "1", "sleep", "uses io_uring, has a lease"]
    assert rows[str(os.getpid())][1:4] == ["-", "-", "-"]


def test_json(mfs: str, sleeper: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert mps.main(["--json", mfs, "-p", f"{sleeper},{os.getpid()}"]) == 0
    rows = {row.pop("pid"): row for row in json.loads(capsys.readouterr().out)}
    reasons = "uses io_uring, has a lease"
    assert rows[sleeper] == {"command": "sleep", "where": 12, "nmigs": 3, "lock": 1, "cantmove": reasons}
    assert rows[os.getpid()]["where"] is None


def test_options_of_ps_that_say_nothing(mfs: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Its status is passed on."""
    assert mps.main(["-p", "4194303", mfs]) == 1
    assert capfd.readouterr().out.split()[:2] == ["PID", "NODE"]


@pytest.mark.parametrize("words", [["--nonsense"], ["-o", "nonsense"], ["--json", "--nonsense"]])
def test_options_that_ps_refuses(words: list[str], mfs: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What it says, usage included, with the status of wrong usage."""
    assert mps.main([*words, mfs]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "error" in captured.err
    assert "Usage:" in captured.err


def test_no_column_of_pids(mfs: str, sleeper: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert mps.main(["-o", "comm", "-p", str(sleeper), mfs]) == 0
    captured = capsys.readouterr()
    assert captured.out == "COMMAND\nsleep\n"
    assert captured.err == "mps: no column PID here, so no node can be shown\n"


def test_no_cluster(tmp_path: Path, sleeper: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert mps.main(["-p", str(sleeper), "--mfs", str(tmp_path)]) == 3
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[:2] == [str(sleeper), "-"]
    assert captured.err == f"mps: the cluster's file system is not mounted at {tmp_path}\n"
    assert mps.main(["--ominfo", "-p", str(sleeper), "--mfs", str(tmp_path)]) == 3


@pytest.mark.parametrize("tool", [mps, mtop])
def test_a_place_that_can_not_be_looked_at(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ps and top show is shown; and of a mount that is dead it is said how it comes back."""
    words = ["-b", "-n1"] if tool is mtop else ["-p", "1"]
    name = tool.__name__.rpartition(".")[2]
    place = Path("/", "x" * 300)
    assert tool.main([*words, f"--mfs={place}"]) == 3
    assert capsys.readouterr().err == f"{name}: {place}: File name too long\n"

    def is_dir(_: Path) -> bool:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert tool.main(words) == 3
    told = capsys.readouterr()
    assert "PID" in told.out
    assert told.err == f"{name}: /mfs: the process that served it has ended; mount it again: openmosix start\n"


@pytest.mark.parametrize("words", [["aux", "--mfs"], ["--mfs=", "aux"]])
@pytest.mark.parametrize("tool", [mps, mtop])
def test_a_directory_that_is_not_said(words: list[str], tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(words) == 2
    name = tool.__name__.rpartition(".")[2]
    assert capsys.readouterr().err == f"{name}: --mfs needs a directory (see {name} --help)\n"


def test_no_ps(mfs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert mps.main([mfs]) == 127
    assert capsys.readouterr().err == "mps: there is no ps on this machine\n"


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_words_of_its_own(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mps.main(["aux", word]) == 0
    assert capsys.readouterr().out
