"""`umount.fuse.omfs`: what umount(8) runs for our type, because the binds under /mfs make a plain umount busy.

Takes the binds off, then the mount; if anything is in use, all stays as it was and the status is umount(8)'s 32.
"""

from __future__ import annotations

import functools
import getopt
import os
import select
import sys
from pathlib import Path
from typing import Final

import trio

from omfs.config import load_settings
from omfs.errors import OmfsError
from omfs.kernel.mounting import MNT_DETACH, MNT_FORCE, MS_RDONLY, MS_REMOUNT, mount, mount_at
from omfs.kernel.mounttable import OMFS_TYPE
from omfs.kernel.utab import forget_mount
from omfs.mount.selfbind import unmount_with_binds
from omfs.net.control import ask

USAGE = "usage: umount.fuse.omfs DIRECTORY [-flnrv]"
_FAILED = 32
_USAGE_ERROR = 1
_ASK_WITHIN_S: Final = 2.0  # the daemon answers this one at once, or it hangs
_END_WITHIN_S: Final = 10.0  # it ends its export, which closes what others have open


def main() -> int:
    """Entry point; the exit status is as umount(8)'s."""
    try:
        options, places = getopt.gnu_getopt(sys.argv[1:], "flnrvit:N:h", ["help"])
    except getopt.GetoptError as error:
        print(f"umount.fuse.omfs: {error}\n{USAGE}", file=sys.stderr)
        return _USAGE_ERROR
    said = {name for name, _ in options}
    if said & {"-h", "--help"}:
        print(USAGE)
        return 0
    if len(places) != 1:
        print(USAGE, file=sys.stderr)
        return _USAGE_ERROR
    problem = _unmount(places[0], said)
    if problem:
        print(f"umount: {places[0]}: {problem}", file=sys.stderr)
        return _FAILED
    if "-v" in said:
        print(f"umount: {places[0]} unmounted")
    return 0


def _unmount(place: str, said: set[str]) -> str:
    """What went wrong, or ""."""
    # The place itself is not resolved through the mount: it may not answer any more.
    parent, name = os.path.split(os.path.abspath(place))
    path = os.fsencode(os.path.join(os.path.realpath(parent), name))
    line = mount_at(path)
    if line is None:
        return "not mounted."
    if line.fstype != OMFS_TYPE:
        return f"not an omfs mount but {os.fsdecode(line.fstype)}."
    flags = (MNT_DETACH if "-l" in said else 0) | (MNT_FORCE if "-f" in said else 0)
    daemon = -1 if "-l" in said else _find_daemon(os.fsdecode(path))
    try:
        unmount_with_binds(path, flags)
        forget_mount(path)
        _wait_ended(daemon)
    except OSError as error:
        if "-r" in said:
            try:
                mount(None, path, None, MS_REMOUNT | MS_RDONLY)
            except OSError as second:
                return f"{error.strerror}, and read-only: {second.strerror}."
            return ""
        return "target is busy." if error.errno == 16 else f"{error.strerror}."
    return ""


def _find_daemon(mountpoint: str) -> int:
    """A pidfd of the daemon that serves *mountpoint*, -1 where it can't be found or does not answer."""
    try:
        socket_path = Path(load_settings().run_dir) / "mount.sock"
        status = trio.run(functools.partial(ask, socket_path, "identify", deadline_s=_ASK_WITHIN_S))
        return os.pidfd_open(status["pid"]) if status.get("mount_point") == mountpoint else -1
    except (OmfsError, OSError, KeyError):
        return -1


def _wait_ended(daemon: int) -> None:
    """umount(8) returns when the daemons are gone, so that a mount right after it finds no dying export."""
    if daemon >= 0:
        select.select([daemon], [], [], _END_WITHIN_S)
        os.close(daemon)


if __name__ == "__main__":
    sys.exit(main())
