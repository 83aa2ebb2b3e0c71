"""What is written down of guests on this node: home's record, and the stay of a copy.

One folder per guest, <run>/guests/<guest>, with a file for each: `record` at home, `stay` wherever there is a copy.
They lie in /run, so they survive mignode and end with the boot, as the guests do.  Each is replaced by a rename:
whoever reads finds the old or the new one, whenever mignode was killed.  No fsync: a file that a power cut could lose
is lost with all it tells of.  The rules are in handover.py.  What it does not do: know what else is in the folder (the
init's socket).  Called by deputies, migrate and receive, always before they answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from mignode.handover import Record, Stay
from mignode.words import GUEST_PATTERN

RECORD: Final = "record"
STAY: Final = "stay"
_FRESH: Final = ".new"
_GUEST: Final = re.compile(GUEST_PATTERN)

_Kept = TypeVar("_Kept", bound=msgspec.Struct)

log = logging.getLogger(__name__)


def guest_name(home: int, pid: int, start_ticks: int) -> str:
    """How a guest is called, everywhere, from its deputy's."""
    return f"{home}.{pid}.{start_ticks}"


def is_guest_name(text: str) -> bool:
    return _GUEST.search(text) is not None


def home_of(guest: str) -> int:
    """Its home node."""
    return int(guest.partition(".")[0])


class Files(Generic[_Kept]):
    """All records of this node, or all of another kind."""

    def __init__(self, guests_dir: Path, file: str, kind: type[_Kept]) -> None:
        self._dir = guests_dir
        self._file = file
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(kind).decode

    def folder(self, guest: str) -> Path:
        """Raises ValueError for what is no guest's name: it would be another path."""
        if not is_guest_name(guest):
            raise ValueError(f"{guest!r} is no guest's name")
        return self._dir / guest

    def read(self, guest: str) -> _Kept | None:
        """None: nothing is written down.  Raises OSError."""
        path = self.folder(guest) / self._file
        try:
            found: _Kept = self._decode(path.read_bytes())
            return found
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:  # not ours: a rename never leaves half a file
            log.error("%s: %s; taken as not there", path, error)
            return None

    def write(self, guest: str, what: _Kept) -> None:
        """When it returns this is what a later mignode finds.  Raises OSError, and then the old one holds."""
        folder = self.folder(guest)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = folder / (self._file + _FRESH)
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(what))
            fresh.rename(folder / self._file)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise

    def forget(self, guest: str) -> None:
        """Safe to repeat; the folder goes with its last file.  Raises OSError."""
        folder = self.folder(guest)
        for name in (self._file, self._file + _FRESH):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            folder.rmdir()

    def all(self) -> Iterator[tuple[str, _Kept]]:
        """By guest: what an earlier mignode has left.  Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            for guest in sorted(os.listdir(self._dir)):
                if is_guest_name(guest) and (found := self.read(guest)) is not None:
                    yield guest, found


def records(run_dir: Path) -> Files[Record]:
    """Of the guests whose home this is."""
    return Files(run_dir / "guests", RECORD, Record)


def stays(run_dir: Path) -> Files[Stay]:
    """Of the copies on this node."""
    return Files(run_dir / "guests", STAY, Stay)
