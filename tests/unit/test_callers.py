"""Credentials of calling threads."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

from omfs.mount.callers import KEPT_S, ROOT, Callers
from omfs.wire import Caller


class Context(NamedTuple):
    uid: int
    gid: int
    pid: int


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def status(proc: Path, thread: int, groups: str, pending: int = 0, shared: int = 0) -> None:
    (proc / str(thread)).mkdir(exist_ok=True)
    (proc / str(thread) / "status").write_text(
        f"Name:\tGroups: 1 2\nUid:\t5\nGroups:\t{groups} \nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n"
    )


def test_root_needs_no_groups(tmp_path: Path) -> None:
    callers = Callers(tmp_path)
    assert callers.caller(Context(0, 0, 99)) is ROOT
    assert callers.caller(Context(0, 5, 99)) == Caller(0, 5)


def test_groups_come_from_proc(tmp_path: Path) -> None:
    status(tmp_path, 50, "24 1000 4294967294")
    status(tmp_path, 51, "")
    callers = Callers(tmp_path)
    assert callers.caller(Context(1000, 100, 50)) == Caller(1000, 100, (24, 1000, 4294967294))
    assert callers.caller(Context(1000, 100, 51)) == Caller(1000, 100)


def test_a_thread_that_is_not_seen_has_no_groups(tmp_path: Path) -> None:
    callers = Callers(tmp_path)
    assert callers.caller(Context(1000, 100, 0)) == Caller(1000, 100)
    assert callers.caller(Context(1000, 100, 4711)) == Caller(1000, 100)


def test_groups_are_kept_for_a_moment_and_per_identity(tmp_path: Path) -> None:
    clock = Clock()
    callers = Callers(tmp_path, clock)
    status(tmp_path, 50, "1")
    assert callers.caller(Context(1000, 100, 50)).groups == (1,)
    status(tmp_path, 50, "2")
    assert callers.caller(Context(1000, 100, 50)).groups == (1,)
    assert callers.caller(Context(1000, 101, 50)).groups == (2,)  # newgrp
    assert callers.caller(Context(1001, 100, 50)).groups == (2,)  # login
    clock.now = KEPT_S
    assert callers.caller(Context(1000, 100, 50)).groups == (2,)


def test_many_threads_do_not_fill_the_memory(tmp_path: Path) -> None:
    callers = Callers(tmp_path)
    for thread in range(1, 10_000):
        callers.caller(Context(1000, 100, thread))
    assert len(callers._kept) < 5000


def test_sigkill_is_seen_in_both_sets(tmp_path: Path) -> None:
    bit = 1 << (signal.SIGKILL - 1)
    callers = Callers(tmp_path)
    status(tmp_path, 1, "", pending=bit)
    status(tmp_path, 2, "", shared=bit | 2)
    status(tmp_path, 3, "", pending=1 << (signal.SIGTERM - 1))
    assert [callers.is_being_killed(thread) for thread in (0, 1, 2, 3, 4)] == [False, True, True, False, False]


def test_the_kernels_own_format() -> None:
    callers = Callers()
    assert set(callers.caller(Context(1, 1, os.getpid())).groups) == set(os.getgroups())
    assert not callers.is_being_killed(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as child:
        assert not callers.is_being_killed(child.pid)
        child.kill()
