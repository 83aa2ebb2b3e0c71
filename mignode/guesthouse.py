"""All that mignode has for guests, put together: who comes by mosrun, who comes from other nodes, and who was there.

The rooms know each other by what is said here: a guest that arrives is joined to its home, one that ends is told there,
and what home has written down is what the registry says.  After a restart the folders say who is here.
Called by daemon.py.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace

from mignode.adminvalues import AdminStore
from mignode.balance import Balance
from mignode.checkpoint import Criu
from mignode.deputies import Deputies, Deputy
from mignode.deputystops import DeputyStops
from mignode.desk import Desk, answer_on
from mignode.door import Door
from mignode.firstplace import FirstPlace
from mignode.guest import Guest
from mignode.guestfiles import GuestFiles
from mignode.guestfolder import GuestFolder, folders
from mignode.guests import Guests
from mignode.guestsettings import GuestSettings
from mignode.handover import Record
from mignode.hatchery import Hatchery
from mignode.homeward import Homeward
from mignode.images import ImageRoom
from mignode.journey import Journey, Journeys
from mignode.line import Line, serve_lines
from mignode.links import LinkHome, attend
from mignode.moves import HereWay, Moves
from mignode.receive import receive
from mignode.recovery import Recovery
from mignode.registry import Registry
from mignode.restarting import Restarts, say_whether_here
from mignode.saving import Saving, save_for_home
from mignode.traits import deputy_in
from mignode.transit import Transit
from mignode.vigil import Vigil
from mignode.words import (
    END_UNKNOWN,
    Arrive,
    Attend,
    Begin,
    Commit,
    FirstWord,
    GiveBack,
    IsHere,
    TakeImage,
    WhereIs,
)
from omfs.config import Settings
from omfs.errors import OmfsError
from omfs.kernel import processes
from omfs.kernel.criuprogram import find_criu
from omfs.kernel.processes import Identity
from omfs.net.frames import Buffer
from omfs.standing import Standing

_PROBE_S: Final = 60.0

log: Final = logging.getLogger(__name__)


class Guesthouse:
    """Of this node."""

    def __init__(
        self, standing: Standing, settings: Settings, hatchery: Hatchery, registry: Registry, journeys: Journeys,
        store: AdminStore, nursery: trio.Nursery,
    ) -> None:  # fmt: skip
        self._standing = standing
        self._settings = settings
        self._run_dir = Path(settings.run_dir)
        self._registry = registry
        self._store = store
        self._journeys = journeys
        self._of_guests = GuestSettings(registry)
        self._desk = Desk(standing, settings, self._has_moved, self._why_not)
        self._images = ImageRoom(self._run_dir, settings.images_max_bytes)
        self._guests = Guests(hatchery, nursery, self._arrived, self._ended, self._lost)
        self._deputies = Deputies()
        self.moves = Moves(
            self._guests,
            self._deputies,
            registry,
            lambda: self._transit,
            self._note,
            self._of_guests,
        )
        mount = self._run_dir / "mount.sock"
        self.balance = Balance(
            self._guests, standing.local.node_id, store, mount, self.moves.settings_of, self.moves.set_of,
            self.moves.send_by_balance,
        )  # fmt: skip
        self.moves.balance = self.balance
        own, timeout_s = standing.local.node_id, settings.guest_timeout_s
        self._recovery = Recovery(self._guests, own, timeout_s, self._lost_copy, self._run_dir)
        self._deputy_stops = DeputyStops(self._deputies)
        self._vigil = Vigil(self._deputies, self._run_dir, own, timeout_s, self._give_up)
        self.leaving = Homeward(self._guests, self._deputies, self.moves, own)
        self.strangers = GuestFiles(self._guests, self.moves, registry, self._address_of)
        self._nursery = nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started when all who were here are known again, and others may come."""
        self._images.open()
        try:
            for folder in folders(self._run_dir):
                self._recover(folder)
            door = self._door()
            async with trio.open_nursery() as nursery:
                await nursery.start(door.run)
                await nursery.start(serve_lines, self._standing, self._settings, self._line)
                nursery.start_soon(self._probe)
                nursery.start_soon(self._vigil.run)
                nursery.start_soon(self._deputy_stops.run)
                nursery.start_soon(self.balance.run)
                task_status.started()
        finally:
            self._images.close()

    def _door(self) -> Door:
        first_place = FirstPlace(
            self._registry, self.moves, self._of_guests, self.balance, self._guests,
            lambda: self._standing.node_map.nodes.keys(),
        )  # fmt: skip
        return Door(
            self._standing, self._run_dir, self._guests, self._deputies,
            has_procview=self._settings.procview, first_place=first_place,
            saving=Saving(self._guests, self._deputies, lambda: self._transit, self._note_at_home),
            restarts=Restarts(self._guests, self._desk, lambda: self._transit, first_place),
        )  # fmt: skip

    def _note(self, process: Identity, journey: Journey) -> None:
        """Where it stands for its guest it is as old as its user knows it: elsewhere it begins anew with each move."""
        age_s = processes.age_s(process) if self.moves.deputy_of(process) is not None else 0.0
        self._journeys.note(process, replace(journey, age_s=age_s))

    def _note_at_home(self, deputy: Deputy, journey: Journey) -> None:
        self._note(deputy_in(deputy.traits.name), journey)

    async def _probe(self) -> None:
        """CRIU finds out what this kernel can, and keeps that for when it is in a hurry."""
        with contextlib.suppress(OmfsError):
            await Criu(self._transit.criu).features(_PROBE_S)

    @cached_property
    def _transit(self) -> Transit:
        """Raises ConfigError where this machine has no CRIU."""
        program = find_criu(self._settings.criu)
        return Transit(self._standing, self._settings, self._desk, program, self._images, self._is_blocked)

    def _address_of(self, node: int) -> str:
        return next(iter(self._standing.node_map.nodes.get(node, ())), "")

    def refused_calls(self) -> Mapping[str, int]:
        """As guests.py has them."""
        return self._guests.refused_calls()

    def _is_blocked(self) -> bool:
        return self._store.values.block

    def _why_not(self, name: str, node: int) -> str:
        deputy = self._deputies.get(name)
        return self._of_guests.why_not(deputy.traits, node) if deputy is not None else ""

    # ------------------------------------------------------------ lines that others bring

    async def _line(self, line: Line, word: FirstWord, _: Buffer) -> None:
        match word:
            case Arrive():
                with self._guests.coming(word.guest):
                    await receive(line, word, self._transit, self._guests, self._registry)
            case TakeImage():
                await save_for_home(line, word, self._guests, self._transit)
            case IsHere():
                await say_whether_here(line, word, self._guests, self._standing.local.node_id)
            case Begin() | Commit() | WhereIs() | GiveBack():
                await answer_on(line, self._desk, word)
            case Attend(guest):
                deputy = self._deputies.get(guest)
                note = partial(self._note, deputy_in(guest))
                end = await attend(line, word, self._desk, deputy, self._of_guests, note)
                if deputy is not None and end == END_UNKNOWN:
                    self._give_up(deputy, f"it was killed on node {line.node_id}")
                elif deputy is not None and end is not None:
                    self._forget(deputy)

    # ------------------------------------------------------------ what happens to guests

    def _arrived(self, guest: Guest) -> None:
        deputy = self._deputies.get(guest.name)
        if deputy is not None:
            here = self._standing.local.node_id
            self._desk.answer(here, Attend(guest.name, guest.epoch))
            way = HereWay(guest, self.moves, here)
            deputy.found(way)
            self._nursery.start_soon(self._wait_over, guest, deputy, way)
            return
        guest.link = link = LinkHome(
            guest, self._standing, self._settings, self.moves.send, self._why, self.moves.why_here,
            self.moves.selected_here,
        )  # fmt: skip
        self._nursery.start_soon(link.run)

    async def _wait_over(self, guest: Guest, deputy: Deputy, way: HereWay) -> None:
        await guest.is_over.wait()
        deputy.lost(way)

    async def _why(self, guest: Guest, is_brief: bool) -> str:
        return await self.moves.why_of(guest, is_brief=is_brief)

    def _ended(self, guest: Guest) -> None:
        """All of it, and its deputy knows how."""
        if guest.link is not None:
            guest.link.tell_end(guest.body.root_status or 0)
            return
        guest.folder.leave()
        deputy = self._deputies.get(guest.name)
        if deputy is not None:
            self._forget(deputy)

    def _lost(self, guest: Guest) -> None:
        """Its init has ended, and nobody knows how the guest did."""
        log.error("guest %s is lost: its init was killed", guest.name)
        if guest.link is not None:
            guest.link.tell_end(END_UNKNOWN)
        else:
            self._lost_copy(guest.folder)

    def _lost_copy(self, folder: GuestFolder) -> None:
        """What was here has ended; at home that is the guest's end, unless it runs elsewhere."""
        deputy, record = self._deputies.get(folder.name), folder.record
        folder.leave()
        if deputy is not None and record is not None and record.node == self._standing.local.node_id:
            self._give_up(deputy, "it was killed")

    def _give_up(self, deputy: Deputy, reason: str) -> None:
        log.error("guest %s is lost: %s", deputy.traits.name, reason)
        deputy.give_up(reason)
        self._forget(deputy)

    def _forget(self, deputy: Deputy) -> None:
        """Whoever asks where it is hears from now on that it is nowhere."""
        self._deputies.remove(deputy.traits.name)
        self.balance.ended(deputy.traits.name)
        GuestFolder(self._run_dir, deputy.traits.name).leave_home()

    def _has_moved(self, name: str, record: Record) -> None:
        """Of one that is at home here; its process is registered as being there, if it is not already."""
        deputy = self._deputies.get(name)
        process = processes.identify(deputy.traits.pid) if deputy is not None else None
        if process == deputy_in(name) and self._registry.entry_of(process).place.here != record.node:
            self._registry.moved(process, record.node)

    # ------------------------------------------------------------ who was here

    def _recover(self, folder: GuestFolder) -> None:
        """Raises nothing; a copy here is settled by a task, which may have to wait for its home."""
        try:
            traits, record, stay = folder.traits, folder.record, folder.stay
            if traits is None:
                folder.remove()
                return
            if record is not None:
                self._deputies.add(Deputy(traits))
                self._has_moved(folder.name, record)  # mignode may have been killed before the mount was told
            if stay is not None:
                desk = self._desk.of(traits.home)
                self._nursery.start_soon(self._recovery.recover, folder, traits, stay, desk)
            elif record is None:
                folder.remove()
        except OSError as error:
            log.error("guest %s: %s", folder.name, error)
