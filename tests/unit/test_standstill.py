"""Who has a file open, or opens it, does nothing while a lock goes over, and then goes on as if nothing had been."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from omfs.errors import StandstillFailed
from omfs.kernel.standstill import Standstill

pytestmark = pytest.mark.lab

WITHIN_S = 60.0
HEAD = """
import ctypes, fcntl, os, signal, sys, threading, time
file = open(sys.argv[1], "r+")
def told(word):
    os.write(1, word.encode() + b"\\n")
"""
PROGRAMS = {
    "busy": "told('ready')\nwhile True: told('on') if os.getppid() < 0 else None",
    "asleep": "told('ready')\nwhile True: time.sleep(100)",
    "threads": "threading.Thread(target=time.sleep, args=(1000,)).start(); told('ready')\nwhile True: pass",
    "waiting": "told('ready'); fcntl.lockf(file, fcntl.LOCK_EX, 5); told('locked'); time.sleep(1000)",
    "forking": "told('ready')\nwhile True: os.waitpid(os.fork() or os._exit(0), 0)",
}


def state_of(thread: int) -> str:
    return Path(f"/proc/{thread}/stat").read_text().rpartition(") ")[2][0]


def until(is_so: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < ends_s
        time.sleep(0.002)


@contextmanager
def program(text: str, path: Path, ready: bytes = b"ready\n") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HEAD + text, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as running:
        assert running.stdout is not None
        try:
            if ready:
                assert running.stdout.readline() == ready
            yield running
        finally:
            os.killpg(running.pid, signal.SIGKILL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(10))
    return tmp_path / "file"


@contextmanager
def still(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_PATH)
    standstill = Standstill([fd], 0)
    try:
        standstill.check()
        standstill.begin(WITHIN_S)
        yield
    finally:
        standstill.end()
        os.close(fd)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_who_has_it_open_stands_still_and_goes_on(kind: str, path: Path) -> None:
    with path.open("r+") as mine:
        fcntl.lockf(mine, fcntl.LOCK_EX, 1)
        with program(PROGRAMS[kind], path) as other:
            with still(path):
                threads = [int(thread.name) for thread in Path(f"/proc/{other.pid}/task").iterdir()]
                assert {state_of(thread) for thread in threads} <= {"t", "Z"}
            until(lambda: state_of(other.pid) != "t")
            assert "TracerPid:\t0\n" in Path(f"/proc/{other.pid}/status").read_text()
            if kind == "waiting":
                fcntl.lockf(mine, fcntl.LOCK_UN, 1)
                assert other.stdout is not None
                assert other.stdout.readline() == b"locked\n"


def test_who_opens_it_waits_but_we_do_not(path: Path) -> None:
    with ExitStack() as stack:
        standing = stack.enter_context(ExitStack())
        standing.enter_context(still(path))
        path.read_bytes()
        other = stack.enter_context(program("told('opened'); time.sleep(1000)", path, b""))
        assert other.stdout is not None
        until(lambda: is_opening(other.pid))
        os.set_blocking(other.stdout.fileno(), False)
        assert other.stdout.read() is None
        os.set_blocking(other.stdout.fileno(), True)
        standing.close()
        assert other.stdout.readline() == b"opened\n"


def is_opening(pid: int) -> bool:
    """It waits in openat(2), and for us: a fanotify group's answer can't be interrupted."""
    call = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return call in ("257", "56") and state_of(pid) == "D"


def test_a_stopped_program_stays_stopped(path: Path) -> None:
    with program(PROGRAMS["asleep"], path) as other:
        other.send_signal(signal.SIGSTOP)
        until(lambda: state_of(other.pid) == "T")
        with still(path):
            assert state_of(other.pid) == "t"
        until(lambda: state_of(other.pid) == "T")


def test_a_signal_that_comes_meanwhile_arrives(path: Path) -> None:
    text = "signal.signal(signal.SIGUSR1, lambda *_: told('signalled')); told('ready')\nwhile True: time.sleep(100)"
    with program(text, path) as other:
        with still(path):
            other.send_signal(signal.SIGUSR1)
        assert other.stdout is not None
        assert other.stdout.readline() == b"signalled\n"


def test_nobody_stands_still_where_one_is_traced(path: Path) -> None:
    tracer = (
        "child = os.fork()\nif not child:\n    ctypes.CDLL(None).ptrace(0, 0, 0, 0); told('ready'); time.sleep(1000)"
    )
    with program(PROGRAMS["asleep"], path) as other, program(tracer + "\ntime.sleep(1000)", path):
        fd = os.open(path, os.O_PATH)
        try:
            standstill = Standstill([fd], 0)
            with pytest.raises(StandstillFailed, match="is being traced"):
                standstill.check()
            with pytest.raises(StandstillFailed, match="can't be traced"):
                standstill.begin(WITHIN_S)
        finally:
            os.close(fd)
        until(lambda: state_of(other.pid) == "S")
