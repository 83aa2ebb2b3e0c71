"""`omfs-lab demo`, the first thing a newcomer runs: it succeeds, is honest, and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest

from omfs.cli import demo
from tests.lab.livelab import COMMAND, Lab

pytestmark = pytest.mark.lab


@pytest.fixture
def demo_lab() -> Lab:
    return Lab(demo.NAME)


def test_everything_is_as_it_should_be(demo_lab: Lab) -> None:
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All as it should be" in done.stdout
    for shown in ("cp -v", "git clone", "sha256sum", "sqlite3", "flock", "omfs-lab shell 1"):
        assert shown in done.stdout
    assert re.search(r"^it came to node 2 [0-9.]+ s after its start$", done.stdout, re.MULTILINE), "by itself"
    assert re.search(r"^process \d+ on node 2 stays: no other node is better$", done.stdout, re.MULTILINE), "and why"
    assert re.search(r"^✓ it was beside its data after ", done.stdout, re.MULTILINE)
    for node in (1, 2):
        assert re.search(rf"^pass \d+ on node{node}: \d+ MB/s$", done.stdout, re.MULTILINE), (
            f"how fast it was on node {node}"
        )
    assert demo_lab.remains() == []


@pytest.mark.parametrize(
    ("came_s", "is_busy", "is_met", "said"),
    [
        (10.0, False, True, "it was beside its data after 10.0 s"),
        (10.1, False, False, "it was beside its data after 10.1 s, and not within 10"),
        (10.1, True, True, "it was beside its data after 10.1 s, and not within 10: this machine is busy"),
        (9.0, True, True, "it was beside its data after 9.0 s"),
    ],
)
def test_late_is_a_failure_where_the_machine_is_not_to_blame(
    came_s: float, is_busy: bool, is_met: bool, said: str
) -> None:
    assert demo.is_soon(came_s, is_busy=is_busy) == (is_met, said)


def end_in_the_middle(number: signal.Signals) -> int:
    """Start a demo, send it this signal as a terminal would, and return its status."""
    process = subprocess.Popen([*COMMAND, "demo"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "cp -v" in line:
            break
    os.killpg(process.pid, number)
    process.communicate(timeout=120)
    return process.returncode


def test_an_interrupted_demo_takes_everything_down(demo_lab: Lab) -> None:
    assert end_in_the_middle(signal.SIGINT) == 130
    assert demo_lab.remains() == []


def test_down_says_how_to_take_down_what_a_killed_demo_left(demo_lab: Lab) -> None:
    assert end_in_the_middle(signal.SIGKILL) == -signal.SIGKILL
    said = subprocess.run([*COMMAND, "down", "--name", "nobody"], capture_output=True, text=True, check=True).stdout
    [order] = [line.partition(": omfs-lab ")[2] for line in said.splitlines() if f"{demo.NAME!r}" in line]
    subprocess.run([*COMMAND, *order.split()], check=True)
    assert demo_lab.remains() == []


def test_a_command_that_fails_makes_the_demo_fail(demo_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_copy", lambda stage: stage.show(1, "exit 3"))
    assert demo.run() == 1
    assert demo_lab.remains() == []
