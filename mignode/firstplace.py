"""What a new guest begins with: what holds for who called mosrun, the lock and decay that its options say; its node.

It begins at home.  Where a place was asked for it is moved before its user hears of it; what it does in the few
milliseconds until then, it does at home.  Of several nodes the cheapest is taken (policy.py), and the others are tried
where that can't take it.  Where nothing was said it runs, and when it has run for as long as a move takes (who ends
sooner was not worth one) it goes elsewhere, if that is clearly better.  Nobody waits for that, and if it fails it goes
on here.  The decision is kept with the deputy, for `mosctl why`.
Called by door.py.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
from collections.abc import Callable, Collection
from typing import Final

import trio
from msgspec.structs import replace

from mignode import decay, policy
from mignode.balance import Balance
from mignode.deputies import Deputy
from mignode.guest import Guest
from mignode.guests import Guests
from mignode.guestsettings import GuestSettings
from mignode.mosrunoptions import Job, Lock, Options
from mignode.moves import Moves
from mignode.registry import Registry
from mignode.traits import Traits, deputy_in
from omfs.errors import BodyLost, HandoverRefused, OmfsError, RemoteFailure
from omfs.kernel import processes

_END_TOLD_S: Final = 0.2
_STARTS_MAX: Final = 2  # that go elsewhere at a time; who waits for that is looked at when it is his turn

log: Final = logging.getLogger(__name__)


class FirstPlace:
    """*nodes*: the ids of the map, as it is now."""

    def __init__(
        self,
        registry: Registry,
        moves: Moves,
        settings: GuestSettings,
        balance: Balance,
        guests: Guests,
        nodes: Callable[[], Collection[int]],
    ) -> None:
        self._registry = registry
        self._moves = moves
        self._settings = settings
        self._balance = balance
        self._guests = guests
        self._nodes = nodes
        self._starts = trio.CapacityLimiter(_STARTS_MAX)

    def candidates(self, options: Options) -> list[int]:
        """Where it may begin, the first to be tried first; nothing: anywhere.  Raises RemoteFailure(EINVAL)."""
        own, known = self._registry.own_id, self._nodes()
        wanted = {node or own for low, high in options.nodes for node in range(low, high + 1)}
        found = [node for node in wanted if node in known]
        if wanted and not found and not options.may_fall_back:
            raise RemoteFailure(errno.EINVAL, f"{_named(wanted)} not in the map of this cluster")
        random.shuffle(found)
        return found

    async def inherit(self, traits: Traits, init: int) -> None:
        """What is below this init, no child of mosrun, has what a child would have.  Before there is a program."""
        deputy, process = deputy_in(traits.name), processes.identify(init)
        if process is not None and self._registry.resolve(deputy) is not None:
            await self._registry.arrived([self._registry.entry_of(deputy).passed_to(process)])

    async def settle(
        self, deputy: Deputy, guest: Guest, options: Options, candidates: Collection[int], *, is_new: bool
    ) -> None:
        """Raises OmfsError where it can begin on none of these, and nowhere else; then it is the caller's to end.

        *is_new*: nothing is known of what it will do, so the policy may say where, if nobody did.
        """
        if options.lock is not Lock.KEEP:
            await self._settings.change(deputy.traits, "lock", int(options.lock is Lock.LOCK))
        await self._classify(deputy.traits, guest, options)
        if candidates:
            failure = await self._begin_on(guest, await self._cheapest_first(candidates))
            if failure is not None and not options.may_fall_back:
                raise failure
        elif options.at_best:
            await self._begin_at_best(deputy, guest)
        elif is_new and not options.nodes and self._settings.whole(deputy.traits).decay.job is not Job.IO:
            self._balance.begins(guest)
            self._guests.nursery.start_soon(self._begin_anywhere, deputy, guest)

    async def _classify(self, traits: Traits, guest: Guest, options: Options) -> None:
        """Its class of decay: what mosrun was told, else what holds for who called it."""
        before = self._settings.whole(traits).decay
        wanted = decay.chosen(options, before)
        if wanted.says_something:
            wanted = replace(wanted, mark=await guest.mark())
        if wanted != before:
            await self._settings.change(traits, "decay", decay.spelled(wanted))

    async def _cheapest_first(self, candidates: Collection[int]) -> list[int]:
        """In the order as they come where they cost the same, or nothing is known."""
        view = await self._balance.view() if len(candidates) > 1 else None
        return policy.by_price(view, candidates) if view is not None else list(candidates)

    async def _begin_on(self, guest: Guest, candidates: Collection[int]) -> OmfsError | None:
        """On the first that takes it; why not, where none does."""
        failure: OmfsError | None = None
        for node in candidates:
            self._balance.goes_on(guest, node)
            try:
                await self._moves.move(deputy_in(guest.name), node)
                return None
            except (OmfsError, OSError) as error:
                self._balance.ended(guest.name)
                if await _has_ended(guest):
                    return None
                failure = error if isinstance(error, OmfsError) else RemoteFailure(error.errno or errno.EIO, str(error))
        return failure

    async def _begin_at_best(self, deputy: Deputy, guest: Guest) -> None:
        """Or here, where that can't be: nobody has said where."""
        decision = await self._decide(deputy, guest, at_any_gain=True)
        if decision is not None and decision.moves:
            failure = await self._begin_on(guest, [decision.target])
            if failure is not None:
                deputy.began = policy.refused(decision, str(failure))

    async def _begin_anywhere(self, deputy: Deputy, guest: Guest) -> None:
        """It runs here meanwhile."""
        await trio.sleep(self._balance.patience_s())
        async with self._starts:
            decision = None
            try:
                decision = await self._decide(deputy, guest, at_any_gain=False)
                if decision is not None and decision.moves:
                    await self._balance.start_at(guest, decision.target)
            except (OmfsError, OSError) as error:
                self._balance.ended(guest.name)
                deputy.began = None
                if decision is not None and not isinstance(error, HandoverRefused):  # its user was quicker
                    log.info("guest %s goes on here: %s", guest.name, error)
                    deputy.began = policy.refused(decision, str(error))

    async def _decide(self, deputy: Deputy, guest: Guest, *, at_any_gain: bool) -> policy.Decision | None:
        """None: nothing is known of the nodes, or it has ended, or left."""
        view = await self._balance.view()
        if view is None or self._guests.get(guest.name) is not guest or guest.is_departing:
            self._balance.ended(guest.name)
            return None
        settings = self._settings.whole(deputy.traits)
        demand = decay.weighed(settings.decay, self._balance.demand_of(guest))
        new = policy.new_guest(guest.name, view.here, settings, demand)
        deputy.began = policy.first_place(view, new, at_any_gain=at_any_gain)
        self._balance.goes_on(guest, deputy.began.target)
        return deputy.began


async def _has_ended(guest: Guest) -> bool:
    """Its end may be why it could not move, and not be told yet."""
    with trio.move_on_after(_END_TOLD_S), contextlib.suppress(BodyLost):
        await guest.body.wait_root_ended()
    return not guest.body.root


def _named(nodes: Collection[int]) -> str:
    return f"node {min(nodes)} is" if len(nodes) == 1 else f"nodes {min(nodes)} to {max(nodes)} are"
