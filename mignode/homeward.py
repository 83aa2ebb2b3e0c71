"""Everybody goes: the guests of others home from here (expel), our own home from elsewhere (bring).

Both wait until it is done, and go on with the others where one can't move; who stays is said at the end.  That nobody
comes meanwhile is for whoever calls (block): a guest that had been let in before is waited for, and sent too.
Called by hpcfiles.py, for admin/expel and admin/bring.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mignode.deputies import Deputies, Deputy
from mignode.guest import Guest
from mignode.guests import Guests
from mignode.journey import Journey
from mignode.moves import Moves
from mignode.traits import deputy_in
from mignode.transit import ASK_AGAIN_S
from omfs.errors import HandoverRefused, OmfsError, RemoteFailure

WITHIN_S: Final = 100.0  # whoever writes is answered before the mount gives up (omfs/mount/controlsource.py)
AT_A_TIME: Final = 4  # each has its memory sent

log: Final = logging.getLogger(__name__)


class Homeward:
    """Of this node, *here*."""

    def __init__(self, guests: Guests, deputies: Deputies, moves: Moves, here: int) -> None:
        self._guests = guests
        self._deputies = deputies
        self._moves = moves
        self._here = here

    async def expel(self) -> None:
        """Nobody who is at home elsewhere is here when this returns.  Raises RemoteFailure(EBUSY) where some are."""
        stay = _Staying("can't leave")
        with trio.move_on_after(WITHIN_S):
            await self._guests.wait_come()
            strangers = [guest for guest in self._guests if guest.traits.home != self._here]
            await stay.try_all({guest.name: self._sending(guest) for guest in strangers})
        stay.check(len([guest for guest in self._guests if guest.traits.home != self._here]))

    async def bring(self) -> None:
        """All of ours are here when this returns.  Raises RemoteFailure(EBUSY) where some are not."""
        stay = _Staying("can't come home")
        with trio.move_on_after(WITHIN_S):
            await stay.try_all(
                {one.traits.name: self._bringing(one) for one in self._deputies if not self._is_here(one)}
            )
        stay.check(len([one for one in self._deputies if not self._is_here(one)]))

    def _is_here(self, deputy: Deputy) -> bool:
        return self._guests.get(deputy.traits.name) is not None

    def _sending(self, guest: Guest) -> Callable[[], Awaitable[None]]:
        async def send() -> None:
            await self._moves.send(guest, guest.traits.home, guest.link.tell_journey if guest.link else _unheard)

        async def leave() -> None:
            while not guest.is_over.is_set():
                with trio.move_on_after(ASK_AGAIN_S) as until_again:
                    if guest.is_departing or guest.has_departed:  # it is on its way, or has just ended
                        await guest.is_over.wait()
                if not until_again.cancelled_caught and not guest.is_over.is_set():
                    await _unless_on_its_way(send)

        return leave

    def _bringing(self, deputy: Deputy) -> Callable[[], Awaitable[None]]:
        async def come() -> None:
            while self._deputies.get(deputy.traits.name) is deputy and not self._is_here(deputy):
                await _unless_on_its_way(lambda: self._moves.move(deputy_in(deputy.traits.name), self._here))

        return come


async def _unless_on_its_way(move: Callable[[], Awaitable[None]]) -> None:
    """Then it is asked again."""
    try:
        await move()
    except HandoverRefused:
        await trio.sleep(ASK_AGAIN_S)


def _unheard(_: Journey) -> None:
    pass


class _Staying:
    """Who does not move, and why."""

    def __init__(self, said: str) -> None:
        self._said = said

    async def try_all(self, moves: dict[str, Callable[[], Awaitable[None]]]) -> None:
        at_a_time = trio.Semaphore(AT_A_TIME)

        async def attempt(name: str, move: Callable[[], Awaitable[None]]) -> None:
            async with at_a_time:
                try:
                    await move()
                except (OmfsError, OSError) as error:
                    log.warning("guest %s %s: %s", name, self._said, error)

        async with trio.open_nursery() as nursery:
            for name, move in moves.items():
                nursery.start_soon(attempt, name, move)

    def check(self, left: int) -> None:
        if left:
            raise RemoteFailure(errno.EBUSY, f"{left} {self._said}; the log has the reasons")
