"""What this node has written down of one guest, in a folder of its own below <run>/guests; it outlives mignode.

    traits     who the guest is (traits.py)
    stay       that there is a copy here, and whether it may run (handover.Stay)
    record     at home: where the guest is (handover.Record)
    past       where there is a copy: what was known of it some seconds ago (past.py)
    rooted     at home: what it did there that never moves (lasting.py)
    body.sock  of the guest's init, where there is a copy (guestinit.py)

All but the last are record.py's.  Called by the rooms for guests.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mignode.handover import Record, Stay
from mignode.lasting import Rooted
from mignode.past import Past
from mignode.record import Files, is_guest_name, records, stays
from mignode.traits import FOLDERS, Traits

_OF_HOME: Final = frozenset({"traits", "record"})


class GuestFolder:
    """It need not be there yet.  Reading and writing raise OSError, ValueError for what is no guest's name."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.name = name
        self._traits = Files(run_dir / FOLDERS, "traits", Traits)
        self._stays = stays(run_dir)
        self._records = records(run_dir)
        self._pasts = Files(run_dir / FOLDERS, "past", Past)
        self._rooted = Files(run_dir / FOLDERS, "rooted", Rooted)
        self.path = self._records.folder(name)

    def make(self) -> None:
        """Raises OSError; FileExistsError where the guest is here already."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        """With all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def leave(self) -> None:
        """There is no copy here any more: at home what home knows stays, elsewhere nothing."""
        if self.record is None:
            self.remove()
            return
        for path in self.path.iterdir():
            if path.is_dir():
                path.rmdir()
            elif path.name not in _OF_HOME:
                path.unlink()

    def leave_home(self) -> None:
        """Home knows nothing of it any more; a copy here may still be at its end."""
        self._records.forget(self.name)
        if self.stay is None:
            self.remove()

    @property
    def traits(self) -> Traits | None:
        """None: it was not written yet; so for the others."""
        return self._traits.read(self.name)

    @traits.setter
    def traits(self, value: Traits) -> None:
        self._traits.write(self.name, value)

    @property
    def stay(self) -> Stay | None:
        return self._stays.read(self.name)

    @stay.setter
    def stay(self, value: Stay) -> None:
        self._stays.write(self.name, value)

    @property
    def past(self) -> Past | None:
        return self._pasts.read(self.name)

    @past.setter
    def past(self, value: Past) -> None:
        self._pasts.write(self.name, value)

    @property
    def rooted(self) -> Rooted | None:
        return self._rooted.read(self.name)

    @rooted.setter
    def rooted(self, value: Rooted) -> None:
        self._rooted.write(self.name, value)

    @property
    def record(self) -> Record | None:
        return self._records.read(self.name)

    @record.setter
    def record(self, value: Record) -> None:
        self._records.write(self.name, value)


def folders(run_dir: Path) -> Iterator[GuestFolder]:
    """Of all guests that something is known of."""
    folder = run_dir / FOLDERS
    if folder.is_dir():
        yield from (GuestFolder(run_dir, path.name) for path in sorted(folder.iterdir()) if is_guest_name(path.name))
