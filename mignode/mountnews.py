"""Keeps the mount's replica of the places up to date: every change goes there, in order, many in one message.

`note` takes changes; `run` sends one message at a time, and whatever has gathered meanwhile goes with the next.  The
mount applies each before it answers, so once `wait_told` returns no LOOKUP is answered from what was before.  A mount
that is not there, or does not answer, holds nobody up: it has no LOOKUP to answer, or answers them from what it knows;
it is told everything as soon as it hears again.
Invariants: one message is under way at a time; the changes of one `note` are never parted; after a failure the next
message holds everything.  What it does not do: decide what changes (book.py).  Called by registry.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from omfs.errors import ControlError, NotRunning
from omfs.magic.places import Key, Place
from omfs.net import control

DEADLINE_S: Final = 5.0  # the mount only writes it down; and who waits for us waits 10 s at most
AGAIN_S: Final = 1.0  # until a mount that did not hear is told again

log = logging.getLogger(__name__)


class MountNews:
    """What the mount has, as far as we know, and what it has not been told yet."""

    def __init__(self, mount: Path, everything: Callable[[], Sequence[Place]], fork_events: bool) -> None:
        """*mount*: its control socket.  *everything*: all places, as they are now."""
        self._mount = mount
        self._everything = everything
        self._fork_events = fork_events
        self._puts: dict[Key, Place] = {}
        self._gone: set[Key] = set()
        self._is_behind = True  # it does not know what we know
        self._has_work = trio.Event()
        self._has_work.set()  # it begins with everything
        self._gathering = trio.Event()  # set when what gathers now was told
        self._under_way: trio.Event | None = None  # and what is on its way
        self.told = 0  # messages
        self.refusal = ""  # why the last one was not heard

    def note(self, puts: Iterable[Place], gone: Iterable[Key] = ()) -> None:
        """Changes to tell."""
        for place in puts:
            key = (place.pid, place.start_ticks)
            self._puts[key] = place
            self._gone.discard(key)
        for key in gone:
            self._puts.pop(key, None)
            self._gone.add(key)
        self._has_work.set()

    async def wait_told(self) -> None:
        """Until the mount has applied all that was noted so far, or can't be told."""
        event = self._gathering if self._puts or self._gone else self._under_way
        if event is not None:
            await event.wait()

    def tell_everything(self) -> None:
        """The mount may have lost what it knew (it was started)."""
        self._is_behind = True
        self._has_work.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with trio.move_on_after(AGAIN_S if self._is_behind else math.inf):
                await self._has_work.wait()
            told = self._under_way = self._gathering
            self._gathering = trio.Event()
            await self._tell()
            self._under_way = None
            told.set()

    async def _tell(self) -> None:
        """One message with all that has gathered."""
        self._has_work = trio.Event()
        is_all, puts, gone = self._is_behind, list(self._puts.values()), list(self._gone)
        self._puts, self._gone, self._is_behind = {}, set(), False
        if is_all:
            puts, gone = list(self._everything()), []
        try:
            await control.ask(
                self._mount, "place", deadline_s=DEADLINE_S,
                places=puts, gone=gone, fork_events=self._fork_events, all=is_all,
            )  # fmt: skip
        except ControlError as error:
            self._is_behind = True
            if str(error) != self.refusal:
                log.log(logging.INFO if isinstance(error, NotRunning) else logging.ERROR, "the mount: %s", error)
            self.refusal = str(error)
        else:
            self.refusal = ""
        self.told += 1
