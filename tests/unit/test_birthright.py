"""What /proc says of a process, as values; tests/lab/test_guestworld.py has real programs take them on."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

from mignode import birthright

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             1024                 unlimited            bytes     
Max nice priority         0                    5                    
"""  # noqa: W291


def test_limits_in_the_order_of_their_numbers() -> None:
    assert birthright.parse_limits(LIMITS) == ((-1, -1), (1024, -1), (0, 5))
    ours = birthright.parse_limits(Path("/proc/self/limits").read_text())
    assert ours == tuple(resource.getrlimit(number) for number in range(len(ours)))
    assert len(ours) > resource.RLIMIT_RTPRIO


def test_a_name_makes_no_line() -> None:
    lines = birthright.status_lines("Name:\tx\\nUid:\t7\nUid:\t0\t1\t2\t3\nGroups:\t4 5 \n")
    assert lines["Uid"].split() == ["0", "1", "2", "3"]
    assert lines["Groups"] == "4 5"


def test_signals_of_a_mask() -> None:
    assert birthright.signals_of(0x1001) == {signal.SIGHUP, signal.SIGPIPE}
    assert birthright.signals_of(1 << 63) == {64}


def test_our_own() -> None:
    ours = birthright.read(os.getpid(), os.geteuid(), os.getegid())
    assert ours.uids == os.getresuid()
    assert ours.groups == tuple(sorted(os.getgroups()))
    assert ours.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert ours.nice == os.nice(0)
    assert signal.SIGPIPE not in ours.ignored
