"""`mount -o remount`: the kernel's own flags can change, ours can't while files are open.

The running mount leaves a note of its options in run_dir, because options that fstab repeats unchanged are fine.
Called by cli/mount.py; the note is kept by session.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from omfs.errors import ConfigError
from omfs.kernel.mounting import MS_BIND, MS_REMOUNT, mount, mount_at
from omfs.kernel.mounttable import OMFS_TYPE, MountLine
from omfs.mount.deadmount import NOTE, identity
from omfs.mount.options import MountOptions, refused_at_remount
from omfs.mount.selfbind import bind_flags, binds_below


def write_note(run_dir: Path, mountpoint: str, options: MountOptions) -> None:
    """Tell a later remount what holds, and deadmount.py who we are.  Raises OSError."""
    run_dir.mkdir(parents=True, exist_ok=True)
    note = {"mountpoint": mountpoint, "options": options.own(), "pid": os.getpid(), "started": identity(os.getpid())}
    (run_dir / NOTE).write_text(json.dumps(note))


def remove_note(run_dir: Path) -> None:
    (run_dir / NOTE).unlink(missing_ok=True)


def _read_note(run_dir: Path, mountpoint: str) -> dict[str, object] | None:
    try:
        note = json.loads((run_dir / NOTE).read_text())
    except (OSError, ValueError):
        return None
    options = note.get("options")
    return options if note.get("mountpoint") == mountpoint and isinstance(options, dict) else None


def remount(options: MountOptions, run_dir: Path) -> None:
    """Change the flags of a live mount and of the binds under it.  Raises ConfigError, one line."""
    mountpoint = os.path.realpath(options.mountpoint)
    place = os.fsencode(mountpoint)
    line = mount_at(place)
    if line is None or line.fstype != OMFS_TYPE:
        raise ConfigError(f"{options.mountpoint}: omfs is not mounted there")
    refused = refused_at_remount(options, _read_note(run_dir, mountpoint))
    if refused:
        raise ConfigError(f"a remount can't change {refused}: unmount and mount again")
    flags = options.kernel_flags
    try:
        mount(None, place, None, MS_REMOUNT | flags)
        for bind in binds_below(place):
            if not _is_cover(bind, place):
                mount(None, bind, None, MS_REMOUNT | MS_BIND | bind_flags(flags, _shown_by(bind, place)))
    except OSError as error:
        raise ConfigError(f"{options.mountpoint}: {error.strerror}") from None


def _shown_by(bind: bytes, mountpoint: bytes) -> MountLine | None:
    """The mount that this is a bind of; the bind itself (what it is stays) where that has been unmounted."""
    _, _, path = bind.removeprefix(mountpoint + b"/").partition(b"/")
    return mount_at(b"/" + path) or mount_at(bind)


def _is_cover(bind: bytes, mountpoint: bytes) -> bool:
    """What hides /mfs/<self>/mfs stays read-only."""
    return bind.endswith(mountpoint) and bind.removesuffix(mountpoint).rpartition(b"/")[0] == mountpoint
