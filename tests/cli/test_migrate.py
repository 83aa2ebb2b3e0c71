"""migrate, in a /mfs/proc that is a directory of plain files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mignode.cli import controlfile, migrate
from mignode.journey import Journey, Stage, State, told
from mignode.stopwatch import Stopwatch
from omfs.errors import RemoteFailure
from tests.unit.controlmount import ControlMount

PID = 4242
ROOT = Path(__file__).parents[2]
Main = Callable[..., int]


@pytest.fixture
def process(tmp_path: Path) -> Path:
    """Its directory."""
    (tmp_path / "proc" / "hpc").mkdir(parents=True)
    folder = tmp_path / "proc" / str(PID)
    folder.mkdir()
    (folder / "goto").write_text("0\n")
    (folder / "journey").write_text("")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Main:
    return lambda *words: migrate.main([*words, "--mfs", str(tmp_path)])


def refuse_with(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is what mignode answers."""

    def write(path: Path, value: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(controlfile, "write", write)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("migrate: ")
    return captured.err


@pytest.mark.parametrize(("node", "text"), [("3", "3\n"), ("home", "0\n"), ("65535", "65535\n")])
def test_it_is_one_write(node: str, text: str, process: Path, run: Main, capsys: pytest.CaptureFixture[str]) -> None:
    (process / "goto").write_bytes(b"")
    assert run(str(PID), node) == 0
    assert (process / "goto").read_text() == text
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("where", "text"), [("0", "runs at home"), ("3", "runs on node 3"), ("", "has ended")])
def test_what_balancing_chose_is_said(
    where: str, text: str, process: Path, run: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    if where:
        (process / "where").write_text(f"{where}\n")
    assert run(str(PID), "balance") == 0
    assert (process / "goto").read_text() == "-1\n"
    assert capsys.readouterr() == (f"process {PID} {text}\n", "")


def test_who_is_locked_is_not_balanced(
    process: Path, run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_with(errno.EROFS, monkeypatch)
    (process / "cantmove").write_text("")
    (process / "lock").write_text("1\n")
    assert run(str(PID), "balance") == 1
    assert "it is locked" in one_line(capsys)


@pytest.mark.parametrize(
    ("number", "node", "text", "status"),
    [
        (errno.EAGAIN, "balance", "it is not known yet what process 4242 does", 1),
        (errno.ENOSYS, "balance", "nothing chooses nodes", 1),
        (errno.EPERM, "2", "process 4242 is not yours: its user and root may move it", 1),
        (errno.EACCES, "2", "process 4242 is not yours", 1),
        (errno.ESRCH, "2", "there is no process 4242", 1),
        (errno.EBUSY, "2", "is on its way to another node already", 1),
        (errno.EHOSTDOWN, "2", "node 2 is down or can't be reached", 1),
        (errno.EHOSTDOWN, "home", "its home is down", 1),
        (errno.EHOSTDOWN, "balance", "any node is down", 1),
        (errno.EINVAL, "9", "node 9 is not in the map of this cluster", 1),
        (errno.ENOTCONN, "2", "mignode does not run on this node", 3),
        (errno.ENOSYS, "2", "this version moves no processes", 1),
        (errno.ETIMEDOUT, "2", "stays where it is: Connection timed out", 1),
        (errno.EROFS, "2", "process 4242 can't move: the reason has just gone; try again", 1),
    ],
)
def test_each_refusal_has_its_line(
    number: int,
    node: str,
    text: str,
    status: int,
    process: Path,
    run: Main,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse_with(number, monkeypatch)
    assert run(str(PID), node) == status
    assert text in one_line(capsys)


def test_why_it_cant_move(
    process: Path, run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_with(errno.EROFS, monkeypatch)
    (process / "cantmove").write_text("uses io_uring, holds a lease on the file '/a\nb'\n")
    assert run(str(PID), "2") == 1
    assert "process 4242 can't move: uses io_uring, holds a lease on the file '/a b'" in one_line(capsys)


def test_why_it_did_not_move(
    process: Path, run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_with(errno.EIO, monkeypatch)
    (process / "journey").write_text(told(Journey(1, 2, State.STAYED, reason="node 2 has too little room")))
    assert run(str(PID), "2") == 1
    assert "process 4242 stays where it is: node 2 has too little room" in one_line(capsys)
    (process / "journey").write_text(told(Journey(1, 2, State.ARRIVED)))  # that was another time
    assert run(str(PID), "2") == 1
    assert "stays where it is: Input/output error" in one_line(capsys)


def test_who_has_ended_does_not_stay(
    process: Path, run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its journey had said is gone with it, or is there a moment longer."""
    refuse_with(errno.EIO, monkeypatch)
    (process / "journey").write_text(told(Journey(1, 2, State.LOST, reason="it has ended (SIGTRAP)")))
    assert run(str(PID), "2") == 1
    assert "process 4242 is lost: it has ended (SIGTRAP)" in one_line(capsys)
    (process / "journey").unlink()
    assert run(str(PID), "2") == 1
    assert one_line(capsys) == "migrate: process 4242 has ended\n"


def test_what_home_says_is_told(
    process: Path, run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a group that could move, as far as cantmove knows; and EBUSY may be an attempt that failed, or another's."""
    (process / "cantmove").write_text("")
    (process / "journey").write_text(told(Journey(1, 2, State.STAYED, reason="node 2 is not allowed")))
    refuse_with(errno.EROFS, monkeypatch)
    assert run(str(PID), "2") == 1
    assert "process 4242 can't move: node 2 is not allowed" in one_line(capsys)
    refuse_with(errno.EBUSY, monkeypatch)
    assert run(str(PID), "2") == 1
    assert "process 4242 stays where it is: node 2 is not allowed" in one_line(capsys)
    (process / "journey").write_text(told(Journey(1, 3)))
    assert run(str(PID), "2") == 1
    assert "process 4242 is on its way to another node already" in one_line(capsys)


def test_no_such_process(process: Path, run: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("4243", "2") == 1
    assert "there is no process 4243" in one_line(capsys)


def test_no_cluster(tmp_path: Path, run: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(PID), "2") == 3
    assert f"the cluster's file system is not mounted at {tmp_path}" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["0", "2"], '"0" is not a process id'),
        (["12x", "2"], '"12x" is not a process id'),
        (["99999999", "2"], "is not a process id"),
        (["12", "0"], '"0" is not a node (1..65535), home or balance'),
        (["12", "Home"], '"Home" is not a node'),
        (["12"], "the following arguments are required"),
        ([], "the following arguments are required"),
    ],
)
def test_wrong_words(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        migrate.main(words)
    assert ended.value.code == 2
    assert text in one_line(capsys)


def test_explained(process: Path, run: Main, capsys: pytest.CaptureFixture[str]) -> None:
    stages = (Stage("may it", 0.002), Stage("dumped and sent", 0.1234, 5 << 20), Stage("restored", 0.05))
    way = Journey(1, 2, State.ARRIVED, stages, sent_bytes=5 << 20, frozen_s=0.18)
    (process / "journey").write_text(told(way) + "\n")
    assert run(str(PID), "2", "--explain") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["may", "it", "2.0", "ms"],
        ["dumped", "and", "sent", "123.4", "ms", "5.0", "MiB"],
        ["restored", "50.0", "ms"],
        ["node", "1", "to", "2:", "arrived", "175.4", "ms", "5.0", "MiB"],
        ["it", "did", "not", "run", "for", "180.0", "ms"],
    ]
    assert run(str(PID), "2", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(told(way))


def test_explained_where_nothing_is_known(
    process: Path, run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(PID), "2", "--explain") == 0
    assert capsys.readouterr().out == "nothing is known of its way\n"
    assert run(str(PID), "2", "--json") == 0
    assert capsys.readouterr().out == "null\n"
    refuse_with(errno.EIO, monkeypatch)
    (process / "journey").write_text(told(Journey(1, 2, State.STAYED, sent_bytes=100, reason="criu said no")))
    assert run(str(PID), "2", "--explain") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "because criu said no"


def _sending(sent_bytes: int, expected_bytes: int) -> Journey:
    """What is told in the middle of the second stage."""
    said: list[Journey] = []
    watch = Stopwatch(1, 2, said.append)
    with watch:
        with watch.stage("prepared a place there"):
            watch.expect(expected_bytes)
        with watch.stage("dumped and sent"):
            watch.sent(sent_bytes)
            watch.expect(expected_bytes)
            return said[-1]


def test_a_long_one_shows_how_far_it_is(tmp_path: Path, process: Path) -> None:
    """On a terminal, while the write waits: here for a FIFO's reader."""
    (process / "goto").unlink()
    os.mkfifo(process / "goto")
    (process / "journey").write_text(told(_sending(1 << 20, 4 << 20)))
    master, terminal = pty.openpty()
    words = [sys.executable, "-m", "mignode.cli.migrate", str(PID), "2", "--mfs", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(words, stderr=terminal, env=environment) as running:
        os.close(terminal)
        shown = b""
        while b"1.0/4.0 MiB" not in shown:
            shown += os.read(master, 1000)
        assert b"process 4242: dumped and sent" in shown
        with open(process / "goto") as reader:
            assert reader.read() == "2\n"
        with contextlib.suppress(OSError):  # its end closes the terminal
            while os.read(master, 1000):
                pass
        assert running.wait() == 0
    os.close(master)


@pytest.mark.lab
def test_in_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel passes values and refusals on as they are."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    mount, own = ControlMount(tmp_path), os.getpid()

    def move(node: str) -> str:
        command = f"{sys.executable} -P -m mignode.cli.migrate {own} {node} --mfs {tmp_path}"
        return mount.run(f"{command} || echo $? >&2").stderr

    try:
        assert move("balance") == ""
        assert mount.written() == [("goto", own, "-1\n")]
        mount.source.fail["goto"] = RemoteFailure(errno.EROFS)
        mount.source.values["cantmove", own] = "uses io_uring\n"
        assert move("2") == f"migrate: process {own} can't move: uses io_uring\n1\n"
        mount.source.fail["goto"] = RemoteFailure(errno.EHOSTDOWN)
        assert "node 2 is down" in move("2")
        mount.source.fail["goto"] = RemoteFailure(errno.ENOTCONN)
        assert move("home") == "migrate: mignode does not run on this node; start it: openmosix start\n3\n"
    finally:
        mount.end()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        migrate.main(["--help"])
    assert ended.value.code == 0
    assert "Exit status" in capsys.readouterr().out
