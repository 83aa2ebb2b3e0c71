"""A mount whose daemon was killed must fail with ENOTCONN, at once, and not keep anybody waiting.

The kernel sees to that when the daemon's last descriptor of the device is closed.  That does not happen while one of
its threads waits for a lock that a call into the mount holds (recall.py's threads may): the main thread is a zombie,
the call is never answered, the thread never ends.  So who finds the daemon dead aborts the connection: omfs-export,
which looks every second, and whoever mounts there again.  Who the daemon is says the note that it left in run_dir.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Final

import trio

from omfs.kernel.fuseabort import abort_connection
from omfs.kernel.mounting import mount_at
from omfs.kernel.mounttable import OMFS_TYPE

NOTE: Final = "mount.json"
WATCH_INTERVAL_S: Final = 1.0
_STATE_FIELD: Final = 0  # of /proc/<pid>/stat behind the command's name; proc(5) counts them from 3
_START_FIELD: Final = 19

log = logging.getLogger(__name__)


def identity(pid: int) -> str | None:
    """What tells this process from a later one with its number: its start; None when it is dead, or almost."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE_FIELD] in ("Z", "X") else fields[_START_FIELD]


def abort_if_dead(run_dir: Path) -> bool:
    """Abort the connection of the mount that the note is about, if its daemon is dead.  True if that was done."""
    try:
        note = json.loads((run_dir / NOTE).read_text())
        pid, started, mountpoint = int(note["pid"]), note["started"], os.fsencode(note["mountpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if identity(pid) == started:
        return False
    line = mount_at(mountpoint)
    if line is None or line.fstype != OMFS_TYPE:
        return False
    try:
        abort_connection(line.device)
    except OSError as error:
        log.debug("%s: nothing to abort: %s", os.fsdecode(mountpoint), error)
        return False
    log.warning("%s: its omfs, pid %d, is dead; calls that wait there fail now", os.fsdecode(mountpoint), pid)
    return True


async def watch_mount(run_dir: Path) -> None:
    """For omfs-export, until cancelled: whoever waits for the answer of a mount that was killed is to get an error."""
    while True:
        await trio.sleep(WATCH_INTERVAL_S)
        abort_if_dead(run_dir)
