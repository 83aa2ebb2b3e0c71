"""What the destination of a handover does when handover.Destination says so: ask, discard, give back.

The same for a guest that arrives (receive.py) and for one that another mignode has left half arrived (recovery.py).
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

import trio

from mignode.body import Body
from mignode.desk import AnyDesk
from mignode.guestlocks import OwnLocks
from mignode.handover import Coming, Destination
from mignode.transit import ASK_AGAIN_S, located
from mignode.words import GiveBack, WhereIs
from omfs.errors import OmfsError

log: Final = logging.getLogger(__name__)


async def end(body: Body, locks: OwnLocks) -> None:
    """DISCARD: no process of the copy is left when this returns."""
    with trio.CancelScope(shield=True), contextlib.suppress(OmfsError):
        async with locks.handed_on():
            await body.end()


async def wait_told_by_home(guest: str, coming: Destination, desk: AnyDesk, patience_s: float) -> None:
    """ASK_WHERE, until it is HELD no more: home says whether the copy is to run, or is lost."""
    await _ask_until_other(Coming.HELD, WhereIs(guest, coming.attempt), coming, desk, patience_s)


async def give_back(guest: str, coming: Destination, desk: AnyDesk, patience_s: float) -> None:
    """GIVE_BACK, until home knows it or is lost."""
    await _ask_until_other(Coming.RETURNING, GiveBack(guest, coming.attempt), coming, desk, patience_s)


async def _ask_until_other(
    state: Coming, question: WhereIs | GiveBack, coming: Destination, desk: AnyDesk, patience_s: float
) -> None:
    lost_s = trio.current_time() + patience_s
    while coming.state is state:
        try:
            coming.located(located(await desk.ask(question)))
        except (OmfsError, OSError) as error:
            log.info("no answer where guest %s is: %s", question.guest, error)
            await trio.sleep(ASK_AGAIN_S)
            if trio.current_time() > lost_s:
                coming.home_lost()
