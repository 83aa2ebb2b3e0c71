"""Every row of the tables, and what it should reach: the aims of the project as numbers.

An aim against native is how many times native's time it may take; against another file system, how many times as fast
it should be; against AT_MOST, the figure itself.  Called by table.py.
"""

from __future__ import annotations

from typing import Final

from bench.pingpong import PINGPONG
from bench.programs import PROGRAMS
from bench.workloads import WORKLOADS

ROWS: Final = {**WORKLOADS, **PROGRAMS, **PINGPONG}

NATIVE: Final = "native"
AT_MOST: Final = "at most"

AIMS: Final[dict[str, dict[str, float]]] = {
    "stat_uncached": {"sshfs": 1, "MooseFS": 1},
    "stat_warm": {NATIVE: 1.5, "MooseFS": 1},
    "stat_missing": {NATIVE: 1.5},
    "open_read_close": {"sshfs": 1, "MooseFS": 1},
    "open_read_close_warm": {"sshfs": 8, "MooseFS": 1},
    "create_4k": {"sshfs": 3, "MooseFS": 1},
    "rename": {"MooseFS": 1},
    "unlink": {"sshfs": 1, "MooseFS": 1},
    "unlink_uncached": {"sshfs": 1, "MooseFS": 1},
    "list_long": {"MooseFS": 1},
    "list_warm": {NATIVE: 1.5},
    "read_sequential": {"sshfs": 2},
    "read_again": {NATIVE: 1.05},  # "at native speed", and the noise of a run
    "write_sequential": {"sshfs": 2},
    "write_small": {"sshfs": 2},
    "postmark": {NATIVE: 1.6, "sshfs": 1, "MooseFS": 1},
    "postmark_own": {NATIVE: 1.05},
    "tar_x": {NATIVE: 2.5, "MooseFS": 1},
    "git_clone": {NATIVE: 1.4, "MooseFS": 1},
    "git_status": {NATIVE: 2, "MooseFS": 1},
    "compileall": {NATIVE: 1.25, "MooseFS": 1},
    "dbench_1": {"MooseFS": 1},
    "dbench_4": {"MooseFS": 1},
    "turn_open": {AT_MOST: 3},
    "turn_kept": {AT_MOST: 3},
    "turn_owner": {AT_MOST: 3},
}
