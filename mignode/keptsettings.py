"""What processes have set (lock, the cluster mask, decay), kept so that a mignode that was killed finds it again.

The places come back from the mount, which needs them; the settings nobody else has.  One small file in run_dir, written
whole whenever a process sets something, with the settings of all processes that have an entry then.  Whoever got one
later has it by inheritance, and so do his settings here.  The file is of one boot: pids and start times
mean nothing in the next.  What it does not do: decide (book.py).  Called by registry.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from mignode.adminvalues import replace_file
from mignode.book import Entry, Settings
from mignode.decay import DecayClass
from omfs.magic.places import Key, ParentOf

FILE: Final = "mignode.settings"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


class _Line(msgspec.Struct, frozen=True, array_like=True):
    """One process; the mask in hexadecimal, as it may be wider than a JSON number."""

    pid: int
    start_ticks: int
    lock: bool
    migfilter: bool
    migpolicy: bool
    mignodes: str
    nmigs: int
    decay: DecayClass = DecayClass()


class _File(msgspec.Struct, frozen=True):
    boot_id: str
    processes: list[_Line]


class KeptSettings:
    """The file, and what stood in it when we began."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE
        self._boot_id = _BOOT_ID.read_text().strip()
        self._found: dict[Key, Settings] = {}
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.error("%s: %s; no process has a lock or a mask any more", self._path, error)
            return
        if kept.boot_id == self._boot_id:
            for one in kept.processes:
                settings = Settings(one.lock, one.migfilter, one.migpolicy, int(one.mignodes, 16), one.nmigs, one.decay)
                self._found[one.pid, one.start_ticks] = settings

    def of(self, key: Key, parent_of: ParentOf) -> Settings:
        """The process's own, or else its nearest ancestor's."""
        if not self._found:
            return Settings()
        one: Key | None = key
        while one is not None:
            if (settings := self._found.get(one)) is not None:
                return settings if one == key else settings.passed_on()
            one = parent_of(one)
        return Settings()

    def keep(self, entries: Iterable[Entry]) -> None:
        """These are all there are now.  Raises OSError."""
        lines = [
            _Line(*place.key, own.lock, own.migfilter, own.migpolicy, f"{own.mignodes:x}", own.nmigs, own.decay)
            for place, own in entries
        ]
        replace_file(self._path, msgspec.json.encode(_File(self._boot_id, lines)))
