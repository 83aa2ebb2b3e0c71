"""What the processes of a node may use together of the machine's memory and processors: a control group for each node.

Only where `up` was asked for it.  With processors of its own a node is as fast as it is, whatever the others do: three
nodes with 0.4 each on a machine with two can be compared with three machines.  What else runs there can take little of
that: all labs together weigh as much as sixteen processes of it, not as one, which is what a group weighs by itself.
Daemons, guests and what `exec` starts count alike.  The groups are <hierarchy>/omfs-lab/<lab>/node<N>; `down` removes
them, or else tells which are left, and removes them when it is called again.
Called by init.py, rootfs.py, enter.py and cluster.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from omfs.kernel import controlgroups
from omfs.kernel.controlgroups import CPU, MEMORY
from omfs.lab import state
from omfs.lab.state import LabError
from omfs.lab.topology import LabPaths, LabPlan

PERIOD_US: Final = 10_000  # shorter than the usual 100 ms: a node that has used its share must not stall for so long
REMOVED_WITHIN_S: Final = 10.0
WEIGHT: Final = 16  # of a process that nobody has made more or less important
_ALL: Final = "omfs-lab"


def directories(paths: LabPaths, node: int) -> dict[str, Path]:
    """The node's groups, by controller; only those that are there."""
    return {controller: group for controller, group in _places(paths, node).items() if group.is_dir()}


def make(paths: LabPaths, plan: LabPlan, node: int) -> list[Path]:
    """The groups of a node, with its limits; those that an earlier boot has made will do.  Raises LabError."""
    wanted = [(MEMORY, plan.memory_bytes), (CPU, plan.processors)]
    groups = []
    for controller, limit in wanted:
        if limit:
            groups.append(_make(controller, paths, node, limit))
    return groups


def enter(groups: Sequence[Path]) -> None:
    """This process, and all that it starts from now on.  Raises OSError."""
    for group in groups:
        (group / "cgroup.procs").write_text("0")


def doors(paths: LabPaths, node: int) -> list[int]:
    """Descriptors by which a process enters: it writes "0".  For who is about to leave the machine's root."""
    groups = set(directories(paths, node).values())
    return [os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for group in groups]


def remove(paths: LabPaths) -> list[Path]:
    """All groups of the lab, when its processes have ended; the common one too, where no other lab is in it.

    Which are left: somebody else is in them.
    """
    left = []
    for controller in (CPU, MEMORY):
        top = _top(controller)
        if top is not None and (top / paths.name).is_dir():
            if not state.wait_until(partial(_is_removed, top / paths.name), REMOVED_WITHIN_S):
                left.append(top / paths.name)
            with contextlib.suppress(OSError):  # another lab's
                top.rmdir()
    return left


def _is_removed(lab: Path) -> bool:
    """A group is busy for a moment after its last process has ended."""
    for group in (*lab.glob("node*"), lab):
        try:
            group.rmdir()
        except FileNotFoundError:
            continue  # by another `down`
        except OSError:
            return False
    return True


def _top(controller: str) -> Path | None:
    where = controlgroups.hierarchy(controller)
    return where.mount / _ALL if where is not None else None


def _places(paths: LabPaths, node: int) -> dict[str, Path]:
    tops = {controller: _top(controller) for controller in (CPU, MEMORY)}
    return {controller: top / paths.name / f"node{node}" for controller, top in tops.items() if top is not None}


def _make(controller: str, paths: LabPaths, node: int, limit: float) -> Path:
    where = controlgroups.hierarchy(controller)
    if where is None:
        raise LabError(f"a node can't be limited here: no control groups for {controller} under /sys/fs/cgroup")
    group = where.mount / _ALL / paths.name / f"node{node}"
    try:
        group.mkdir(parents=True, exist_ok=True)
        if where.is_unified:
            for above in (group.parents[2], group.parents[1], group.parents[0]):
                (above / "cgroup.subtree_control").write_text(f"+{controller}")
        for name, value in _settings(controller, limit, is_unified=where.is_unified):
            (group / name).write_text(value)
        if controller == CPU:
            file, of_one = ("cpu.weight", 100) if where.is_unified else ("cpu.shares", 1024)
            for above in (group.parents[1], group.parents[0]):
                (above / file).write_text(str(of_one * WEIGHT))
    except OSError as error:
        raise LabError(f"a node can't be limited here: {error.filename}: {error.strerror}") from None
    return group


def _settings(controller: str, limit: float, *, is_unified: bool) -> list[tuple[str, str]]:
    if controller == MEMORY:
        return [("memory.max" if is_unified else "memory.limit_in_bytes", str(int(limit)))]
    quota = str(round(limit * PERIOD_US))
    if is_unified:
        return [("cpu.max", f"{quota} {PERIOD_US}")]
    return [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", quota)]
