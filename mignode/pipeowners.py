"""Whose the pipes of a moved program are: CRIU (4.2) makes them anew as root's, and their user could not open them.

Who opens /dev/stdout, /dev/stderr or /proc/self/fd/N needs the right to, and of a pipe that is its owner's alone.
`note` reads the owners while a dump holds the tree, into a file among the images; `give_back` sets them while a restore
does.
The images may be anybody's: a user's program gets no pipes of others, and only pipes of the restored tree are touched.

Called by unkept.py, in worker threads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from omfs.errors import WireError

FILE: Final = "pipeowners.img"
_GONE: Final = (FileNotFoundError, ProcessLookupError)
_PIPE: Final = "pipe:["  # a FIFO with a name has its owner in its file system
_Id = Annotated[int, msgspec.Meta(ge=0, lt=(1 << 32) - 1)]  # all ones would mean: leave it


class _Pipe(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """By one of the descriptors that lead to it; *process*: its number inside."""

    process: Annotated[int, msgspec.Meta(ge=1, lt=1 << 22)]
    descriptor: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    uid: _Id
    gid: _Id


_decode: Final = msgspec.msgpack.Decoder(tuple[_Pipe, ...]).decode


def note(images: Path, pids: Iterable[tuple[int, int]]) -> None:
    """*pids*: inside and as mignode has them, of a dumped tree that is held.  Raises OSError."""
    pipes: dict[int, _Pipe] = {}
    for inner, outer in pids:
        for descriptor, status in _pipes(outer):
            if (status.st_uid, status.st_gid) != (0, 0):
                pipes.setdefault(status.st_ino, _Pipe(inner, descriptor, status.st_uid, status.st_gid))
    (images / FILE).write_bytes(msgspec.msgpack.encode(list(pipes.values())))


def give_back(images: Path, pids: Iterable[tuple[int, int]], uid: int) -> None:
    """Of a restored tree that is held.  *uid*: whose it is.  Raises OSError, WireError."""
    try:
        noted = _decode((images / FILE).read_bytes())
    except FileNotFoundError:  # an image of an earlier version
        return
    except msgspec.MsgspecError as error:
        raise WireError(f"{FILE}: {error}") from None
    wanted = {(one.process, one.descriptor): one for one in noted if uid in (0, one.uid)}
    for inner, outer in pids:
        for descriptor, _ in _pipes(outer):
            if (one := wanted.get((inner, descriptor))) is not None:
                os.chown(f"/proc/{outer}/fd/{descriptor}", one.uid, one.gid)


def _pipes(pid: int) -> Iterator[tuple[int, os.stat_result]]:
    """Descriptors of a process that are ends of pipes; none of one that has ended."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except _GONE:
        return
    for descriptor in descriptors:
        path = f"/proc/{pid}/fd/{descriptor}"
        if os.readlink(path).startswith(_PIPE):
            status = os.stat(path)
            assert stat.S_ISFIFO(status.st_mode)
            yield int(descriptor), status
