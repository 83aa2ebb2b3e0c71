"""After the last test, nothing may be left: mounts, network namespaces, labs, loop devices, processes.

What was there before the run is not ours, and on a developer's machine labs of others may come and go: only those
with the name of this run (`lab_prefix`) count, in CI all.  Processes are recognised by a variable in their environment
that every child of the run inherits; a lab's processes start with a clean one, but then the lab is left.

Where several workers (pytest-xdist) do the tests, they are such children, and only who leads the run looks.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Final

import pytest

VARIABLE: Final = "OMFS_TEST_RUN"
LABS: Final = Path("/var/lib/omfs-lab")
GRACE_S: Final = 30.0  # what was killed at the end of the last test takes a busy machine a moment to go

_before = pytest.StashKey[set[str]]()
_found = pytest.StashKey[list[str]]()


def lab_prefix() -> str:
    """How the names of this run's labs begin, in all its workers; runs in PID namespaces may have the same pid."""
    return f"t{os.environ[VARIABLE][:6]}-"


def pytest_sessionstart(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    os.environ[VARIABLE] = uuid.uuid4().hex
    session.config.stash[_before] = things()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    before = session.config.stash.get(_before, None)
    if before is None:
        return
    deadline_s = time.monotonic() + GRACE_S
    while (left := sorted(things() - before) + stray_processes()) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    session.config.stash[_found] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)  # what made the run fail is what its last lines say
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left = terminalreporter.config.stash.get(_found, [])
    if left:
        terminalreporter.section("left behind by the tests", red=True)
        for line in left:
            terminalreporter.line(line, red=True)


def things() -> set[str]:
    """Everything of ours that outlives a process, one line each."""
    found = set()
    our_labs = str(LABS / ("" if "CI" in os.environ else lab_prefix()))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        if kind == "fuse.omfs" or fields[4].startswith(our_labs):
            found.add(f"mount {fields[4]} ({kind})")
    if (named := Path("/run/netns")).is_dir():
        found |= {f"network namespace {entry.name}" for entry in named.iterdir()}
    if LABS.is_dir():
        found |= {f"lab {entry}" for entry in LABS.iterdir() if str(entry).startswith(our_labs)}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = backing.read_text().strip()
        except OSError:  # detached just now
            continue
        if text.startswith(our_labs):
            found.add(f"loop device {backing.parent.parent.name} ({text})")
    return found


def stray_processes() -> list[str]:
    """Processes that inherited our variable and are neither this one nor dead."""
    mark = f"{VARIABLE}={os.environ[VARIABLE]}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"process {entry.name}: {command[:200]}")
        except OSError:  # it has ended meanwhile
            continue
    return found
