"""The guests that run on this node, wherever they are at home.

Each is served by a task from when it is here until its init has ended.  After a restart of mignode they are found again
by their folders; whoever was on its way then is settled as handover.py says.  What home has of its own guests is
deputies.py's.  Called by the daemon's rooms.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import trio

from mignode.guest import Guest
from mignode.hatchery import Hatchery
from omfs.kernel.processes import Identity, parent_of

log: Final = logging.getLogger(__name__)

Event = Callable[[Guest], None]


class Guests:
    """*arrived*: a guest runs here now.  *ended*: all of it has, and its deputy knows how; *lost*: nobody knows."""

    def __init__(self, hatchery: Hatchery, nursery: trio.Nursery, arrived: Event, ended: Event, lost: Event) -> None:
        self.hatchery = hatchery
        self.nursery = nursery
        self._arrived = arrived
        self._ended = ended
        self._lost = lost
        self._here: dict[str, Guest] = {}
        self._coming: dict[str, trio.Event] = {}
        self._refused: Counter[str] = Counter()  # of those who are not here any more

    def __iter__(self) -> Iterator[Guest]:
        return iter(list(self._here.values()))

    def get(self, name: str) -> Guest | None:
        return self._here.get(name)

    def refused_calls(self) -> Counter[str]:
        """System calls that were refused to guests here since this mignode began, by name."""
        routers = [guest.router for guest in self._here.values() if guest.router is not None]
        return sum((router.refused for router in routers), self._refused)

    def add(self, guest: Guest) -> None:
        """It runs here from now on."""
        self._here[guest.name] = guest
        self.nursery.start_soon(self._serve, guest)
        self._arrived(guest)

    @contextlib.contextmanager
    def coming(self, name: str) -> Iterator[None]:
        """Around an arrival: it is here when this is left, or will not be."""
        self._coming[name] = is_over = trio.Event()
        try:
            yield
        finally:
            is_over.set()
            if self._coming.get(name) is is_over:
                del self._coming[name]

    async def wait_come(self) -> None:
        """Until those who are on their way now have come, or not."""
        for is_over in list(self._coming.values()):
            await is_over.wait()

    def of(self, process: Identity) -> Guest | None:
        """Whose process this is; looks at its ancestors, up to a guest's init."""
        inits = {guest.body.pid: guest for guest in self._here.values()}
        one: Identity | None = process
        while inits and one is not None:
            if (guest := inits.get(one.pid)) is not None:
                return guest
            one = parent_of(one)
        return None

    async def _serve(self, guest: Guest) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_ended, guest)
            await guest.serve()
            nursery.cancel_scope.cancel()
        if self._here.get(guest.name) is guest:
            del self._here[guest.name]
            self._refused += guest.router.refused if guest.router is not None else Counter()
        if not guest.has_departed:
            self._lost(guest)
        guest.is_over.set()

    async def _wait_ended(self, guest: Guest) -> None:
        if not await guest.wait_ended():
            return
        guest.has_departed = True
        with trio.CancelScope(shield=True):
            await guest.body.end()
            self._ended(guest)
