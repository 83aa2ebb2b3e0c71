"""The local node without FUSE: with dfsa=1, /mfs/<self> is a bind of this machine's own tree, at native speed.

One bind for / and one for each real file system mounted below it (kernel/mounttable.py says which), so what is not
real (/proc, /sys, /dev ...) does not show; the binds are private, so nothing done under them spreads.  The node's own
/mfs is covered by an empty read-only directory: a chain /mfs/1/mfs/3 is invalid.

Runs in a thread, because every look-up goes through our own mount.  Invariant: what this made, `undo` takes off, in the
reverse order; it never touches a mount that lies elsewhere.  Called by daemon.py (bind_self, undo) and
cli/umount.py (unmount_with_binds).
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from omfs.kernel.mounting import (
    MNT_DETACH,
    MS_BIND,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REMOUNT,
    SavedMount,
    mount,
    mounts,
    unmount,
)
from omfs.kernel.mounttable import MountLine, is_real_tree

log = logging.getLogger(__name__)

_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_NOSYMFOLLOW: Final = 256
_OWN_FLAGS: Final = {
    b"ro": MS_RDONLY,
    b"nosuid": _MS_NOSUID,
    b"nodev": _MS_NODEV,
    b"noexec": _MS_NOEXEC,
    b"nosymfollow": _MS_NOSYMFOLLOW,
}


def bind_self(mountpoint: bytes, node_id: int, kernel_flags: int, cover: bytes) -> None:
    """Lay this machine's tree over *mountpoint*/<node_id>; needs the mount to answer already.

    *kernel_flags*: the mount's MS_ flags, which hold for the binds too.  *cover*: a directory outside the mount, made
    if need be and kept empty.  Raises OSError; then nothing is left of it.
    """
    os.makedirs(cover, mode=0, exist_ok=True)
    place = mountpoint + b"/%d" % node_id
    try:
        for line in local_trees(mounts(), mountpoint):
            target = place if line.mountpoint == b"/" else place + line.mountpoint
            try:
                _bind(line.mountpoint, target, bind_flags(kernel_flags, line))
            except OSError as error:
                if line.mountpoint == b"/":
                    raise
                log.warning("%s is not shown under %s: %s", os.fsdecode(line.mountpoint), os.fsdecode(place), error)
        _bind(cover, place + mountpoint, bind_flags(kernel_flags | MS_RDONLY, None))
    except BaseException:
        undo(mountpoint)
        raise


def local_trees(lines: list[MountLine], mountpoint: bytes) -> list[MountLine]:
    """The mounts that make up this machine's real tree, parents first.

    Where several cover each other only the topmost counts: a mount on the same parent at a higher place hides what
    was mounted further down before it.
    """

    by_id = {line.mount_id: line for line in lines}

    def is_covered(line: MountLine) -> bool:
        return any(other.parent_id == line.mount_id and other.mountpoint == line.mountpoint for other in lines)

    def is_reachable(line: MountLine) -> bool:
        at: MountLine | None = line
        while at is not None:
            if any(o.parent_id == at.parent_id and _is_below(at.mountpoint, o.mountpoint) for o in lines):
                return False
            at = by_id.get(at.parent_id)
        return True

    return sorted(
        (
            line
            for line in lines
            if is_real_tree(line.fstype)
            and not _is_below(line.mountpoint, mountpoint)
            and not is_covered(line)
            and is_reachable(line)
        ),
        key=lambda line: line.mountpoint,
    )


def _is_below(path: bytes, directory: bytes) -> bool:
    return path != directory and path.startswith(directory.rstrip(b"/") + b"/")


def bind_flags(kernel_flags: int, source: MountLine | None) -> int:
    """The MS_ flags of a bind: those of our mount and those of the mount that it shows, which a remount replaces."""
    wanted = kernel_flags & (MS_RDONLY | _MS_NOSUID | _MS_NOEXEC) | _MS_NODEV
    for word in source.options.split(b",") if source else ():
        wanted |= _OWN_FLAGS.get(word, 0)
    return wanted


def _bind(source: bytes, target: bytes, flags: int) -> None:
    mount(source, target, None, MS_BIND)
    mount(None, target, None, MS_PRIVATE)
    mount(None, target, None, MS_REMOUNT | MS_BIND | flags)


def binds_below(mountpoint: bytes) -> list[bytes]:
    """Mounts under *mountpoint*, what lies deeper first (the kernel's list is in no useful order)."""
    return sorted((line.mountpoint for line in mounts() if line.mountpoint.startswith(mountpoint + b"/")), reverse=True)


def undo(mountpoint: bytes) -> None:
    """Take off everything mounted under *mountpoint*, also what is in use (its users keep it until they let go)."""
    for path in binds_below(mountpoint):
        try:
            unmount(path, MNT_DETACH)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # gone already
                raise


def unmount_with_binds(mountpoint: bytes, flags: int = 0) -> None:
    """umount2(2) of a mount and the binds under it; if anything is in use, OSError (EBUSY) and all is as it was."""
    removed: list[SavedMount] = []
    try:
        for path in binds_below(mountpoint):
            saved = SavedMount(path)
            try:
                unmount(path, flags)
            except BaseException:
                saved.close()
                raise
            removed.append(saved)
        unmount(mountpoint, flags)
    except OSError:
        for saved in reversed(removed):
            saved.put_back()
        raise
    finally:
        for saved in removed:
            saved.close()
