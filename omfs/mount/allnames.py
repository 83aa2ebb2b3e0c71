"""Directories of which every name is known: that something is not there need not be asked of their owner.

A directory is known when it was made by us, or listed from beginning to end, under a lease that is held without a break
from before its first name was read.  What is known may contain names that are gone, or were never made: those are asked
for.  So a change of ours counts as having made its name when it begins, whatever becomes of it, and a name is
taken out only when its removal succeeded.  A recall ends it: another node made a name, or removed one.

Pure; bounded in names, the directories that were not used for longest go first.  Called by operations_names.py,
takenops.py and takenlistings.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from omfs.cache.holder import Lease
    from omfs.mount.inodes import Inode

NAMES_MAX: Final = 250_000  # of all directories; about 100 bytes each
NAME_MAX_BYTES: Final = 255  # longer ones are an error of another kind
_DIRECTORY_COSTS: Final = 4  # names


class _Known:
    __slots__ = ("hold", "lease", "names")

    def __init__(self, lease: Lease, hold: tuple[int, int], names: set[bytes]) -> None:
        self.lease = lease
        self.hold = hold
        self.names = names

    @property
    def cost(self) -> int:
        return len(self.names) + _DIRECTORY_COSTS


class AllNames:
    """Of one mount."""

    def __init__(self, names_max: int = NAMES_MAX) -> None:
        self._names_max = names_max
        self._known: OrderedDict[int, _Known] = OrderedDict()  # by inode number, the least recently used first
        self._cost = 0

    def __len__(self) -> int:
        return len(self._known)

    def know(self, directory: Inode[Any], names: Iterable[bytes]) -> None:
        """These are all that it has, by an answer that has just been granted."""
        self.end(directory)
        hold = directory.hold_of_names
        if hold is None:
            return
        known = self._known[directory.id] = _Known(directory.lease, hold, set(names))
        self._cost += known.cost
        while self._cost > self._names_max:
            _, oldest = self._known.popitem(last=False)
            self._cost -= oldest.cost

    def is_absent(self, directory: Inode[Any], name: bytes) -> bool:
        """Whether the owner would say that there is no such name."""
        known = self._known.get(directory.id)
        if known is None or name in known.names or len(name) > NAME_MAX_BYTES:
            return False
        if known.lease is not directory.lease or known.hold != directory.hold_of_names:
            self.end(directory)
            return False
        self._known.move_to_end(directory.id)
        return True

    def may_exist(self, directory: Inode[Any], name: bytes) -> None:
        """A change of ours that concerns this name begins."""
        known = self._known.get(directory.id)
        if known is not None and name not in known.names:
            known.names.add(name)
            self._cost += 1

    def removed(self, directory: Inode[Any], name: bytes) -> None:
        """Its removal succeeded, and no other change was under way in the directory."""
        known = self._known.get(directory.id)
        if known is not None and name in known.names:
            known.names.remove(name)
            self._cost -= 1

    def end(self, directory: Inode[Any]) -> None:
        """Nobody knows all its names any more."""
        known = self._known.pop(directory.id, None)
        if known is not None:
            self._cost -= known.cost
