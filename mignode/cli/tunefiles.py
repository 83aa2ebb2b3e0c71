"""The calls into another node's files that `tune` times, in a directory of its own there.

Files that are to be new to this node's mount are made by somebody who runs on that node (tuneguest.py).
Called by tune.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from mignode.cli.answers import Refused
from mignode.tuning import MIB

FILES: Final = 100  # of each kind
SMALL_BYTES: Final = 4096
LARGE_BYTES: Final = 64 * MIB
_ROUNDS: Final = 300


@contextlib.contextmanager
def scratch(tree: Path) -> Iterator[Path]:
    """A directory in *tree*, another node's, which is removed at the end.  Raises Refused."""
    place = tree / "var" / "tmp"  # /tmp may be in its memory, which is not shown
    try:
        folder = Path(tempfile.mkdtemp(prefix="omfs-tune.", dir=place))
    except OSError as error:
        raise Refused(f"{place}: {error.strerror}; it takes a directory there to measure files") from None
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise Refused(f"{folder} is left behind: {error.strerror}") from None


def measured(folder: Path, small: Path, other: Path, large: Path) -> dict[str, float]:
    """Seconds of each call, by tuning's names.

    *small* and *other* have FILES files each, *large* is one; this node has not looked at any of them.
    """
    found = {
        "look_up": _median(os.stat, _shuffled(small)),
        "read_file": _median(_read, _shuffled(other)),
        "round_trip": _round_trip_s(folder / "locked"),
    }
    made = [folder / f"made{number}" for number in range(FILES)]
    found["create_file"] = _median(_create, made)
    found["remove_file"] = _median(os.unlink, made)
    found["read_mib"] = _read_whole_s(large) * MIB / LARGE_BYTES
    found["write_mib"] = _write_whole_s(folder / "written") * MIB / LARGE_BYTES
    return found


def _shuffled(folder: Path) -> list[Path]:
    """Names that nobody foretells: the mount would look ahead."""
    names = [folder / str(number) for number in range(FILES)]
    random.shuffle(names)
    return names


def _median(do: Callable[[Path], object], paths: Iterable[Path]) -> float:
    found = []
    for path in paths:
        began = time.perf_counter()
        do(path)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def _read(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.read(file, SMALL_BYTES)
    finally:
        os.close(file)


def _create(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, bytes(SMALL_BYTES))
    finally:
        os.close(file)


def _round_trip_s(path: Path) -> float:
    """A lock is its owner's to give, always: the mount can answer nothing of it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        found = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            fcntl.flock(file, fcntl.LOCK_EX)
            found.append(time.perf_counter() - began)
            fcntl.flock(file, fcntl.LOCK_UN)
        return statistics.median(found)
    finally:
        os.close(file)


def _read_whole_s(path: Path) -> float:
    began = time.perf_counter()
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.read(file, MIB):
            pass
    finally:
        os.close(file)
    return time.perf_counter() - began


def _write_whole_s(path: Path) -> float:
    """Until close has returned: then its owner has it."""
    piece = os.urandom(MIB)
    began = time.perf_counter()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(LARGE_BYTES // MIB):
            left = memoryview(piece)
            while left:
                left = left[os.write(file, left) :]
    finally:
        os.close(file)
    return time.perf_counter() - began
