"""The control files of /mfs/proc, as the commands of users read and write them.

Users have no other way to mignode: its control socket is root's.  What it does not do: say what an errno means for a
command.  Called by the other rooms here.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from omfs.errors import NotRunning
from omfs.kernel.mounttable import OMFS_TYPE, parse_mountinfo

USUAL: Final = Path("/mfs")
MIGNODE_IS_OFF: Final = "mignode does not run on this node; start it: openmosix start"
"""What ENOTCONN means."""


def find_mount(wanted: Path | None) -> Path:
    """Where /mfs is: *wanted*, the usual place, or where it is mounted.  Raises NotRunning."""
    for place in (wanted,) if wanted else (USUAL, *mounted()):
        try:
            if (place / "proc" / "hpc").is_dir():
                return place
        except OSError as error:
            reason = error.strerror
            if error.errno == errno.ENOTCONN:
                reason = "the process that served it has ended; mount it again: openmosix start"
            raise NotRunning(f"{place}: {reason}") from None
    raise NotRunning(f"the cluster's file system is not mounted{f' at {wanted}' if wanted else ''}")


def mounted() -> list[Path]:
    """Where it is, whether anybody answers there or not."""
    lines = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    return [Path(os.fsdecode(line.mountpoint)) for line in lines if line.fstype == OMFS_TYPE and line.root == b"/"]


def of_process(mount: Path, pid: int, name: str) -> Path:
    return mount / "proc" / str(pid) / name


def read(path: Path) -> str:
    """Without its newline.  Raises OSError."""
    return path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")


def write(path: Path, value: int | str) -> None:
    """One write(2), which ends when it is done.  Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, f"{value}\n".encode())
    finally:
        os.close(file)
