"""Has guests of this node run where it is best for them: looks at all of them every second, and moves at most one.

The decision is policy.py's.  Here are its facts: what is known of the nodes (gossip's records), what each guest uses
(guestusage.py), and what is set for it, which its home is asked for again before anybody is moved: whoever has been
told that a lock holds is obeyed.  The last decision of each guest is kept, with its terms, for `mosctl why`; and what
is known of its past, for the node to which it goes (Guest.past).

`best_for` answers who asks for a move himself (goto of -1).  A guest that could not be moved is left alone for a while.
What a new one needs to find its first place is said here, too.
Called by guesthouse.py, firstplace.py and moves.py.
"""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from mignode import decay, guestusage, policy, tuning
from mignode.adminvalues import AdminStore
from mignode.book import Settings
from mignode.deputies import Report
from mignode.guest import Guest
from mignode.guests import Guests
from mignode.guestusage import Meter, Remote, Used
from mignode.journey import Journey, State
from mignode.nodefacts import Allowed
from mignode.nodeinfo import BLOCK, LSTAY, STANDARD_SPEED, STAY, NodeInfo, running
from mignode.past import UNREST_MAX, Past
from mignode.policy import Cluster, Decision, Node, Sent
from mignode.weighing import Costs, Demand, Load, moving_s
from omfs.errors import HandoverRefused, OmfsError, RemoteFailure
from omfs.magic.controlfiles import Value

LOOK_S: Final = 1.0
STALE_S: Final = 10.0  # what is known of a node is older: it is as good as down
SETTINGS_S: Final = 5.0  # what is set for a guest of another node is asked for so often
SETTINGS_WITHIN_S: Final = 2.0  # or it stays, as the guests of a home that is down
CALM_S: Final = 600.0  # half of a guest's unrest is forgotten
PAST_KEPT_S: Final = 10.0  # what is known of a guest is written down so often, for the mignode that comes after us
LOOK_LEAST_S: Final = 0.1  # ticks are 10 ms: less than that says nothing
LEFT_ALONE_S: Final = 30.0  # who could not be moved
STANDARD_BYTES: Final = 16 << 20  # less says nothing of how fast the network is

News = Callable[[], Awaitable[list[NodeInfo]]]
AskSettings = Callable[[Guest], Awaitable[Settings]]
Send = Callable[[Guest, int, Report], Awaitable[None]]
SetOf = Callable[[Guest, str, Value], Awaitable[None]]

log: Final = logging.getLogger(__name__)


async def _nothing() -> list[NodeInfo]:
    return []


class _Known:
    """What is known of a guest that runs here."""

    def __init__(self, guest: Guest, meter: Meter, now_s: float) -> None:
        self.guest = guest
        self.meter = meter
        self.demand: Demand | None = None
        self.looked_s = -LOOK_LEAST_S
        self.settings = Settings()
        self.settings_s = -SETTINGS_S
        self.here_s = self.kept_s = now_s
        self.unrest, self.unrest_s = guest.past.unrest, now_s
        self.must_stay, self.stays_until_s = "", now_s
        self.decision: Decision | None = None

    def restless(self, now_s: float) -> float:
        return float(self.unrest * 0.5 ** ((now_s - self.unrest_s) / CALM_S))

    def past(self, now_s: float, moves: int = 0) -> Past:
        """*moves*: that nobody has asked for, and that are to come."""
        return self.meter.past(self.restless(now_s) + moves)

    def seen_by_policy(self, now_s: float) -> policy.Guest:
        assert self.demand is not None
        guest = self.guest
        must_stay = self.must_stay if now_s < self.stays_until_s else ""
        if guest.is_departing:
            must_stay = "it is on its way already"
        return policy.Guest(
            guest.name, guest.traits.home, decay.weighed(self.settings.decay, self.demand), self.meter.worked_s,
            now_s - self.here_s, self.restless(now_s), self.settings, must_stay,
        )  # fmt: skip


class Balance:
    """Of this node, *here*.  *ask_settings*: what is set for a guest, by its home; *set_of*: sets that; *send*: moves
    it.
    """

    def __init__(
        self, guests: Guests, here: int, store: AdminStore, mount: Path, ask_settings: AskSettings, set_of: SetOf,
        send: Send,
    ) -> None:  # fmt: skip
        self.news: News = _nothing
        """What is known of all nodes, this one too; nobody is moved as long as that is nothing."""
        self._infos: list[NodeInfo] = []
        self._guests = guests
        self._here = here
        self._store = store
        self._mount = mount
        self._ask_settings = ask_settings
        self._set_of = set_of
        self._send = send
        self._known: dict[str, _Known] = {}
        self._sent = Sent()
        self._bytes_per_s = 0.0  # as the last moves have shown; 0: not yet
        self._allowed = Allowed()
        self._is_moving = False

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(LOOK_S)
                try:
                    await self._look(nursery)
                except (OmfsError, OSError) as error:
                    log.warning("nobody was balanced: %s", error)

    def why(self, guest: Guest) -> str:
        """The last decision, as JSON; nothing before there is one."""
        known = self._known.get(guest.name)
        if known is None or known.decision is None:
            return ""
        judged_as = decay.for_people(known.settings.decay, self._admin())
        return policy.told(msgspec.structs.replace(known.decision, judged_as=judged_as))

    async def view(self) -> Cluster | None:
        """The nodes as they are known now; None: not even this one is, and whoever begins is not to fail for that."""
        try:
            self._infos = await self.news()
        except (OmfsError, OSError) as error:
            log.warning("nothing is known of the nodes: %s", error)
            return None
        nodes = self._nodes()
        return Cluster(self._here, nodes, self._costs(), random.random()) if self._here in nodes else None

    def patience_s(self) -> float:
        """As long as a move takes: who ends sooner was not worth one."""
        return moving_s(policy.UNKNOWN, self._costs())

    def begins(self, guest: Guest) -> None:
        """It is new, and counts nowhere until `goes_on` says where."""
        self._sent.begins(trio.current_time(), guest.name, self._here, policy.UNKNOWN)

    def goes_on(self, guest: Guest, node: int) -> None:
        self._sent.goes_on(trio.current_time(), guest.name, node, self.demand_of(guest))

    def ended(self, name: str) -> None:
        """A guest of ours, which was new: many that were short are no load.  Or it could not go elsewhere."""
        self._sent.forget(name)

    def demand_of(self, guest: Guest) -> Demand:
        """Of a new one, which may have waited for its turn so long that something is known."""
        known = self._known.get(guest.name)
        return known.demand if known is not None and known.demand is not None else policy.UNKNOWN

    async def start_at(self, guest: Guest, node: int) -> None:
        """As balancing moves one; where it can't go it goes on here.  Raises OmfsError, OSError."""
        await self._travel(guest, node)

    async def _travel(self, guest: Guest, node: int) -> None:
        self._sent.departs(trio.current_time(), guest.name)
        try:
            await self._send(guest, node, self._learn)
        except BaseException:
            self._sent.forget(guest.name)
            raise
        self._sent.arrived(trio.current_time(), guest.name)

    def frozen(self) -> float:
        """How many threads of guests here ran or wanted to before these were frozen."""
        known = [one for one in self._known.values() if one.guest.is_frozen and one.demand is not None]
        return sum(one.demand.running for one in known if one.demand is not None)

    def forget(self, guest: Guest) -> None:
        """What it did before now."""
        guest.past = Past()
        self._known.pop(guest.name, None)
        self._keep_past(guest)

    async def best_for(self, guest: Guest) -> int:
        """Where its user, who asks, has it moved.  Raises RemoteFailure: it is locked, or nothing is known."""
        await self._measure()
        nodes = self._nodes()
        known = self._known.get(guest.name)
        if known is None or known.demand is None or self._here not in nodes:
            raise RemoteFailure(errno.EAGAIN, "it is not known yet what it does, or how the nodes are; try again")
        known.settings = await self._ask_settings(guest)
        if known.settings.lock:
            raise RemoteFailure(errno.EROFS, "the process is locked")
        seen = known.seen_by_policy(trio.current_time())._replace(must_stay="")
        known.decision = policy.best_place(Cluster(self._here, nodes, self._costs()), seen)
        return known.decision.target

    # ------------------------------------------------------------ one look

    async def _look(self, nursery: trio.Nursery) -> None:
        await self._measure()
        nodes = self._nodes()
        if self._here not in nodes or self._is_moving:
            return
        cluster = Cluster(self._here, nodes, self._costs(), random.random())
        async with trio.open_nursery() as asking:
            for known in self._measured():
                asking.start_soon(self._refresh, known)
        here = self._measured()  # some may be gone by now, or begin anew
        now_s = trio.current_time()
        found = policy.decide(cluster, [known.seen_by_policy(now_s) for known in here])
        for known, decision in zip(here, found, strict=True):
            known.decision = decision
            if decision.moves:
                nursery.start_soon(self._move, known, cluster)
                self._is_moving = True

    def _measured(self) -> list[_Known]:
        """Of guests that are here."""
        known = [(guest, self._known.get(guest.name)) for guest in self._guests if not guest.has_departed]
        return [one for guest, one in known if one is not None and one.guest is guest and one.demand is not None]

    async def _measure(self) -> None:
        """Looks at everybody, unless that was done just now."""
        guests = [guest for guest in self._guests if not guest.is_departing]
        self._known = {name: one for name, one in self._known.items() if self._guests.get(name) is one.guest}
        if not guests:
            return
        self._infos = await self.news()
        remote = await guestusage.ask_mount(self._mount)
        for guest in guests:
            try:
                pids = list((await guest.body.all_pids()).values())
                used, namespace = await trio.to_thread.run_sync(_look_at, guest.body.pid, pids)
            except (OmfsError, OSError):  # it is ending
                continue
            self._note(guest, used, remote.get(namespace, {}))

    def _note(self, guest: Guest, used: Used, remote: Remote) -> None:
        """What a look has shown; unless somebody else has looked just now."""
        now_s = trio.current_time()
        known = self._known.get(guest.name)
        if known is None:
            known = self._known[guest.name] = self._begun(guest, now_s)
        if now_s - known.looked_s < LOOK_LEAST_S or guest.is_departing:
            return
        known.looked_s = now_s
        known.meter.set_speed(self._speed())
        known.meter.set_pace(decay.pace(known.settings.decay, self._admin()))
        known.demand = known.meter.advance(now_s, used, remote) or known.demand
        guest.past = known.past(now_s)
        if now_s - known.kept_s >= PAST_KEPT_S:
            known.kept_s = now_s
            self._keep_past(guest)

    def _keep_past(self, guest: Guest) -> None:
        try:
            guest.folder.past = guest.past
        except OSError as error:
            log.warning("the past of guest %s can't be written down: %s", guest.name, error)

    def _begun(self, guest: Guest, now_s: float) -> _Known:
        pace = decay.pace(decay.DecayClass(), self._admin())
        return _Known(guest, Meter(self._here, self._speed(), pace, guest.past), now_s)

    def _admin(self) -> decay.Admin:
        values = self._store.values
        return decay.Admin(values.decayinterval, values.slowdecay, values.fastdecay)

    def _speed(self) -> float:
        """Of a processor, 1 the standard, as the kernel counts its time; the node may have a part of that."""
        speed = next((info.speed for info in self._infos if info.node == self._here), STANDARD_SPEED)
        return speed / STANDARD_SPEED / self._allowed.processors()[1]

    async def _refresh(self, known: _Known) -> None:
        """What is set for it; where its home does not answer it stays."""
        if known.guest.link is not None and trio.current_time() - known.settings_s < SETTINGS_S:
            return
        try:
            with trio.fail_after(SETTINGS_WITHIN_S):
                known.settings = await self._ask_settings(known.guest)
                await self._look_what_it_executes(known)
        except (OmfsError, OSError, trio.TooSlowError) as error:
            known.must_stay = f"its home does not say what is set for it: {str(error) or 'no answer'}"
            known.stays_until_s = trio.current_time() + SETTINGS_S + SETTINGS_WITHIN_S
        known.settings_s = trio.current_time()

    async def _look_what_it_executes(self, known: _Known) -> None:
        """Its class of decay may end when its program executes another one."""
        guest, before = known.guest, known.settings.decay
        if not before.says_something:
            return
        mark = await guest.mark()
        after = decay.executed(before, mark) if before.mark else msgspec.structs.replace(before, mark=mark)
        if after != before:
            await self._set_of(guest, "decay", decay.spelled(after))
            known.settings = msgspec.structs.replace(known.settings, decay=after)

    def _nodes(self) -> dict[int, Node]:
        found = {info.node: _node(info, self._here) for info in self._infos}
        return self._sent.corrected(found, trio.current_time())

    def _costs(self) -> Costs:
        """As `tune` has measured them, or moves have shown."""
        values = self._store.values
        return tuning.costs(values.overheads, values.mfscosts, self._bytes_per_s)

    # ------------------------------------------------------------ moving

    async def _move(self, known: _Known, cluster: Cluster) -> None:
        """If it may still, by what is set for it, this node and the others now."""
        guest = known.guest
        try:
            with trio.fail_after(SETTINGS_WITHIN_S):
                known.settings = await self._ask_settings(guest)
            self._infos = await self.news()
            nodes, now_s = self._nodes(), trio.current_time()
            if self._here not in nodes or known.demand is None:
                return
            decision = policy.decide(cluster._replace(nodes=nodes), [known.seen_by_policy(now_s)])[0]
            known.decision = decision
            if not decision.moves:
                return
            log.info("guest %s goes to node %d: %s", guest.name, decision.target, decision.reason)
            self._sent.note(now_s, self._here, decision.target, known.demand, guest.name)
            guest.past = known.past(now_s, moves=1)
            await self._travel(guest, decision.target)
        except HandoverRefused:
            pass  # somebody else moves it
        except (OmfsError, OSError, trio.TooSlowError) as error:
            reason = str(error) or "its home does not say what is set for it: no answer"
            log.info("guest %s stays: %s", guest.name, reason)
            self._leave_alone(known, reason)
        finally:
            self._is_moving = False

    def _leave_alone(self, known: _Known, reason: str) -> None:
        now_s = trio.current_time()
        known.unrest, known.unrest_s = min(UNREST_MAX, known.restless(now_s) + 1), now_s
        known.guest.past = known.past(now_s)
        known.must_stay, known.stays_until_s = reason, now_s + min(CALM_S, LEFT_ALONE_S * 2**known.unrest)

    def _learn(self, journey: Journey) -> None:
        """How fast memory goes over."""
        seconds = sum(stage.seconds for stage in journey.stages if stage.bytes)
        if journey.state is State.ARRIVED and journey.sent_bytes >= STANDARD_BYTES and seconds:
            nodes = self._nodes()
            loads = [nodes[node].load for node in (self._here, journey.target) if node in nodes]
            crowd = max((load.running / load.cpus for load in loads), default=1.0)
            self._bytes_per_s = tuning.learned(journey.sent_bytes, seconds, max(1.0, crowd))


def _look_at(init: int, pids: list[int]) -> tuple[Used, int]:
    return guestusage.look(init, pids), guestusage.namespace_of(init)


def _node(info: NodeInfo, here: int) -> Node:
    speed = info.speed / STANDARD_SPEED
    load = Load(max(1, info.cpus), speed, running(info), info.mem_total, info.mem_free)
    is_known = info.node == here or (info.tells_load and info.age_s < STALE_S)
    flags = (bool(info.status & bit) for bit in (STAY, LSTAY, BLOCK))
    return Node(info.node, load, is_known, *flags)
