"""Locks that programs have through this node's mount: flock(2) and fcntl(2) on files of other nodes.

The kernel does not know of them, the mount does.  It tells whose each POSIX lock is; which of its opens a descriptor
is, and so what the open file has locked, it learns by marks (omfs/mount/movinglocks.py).  Called by guestlocks.py.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import trio

from omfs.errors import ControlError, NotRunning
from omfs.kernel.descriptors import copied_from
from omfs.kernel.filelocks import probe_range
from omfs.kernel.mounttable import OMFS_TYPE, MountLine
from omfs.kernel.processes import mounts_of, read_file
from omfs.kernel.procobjects import DescriptorInfo, parse_fdinfo
from omfs.net import control
from omfs.net.control import LockedReply, MarkedOpen, MarkedReply

ASK_WITHIN_S: Final = 5.0
_MARKS_FROM: Final = 1 << 61  # bytes that no file has, and nobody probes
_MARK_BITS: Final = 60
_GONE: Final = (FileNotFoundError, ProcessLookupError)


class MountFile(NamedTuple):
    """A descriptor of a file below /mfs."""

    pid: int
    number: int
    info: DescriptorInfo


async def ask_locked(mount: Path) -> LockedReply:
    """*mount*: its control socket.  Nothing is locked where there is no mount.  Raises ControlError."""
    try:
        return msgspec.convert(await control.ask(mount, "locked", deadline_s=ASK_WITHIN_S), LockedReply)
    except NotRunning:
        return LockedReply(())
    except msgspec.ValidationError as error:
        raise ControlError(f"{mount}: bad answer: {error}") from None


def open_ones(pids: Iterable[int], inodes: Collection[int]) -> list[MountFile]:
    """Which of these processes have one of the mount's files *inodes* open.  For worker threads."""
    return [one for pid in pids for one in _files(pid) if one.info.inode in inodes] if inodes else []


@asynccontextmanager
async def marked(mount: Path, files: Sequence[MountFile]) -> AsyncIterator[list[tuple[MountFile, MarkedOpen]]]:
    """Each open file that is behind *files*, with the first of them; its first mark names it to the mount, inside.

    Raises ControlError.
    """
    if not files:
        yield []
        return
    marks = {_MARKS_FROM + secrets.randbits(_MARK_BITS): file for file in files}
    named = list(marks)
    try:
        await control.ask(mount, "expect_marks", deadline_s=ASK_WITHIN_S, marks=named)
        await trio.to_thread.run_sync(_show, marks, abandon_on_cancel=True)
        told = _marked_reply(await control.ask(mount, "marked", deadline_s=ASK_WITHIN_S, marks=named))
        yield [(marks[one.marks[0]], one) for one in told.opens]
    finally:
        with trio.CancelScope(shield=True), contextlib.suppress(ControlError):
            await control.ask(mount, "forget_marks", deadline_s=ASK_WITHIN_S, marks=named)


def _marked_reply(told: object) -> MarkedReply:
    try:
        return msgspec.convert(told, MarkedReply)
    except msgspec.ValidationError as error:
        raise ControlError(f"the mount: bad answer: {error}") from None


def _show(marks: Mapping[int, MountFile]) -> None:
    """In a thread: the mount answers."""
    for mark, (pid, number, _) in marks.items():
        with contextlib.suppress(OSError):  # one that is only a place (O_PATH) has no locks
            copy = copied_from(pid, number)
            try:
                probe_range(copy, 0, mark, mark)
            finally:
                os.close(copy)


def file_at(pid: int, number: int) -> MountFile | None:
    """None: this descriptor is of no file of the mount.  Raises OSError."""
    return _file(pid, number, mounts_of(pid))


def _files(pid: int) -> Iterator[MountFile]:
    with contextlib.suppress(*_GONE):
        mounts = mounts_of(pid)
        for name in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(*_GONE):
                if (found := _file(pid, int(name), mounts)) is not None:
                    yield found


def _file(pid: int, number: int, mounts: Mapping[int, MountLine]) -> MountFile | None:
    info = parse_fdinfo(read_file(f"/proc/{pid}/fdinfo/{number}"))
    line = mounts.get(info.mount_id)
    return MountFile(pid, number, info) if line is not None and line.fstype == OMFS_TYPE else None
