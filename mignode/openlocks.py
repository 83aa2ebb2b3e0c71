"""Locks of open files (flock, OFD) of a guest: which there are, and how its copy gets them.

They belong to the open file, which processes may share, so it is named by one of its descriptors: the first process and
number that have it, which are the same at both nodes.  CRIU is not told of them; when it has restored the guest they
are taken for its open files, which others can do with a copy of the descriptor: omfs-export where the file is of this
node, the mount where it is of another.  Called by guestlocks.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from mignode.body import Body
from mignode.lockimages import FLOCK, OFD, Held
from mignode.mountlocks import MountFile, file_at, marked
from mignode.reasons import Kind
from omfs.errors import CheckpointError, NotRunning, RemoteFailure
from omfs.kernel.filelocks import RANGE_END
from omfs.kernel.kcmp import are_one_open_file
from omfs.net import control
from omfs.net.control import MarkedOpen

_TAKE_WITHIN_S: Final = 20.0
IN_DOUBT: Final = "may hold a file lock: the node of the file has not answered yet"

Numbers = tuple[int, int]
"""A process by its number in the guest, and a descriptor."""


def natives_once(held: Iterable[Held], pids: Mapping[int, int]) -> list[Held]:
    """Those that CRIU has seen, each for the first descriptor of its open file.  In a thread; raises OSError."""
    found: dict[tuple[object, ...], list[Held]] = {}
    for one in held:
        status = os.stat(f"/proc/{pids[one.process]}/fd/{one.descriptor}")
        same = found.setdefault((one.flag, status.st_dev, status.st_ino, one.kind, one.start, one.end), [])
        if not any(_are_one(first, one, pids) for first in same):
            same.append(one)
    return [one for same in found.values() for one in same]


def _are_one(first: Held, other: Held, pids: Mapping[int, int]) -> bool:
    return are_one_open_file(pids[first.process], first.descriptor, pids[other.process], other.descriptor)


def held_through(shown: Iterable[tuple[MountFile, MarkedOpen]], numbers: Mapping[int, int]) -> dict[int, list[Held]]:
    """What open files have locked through the mount, by mark.  In a thread.

    Raises RemoteFailure(EROFS: it could not be taken again), OSError.
    """
    found: dict[int, list[Held]] = {}
    for (pid, descriptor, _), one in shown:
        if one.flock == 0 and not one.ranges:
            continue
        if one.flock is None:
            raise RemoteFailure(errno.EROFS, IN_DOUBT)
        if not os.stat(f"/proc/{pid}/fd/{descriptor}").st_nlink:
            raise RemoteFailure(errno.EROFS, Kind.LOCK.value)
        process = numbers[pid]
        locks = [Held(process, descriptor, kind, start, end, OFD) for kind, start, end in one.ranges]
        if one.flock:
            locks.append(Held(process, descriptor, one.flock - 1, 0, RANGE_END, FLOCK))  # LOCK_SH 1, LOCK_EX 2
        found[one.marks[0]] = locks
    return found


def by_open(held: Iterable[Held]) -> dict[Numbers, list[Held]]:
    found: dict[Numbers, list[Held]] = {}
    for one in held:
        found.setdefault((one.process, one.descriptor), []).append(one)
    return found


# ---------------------------------------------------------------- the destination


async def take(held: Sequence[Held], attempt: str, body: Body, namespace: int, run_dir: Path) -> None:
    """The open files of a restored guest have their locks when this returns.  *namespace*: of its processes.

    Raises OmfsError, OSError: they have not.
    """
    opens, pids = by_open(held), await body.all_pids()
    try:
        places = {number: (pids[number[0]], number[1]) for number in opens}
    except KeyError as error:
        raise CheckpointError(f"its process {error}, which has a file locked, was not restored") from None
    there = await trio.to_thread.run_sync(_on_mount, places)
    natives = [one for number, locks in opens.items() if number not in there for one in locks]
    if natives:
        locks = described(natives, pids)
        await _ask(run_dir / "export.sock", "lend_opens", attempt=attempt, namespace=namespace, locks=locks)
    async with marked(run_dir / "mount.sock", list(there.values())) as shown:
        marks = {(file.pid, file.number): one.marks[0] for file, one in shown}
        if len(marks) != len(there):
            raise CheckpointError("a file that it has locked can't be asked for")
        if there:
            wanted = [_wanted(number, file, marks, opens[number]) for number, file in there.items()]
            await _ask(run_dir / "mount.sock", "take_locks", attempt=attempt, opens=wanted)


def described(held: Iterable[Held], pids: Mapping[int, int]) -> list[dict[str, int]]:
    """For omfs-export: openloans.Offered."""
    return [
        {"pid": pids[one.process], "descriptor": one.descriptor, "process": one.process, "kind": one.kind,
         "start": one.start, "end": one.end, "flag": one.flag}
        for one in held
    ]  # fmt: skip


def _on_mount(places: Mapping[Numbers, tuple[int, int]]) -> dict[Numbers, MountFile]:
    """In a thread."""
    found = {number: file_at(*place) for number, place in places.items()}
    return {number: file for number, file in found.items() if file is not None}


def _wanted(number: Numbers, file: MountFile, marks: Mapping[tuple[int, int], int], locks: list[Held]) -> object:
    flock = next((one.kind + 1 for one in locks if one.flag == FLOCK), 0)
    return {
        "mark": marks[file.pid, file.number], "process": number[0], "descriptor": number[1], "pid": file.pid,
        "flock": flock, "ranges": [(one.kind, one.start, one.end) for one in locks if one.flag == OFD],
    }  # fmt: skip


async def _ask(daemon: Path, command: str, **arguments: object) -> None:
    try:
        await control.ask(daemon, command, deadline_s=_TAKE_WITHIN_S, **arguments)
    except NotRunning as error:
        raise CheckpointError(f"it has files locked, and {error}") from None
