"""The registry's rules: which processes have an entry, when one is made, and what a child has from its parent.

    event                     | effect
    --------------------------+--------------------------------------------------------------------------------
    a process inherits        | no entry needed: that of its nearest ancestor with one counts
    anything of one changes,  | its descendants without an entry, down to those that have one, get entries of their own
    or it sets what it has    | with what they have by then ("freeze"); then its own is made or changed.  An ordinary
    from an ancestor          | process that sets what it is anyway stays one
    forked (where told)       | a child of a process with an entry gets one of its own, and so do its children
    catch up                  | the same for all at once, where forks were missed
    moved                     | lastexec and magic are noted as they are where it was; then it is elsewhere
    exited                    | its entry goes

A child has from its parent, as of the fork: home, here, lastexec and its image, selected, magic [H for selected]; lock,
migfilter, migpolicy and mignodes [I: mosrun -k "keeps" the lock; the masks alike]; its class of decay, unless that is
not to be passed on (mosrun -R).  It begins with nmigs 0 [I].

What is not exact: without fork events, a process without an entry whose last ancestor with one has ended is ordinary.
A thread that forks while another thread of its process changes something may see either value, for that moment both.

What was forked before a change is queued before the change is asked for, and what a process forked before it ended is
queued before its end is seen: so each call that changes something takes the queued forks first.  The caller serialises
all calls, and sends the `Change` of each to the mount before it answers whoever caused it.

Pure: what processes there are, is asked through `Processes`.  Called by mignode/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import msgspec

from mignode.decay import DecayClass
from omfs.magic.places import Key, Place, Places


class Processes(Protocol):
    """What there is, as the kernel shows it now."""

    def parent_of(self, key: Key, /) -> Key | None:
        """None: there is none that is shown, or the process is gone."""

    def children_of(self, key: Key, /) -> Iterable[Key]:
        """Nothing of one that is gone."""

    def identify(self, pid: int, /) -> Key | None:
        """The process that has this pid now."""

    def living(self) -> Iterable[Key]:
        """All of them."""

    def forks(self) -> Iterable[tuple[int, int]] | None:
        """Takes the fork events that are queued: pids of parent and child, oldest first.

        Empty where there are no such events; None if some were lost.
        """


class Settings(msgspec.Struct, frozen=True):
    """What is set for one process and concerns only its migration."""

    lock: bool = False  # it stays where it is
    migfilter: bool = False  # the cluster mask counts
    migpolicy: bool = False  # DENY the nodes of the mask; True: ALLOW only those
    mignodes: int = 0  # the cluster mask: bit 2^(node-1), as wide as the ids
    nmigs: int = 0  # migrations so far
    decay: DecayClass = DecayClass()  # what it is said to be, and how fast its past is forgotten

    def passed_on(self) -> Settings:
        """What a child has."""
        return msgspec.structs.replace(self, nmigs=0, decay=self.decay.passed_on())


class Entry(NamedTuple):
    place: Place
    settings: Settings

    def passed_to(self, child: Key) -> Entry:
        """What a child has from this process."""
        return Entry(self.place.passed_to(child), self.settings.passed_on())

    def placed(self, **changes: int) -> Entry:
        return self._replace(place=msgspec.structs.replace(self.place, **changes))

    def noted(self, image: str) -> Entry:
        """With what depends on where it runs, and would mean something else when it runs elsewhere."""
        place = self.place
        lastexec = place.lastexec if image == place.image else place.here
        changed = msgspec.structs.replace(place, lastexec=lastexec, image=image, magic=place.magic or place.here)
        return self._replace(place=changed)


class Change(NamedTuple):
    """What the mount must be told: entries that are new or different, and those that are no more."""

    puts: list[Place]
    gone: list[Key]

    def __bool__(self) -> bool:
        return bool(self.puts or self.gone)


class Book:
    """All entries of a node."""

    def __init__(self, own_id: int, processes: Processes) -> None:
        self._own_id = own_id
        self._processes = processes
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
        return self._places.nearest(key, self._processes.parent_of)

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
        return self._change(place.key, lambda _: Entry(place, settings or Settings()))

    def selected(self, key: Key, node: int) -> Change:
        """It wrote *node* to its selected; 0 takes the choice back."""
        return self._change(key, lambda now: now.placed(selected=node))

    def created(self, key: Key, node: int) -> Change:
        """It creates a file through magic, at *node*.  Needed only where names.is_news says so."""
        return self._change(key, lambda now: now.placed(magic=node))

    def set_settings(self, key: Key, settings: Settings) -> Change:
        """These are its settings now; the mount does not need them, but entries may come of it."""
        return self._change(key, lambda now: now._replace(settings=settings))

    def departing(self, key: Key, image: str) -> Entry:
        """What another node must know to run it: as `entry_of`, with what depended on where it runs noted.

        *image*: its exec identity now.  magic is where it ran also if it created nothing there: creations of ordinary
        processes are not remembered, and what they made they must find again.
        """
        return self.entry_of(key).noted(image)

    def moved(self, key: Key, here: int, image: str) -> Change:
        """It runs at node *here* now; *image*: its exec identity when it left."""

        def move(now: Entry) -> Entry:
            settings = msgspec.structs.replace(now.settings, nmigs=now.settings.nmigs + 1)
            return now.noted(image).placed(here=here)._replace(settings=settings)

        return self._change(key, move)

    def _change(self, key: Key, alter: Callable[[Entry], Entry]) -> Change:
        change = Change([], [])
        self._notice(change)
        before = self.entry_of(key)
        entry = alter(before)
        if entry == before and (key in self._places or self.nearest(key) is None):
            return change
        heirs = self._heirs(key)
        self._notice(change)  # an orphan may have come to us only now: it has its entry by its parent's fork
        for heir in heirs:
            if heir not in self._places:
                self._put(before.passed_to(heir), change)
        self._put(entry, change)
        return change

    def _heirs(self, key: Key) -> list[Key]:
        """Those whose nearest entry is this process's own or the one that it has from an ancestor.

        While we look, one may end and leave its children to an ancestor whose children we have seen.  So we look until
        nobody new is there; whoever was forked meanwhile is the child of somebody found, or its fork is queued.
        """
        found: dict[Key, None] = {}
        before = -1
        while before < len(found):
            before = len(found)
            parents = [key]
            while parents:
                children = [child for child in self._processes.children_of(parents.pop()) if child not in self._places]
                found |= dict.fromkeys(children)
                parents += children
        return list(found)

    # ------------------------------------------------------------ what the kernel tells

    def notice(self) -> Change:
        """Takes the forks that are queued.  `nearest` of a process that asks is right after that."""
        change = Change([], [])
        self._notice(change)
        return change

    def catch_up(self) -> Change:
        """Forks were missed, before the start: whoever has an ancestor with an entry gets one of its own."""
        change = Change([], [])
        self._catch_up(change)
        return change

    def _catch_up(self, change: Change) -> None:
        self._processes.forks()  # of those who are alive or gone: nothing is left to be followed
        living = list(self._processes.living())
        for key in {place.key for place in self._places} - set(living):  # or its pid would be taken for it
            self._remove(key, change)
        heirs = [key for key in living if key not in self._places and self.nearest(key) is not None]
        for entry in [self.entry_of(key) for key in heirs]:
            self._put(entry, change)

    def _notice(self, change: Change) -> None:
        """A child may be gone before we can look, with children of its own, and its pid may have been given to another.

        So events are followed by pids alone, and who has a pid is believed only if no later event names it: whatever
        was forked before we looked is in the next batch.
        """
        newborn: dict[int, Entry | None] = {}  # by pid; None: the pid was ours and is an ordinary process's now
        found: dict[int, Key | None] = {}
        while (forks := self._processes.forks()) is not None and (named := self._follow(forks, newborn)):
            found |= {pid: self._processes.identify(pid) for pid in named}
        if forks is None:
            self._catch_up(change)
            return
        for pid, heritage in newborn.items():
            key = found[pid]
            known = self._by_pid.get(pid)
            if known is not None and known != key:
                self._remove(known, change)
            if heritage is not None and key is not None and key not in self._places:
                self._put(heritage.passed_to(key), change)

    def _follow(self, forks: Iterable[tuple[int, int]], newborn: dict[int, Entry | None]) -> set[int]:
        """One batch of events; returns the pids of children of ours, and pids that were ours."""
        named = set()
        for parent, child in forks:
            heritage = newborn[parent] if parent in newborn else self._entry_by_pid(parent)
            if heritage is not None or child in newborn or child in self._by_pid:
                newborn[child] = heritage
                named.add(child)
        return named

    def exited(self, key: Key) -> Change:
        """The process has ended; one without an entry is no error."""
        change = self.notice()
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
        if before is not None and before != key:  # one of them must have ended, or its pid were not free
            if before[1] > key[1]:
                return
            self._remove(before, change)
        if self._places.get(key) != entry.place:
            change.puts.append(entry.place)
        self._places.put(entry.place)
        self._settings[key] = entry.settings
        self._by_pid[key[0]] = key

    def _remove(self, key: Key, change: Change) -> None:
        self._places.remove(key)
        del self._settings[key], self._by_pid[key[0]]
        change.puts[:] = [place for place in change.puts if place.key != key]
        change.gone.append(key)
