"""The memory of a group: what is shared counts once, what is swapped out counts, who has ended has none."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from typing import Final

import pytest

from mignode.memorysize import memory_bytes, told_bytes
from omfs.kernel.processes import read_file

_SHARED_BYTES: Final = 64 << 20
TEXT: Final = b"""\
55d6c0d2a000-7ffd0a9f6000 ---p 00000000 00:00 0                          [rollup]
Rss:                9000 kB
Pss:                1000 kB
Pss_Anon:            700 kB
Swap:                300 kB
SwapPss:              24 kB
Locked:                0 kB
"""


@pytest.fixture
def family() -> Iterator[list[int]]:
    """Four processes that have the same memory."""
    with mmap.mmap(-1, _SHARED_BYTES) as shared:
        shared.write(b"x" * _SHARED_BYTES)
        pids = []
        ready, says = os.pipe()
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                sum(memoryview(shared)[::4096])  # a page that is not touched is not its own
                os.write(says, b".")
                signal.pause()
            pids.append(pid)
        try:
            for _ in pids:
                assert os.read(ready, 1) == b"."
            yield pids
        finally:
            os.close(ready)
            os.close(says)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def test_what_is_shared_counts_once(family: list[int]) -> None:
    pids = [*family, os.getpid()]
    each_of_it_bytes = sum(int(read_file(f"/proc/{pid}/statm").split()[1]) for pid in pids) * mmap.PAGESIZE
    assert memory_bytes(pids) < each_of_it_bytes - 3 * _SHARED_BYTES  # however large the tests are themselves


def test_what_is_swapped_out_counts() -> None:
    assert told_bytes(TEXT) == 1024 << 10
    assert told_bytes(b"") == 0


def test_who_has_ended_has_none() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert memory_bytes([pid]) == 0
    os.waitpid(pid, 0)
    assert memory_bytes([pid]) == 0
    assert memory_bytes([os.getpid()]) > 1 << 20
