"""What CRIU loses of threads: read from real ones, and given back to the same after they were changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from mignode.unkept import FILE, give_back, note
from omfs.errors import WireError
from omfs.kernel.carried import io_priority, set_io_priority

ONE: Final = min(os.sched_getaffinity(0))
IDLE, BEST_EFFORT, REAL_TIME = 3 << 13, 2 << 13 | 6, 1 << 13 | 2
PROGRAM: Final = """
import sys, threading
threading.Thread(target=lambda: (print(threading.get_native_id(), flush=True), sys.stdin.read())).start()
"""

Threads = tuple[int, int]


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Of one process: its first and another."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


def change(thread: int, priority: int, slack_ns: int) -> None:
    set_io_priority(priority, thread)
    Path(f"/proc/{thread}/timerslack_ns").write_text(str(slack_ns))


def shown(thread: int) -> tuple[set[int], int, str]:
    return os.sched_getaffinity(thread), io_priority(thread), Path(f"/proc/{thread}/timerslack_ns").read_text().strip()


def test_each_thread_gets_its_own_back(tmp_path: Path, threads: Threads) -> None:
    first, second = threads
    dumped = Path(f"/proc/{first}/coredump_filter")
    change(first, BEST_EFFORT, 123456)
    change(second, IDLE, 7)
    os.sched_setaffinity(second, {ONE})
    dumped.write_text("0x7f")
    before = [shown(thread) for thread in threads]
    note(tmp_path, [first])
    for thread in threads:
        change(thread, 0, 50000)
        os.sched_setaffinity(thread, os.sched_getaffinity(0))
    dumped.write_text("0x33")
    give_back(tmp_path, [first], 1000)
    assert [shown(thread) for thread in threads] == before
    assert before[1] == ({ONE}, IDLE, "7")
    assert int(dumped.read_text(), 16) == 0x7F


@pytest.mark.parametrize("uid", [0, 1000])
def test_only_root_gets_real_time(tmp_path: Path, threads: Threads, uid: int) -> None:
    first, _ = threads
    set_io_priority(REAL_TIME, first)
    note(tmp_path, [first])
    set_io_priority(BEST_EFFORT, first)
    give_back(tmp_path, [first], uid)
    assert io_priority(first) == (REAL_TIME if uid == 0 else BEST_EFFORT)


def test_processors_that_are_not_here_leave_all(tmp_path: Path, threads: Threads) -> None:
    first, _ = threads
    (tmp_path / FILE).write_bytes(msgspec.msgpack.encode([(first, (8191,), 0, 50000, None)]))
    give_back(tmp_path, [first], 0)
    assert os.sched_getaffinity(first) == os.sched_getaffinity(0)


def test_who_has_ended_and_who_is_not_noted_is_left_alone(tmp_path: Path, threads: Threads) -> None:
    gone = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
        note(tmp_path, [gone.pid])  # a zombie
        give_back(tmp_path, [gone.pid], 0)
    finally:
        gone.wait()
    give_back(tmp_path, [gone.pid, threads[0]], 0)
    note(tmp_path, [gone.pid])
    assert (tmp_path / FILE).read_bytes() == msgspec.msgpack.encode([])


def test_an_image_without_it_and_one_that_is_forged(tmp_path: Path) -> None:
    give_back(tmp_path, [os.getpid()], 0)
    for forged in (b"", b"\xc0", msgspec.msgpack.encode([(1, (), 1 << 16, 0, None)])):
        (tmp_path / FILE).write_bytes(forged)
        with pytest.raises(WireError, match=FILE):
            give_back(tmp_path, [os.getpid()], 0)
