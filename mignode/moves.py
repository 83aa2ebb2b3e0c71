"""Who is to go where: finds the guest behind a process, and has it moved from wherever it runs.

A process is a guest's where it is the deputy (at home), or runs below an init of ours (where the body is); a guest
moves as a whole, so each of its processes stands for all.  One that runs here is moved by us (migrate.py), another by
the node where it runs, over its link.  A process that asks for its own guest's move waits in that write, and could not
be frozen: it is answered when it is known that it can move, and the move begins with that.

Called by the control files, by home's orders, and by homeward.py.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from typing import Final

import trio
from msgspec.structs import replace

from mignode.balance import Balance
from mignode.book import Settings
from mignode.cantmove import why
from mignode.deputies import Deputies, Deputy, Report
from mignode.guest import Guest, HomeLink, HomeWay
from mignode.guests import Guests
from mignode.guestsettings import OF_GUEST, GuestSettings, settings_from
from mignode.journey import Journey, State
from mignode.migrate import migrate, reasons_of
from mignode.policy import told_with
from mignode.reasons import Kind, told, without_names
from mignode.registry import Registry
from mignode.traits import deputy_in
from mignode.transit import Transit
from omfs.errors import CheckpointError, HandoverRefused, NodeDown, OmfsError, RemoteFailure
from omfs.kernel import processes
from omfs.kernel.processes import Identity
from omfs.magic.controlfiles import Value

BEST: Final = 0  # for a node: where it is best
LOOKS_MAX: Final = 4  # at a time; one that waits for a process keeps its thread
_TRIES: Final = 3
_AGAIN_S: Final = 0.3
_CLOSED_LOOKS_MAX: Final = 50
_CLOSED_LOOK_S: Final = 0.02
_BORN_WITHIN_S: Final = 3.0  # a mosrun starts in a fifth of that, and on a busy machine not much faster than this
_NO_WAY: Final = "the node where it runs does not answer"
_NO_GUEST: Final = "the process was not started by mosrun"

log: Final = logging.getLogger(__name__)


class Moves:
    """*report* gets the journeys of those that are moved from here."""

    def __init__(
        self,
        guests: Guests,
        deputies: Deputies,
        registry: Registry,
        transit: Callable[[], Transit],
        report: Callable[[Identity, Journey], None],
        settings: GuestSettings,
    ) -> None:
        """*transit*: raises ConfigError where this machine can't move anything."""
        self._guests = guests
        self._deputies = deputies
        self._registry = registry
        self._transit = transit
        self._report = report
        self._settings = settings
        self.balance: Balance | None = None  # set by guesthouse.py
        self.looks = trio.CapacityLimiter(LOOKS_MAX)

    def deputy_of(self, process: Identity) -> Deputy | None:
        """It stands for the guest here at home."""
        return next((one for one in self._deputies if deputy_in(one.traits.name) == process), None)

    async def move(self, process: Identity, node: int, by: int = 0) -> None:
        """To *node*, or to where it is BEST; nothing where it is there.

        *by*: the thread that waits for us to return, 0 where that is none of this node.  Raises RemoteFailure(EROFS: it
        can't move), OmfsError, OSError.
        """
        deputy, guest = self._whose(process)
        if deputy is None and guest is None and node != self._registry.own_id:
            deputy = await self._wait_born(process)
        if deputy is not None:
            guest = self._guests.get(deputy.traits.name)
        elif guest is None:
            if node == self._registry.own_id:
                return
            raise RemoteFailure(errno.EROFS, _NO_GUEST)
        if guest is not None and by and self._is_within(guest, by):
            await self._check(guest, process)
            self._guests.nursery.start_soon(self._move_behind, guest, process, node)
        else:
            await self._move(process, node)

    async def _wait_born(self, process: Identity) -> Deputy | None:
        """A young process may be a mosrun that has not asked yet, or whose program is being started."""
        with trio.move_on_after(max(0.0, _BORN_WITHIN_S - processes.age_s(process))):
            while (deputy := self.deputy_of(process)) is None:
                await self._deputies.wait_added()
            return deputy
        return None

    def _is_within(self, guest: Guest, thread: int) -> bool:
        asking = processes.identify(thread)
        return asking is not None and self._guests.of(asking) is guest

    async def _check(self, guest: Guest, process: Identity) -> None:
        await guest.wait_saved()
        if guest.is_departing:
            raise HandoverRefused("the process is on its way already")
        found = await reasons_of(guest, self.looks)
        if keeping := [one for one in found if one.kind is not Kind.CONTROL_FILE]:  # it writes to one just now
            raise RemoteFailure(errno.EROFS, told(keeping))

    async def _move_behind(self, guest: Guest, process: Identity, node: int) -> None:
        """Once it has closed the control file; it may open it again, so again where that fails."""
        await self._wait_closed(guest)
        for tries_left in reversed(range(_TRIES)):
            try:
                await self._move(process, node)
                return
            except CheckpointError as error:
                failure: OmfsError | OSError = error
            except (OmfsError, OSError) as error:
                failure = error
                break
            if tries_left:
                await trio.sleep(_AGAIN_S)
        log.info("process %d, which wanted to move, stays: %s", process.pid, failure)

    async def _wait_closed(self, guest: Guest) -> None:
        """Until no control file is open in it, or for a while."""
        with contextlib.suppress(OmfsError, OSError):
            for _ in range(_CLOSED_LOOKS_MAX):
                found = await reasons_of(guest, self.looks)
                if Kind.CONTROL_FILE not in {one.kind for one in found}:
                    return
                await trio.sleep(_CLOSED_LOOK_S)

    async def _move(self, process: Identity, node: int) -> None:
        """Its journey is told, also where it ends before it began."""
        deputy, guest = self._whose(process)
        told_to = {process, deputy_in(deputy.traits.name)} if deputy is not None else {process}
        last = Journey(self._registry.own_id, node)

        def report(journey: Journey) -> None:
            nonlocal last
            last = journey
            for each in told_to:
                self._report(each, journey)
            if deputy is None and guest is not None and guest.link is not None:
                guest.link.tell_journey(journey)

        try:
            if deputy is not None:
                await self.order(deputy, node, report)
            elif guest is not None:
                await self.send(guest, node, report)
        except HandoverRefused:
            raise  # another journey is being told
        except (OmfsError, OSError) as error:
            if last.state is State.UNDER_WAY:
                report(replace(last, state=State.STAYED, reason=str(error)))
            raise
        if last.state is State.UNDER_WAY and last.stages:  # its last words were lost with the line
            report(replace(last, state=State.ARRIVED))

    async def order(self, deputy: Deputy, node: int, report: Report) -> None:
        """Of a guest of ours, wherever it runs; returns when it is there and has found its way home."""
        if not await deputy.wait_way() or deputy.way is None:  # it may have just come to where it is
            raise NodeDown(_NO_WAY)
        if deputy.way.node_id == node:
            return
        try:
            await deputy.way.move(node, report)
        except NodeDown:  # the way is lost also when it has just left
            if not await deputy.wait_way() or node not in (BEST, deputy.way.node_id):
                raise
        await deputy.wait_way(node)

    async def send(self, guest: Guest, node: int, report: Report) -> None:
        """One that runs here."""
        if node == BEST and self.balance is not None:
            node = await self.balance.best_for(guest)
        transit = self._transit()
        if node == transit.here:
            return
        if node not in transit.standing.node_map.nodes:
            raise RemoteFailure(errno.EINVAL, f"node {node} is not in the map")
        await guest.wait_saved()
        try:
            await migrate(guest, node, transit, self._registry, report)
        except (HandoverRefused, NodeDown, CheckpointError):
            raise
        except (OmfsError, OSError) as error:  # its errno may be anybody's; the reason is in the journey as well
            number = error.errno if error.errno == errno.EROFS and isinstance(error, RemoteFailure) else errno.EIO
            raise RemoteFailure(number, str(error)) from None

    async def why(self, process: Identity, *, is_brief: bool) -> str:
        """Why it can't move, in words, as the node where it runs finds; brief ones have no names of files."""
        deputy, guest = self._whose(process)
        if deputy is not None:
            if not await deputy.wait_way() or deputy.way is None:
                raise NodeDown(_NO_WAY)
            return await deputy.way.why(is_brief)
        if guest is not None:
            return await self.why_of(guest, is_brief=is_brief)
        found = await trio.to_thread.run_sync(why, process, abandon_on_cancel=True, limiter=self.looks)
        return told(without_names(found) if is_brief else found)

    async def why_of(self, guest: Guest, *, is_brief: bool) -> str:
        """One that runs here."""
        found = await reasons_of(guest, self.looks)
        return told(without_names(found) if is_brief else found)

    async def why_there(self, process: Identity) -> str:
        """The last decision where it should run, as JSON; "": there is none, or it is no guest's.  Raises OmfsError."""
        deputy, guest = self._whose(process)
        if deputy is not None:
            if not await deputy.wait_way() or deputy.way is None:
                raise NodeDown(_NO_WAY)
            return told_with(await deputy.way.why_there(), deputy.began)
        return self.why_here(guest) if guest is not None else ""

    def why_here(self, guest: Guest) -> str:
        """One that runs here."""
        return self.balance.why(guest) if self.balance is not None else ""

    async def selected(self, process: Identity, node: int | None) -> int | None:
        """As `selected_here`, of the guest that this process stands for; None: it stands for none.

        Raises OmfsError, OSError.
        """
        deputy = self.deputy_of(process)
        if deputy is None:
            return None
        if not await deputy.wait_way() or deputy.way is None:
            raise NodeDown(_NO_WAY)
        return await deputy.way.selected(node)

    async def selected_here(self, guest: Guest, node: int | None) -> int:
        """What the root of one that runs here has selected; *node*: selects that first, unless it is None.

        Its own entry has it, which no other process hears of.  Raises OmfsError, OSError.
        """
        await guest.wait_settled()  # as it was when it was frozen, so it will be where it goes
        if guest.has_departed:
            raise RemoteFailure(errno.EAGAIN, "it has just gone to another node")
        root = processes.identify(await guest.body.outer_root())
        if root is None:
            raise ProcessLookupError(errno.ESRCH, "it has ended")
        if node is not None:
            await self._registry.select(root, node)
        return self._registry.entry_of(root).place.selected

    async def settings_of(self, guest: Guest) -> Settings:
        """All that is set for one that runs here, as its home has it now.  Raises OmfsError, OSError."""
        deputy = self._deputies.get(guest.name)
        if deputy is not None:
            return self._settings.whole(deputy.traits)
        values = {name: await _link_of(guest).ask_setting(name) for name in sorted(OF_GUEST)}
        return settings_from(values)

    async def send_by_balance(self, guest: Guest, node: int, learn: Report) -> None:
        """One that runs here; nobody has asked for it.  Its journey is told as any."""
        deputy = self._deputies.get(guest.name)

        def report(journey: Journey) -> None:
            learn(journey)
            if deputy is not None:
                self._report(deputy_in(guest.name), journey)
            elif guest.link is not None:
                guest.link.tell_journey(journey)

        await self.send(guest, node, report)

    async def set_of(self, guest: Guest, name: str, value: Value) -> None:
        """One of guestsettings.OF_GUEST, of one that runs here.  Raises OmfsError, OSError."""
        deputy = self._deputies.get(guest.name)
        if deputy is not None:
            await self._settings.change(deputy.traits, name, value)
        else:
            await _link_of(guest).change_setting(name, value)

    async def mark_of(self, process: Identity) -> str:
        """What the guest's program is now, as decay.py marks it; "" where it is no guest's that runs here."""
        guest = self._guests.of(process)
        return await guest.mark() if guest is not None else ""

    def forget_past(self, process: Identity) -> None:
        """Of the guest that it belongs to and that runs here, if any."""
        guest = self._guests.of(process)
        if guest is not None and self.balance is not None:
            self.balance.forget(guest)

    async def setting(self, process: Identity, name: str) -> Value | None:
        """One of guestsettings.OF_GUEST; None: it is no guest's.  Raises OmfsError where home can't be asked."""
        deputy, guest = self._whose(process)
        if deputy is not None:
            return self._settings.read(deputy.traits, name)
        return await _link_of(guest).ask_setting(name) if guest is not None else None

    async def change_setting(self, process: Identity, name: str, value: Value) -> bool:
        """False: it is no guest's.  Raises OmfsError, OSError."""
        deputy, guest = self._whose(process)
        if deputy is not None:
            await self._settings.change(deputy.traits, name, value)
        elif guest is not None:
            await _link_of(guest).change_setting(name, value)
        return deputy is not None or guest is not None

    def _whose(self, process: Identity) -> tuple[Deputy | None, Guest | None]:
        """The deputy, where it is at home here; else the guest that runs here."""
        deputy = self.deputy_of(process)
        if deputy is not None:
            return deputy, None
        guest = self._guests.of(process)
        return (self._deputies.get(guest.name) if guest is not None else None), guest


def _link_of(guest: Guest) -> HomeLink:
    """Raises NodeDown."""
    if guest.link is None:
        raise NodeDown("there is no way to its home")
    return guest.link


class HereWay:
    """A deputies.BodyWay to a guest that runs at home."""

    def __init__(self, guest: Guest, moves: Moves, node_id: int) -> None:
        self.node_id = node_id
        self._guest = guest
        self._moves = moves

    def send_frame(self, frame: bytes) -> None:
        self._guest.send_frame(frame)

    def meet(self, home: HomeWay | None) -> None:
        self._guest.meet(home)

    def deputy_lost(self) -> None:
        self._guest.deputy_lost()

    def deputy_stopped(self) -> None:
        self._guest.deputy_stopped()

    async def move(self, destination: int, report: Report) -> None:
        await self._moves.send(self._guest, destination, report)

    async def why(self, is_brief: bool) -> str:
        return await self._moves.why_of(self._guest, is_brief=is_brief)

    async def why_there(self) -> str:
        return self._moves.why_here(self._guest)

    async def selected(self, node: int | None) -> int:
        return await self._moves.selected_here(self._guest, node)
