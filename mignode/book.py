"""The registry's rules: which processes have an entry, when one is made, and what a child has from its parent.

    event                     | effect
    --------------------------+--------------------------------------------------------------------------------
    a process inherits        | no entry needed: that of its nearest ancestor with one counts
    anything of one changes   | its descendants without an entry, down to those that have one, get entries of their own
                              | with what they have by then ("freeze"); then its own is made or changed
    forked (where told)       | a child of a process with an entry gets one of its own, and so do its children
    catch up                  | the same for all at once, where forks were missed
    moved                     | lastexec and magic are noted as they are where it was; then it is elsewhere
    exited                    | its entry goes

A child has from its parent, as of the fork: home, here, lastexec and its image, selected, magic [H for selected]; lock,
migfilter, migpolicy and mignodes [I: mosrun -k "keeps" the lock; the masks alike].  It begins with nmigs 0 [I].

What is not exact: without fork events, a process without an entry whose last ancestor with one has ended is ordinary.
A thread that forks while another thread of its process changes something may see either value, for that moment both.

The caller serialises all calls; where the kernel tells of forks it calls `forked` before every other one: what was
forked before a change is queued before the change is asked for, and what a process forked before it ended is queued
before its end is seen.  Each call's `Change` is sent to the mount before its cause is answered.

Pure: the processes there are, are asked through functions.  Called by mignode/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import msgspec

from omfs.magic.places import Key, ParentOf, Place, Places

ChildrenOf: TypeAlias = Callable[[Key], Iterable[Key]]
Drain: TypeAlias = Callable[[], Iterable[tuple[int, int]]]  # pids of parent and child of each fork queued, oldest first
Identify: TypeAlias = Callable[[int], Key | None]  # the process that has this pid now


class Settings(msgspec.Struct, frozen=True):
    """What is set for one process and concerns only its migration."""

    lock: bool = False  # it stays where it is
    migfilter: bool = False  # the cluster mask counts
    migpolicy: bool = False  # DENY the nodes of the mask; True: ALLOW only those
    mignodes: int = 0  # the cluster mask: bit 2^(node-1), as wide as the ids
    nmigs: int = 0  # migrations so far


class Entry(NamedTuple):
    place: Place
    settings: Settings

    def passed_to(self, child: Key) -> Entry:
        """What a child has from this process."""
        return Entry(self.place.passed_to(child), msgspec.structs.replace(self.settings, nmigs=0))


class Change(NamedTuple):
    """What the mount must be told: entries that are new or different, and those that are no more."""

    puts: list[Place]
    gone: list[Key]

    def __bool__(self) -> bool:
        return bool(self.puts or self.gone)


class Book:
    """All entries of a node."""

    def __init__(self, own_id: int, parent_of: ParentOf, children_of: ChildrenOf) -> None:
        self._own_id = own_id
        self._parent_of = parent_of
        self._children_of = children_of
        self._places = Places()
        self._settings: dict[Key, Settings] = {}  # of those with an entry
        self._by_pid: dict[int, Key] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Entry]:
        return (Entry(place, self._settings[place.key]) for place in self._places)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def take_back(self, entries: Iterable[Entry]) -> None:
        """What the mount knows from before this registry started, of processes that are still there."""
        for entry in entries:
            self._put(entry, Change([], []))

    def nearest(self, key: Key) -> Place | None:
        """The entry that counts for this process; None: it is ordinary."""
        return self._places.nearest(key, self._parent_of)

    def entry_of(self, key: Key) -> Entry:
        """What holds for this process, as an entry of its own, whether it has one or not."""
        place = self.nearest(key)
        if place is None:
            return Entry(Place(*key, self._own_id, self._own_id, self._own_id, ""), Settings())
        entry = Entry(place, self._settings[place.key])
        return entry if place.key == key else entry.passed_to(key)

    # ------------------------------------------------------------ what is changed

    def register(self, place: Place, settings: Settings | None = None) -> Change:
        """A guest has come, or a process is home again: this is what its last node knew of it.

        Each process of a tree that comes together is registered, parents and children in any order.
        """
        return self._change(place.key, Entry(place, settings or Settings()))

    def selected(self, key: Key, node: int) -> Change:
        """It wrote *node* to its selected; 0 takes the choice back."""
        place, settings = self.entry_of(key)
        return self._change(key, Entry(msgspec.structs.replace(place, selected=node), settings))

    def created(self, key: Key, node: int) -> Change:
        """It creates a file through magic, at *node*.  Needed only where names.is_news says so."""
        place, settings = self.entry_of(key)
        return self._change(key, Entry(msgspec.structs.replace(place, magic=node), settings))

    def set_settings(self, key: Key, settings: Settings) -> Change:
        """These are its settings now; the mount does not need them, but entries may come of it."""
        return self._change(key, Entry(self.entry_of(key).place, settings))

    def departing(self, key: Key, image: str) -> Entry:
        """What another node must know to run it: as `entry_of`, with what depended on where it runs noted.

        *image*: its exec identity now.  magic is where it ran also if it created nothing there: creations of ordinary
        processes are not remembered, and what they made they must find again.
        """
        place, settings = self.entry_of(key)
        lastexec = place.lastexec if image == place.image else place.here
        magic = place.magic or place.here
        return Entry(msgspec.structs.replace(place, lastexec=lastexec, image=image, magic=magic), settings)

    def moved(self, key: Key, here: int, image: str) -> Change:
        """It runs at node *here* now; *image*: its exec identity when it left."""
        place, settings = self.departing(key, image)
        settings = msgspec.structs.replace(settings, nmigs=settings.nmigs + 1)
        return self._change(key, Entry(msgspec.structs.replace(place, here=here), settings))

    def _change(self, key: Key, entry: Entry) -> Change:
        change = Change([], [])
        before = self.entry_of(key)
        if entry != before:
            for heir in self._heirs(key):
                self._put(before.passed_to(heir), change)
        if entry != before or key not in self._places:
            self._put(entry, change)
        return change

    def _heirs(self, key: Key) -> list[Key]:
        """Those whose nearest entry is this process's own or the one that it has from an ancestor."""
        found: list[Key] = []
        parents = [key]
        while parents:
            children = [child for child in self._children_of(parents.pop()) if child not in self._places]
            found += children
            parents += children
        return found

    # ------------------------------------------------------------ what the kernel tells

    def forked(self, drain: Drain, identify: Identify) -> Change:
        """Takes the fork events that are queued; *drain* is called until it brings nobody's child of ours.

        A child may be gone before we can look, with children of its own, and its pid may have been given to another.
        So events are followed by pids alone, and who has a pid is believed only if no later event names it: whatever
        was forked before we looked is in the next batch.
        """
        newborn: dict[int, Entry | None] = {}  # by pid; None: the pid was ours and is an ordinary process's now
        found: dict[int, Key | None] = {}
        while True:
            named = set()
            for parent, child in drain():
                heritage = newborn[parent] if parent in newborn else self._entry_by_pid(parent)
                if heritage is not None or child in newborn or child in self._by_pid:
                    newborn[child] = heritage
                    named.add(child)
            if not named:
                break
            found |= {pid: identify(pid) for pid in named}
        change = Change([], [])
        for pid, heritage in newborn.items():
            key = found[pid]
            known = self._by_pid.get(pid)
            if known is not None and known != key:
                self._remove(known, change)
            if heritage is not None and key is not None and key not in self._places:
                self._put(heritage.passed_to(key), change)
        return change

    def catch_up(self, keys: Iterable[Key]) -> Change:
        """Forks were missed (before the start, or the kernel's queue was full): *keys* are all processes there are."""
        change = Change([], [])
        heirs = [key for key in keys if key not in self._places and self.nearest(key) is not None]
        for entry in [self.entry_of(key) for key in heirs]:
            self._put(entry, change)
        return change

    def exited(self, key: Key) -> Change:
        """The process has ended; one without an entry is no error."""
        change = Change([], [])
        if key in self._places:
            self._remove(key, change)
        return change

    # ------------------------------------------------------------ the tables

    def _entry_by_pid(self, pid: int) -> Entry | None:
        key = self._by_pid.get(pid)
        return None if key is None else self.entry_of(key)

    def _put(self, entry: Entry, change: Change) -> None:
        key = entry.place.key
        before = self._by_pid.get(key[0])
        if before is not None and before != key:  # it must have ended, or its pid were not free
            self._remove(before, change)
        if self._places.get(key) != entry.place:
            change.puts.append(entry.place)
        self._places.put(entry.place)
        self._settings[key] = entry.settings
        self._by_pid[key[0]] = key

    def _remove(self, key: Key, change: Change) -> None:
        self._places.remove(key)
        del self._settings[key], self._by_pid[key[0]]
        change.gone.append(key)
