"""Control groups: where this process is in them, and what it may use there of memory and processors.

Somebody has limited mignode and so its guests, or a whole node: `systemctl edit mignode` (MemoryMax=, CPUQuota=), a
container, `omfs-lab up --memory`.  Both hierarchies are read, the old one with a tree for each controller and the new
one; limits of the groups above hold too, as far as they can be seen.  What can't be read limits nothing.

Sources: cgroups(7); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; scheduler/sched-bwc.rst.
Called by mignode/nodefacts.py and omfs/lab/limits.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from omfs.kernel.mounttable import MountLine, parse_mountinfo
from omfs.kernel.processes import read_all

CPU: Final = "cpu"
MEMORY: Final = "memory"
_UNIFIED: Final = ""
_CACHES: Final = ("inactive_file", "active_file")  # of memory.stat: what goes when memory is needed


class Hierarchy(NamedTuple):
    """*mount*: its topmost group that is seen here; *own*: the one we are in; *is_unified*: it is the new one."""

    mount: Path
    own: Path
    is_unified: bool


class Room(NamedTuple):
    """Bytes: the limit, and how much of it programs could still get."""

    limit: int
    available: int


def hierarchy_of(controller: str, memberships: str, mounts: Sequence[MountLine]) -> Hierarchy | None:
    """From /proc/self/cgroup and /proc/self/mountinfo; None where it is not mounted.

    Where the same is mounted twice the later one counts: it may cover the other.
    """
    ways: dict[str, str] = {}
    for line in memberships.splitlines():
        _, names, way = line.split(":", 2)
        ways.update(dict.fromkeys(names.split(","), way))
    is_unified = controller not in ways
    found = None
    for mount in mounts:
        options = mount.super_options.decode(errors="replace").split(",")
        if mount.fstype == (b"cgroup2" if is_unified else b"cgroup") and (is_unified or controller in options):
            root = PurePosixPath(mount.root.decode(errors="surrogateescape"))
            at = PurePosixPath(ways.get(_UNIFIED if is_unified else controller, "/"))
            inside = at.relative_to(root) if at.is_relative_to(root) else PurePosixPath()
            place = Path(mount.mountpoint.decode(errors="surrogateescape"))
            found = Hierarchy(place, place / inside, is_unified)
    return found


def hierarchy(controller: str) -> Hierarchy | None:
    """Of this process.  Raises OSError."""
    memberships = read_all("/proc/self/cgroup").decode(errors="surrogateescape")
    return hierarchy_of(controller, memberships, parse_mountinfo(read_all("/proc/self/mountinfo")))


def memory_room(where: Hierarchy) -> Room | None:
    """The least of ours and the groups above; None: no limit."""
    return min((room for group in _upwards(where) if (room := _room(group, where)) is not None), default=None)


def processor_share(where: Hierarchy) -> float | None:
    """Processors' worth of time that we may use; None: no limit."""
    return min((share for group in _upwards(where) if (share := _share(group, where)) is not None), default=None)


def _upwards(where: Hierarchy) -> Iterator[Path]:
    group = where.own
    while group != where.mount:
        yield group
        group = group.parent
    yield group


def _room(group: Path, where: Hierarchy) -> Room | None:
    """None also where it is more than any machine has: so the old hierarchy says that there is none."""
    names = ("memory.max", "memory.current") if where.is_unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / name).read_text()) for name in names)
        if limit >> 60 == 0:
            caches = _caches((group / "memory.stat").read_text(), "" if where.is_unified else "total_")
            return Room(limit, max(0, min(limit, limit - used + caches)))
    return None


def _caches(text: str, prefix: str) -> int:
    """*prefix*: the old one has lines without what is in the groups below."""
    wanted = {prefix + name for name in _CACHES}
    return sum(int(number) for name, _, number in (line.partition(" ") for line in text.splitlines()) if name in wanted)


def _share(group: Path, where: Hierarchy) -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError, ZeroDivisionError):
        if where.is_unified:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            return int(quota) / int(period)
    return None
