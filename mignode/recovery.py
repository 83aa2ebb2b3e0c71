"""What becomes of the copies of guests that an earlier mignode has left here: what is written down says how to go on.

A guest that ran goes on.  A dump that was begun is undone; one that was barred waits until home has said where the
guest is.  What had not yet arrived is ended and given back to home, unless CRIU had let it run by then.  The rules are
handover.py's, the doing is that of migrate.py and receive.py (leaving.py, coming.py).

Called by guesthouse.py, a task for each copy.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mignode import body as bodies, coming, leaving
from mignode.desk import AnyDesk
from mignode.guest import Guest
from mignode.guestfolder import GuestFolder
from mignode.guestlocks import OwnLocks
from mignode.guests import Guests
from mignode.handover import Coming, Destination, Leaving, Phase, Source, Stay
from mignode.traits import Traits
from omfs.errors import BodyLost, OmfsError

LISTENER: Final = "listener"

log: Final = logging.getLogger(__name__)


class Recovery:
    """On the node *here*.  *patience_s*: how long home may be silent.  *lost*: it has ended, and nobody knows how."""

    def __init__(
        self, guests: Guests, here: int, patience_s: float, lost: Callable[[GuestFolder], None], run_dir: Path
    ) -> None:
        self._guests = guests
        self._run_dir = run_dir
        self._here = here
        self._patience_s = patience_s
        self._lost = lost

    async def recover(self, folder: GuestFolder, traits: Traits, stay: Stay, desk: AnyDesk) -> None:
        """Of *folder*, with its *stay*; *desk*: of the guest's home.

        Raises nothing: one guest that can't be found again must not keep the others away.
        """
        try:
            await self._recover(folder, traits, stay, desk)
        except BodyLost as error:
            log.error("guest %s: %s", folder.name, error)
            self._lost(folder)
        except (OmfsError, OSError) as error:
            log.error("guest %s can't be found again: %s", folder.name, error)

    async def _recover(self, folder: GuestFolder, traits: Traits, stay: Stay, desk: AnyDesk) -> None:
        log.info("guest %s was here (%s, epoch %d)", folder.name, stay.phase.value, stay.epoch)
        if stay.phase is Phase.ARRIVING:
            await self._give_back(folder, stay, desk)
            return
        guest = Guest(folder, traits, await bodies.connect(self._guests.nursery, folder.path), stay.epoch, folder.past)
        await self._route_again(guest)
        if stay.phase is Phase.LEAVING:
            await self._decide(guest, stay, desk)
        else:
            await self._go_on(guest, stay, desk)

    async def _route_again(self, guest: Guest) -> None:
        for descriptor in await guest.body.fetch(LISTENER):
            guest.answer_calls(descriptor, self._guests.nursery, restoring=bool(guest.body.running()))

    async def _decide(self, guest: Guest, stay: Stay, desk: AnyDesk) -> None:
        """It was barred, and perhaps home has written down that it is elsewhere."""
        source, _ = Source.recovered(self._here, stay)
        await leaving.wait_committed(guest, source, desk, self._patience_s, has_asked=True)
        if await leaving.wait_settled(guest, source, desk, self._patience_s) is Leaving.DONE:
            log.info("guest %s has left", guest.name)
            await leaving.end(guest, self._run_dir)
            return
        await leaving.unbar_tree(guest)
        await self._run(guest, source.epoch)

    async def _go_on(self, guest: Guest, stay: Stay, desk: AnyDesk) -> None:
        """It ran, or was to run; perhaps it was being dumped."""
        await leaving.undo_kept(guest.body)
        destination, _ = Destination.recovered(self._here, stay, has_run=guest.body.has_run)
        if destination.state is not Coming.RUNNING:
            await coming.end(guest.body, OwnLocks(self._run_dir, guest.name))
            await self._give_back(guest.folder, stay, desk)
            return
        await leaving.unbar_tree(guest)
        await self._run(guest, stay.epoch)

    async def _run(self, guest: Guest, epoch: int) -> None:
        await leaving.undo_kept(guest.body)
        if guest.router is not None:
            guest.router.restored()
        leaving.stays(guest, epoch)
        await OwnLocks(self._run_dir, guest.name).settled()
        self._guests.add(guest)

    async def _give_back(self, folder: GuestFolder, stay: Stay, desk: AnyDesk) -> None:
        """No copy is left here that could run, and none has run."""
        with contextlib.suppress(BodyLost):
            body = await bodies.connect(self._guests.nursery, folder.path)
            await coming.end(body, OwnLocks(self._run_dir, folder.name))
        destination, _ = Destination.recovered(self._here, stay, has_run=False)
        await coming.give_back(folder.name, destination, desk, self._patience_s)
        folder.leave()
        log.info("guest %s did not arrive", folder.name)
