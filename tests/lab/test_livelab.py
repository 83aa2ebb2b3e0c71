"""What the lab's tests rely on when they fail: stacks of everything, logs, and an honest look at what is left."""

from __future__ import annotations

import os

import pytest

from omfs.lab import state
from tests.lab.livelab import Lab, wait_for

pytestmark = pytest.mark.lab

LAB_NODES = 1


def test_stacks_show_python_and_kernel_of_every_daemon(lab: Lab) -> None:
    sleeper = lab.popen(1, ["sleep", "1000"])
    expected = {"hrtimer_nanosleep", "sleep 1000", "omfs.lab.init", "Current thread", "omfs/daemon.py"}
    missing: set[str] = set()

    def are_all_there() -> bool:
        stacks = lab.stacks()
        missing.clear()
        missing.update(part for part in expected if part not in stacks)
        return not missing

    assert state.wait_until(are_all_there, 60), missing
    assert sleeper.poll() is None  # nothing was killed by asking
    assert lab.out(1, "cat /mfs/1/etc/hostname") == "node1"


def test_what_is_up_is_seen_as_left_behind(lab: Lab) -> None:
    remains = "\n".join(lab.remains())
    for expected in (f"file {lab.paths.directory}", "loop device /dev/loop", "omfs.lab.init", "sleep infinity"):
        assert expected in remains
    assert f"process {os.getpid()} " not in remains


def test_a_test_leaves_the_lab_as_it_found_it(lab: Lab) -> None:
    sleeper = lab.popen(1, "echo asleep; sleep 1000")
    wait_for(lab, sleeper, "asleep")
    lab.kill(1)
    lab.restore()
    assert sleeper.returncode is not None
    assert [(node["running"], node["mounted"]) for node in lab.status()] == [(True, True)]
