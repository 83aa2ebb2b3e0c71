"""What is remembered of processes: where they were born, run, were last executed, and what they chose for themselves.

A `Place` is the entry of one process, which is told by its pid (as the daemons' PID namespace shows it) and its start
time: another process with the same pid never matches.  A process without an entry has that of its nearest ancestor with
one; where there is none it is *ordinary*: born here, runs here.  `Places` is the mount's replica of all entries, and
the registry's own table (mignode/book.py has the rules by which entries are made); it decides nothing, and what an
entry means is said in names.py.

Pure: who a process's parent is, is asked through a function.  Called by the mount and by mignode/book.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import msgspec

Key: TypeAlias = tuple[int, int]  # pid and start time (clock ticks since boot): a process, whoever has its pid later
ParentOf: TypeAlias = Callable[[Key], Key | None]  # None: at the top, or the process is gone


class Place(msgspec.Struct, frozen=True):
    """One process: nodes by their ids, 0 for *selected* and *magic* that were never set.

    *image* is its exec identity when *lastexec* was noted.  While the process still has it, *lastexec* counts; another
    one means that it did an execve since, where it runs.
    """

    pid: int
    start_ticks: int
    home: int
    here: int
    lastexec: int
    image: str
    selected: int = 0
    magic: int = 0

    @property
    def key(self) -> Key:
        return self.pid, self.start_ticks

    def passed_to(self, child: Key) -> Place:
        """The same, for a process that inherits it."""
        pid, start_ticks = child
        return msgspec.structs.replace(self, pid=pid, start_ticks=start_ticks)


class Places:
    """The entries, and a memory of at most *ordinary_max* processes that are known to be ordinary.

    That memory need not be told of anything: whoever has an entry is not in it, no process gets other ancestors than
    it had (an orphan goes to one of them), and before one of those gets an entry the registry gives it one of its own.
    """

    def __init__(self, ordinary_max: int = 0) -> None:
        self._places: dict[Key, Place] = {}
        self._ordinary: dict[Key, None] = {}  # oldest first
        self._ordinary_max = ordinary_max

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def get(self, key: Key) -> Place | None:
        """Its own entry."""
        return self._places.get(key)

    def put(self, place: Place) -> None:
        """A new entry, or a new value of one."""
        self._places[place.key] = place
        self._ordinary.pop(place.key, None)

    def remove(self, key: Key) -> None:
        """The process is gone; unknown ones are no error."""
        self._places.pop(key, None)

    def replace_all(self, places: Iterable[Place]) -> None:
        """These are all there are."""
        self._places = {place.key: place for place in places}
        self._ordinary.clear()

    def note_ordinary(self, key: Key) -> None:
        """It was found to have no entry, nor an ancestor with one."""
        if key in self._places or not self._ordinary_max:
            return  # got one while somebody looked
        self._ordinary[key] = None
        if len(self._ordinary) > self._ordinary_max:
            del self._ordinary[next(iter(self._ordinary))]

    def is_ordinary(self, key: Key) -> bool:
        """Whether that is remembered; False says nothing."""
        return key in self._ordinary

    def nearest(self, key: Key, parent_of: ParentOf) -> Place | None:
        """Its own entry or that of its nearest ancestor with one, as it is; None: it is ordinary.

        An ancestor that ends while we climb breaks the chain where it was, though its children have got another parent.
        So the top counts as reached only when the same chain leads to it twice.
        """
        before: list[Key] | None = None
        while True:
            chain: list[Key] = []
            one: Key | None = key
            while one is not None:
                if (place := self._places.get(one)) is not None:
                    return place
                if one in self._ordinary:
                    return None
                chain.append(one)
                one = parent_of(one)
            if chain == before:
                return None
            before = chain
