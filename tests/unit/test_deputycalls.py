"""What a deputy does for its guest: in a process of its own, whose group has others."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mignode.deputynumbers import number_told

ROOT = Path(__file__).parents[2]
DEPUTY = """
import json, os, sys
from mignode.deputycalls import call_done
print(os.getpid(), flush=True)
for line in sys.stdin:
    call, arguments = json.loads(line)
    try:
        print(call_done(call, tuple(arguments)), flush=True)
    except OSError as error:
        print(-error.errno, flush=True)
"""


class Deputy:
    """*pid*: it leads its group."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", DEPUTY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            process_group=0,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.pid = int(self._process.stdout.readline())
        self._members: list[subprocess.Popen[bytes]] = []

    def ask(self, call: str, *arguments: int) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([call, arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, group: int) -> subprocess.Popen[bytes]:
        member = subprocess.Popen(["sleep", "1000"], process_group=group)
        self._members.append(member)
        return member

    def end(self) -> None:
        for member in self._members:
            member.kill()
            member.wait()
        self._process.communicate()


@pytest.fixture
def deputy() -> Iterator[Deputy]:
    one = Deputy()
    yield one
    one.end()


def test_who_is_who(deputy: Deputy) -> None:
    other = deputy.start(0)
    assert number_told(deputy.pid, "getppid", ()) == os.getpid()
    assert number_told(deputy.pid, "getpgid", (other.pid,)) == other.pid
    assert number_told(deputy.pid, "getpgid", (0,)) == deputy.pid
    assert number_told(other.pid, "getsid", (0,)) == number_told(deputy.pid, "getsid", (os.getpid(),)) == os.getsid(0)


def test_numbers_of_nobody() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for call, arguments in (("getppid", ()), ("getpgid", (0,)), ("getsid", (ended.pid,)), ("getsid", (2**40,))):
        with pytest.raises(ProcessLookupError):
            number_told(ended.pid, call, arguments)
    for call, arguments in (("kill", (1, 0)), ("getppid", (1,))):
        with pytest.raises(OSError, match="not implemented"):
            number_told(os.getpid(), call, arguments)


def test_signals_to_one_to_a_group_and_to_its_own(deputy: Deputy) -> None:
    one, leader, siblings = deputy.start(0), deputy.start(0), [deputy.start(deputy.pid) for _ in range(3)]
    follower = deputy.start(leader.pid)
    assert deputy.ask("kill", one.pid, 0) == 0
    assert deputy.ask("kill", one.pid, signal.SIGTERM) == 0
    assert one.wait(60) == -signal.SIGTERM
    assert deputy.ask("kill", one.pid, 0) == -errno.ESRCH
    assert deputy.ask("kill", -leader.pid, signal.SIGKILL) == 0
    assert [leader.wait(60), follower.wait(60)] == [-signal.SIGKILL] * 2
    assert deputy.ask("kill", 0, signal.SIGKILL) == 0  # not itself, which stands for the guest
    assert [sibling.wait(60) for sibling in siblings] == [-signal.SIGKILL] * 3
    assert deputy.ask("kill", -deputy.pid, 0) == -errno.ESRCH
    assert deputy.ask("kill", deputy.pid, signal.SIGKILL) == 0
    assert deputy.ask("kill", 1, 999) == -errno.EINVAL


def test_what_is_not_for_a_deputy(deputy: Deputy) -> None:
    assert deputy.ask("setsid") == deputy.ask("getppid") == -errno.ENOSYS
    assert deputy.ask("kill", 1) == -errno.ENOSYS
    assert deputy.ask("execve", 1, 2, 3) == -errno.ENOSYS
