"""Which system call a thread is in: real programs that sleep in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from omfs.kernel import callers


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def sleeping_in(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-S", "-c", program, *arguments])
    while True:
        words = Path(f"/proc/{process.pid}/syscall").read_text().split()
        if words[0] in ("2", "257", "56"):
            wchan = Path(f"/proc/{process.pid}/wchan").read_text()
            if "fifo" in wchan or "partner" in wchan:
                return process


@pytest.mark.parametrize(("flags", "looks"), [("os.O_RDONLY", True), ("os.O_RDONLY | os.O_CREAT", False)])
def test_an_open_looks_unless_it_may_create(fifo: Path, flags: str, looks: bool) -> None:
    process = sleeping_in(f"import os, sys; os.open(sys.argv[1], {flags})", str(fifo))
    try:
        assert callers.only_looks(process.pid) is looks
        assert not callers.may_rename(process.pid)
    finally:
        process.kill()
        process.wait()


def test_other_calls_and_threads_that_are_gone_may_do_anything() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    assert not callers.only_looks(process.pid)
    process.communicate()
    assert not callers.only_looks(process.pid)
    assert not callers.only_looks(0)
    assert callers.may_rename(process.pid)
