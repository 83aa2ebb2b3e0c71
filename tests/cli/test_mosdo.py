"""mosdo, with a program in ssh's place that runs the command here and says for whom."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mignode.cli import mosdo
from tests.cli.inforce import make_hpc
from tests.lab.cluster import wait_until

STUB = """#!/bin/sh
case $1 in 192.168.*) echo "ssh: connect to host $1: No route to host" >&2; exit 255;; esac
echo "for $1"
exec sh -c "$2"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that lead to the plain files and the stub."""
    make_hpc(tmp_path)
    stub = tmp_path / "ssh"
    stub.write_text(STUB)
    stub.chmod(0o755)
    monkeypatch.setenv("SHELL", "/bin/sh")
    return ["--mfs", str(tmp_path), "--ssh", str(stub)]


def test_all_nodes_and_how_it_went(here: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert mosdo.main([*here, "echo", "a  b"]) == 255
    told = capfdbinary.readouterr()
    assert sorted(told.out.decode().splitlines()) == [
        "   1: a  b", "   1: for 127.0.0.1", "   2: a  b", "   7: a  b", "   7: for 192.0.2.7",
    ]  # fmt: skip
    assert told.err.decode().splitlines() == [
        "2780: ssh: connect to host 192.168.10.220: No route to host",
        "mosdo: node 2780: 255: ssh could not reach it, or the command said so",
    ]


def test_some_nodes_and_the_highest_status(here: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert mosdo.main([*here, "-n", "1-2,7", "-x", "1", "-q", "printf 'no end'; exit $(( $$ % 1 + 3 ))"]) == 3
    told = capfdbinary.readouterr()
    assert sorted(told.out.splitlines()) == [b"for 192.0.2.7", b"no end", b"no end"]
    assert told.err.decode().splitlines() == ["mosdo: node 2: exit status 3", "mosdo: node 7: exit status 3"]
    assert mosdo.main([*here, "-n", "2", "--", "true", "--json"]) == 0
    assert mosdo.main([*here, "-n", "2", "kill -9 $$"]) == 128 + signal.SIGKILL


def test_json_keeps_the_streams_apart(here: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert mosdo.main([*here, "--json", "-n", "1,2", "echo out; echo err >&2"]) == 0
    first, second = json.loads(capfdbinary.readouterr().out)
    assert first.pop("seconds") >= 0
    assert first == {"node": 1, "status": 0, "output": ["for 127.0.0.1", "out"], "errors": ["err"]}
    assert second["output"] == ["out"]


def test_what_takes_too_long_is_ended(here: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert mosdo.main([*here, "-n", "1-2", "-t", "4", "echo begun; trap '' TERM; sleep 1000 & wait; wait"]) == 124
    told = capfdbinary.readouterr()
    assert b"2: begun\n" in told.out
    assert told.err.count(b"not done within 4 s; ended\n") == 2


def test_an_interrupt_ends_all(here: list[str], tmp_path: Path) -> None:
    """As from a terminal: what was started has process groups of its own and is ended by us."""
    command = [sys.executable, "-m", "mignode.cli.mosdo", *here, "-n", "2", "echo $$; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().removeprefix("2: "))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the sleep has ended")


def test_commands_of_other_nodes_end_with_their_connection(here: list[str], tmp_path: Path) -> None:
    """sshd starts them in a session of their own and lets them go on."""
    stub = tmp_path / "ssh"
    stub.write_text('#!/bin/sh\nexec setsid -w sh -c "$2"\n')
    noted = tmp_path / "pid"
    assert mosdo.main([*here, "-n", "2", "-t", "1.5", f"echo $$ > {noted}; sleep 1000; true"]) == 124
    pid = int(noted.read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended, too")


def test_they_have_no_input(here: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert mosdo.main([*here, "-n", "1-2", "-q", "cat; echo read"]) == 0
    assert capfdbinary.readouterr().out.splitlines().count(b"read") == 2


@pytest.mark.parametrize(
    ("words", "status"),
    [(["-n", "9", "true"], 1), (["-x", "1-9", "true"], 1), (["-n", "x", "true"], 2), (["-t", "0", "true"], 2), ([], 2)],
)
def test_wrong_words(here: list[str], words: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        ended = mosdo.main([*here, *words])
    except SystemExit as end:
        ended = int(str(end.code))
    assert ended == status
    assert capsys.readouterr().err.count("\n") == 1


def test_no_ssh(here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mosdo.main([*here, "--ssh", "/nowhere/ssh", "true"]) == 1
    assert capsys.readouterr().err == "mosdo: /nowhere/ssh: No such file or directory\n"
