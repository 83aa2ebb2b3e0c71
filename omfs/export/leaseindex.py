"""Which leased handles an event of the kernel is about: native changes come with a kernel handle (localchanges.py).

A grant does not wait for it: what was granted and given back is looked at when somebody asks, or the table is written.
Called by leasing.py, guards.py and dropping.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from omfs.cache.owner import Change
from omfs.export.handles import mount_of, prepared_of


class LeaseIndex:
    """*watched*: mounts whose native changes are told, and what the keys of their objects begin with."""

    def __init__(self, is_held: Callable[[bytes], bool]) -> None:
        self.watched: dict[bytes, bytes] = {}
        self._is_held = is_held
        self._keys: dict[bytes, set[bytes]] = {}  # leased handles by the keys of localchanges.py ...
        self._changes: list[Change] = []  # ... but for these

    def note(self, changes: Iterable[Change]) -> None:
        """These leases have begun, changed or ended."""
        self._changes += changes

    def note_held(self, handles: Iterable[bytes]) -> None:
        """After a restart, when the mounts are watched."""
        for handle in handles:
            self._index(handle, True)

    def is_of_interest(self, key: bytes) -> bool:
        """Whether anything is leased of the object with this kernel handle."""
        self.catch_up()
        return key in self._keys

    def handles_of(self, key: bytes) -> list[bytes]:
        """The leased handles of the object with this kernel handle (one per export tree and mount)."""
        self.catch_up()
        return list(self._keys.get(key, ()))

    def catch_up(self) -> None:
        """Look at what was noted."""
        changes, self._changes = self._changes, []
        for handle in {change.handle for change in changes}:
            self._index(handle, self._is_held(handle))

    def _index(self, handle: bytes, is_leased: bool) -> None:
        begin = self.watched.get(mount_of(handle))
        if begin is None:
            return  # unmounted: everything was recalled
        key = begin + prepared_of(handle)
        handles = self._keys.setdefault(key, set())
        if is_leased:
            handles.add(handle)
        else:
            handles.discard(handle)
            if not handles:
                del self._keys[key]
