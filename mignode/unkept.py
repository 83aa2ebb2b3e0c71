"""What a process and its threads have that CRIU (4.2) loses without a word: it goes along in a file among the images.

Per thread: the processors it may run on, its I/O priority and the slack of its timers; per process: what of its memory
a core dump has; and whose its pipes are (pipeowners.py).  `note` reads them while a dump holds the tree, `give_back`
sets them while a restore does, so they are those of the moment of the dump, in a checkpoint as well.

Processors are noted only of who may not use all that mignode may, and given only as far as there are such here: with
none left the thread may use all, and the next node does not know any better.  The images may be anybody's: nobody but
root gets real-time I/O, and only processes of the restored tree are touched.

Called by migrate.py, saving.py and receive.py, in worker threads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from mignode import pipeowners
from omfs.errors import WireError
from omfs.kernel.carried import io_priority, set_io_priority
from omfs.kernel.processes import read_file
from omfs.kernel.procfs import parse_status

FILE: Final = "unkept.img"
_GONE: Final = (FileNotFoundError, ProcessLookupError)
_CLASS_SHIFT: Final = 13  # ioprio_set(2)
_REAL_TIME: Final = 1
_SLACK_MAX_NS: Final = (1 << 63) - 1
_PROCESSORS_MAX: Final = 8192  # the kernel's own, NR_CPUS
_Processor = Annotated[int, msgspec.Meta(ge=0, lt=_PROCESSORS_MAX)]


class _Thread(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """*number*: inside.  *processors*: empty: all.  *dumps*: None of a thread that is not its process's first."""

    number: Annotated[int, msgspec.Meta(ge=1, lt=1 << 22)]
    processors: Annotated[tuple[_Processor, ...], msgspec.Meta(max_length=_PROCESSORS_MAX)]
    io_priority: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    slack_ns: Annotated[int, msgspec.Meta(ge=0, le=_SLACK_MAX_NS)]
    dumps: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None


_decode: Final = msgspec.msgpack.Decoder(tuple[_Thread, ...]).decode


def note(images: Path, pids: Collection[int]) -> None:
    """*pids*: as mignode has them, of a dumped tree that is held.  Raises OSError."""
    usual = os.sched_getaffinity(0)
    threads = [_read(inner, outer, usual, is_first=outer == pid) for pid in pids for inner, outer in _threads(pid)]
    (images / FILE).write_bytes(msgspec.msgpack.encode([one for one in threads if one is not None]))
    pipeowners.note(images, _inside(pids))


def give_back(images: Path, pids: Collection[int], uid: int) -> None:
    """Of a restored tree that is held.  *uid*: whose it is.  Raises OSError, WireError."""
    pipeowners.give_back(images, _inside(pids), uid)
    try:
        noted = {one.number: one for one in _decode((images / FILE).read_bytes())}
    except FileNotFoundError:  # an image of an earlier version
        return
    except msgspec.MsgspecError as error:
        raise WireError(f"{FILE}: {error}") from None
    usual = os.sched_getaffinity(0)
    for pid in pids:
        for inner, outer in _threads(pid):
            if (wanted := noted.get(inner)) is not None:
                with contextlib.suppress(*_GONE):
                    _write(wanted, outer, usual, uid)


def _inside(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """With their numbers inside; without those that have ended."""
    return ((inner, outer) for pid in pids for inner, outer in _threads(pid) if outer == pid)


def _threads(pid: int) -> Iterator[tuple[int, int]]:
    """By their numbers inside and outside; those of who has ended have nothing to keep."""
    with contextlib.suppress(*_GONE):
        for name in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
            with contextlib.suppress(*_GONE):
                yield parse_status(read_file(f"/proc/{pid}/task/{name}/status")).namespace_pids[-1], int(name)


def _read(inner: int, outer: int, usual: set[int], *, is_first: bool) -> _Thread | None:
    try:
        processors = os.sched_getaffinity(outer)
        slack_ns = min(int(read_file(f"/proc/{outer}/timerslack_ns")), _SLACK_MAX_NS)
        dumps = read_file(f"/proc/{outer}/coredump_filter") if is_first else b""  # of a zombie there is none
        limited = () if processors >= usual else tuple(sorted(processors))
        return _Thread(inner, limited, io_priority(outer), slack_ns, int(dumps, 16) if dumps else None)
    except _GONE:
        return None


def _write(wanted: _Thread, thread: int, usual: set[int], uid: int) -> None:
    """Only what differs: an I/O priority that follows from the nice value goes on following it."""
    processors = usual & set(wanted.processors)
    if processors:
        os.sched_setaffinity(thread, processors)
    real_time = wanted.io_priority >> _CLASS_SHIFT == _REAL_TIME
    if wanted.io_priority != io_priority(thread) and (uid == 0 or not real_time):
        set_io_priority(wanted.io_priority, thread)
    if wanted.slack_ns != int(read_file(f"/proc/{thread}/timerslack_ns")):
        Path(f"/proc/{thread}/timerslack_ns").write_text(f"{wanted.slack_ns}")
    if wanted.dumps is not None:
        Path(f"/proc/{thread}/coredump_filter").write_text(f"{wanted.dumps:#x}")
