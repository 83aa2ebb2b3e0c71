"""The owner's side of leases: who holds what, what must be recalled before a request, what may be granted after it.

A request says how it uses which objects.  If no other holder is in the way (`is_free`) it is executed at once; that is
nearly always so and costs nothing.  Otherwise it takes a `Ticket`: recalls go out, and it is executed when all are
answered.  While a ticket is open nothing is granted on what it changes.  A reply carries what is granted.

    event                       | effect
    ----------------------------+---------------------------------------------------------------
    begin                       | recalls to send; the ticket is ready when all are answered
    returned, ended, lapsed     | leases end, recalls are answered: tickets become ready
    grant                       | SHARED unless another is EXCLUSIVE, the object is being changed, or it is contended;
                                | EXCLUSIVE where nobody else holds or waits for anything of it
    refuse_stuck                | where tickets wait for each other in a circle, one is refused

A circle: forgetting a name waits in that node's kernel for the lock of the directory, which its own unlink, create or
rename keeps until we answer; and that one waits for others who must forget names.  Holders answer all the same
(mount/recall.py), but where one does not in time, `refuse_stuck` takes a call out of the circle: it is answered with
ESTALE, the VFS lets the lock go and makes the call again, once, and for CONTENDED_S nothing is granted on its
directories.

While holders that nobody knows may have leases (`in_grace`), whoever needs anything waits.  (Who looks at a directory
needs nothing of it: it is never EXCLUSIVE.)  What those holders have to write goes first (*despite_grace*).

A serial counts the grants and recalls of each session; a recall voids all grants up to its own.  Keys and handles
are bytes.  Pure: (event, now) -> state and effects; no I/O, no clock.  Times in seconds of any clock that
does not go back.  Called by export/leasing.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

from omfs.cache.circles import circle_through
from omfs.cache.leased import (
    Change as Change,
    Handle as Handle,
    Held,
    Holder,
    Leased,
    Need as Need,
    Recall as Recall,
    SessionKey as SessionKey,
    Ticket as Ticket,
)
from omfs.cache.rules import DEMANDS, Demand, Use, may_hold
from omfs.wiretypes import Mode

CONTENDED_S: Final = 1.0  # so long a directory in which two nodes met each other's locks is not cached by anybody
STUCK_S: Final = 0.5  # forgetting takes milliseconds; who waits longer, while waited for, may do so for ever

OF_DIRECTORIES: Final = frozenset({Use.NAME, Use.CHANGE_DIRECTORY})


class Owner:
    """All leases of one node's objects.

    *changes*: for the table, to be taken away by the caller.  *exclusive*: the objects that are held so, and by whom;
    *shared_again*: those that are no longer, to be taken away too.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.exclusive: dict[Handle, SessionKey] = {}
        self.shared_again: list[Handle] = []
        self._objects: dict[Handle, Leased] = {}
        self._holders: dict[SessionKey, Holder] = {}
        self._waiting: list[Ticket] = []
        self._refused_s: dict[tuple[SessionKey, Handle], float] = {}  # in which directories who was refused of late
        self.in_grace = False

    # ------------------------------------------------------------ what is held

    def __len__(self) -> int:
        """Leases held."""
        return sum(len(holder.handles) for holder in self._holders.values())

    def held_by_others(self, session: SessionKey) -> bool:
        """Whether any session but this one has a lease."""
        return any(holder.handles for key, holder in self._holders.items() if key != session)

    def held_by(self, session: SessionKey) -> int:
        """The number of the session's leases."""
        holder = self._holders.get(session)
        return len(holder.handles) if holder else 0

    def leases(self) -> Iterator[Change]:
        """Every lease."""
        for handle, leased in self._objects.items():
            for session, held in leased.held.items():
                yield Change(session, handle, held.mode, held.serial)

    def leases_of(self, session: SessionKey) -> Iterator[Change]:
        """Those of one session."""
        holder = self._holders.get(session)
        for handle in holder.handles if holder else ():
            held = self._objects[handle].held[session]
            yield Change(session, handle, held.mode, held.serial)

    def mode_of(self, session: SessionKey, handle: Handle) -> Mode:
        leased = self._objects.get(handle)
        held = leased.held.get(session) if leased else None
        return held.mode if held else Mode.NONE

    def is_held(self, handle: Handle) -> bool:
        leased = self._objects.get(handle)
        return leased is not None and bool(leased.held)

    def holders_of(self, handle: Handle) -> list[SessionKey]:
        leased = self._objects.get(handle)
        return list(leased.held) if leased else []

    def recalls_at(self, session: SessionKey) -> list[Recall]:
        """Sent to the session and not answered."""
        holder = self._holders.get(session)
        return list(holder.recalls.values()) if holder else []

    # ------------------------------------------------------------ requests

    def is_free(self, session: SessionKey, needs: Iterable[Need], despite_grace: bool = False) -> bool:
        """Whether a request may be executed now, without a ticket, if it is over before the next event."""
        for handle, use, _, everybody in needs:
            if self.in_grace and not despite_grace:
                return False
            leased = self._objects.get(handle)
            if leased is not None:
                for other, held in leased.held.items():
                    if (other != session or everybody) and DEMANDS[use, held.mode]:
                        return False
        return True

    def begin(
        self, session: SessionKey, needs: tuple[Need, ...], now_s: float, despite_grace: bool = False
    ) -> tuple[Ticket, list[Recall]]:
        """A ticket for the request, and the recalls to send.  To be ended, also when it is refused (`ready` tells)."""
        ticket = Ticket(session, needs, now_s, despite_grace)
        for need in needs:
            wanted = self._leased(need.handle)
            wanted.waiting += 1
            wanted.changing += need.use is not Use.LOOK
            wanted.is_directory |= need.use in OF_DIRECTORIES
        self._waiting.append(ticket)
        recalls: list[Recall] = []
        for handle in dict.fromkeys(need.handle for need in needs):
            leased = self._objects.get(handle)
            for other, held in list(leased.held.items()) if leased else ():
                # All uses of the object together: a rename within a directory is one recall of two names.
                uses = [need for need in needs if need.handle == handle and (other != session or need.everybody)]
                is_contended = leased is not None and now_s < leased.contended_until_s
                demand = max((self._demand(need, held, is_contended) for need in uses), default=Demand.NOTHING)
                if demand:
                    names = tuple(need.name for need in uses if need.use is Use.NAME)
                    recall = self._find(other, handle, demand, names)
                    if recall is None:
                        recall = self._recall(other, handle, demand, names)
                        recalls.append(recall)
                    ticket.waits_for[recall] = None
        return ticket, recalls

    def end(self, ticket: Ticket) -> None:
        """The request was executed, or given up."""
        self._waiting.remove(ticket)
        for need in ticket.needs:
            leased = self._objects[need.handle]
            leased.waiting -= 1
            leased.changing -= need.use is not Use.LOOK
            self._tidy(need.handle, leased)

    def ready(self) -> list[Ticket]:
        """Open tickets that need not wait any more: ready to be executed, or refused."""
        return [
            ticket
            for ticket in self._waiting
            if ticket.refused or (ticket.is_ready and (ticket.despite_grace or not self.in_grace))
        ]

    @staticmethod
    def _demand(need: Need, held: Held, is_contended: bool) -> Demand:
        demand = DEMANDS[need.use, held.mode]
        is_idle = held.forgot_at == held.serial  # it asked for nothing since it last forgot: it looks elsewhere now
        if demand is Demand.FORGET_NAMES and need.use is Use.NAME and (is_idle or is_contended):
            return Demand.GIVE_BACK
        return demand

    def _find(self, session: SessionKey, handle: Handle, demand: Demand, names: tuple[bytes, ...]) -> Recall | None:
        """A recall under way that demands as much; nothing was granted since, so it will do."""
        for recall in self._objects[handle].recalls:
            if recall.session == session:
                if recall.names is None:
                    if recall.mode is Mode.NONE or demand is not Demand.GIVE_BACK:
                        return recall
                elif demand is Demand.FORGET_NAMES and set(names) <= set(recall.names):
                    return recall
        return None

    def _recall(self, session: SessionKey, handle: Handle, demand: Demand, names: tuple[bytes, ...]) -> Recall:
        holder, leased = self._holders[session], self._objects[handle]
        holder.serial += 1
        held = leased.held[session]
        if demand is Demand.FORGET_NAMES:
            held.forgot_at = held.serial
            recall = Recall(session, handle, holder.serial, held.mode, names)
        else:
            mode = Mode.SHARED if demand is Demand.SHARE else Mode.NONE
            recall = Recall(session, handle, holder.serial, mode)
        holder.recalls[recall.serial] = recall
        leased.recalls.append(recall)
        return recall

    # ------------------------------------------------------------ circles

    def refuse_stuck(self, now_s: float) -> None:
        """To be called now and then; afterwards `ready` tells who was refused."""
        for ticket in self._waiting:
            if ticket.waits_for and now_s - ticket.begun_s >= STUCK_S:
                self._refuse_circles(ticket, now_s)

    def _refuse_circles(self, ticket: Ticket, now_s: float) -> None:
        while circle := self._circle(ticket):
            refused_s = [self._refused_at(one) for one in circle]
            self._refuse(circle[refused_s.index(min(refused_s))], now_s)

    def _refused_at(self, ticket: Ticket) -> float:
        """When a call of this node in one of these directories was refused last."""
        return max(self._refused_s.get((ticket.session, handle), -math.inf) for handle in ticket.handles)

    def _refuse(self, ticket: Ticket, now_s: float) -> None:
        ticket.refused = True
        self._refused_s = {key: at_s for key, at_s in self._refused_s.items() if at_s > now_s - CONTENDED_S}
        for handle in filter(self._is_directory, ticket.handles):
            self._objects[handle].contended_until_s = now_s + CONTENDED_S
            self._refused_s[ticket.session, handle] = now_s

    def _circle(self, ticket: Ticket) -> list[Ticket]:
        return circle_through(ticket, self._blocked_by)

    def _blocked_by(self, ticket: Ticket) -> Iterator[Ticket]:
        """Those whose nodes keep the directory locked of which they must forget something for this one."""
        if ticket.refused:
            return
        for recall in ticket.waits_for:
            if self._is_directory(recall.handle):  # forgetting a file waits for no lock
                for other in self._waiting:
                    is_waiting = other.waits_for and not other.refused
                    if other.session == recall.session and is_waiting and any(map(self._is_directory, other.handles)):
                        yield other

    def _is_directory(self, handle: Handle) -> bool:
        leased = self._objects.get(handle)
        return leased is not None and leased.is_directory

    # ------------------------------------------------------------ grants

    def grant(
        self, session: SessionKey, handles: Iterable[Handle], now_s: float, mode: Mode = Mode.SHARED
    ) -> tuple[int, list[Mode]]:
        """What the session may hold of each from now on, by the reply that is being made, and its serial.

        *mode* is that of the first; of the others it is SHARED.
        """
        holder = self._holders.get(session)
        if holder is None:
            holder = self._holders[session] = Holder()
        serial = holder.serial = holder.serial + 1
        modes = []
        for handle in handles:
            modes.append(self._grant(session, holder, handle, serial, mode, now_s))
            mode = Mode.SHARED
        return serial, modes

    def may_be_exclusive(self, session: SessionKey, handle: Handle, now_s: float) -> bool:
        """Whether `grant` would give EXCLUSIVE now.  Who only looks must not wait in vain either."""
        if self.in_grace:
            return False
        leased = self._objects.get(handle)
        return leased is None or not (
            leased.waiting
            or now_s < leased.contended_until_s
            or any(key != session for key in leased.held)
            or self._is_recalled(leased, session)
        )

    def _grant(
        self, session: SessionKey, holder: Holder, handle: Handle, serial: int, mode: Mode, now_s: float
    ) -> Mode:
        leased = self._leased(handle)
        held = leased.held.get(session)
        if leased.contended_until_s and now_s >= leased.contended_until_s:
            leased.contended_until_s = 0.0
        if leased.changing or leased.contended_until_s or (leased.recalls and self._is_recalled(leased, session)):
            self._tidy(handle, leased)
            return Mode.NONE
        if held is not None and held.mode > mode:
            mode = held.mode  # it does not lose by asking for less
        if mode is Mode.EXCLUSIVE:
            if not self.may_be_exclusive(session, handle, now_s):
                self._tidy(handle, leased)
                return Mode.NONE
            self.exclusive[handle] = session
        elif len(leased.held) > (held is not None) and not all(
            key == session or may_hold(mode, other.mode) for key, other in leased.held.items()
        ):
            return Mode.NONE
        if held is None:
            leased.held[session] = Held(mode, serial)
            holder.handles.add(handle)
            self.changes.append(Change(session, handle, mode, serial))
        else:
            held.serial = serial
            if held.mode is not mode:
                held.mode = mode
                self.changes.append(Change(session, handle, mode, serial))
        return mode

    @staticmethod
    def _is_recalled(leased: Leased, session: SessionKey) -> bool:
        return any(recall.session == session for recall in leased.recalls)

    # ------------------------------------------------------------ returns

    def returned(self, session: SessionKey, serial: int) -> None:
        """The session answered the recall with this serial; an unknown one was overtaken by the session's end."""
        holder = self._holders.get(session)
        recall = holder.recalls.pop(serial, None) if holder else None
        if holder is None or recall is None:
            return
        leased = self._objects[recall.handle]
        leased.recalls.remove(recall)
        held = leased.held.get(session)
        if recall.names is None and held is not None and held.serial < serial and held.mode > recall.mode:
            if recall.mode is Mode.NONE:
                self._drop(session, holder, recall.handle, leased)
            else:
                self._share(session, recall.handle, held)
        for ticket in self._waiting:
            ticket.waits_for.pop(recall, None)
        self._tidy(recall.handle, leased)

    def share(self, session: SessionKey, handle: Handle) -> None:
        """The session has nothing to write there any more: of an EXCLUSIVE lease it keeps SHARED."""
        if self.exclusive.get(handle) == session:
            self._share(session, handle, self._objects[handle].held[session])

    def returned_all(self, session: SessionKey, serial: int) -> None:
        """The session caches nothing any more of what was granted up to *serial*."""
        holder = self._holders.get(session)
        for handle in list(holder.handles) if holder else ():
            self.give_back(session, handle, serial)

    def give_back(self, session: SessionKey, handle: Handle, serial: int) -> None:
        """The session caches nothing of this any more, if *serial* is that of its last grant."""
        holder, leased = self._holders.get(session), self._objects.get(handle)
        held = leased.held.get(session) if leased else None
        if holder is not None and leased is not None and held is not None and held.serial <= serial:
            self._drop(session, holder, handle, leased)
            self._tidy(handle, leased)

    def end_session(self, session: SessionKey) -> None:
        """The session holds nothing any more: it ended, its term is over, or it said so."""
        holder = self._holders.get(session)
        if holder is None:
            return
        for serial in list(holder.recalls):
            self.returned(session, serial)
        for handle in list(holder.handles):
            leased = self._objects[handle]
            self._drop(session, holder, handle, leased)
            self._tidy(handle, leased)

    def forget_session(self, session: SessionKey) -> None:
        """As `end_session`, for one that never comes back: its serials need not be remembered."""
        self.end_session(session)
        self._holders.pop(session, None)

    # ------------------------------------------------------------ what others than requests change

    def changed_here(self, handle: Handle, names: tuple[bytes, ...] | None = None) -> list[Recall]:
        """A native program changed the object, or only these *names* of the directory: recalls for all holders."""
        leased = self._objects.get(handle)
        demand = Demand.GIVE_BACK if names is None else Demand.FORGET_NAMES
        recalls = []
        for session in list(leased.held) if leased else ():
            if self._find(session, handle, demand, names or ()) is None:
                recalls.append(self._recall(session, handle, demand, names or ()))
        return recalls

    def recall_all(self, session: SessionKey) -> int:
        """A serial for the recall of everything that was granted to the session; answered: `returned_all`."""
        holder = self._holders.setdefault(session, Holder())
        holder.serial += 1
        return holder.serial

    def restore(self, leases: Iterable[tuple[SessionKey, Handle, Mode, int]]) -> None:
        """After a restart of the daemon: what the table says is held, as it was."""
        for session, handle, mode, serial in leases:
            holder = self._holders.setdefault(session, Holder())
            holder.serial = max(holder.serial, serial)
            holder.handles.add(handle)
            self._leased(handle).held[session] = Held(mode, serial)
            if mode is Mode.EXCLUSIVE:
                self.exclusive[handle] = session

    # ------------------------------------------------------------ bookkeeping

    def _leased(self, handle: Handle) -> Leased:
        leased = self._objects.get(handle)
        if leased is None:
            leased = self._objects[handle] = Leased()
        return leased

    def _share(self, session: SessionKey, handle: Handle, held: Held) -> None:
        held.mode = Mode.SHARED
        self._not_exclusive(handle)
        self.changes.append(Change(session, handle, held.mode, held.serial))

    def _not_exclusive(self, handle: Handle) -> None:
        del self.exclusive[handle]
        self.shared_again.append(handle)

    def _drop(self, session: SessionKey, holder: Holder, handle: Handle, leased: Leased) -> None:
        if leased.held.pop(session).mode is Mode.EXCLUSIVE:
            self._not_exclusive(handle)
        holder.handles.discard(handle)
        self.changes.append(Change(session, handle, Mode.NONE, 0))

    def _tidy(self, handle: Handle, leased: Leased) -> None:
        if not leased.held and not leased.waiting and not leased.recalls and not leased.contended_until_s:
            self._objects.pop(handle, None)
