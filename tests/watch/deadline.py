"""A deadline for every test, its fixtures included: all stacks are dumped and the test fails.

A test inside trio is cancelled (where each of its tasks waits is shown too), others are interrupted by an exception; a
trio test that does not reach a checkpoint within GRACE_S is interrupted too.  Where even that does not help (stuck in
the kernel), the whole run ends, with the stacks.  A test that needs longer says so: @pytest.mark.timeout(seconds).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from collections.abc import Generator
from types import FrameType
from typing import Final

import pytest
import trio

TIMEOUT_S: Final = 180.0  # for what takes ten seconds where nobody else is: a busy machine is no fault of the test's
LAB_TIMEOUT_S: Final = 600.0
GRACE_S: Final = 15.0

_stderr_fd = pytest.StashKey[int]()
_expired = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout(seconds): the test's own deadline, its fixtures included")
    stderr_fd = os.dup(2)  # the real one: capturing is not on while pytest configures
    config.stash[_stderr_fd] = stderr_fd
    config.add_cleanup(lambda: os.close(stderr_fd))


def timeout_of(item: pytest.Item) -> float:
    """Seconds that *item* may take."""
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0])
    return LAB_TIMEOUT_S if item.get_closest_marker("lab") else TIMEOUT_S


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    timeout_s = timeout_of(item)
    stderr_fd = item.config.stash[_stderr_fd]
    item.stash[_expired] = False

    def expire(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(stderr_fd, all_threads=True)
        asked_before, item.stash[_expired] = item.stash[_expired], True
        if trio.lowlevel.in_trio_run() and not asked_before:
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)
            trio.lowlevel.current_trio_token().run_sync_soon(cancel_everything, stderr_fd)
        else:
            pytest.fail("interrupted")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    faulthandler.dump_traceback_later(timeout_s + 4 * GRACE_S, exit=True, file=stderr_fd)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def cancel_everything(stderr_fd: int) -> None:
    """Show where each task waits, then cancel the test's main task and all that it started; called by trio's loop."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    lines = []
    pending = [root]
    while pending:
        task = pending.pop()
        pending += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        lines.append(f"task {task.name}\n")
        lines += traceback.StackSummary.extract(task.iter_await_frames()).format()
    os.write(stderr_fd, "".join(lines).encode())
    root.child_nurseries[-1].cancel_scope.cancel()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The phase in which the deadline came has failed, whatever became of the cancelled test."""
    report = yield
    if item.stash.get(_expired, False):
        item.stash[_expired] = False
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: not done after {timeout_of(item):.0f} s; all stacks are on stderr"
    return report
