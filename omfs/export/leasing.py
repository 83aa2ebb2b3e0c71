"""The leases of this node's objects: the pure machine (cache/owner.py) joined to sessions, the table and time.

Grants go out with replies (`grant`); a request that others are in the way of waits for them (`recalled`); what a native
program changed is recalled without anybody waiting (`changed_here`).  A holder that is not heard for a term has dropped
its caches by itself, so its leases end here.  One that is heard and does not answer a recall for a term loses its
session, and its leases when it says that it has dropped everything, or a term later.  Decides nothing about conflicts,
knows nothing of files.

What was granted is written to the table soon afterwards (tablewriter.py), and found by what the kernel tells of native
changes (leaseindex.py).  Invariant: no await between a check and what it allows.  Called by underleases.py, guards.py
and dropping.py; daemon.py runs `tend`.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from omfs import wire
from omfs.cache.latency import BOUNDS_S, Latency
from omfs.cache.owner import STUCK_S, Need, Owner, Recall, Ticket
from omfs.cache.rules import Use
from omfs.cache.table import DIRECTORY, LeaseTable, read_boot_id
from omfs.errors import ConfigError
from omfs.export.handles import is_regular, mount_of
from omfs.export.leaseindex import LeaseIndex
from omfs.export.tablewriter import TableWriter
from omfs.wiretypes import Mode

TEND_INTERVAL_S: Final = 0.25
LEASES_PER_SESSION_MAX: Final = 500_000  # about 300 MB here; what is asked beyond them is answered without a lease

log = logging.getLogger(__name__)


def open_table(state_dir: Path) -> LeaseTable:
    """The lease table of this node.  ConfigError."""
    path = state_dir / DIRECTORY
    try:
        return LeaseTable.open(path, read_boot_id())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; the lease table is kept there") from None


def _do_nothing(_: bytes) -> None:
    pass


class Asked(Protocol):
    """What a recall needs of a session (net.session.Session)."""

    node_id: int
    key: bytes
    software: str

    @property
    def small(self) -> object: ...
    def ask_soon(self, request: wire.Recall, on_answer: Callable[[bool], None]) -> None: ...
    def lease_lapsed(self, now_s: float, term_s: float) -> bool: ...


class Leasing:
    """*end_session*: throw a session out that does not answer."""

    def __init__(self, table: LeaseTable, term_s: float, end_session: Callable[[bytes, str], None]) -> None:
        self.owner = Owner()
        self.index = LeaseIndex(self.owner.is_held)
        self.writer = TableWriter(table, lambda: bool(self._uncertain), self.index.catch_up)
        self.on_shared_again: Callable[[bytes], None] = _do_nothing  # set by guards.py: an EXCLUSIVE lease has ended
        self.grants = self.recalls = self.refusals = 0
        self.latency = Latency()  # of recalls, from sending to the answer
        self._table = table
        self._term_s = term_s
        self._end_session = end_session
        self._sessions: dict[bytes, Asked] = {}
        self._waiting: dict[Ticket, trio.Event] = {}
        self._look_ups: set[Ticket] = set()  # among them
        self._sent_s: dict[tuple[bytes, int], float] = {}  # recalls under way, by session and serial
        self._nothing_held = trio.Event()
        self._no_ghosts = trio.lowlevel.ParkingLot()
        self._begun_s = trio.current_time()
        self.owner.restore((lease[0], lease[1], lease[2], lease[3]) for lease in table.leases())
        # Sessions that are no more, whose holders may use their caches until then (trio time).
        self._ghosts = {note.key: self._begun_s + term_s for note in table.sessions()}
        self._uncertain = set(self._ghosts) if table.was_behind else set()
        self._strangers_until_s = self._begun_s + (term_s if table.was_dropped else 0.0)
        self._look_at_grace()

    # ------------------------------------------------------------ sessions

    def begin_session(self, session: Asked) -> None:
        """A holder has come.  If we knew it in a session before this one, it drops everything and says so."""
        self._sessions[session.key] = session
        self._table.note_session(session.key, session.node_id, session.software, time.time_ns())

    def session_ended(self, key: bytes, heard_s: float) -> None:
        """The session is no more, but its holder may use its caches for a term since it was heard."""
        self._sessions.pop(key, None)
        if self.owner.held_by(key):
            self._ghosts.setdefault(key, heard_s + self._term_s)
        else:
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        """The holder of a session that is no more caches nothing any more; it may have come back with the same key."""
        self._ghosts.pop(key, None)
        self._uncertain.discard(key)
        self._drop_recalls(key)
        if key in self._sessions:
            self.owner.end_session(key)
            self._settle()
        else:
            self.owner.forget_session(key)
            self._settle()
            self.writer.write()
            self._table.forget_session(key)
        self._look_at_grace()

    def _look_at_grace(self) -> None:
        """Nothing is changed while holders that nobody knows, or that hold nobody knows what, may use their caches."""
        owner = self.owner
        was_in_grace = owner.in_grace
        if not self._ghosts:
            self._no_ghosts.unpark_all()
        are_strangers_gone = trio.current_time() >= self._strangers_until_s
        if are_strangers_gone:
            self._table.end_grace()
        owner.in_grace = not are_strangers_gone or bool(self._uncertain)
        if was_in_grace and not owner.in_grace:
            self._wake()

    def forget_unknown(self, keys: Iterable[bytes]) -> int:
        """Remove from the table what sessions hold that are not here; the number of leases removed."""
        removed = 0
        for key in keys:
            if key not in self._sessions and key not in self._ghosts:
                removed += sum(1 for _ in self._table.leases(session=key))
                self._forget(key)
        return removed

    def _drop_recalls(self, key: bytes) -> None:
        self._sent_s = {at: sent_s for at, sent_s in self._sent_s.items() if at[0] != key}

    def returned(self, key: bytes, request: wire.ReturnLeases) -> None:
        """The holder gives back by itself; *everything* after its term was over, or after we restarted."""
        if request.everything:
            self._ghosts.pop(key, None)
            self._uncertain.discard(key)
            self._drop_recalls(key)
            self.owner.end_session(key)
            self._look_at_grace()
        for handle, serial in request.leases:
            self.owner.give_back(key, handle, serial)
        self._settle()

    @property
    def has_ghosts(self) -> bool:
        """Whether holders of ended sessions may still use their caches."""
        return bool(self._ghosts)

    async def wait_no_ghosts(self) -> None:
        """Until they have come back and said that they dropped everything, or their terms are over."""
        while self._ghosts:
            await self._no_ghosts.park()

    # ------------------------------------------------------------ requests

    def may_be_in_the_way(self, key: bytes) -> bool:
        """Whether anybody but this session holds anything: else nobody has to be asked, whatever is changed."""
        return self.owner.in_grace or self.owner.held_by_others(key)

    def may_write_behind(self, key: bytes, handle: bytes) -> bool:
        """Whether the session holds this EXCLUSIVE, as far as anybody knows who else might.

        In a grace that may not be written, but nobody else writes then, and its holder knows until when it may.
        """
        if self.owner.exclusive.get(handle) == key:
            return True
        return key in self._uncertain or trio.current_time() < self._strangers_until_s

    def is_returning(self, key: bytes) -> bool:
        """Whether the holder has leases of before a restart, and must drop its caches first of all."""
        return key in self._ghosts

    def newer_elsewhere(self, key: bytes, handles: Iterable[bytes]) -> tuple[Need, ...]:
        """What is needed to look at these objects: another session may have newer data of them than the disk."""
        owner = self.owner
        if owner.in_grace:
            return tuple(Need(handle, Use.LOOK) for handle in handles if is_regular(handle))
        return tuple(Need(handle, Use.LOOK) for handle in handles if owner.exclusive.get(handle, key) != key)

    @asynccontextmanager
    async def recalled(
        self, key: bytes, needs: tuple[Need, ...], despite_grace: bool = False, is_look_up: bool = False
    ) -> AsyncIterator[None]:
        """Inside, nobody else holds what is in the way of these, and nothing is granted on what is changed.

        OSError ESTALE where waiting could never end (see owner.py): the caller's kernel makes the call again.
        *is_look_up*: it keeps the directory locked meanwhile, so its node can't drop its caches, for which others may
        wait with locked directories of their own.
        """
        ticket, recalls = self.owner.begin(key, needs, trio.current_time(), despite_grace)
        done = self._waiting[ticket] = trio.Event()
        if is_look_up:
            self._look_ups.add(ticket)
        try:
            self._send(recalls)
            self._wake()
            await done.wait()  # at most a lease term: look_after
            if ticket.refused:
                self.refusals += 1
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            yield
        finally:
            del self._waiting[ticket]
            self._look_ups.discard(ticket)
            self.owner.end(ticket)

    def may_be_exclusive(self, key: bytes, handle: bytes) -> bool:
        """Whether the session would be granted this EXCLUSIVE; it is known that its mount is watched."""
        owner = self.owner
        if key not in self._sessions or owner.held_by(key) >= LEASES_PER_SESSION_MAX:
            return False
        return owner.may_be_exclusive(key, handle, trio.current_time())

    def share(self, key: bytes, handle: bytes) -> None:
        """The session closed the file: what it held EXCLUSIVE is SHARED again."""
        if self.owner.exclusive.get(handle) == key:
            self.owner.share(key, handle)
            self._settle()

    def grant(self, key: bytes, handles: Sequence[bytes], mode: Mode = Mode.SHARED) -> tuple[int, list[Mode]]:
        """What this session may cache of each from the reply on that is being made; its serial, 0 for nothing.

        *mode*: of the first, as in cache/owner.py.
        """
        owner = self.owner
        watched = self.index.watched
        leasable = [handle for handle in handles if mount_of(handle) in watched]
        if key not in self._sessions:  # it ended while the request was executed: nobody would give this back
            leasable = []
        if mode is not Mode.SHARED and leasable[:1] != list(handles[:1]):
            mode = Mode.SHARED
        if not leasable or owner.held_by(key) >= LEASES_PER_SESSION_MAX:
            return 0, [Mode.NONE] * len(handles)
        serial, modes = owner.grant(key, leasable, trio.current_time(), mode)
        if owner.changes:
            self.grants += len(owner.changes)
            self._note_changes()
        if len(leasable) != len(handles):
            granted = dict(zip(leasable, modes, strict=True))
            modes = [granted.get(handle, Mode.NONE) for handle in handles]
        return serial, modes

    # ------------------------------------------------------------ changes that no request made

    def nodes_with(self, handles: Iterable[bytes]) -> tuple[int, ...]:
        """Who holds any of them, as far as their sessions are here."""
        keys = {key for handle in handles for key in self.owner.holders_of(handle)}
        return tuple(sorted({self._sessions[key].node_id for key in keys if key in self._sessions}))

    def changed_here(self, handle: bytes, names: tuple[bytes, ...] | None) -> None:
        """A native program changed the object, or only these names of the directory."""
        self._send(self.owner.changed_here(handle, names))

    def recall_all(self) -> None:
        """Recall everything from everybody: events were lost, or we end."""
        for session in self._sessions.values():
            if self.owner.held_by(session.key):
                self._recall_all_of(session)

    def _recall_all_of(self, session: Asked) -> trio.Event:
        """The event is set when the session has answered, or has ended."""
        key, serial, over = session.key, self.owner.recall_all(session.key), trio.Event()
        self.recalls += 1
        self._sent_s[key, serial] = trio.current_time()

        def answered(is_answered: bool) -> None:
            self._sent_s.pop((key, serial), None)
            if is_answered:
                self.owner.returned_all(key, serial)
                self._settle()
            over.set()

        session.ask_soon(wire.RecallAll(serial), answered)
        return over

    async def drop_node(self, node_id: int) -> int:
        """Take back all that this node holds, and wait for that, if it holds any or is there; the number of leases."""
        of_node = (session for session in self._sessions.values() if session.node_id == node_id)
        sessions = [session for session in of_node if session.small or self.owner.held_by(session.key)]
        count = sum(self.owner.held_by(session.key) for session in sessions)
        for over in [self._recall_all_of(session) for session in sessions]:
            await over.wait()
        return count

    # ------------------------------------------------------------ recalls

    def _send(self, recalls: Iterable[Recall]) -> None:
        now_s = trio.current_time()
        for recall in recalls:
            key, serial = recall.session, recall.serial
            self.recalls += 1
            self._sent_s[key, serial] = now_s
            session = self._sessions.get(key)
            if session is None:
                continue  # of before a restart: it speaks first, or its term ends
            request: wire.Recall
            if recall.names is None:
                request = wire.RecallLease(recall.handle, serial, recall.mode)
            else:
                request = wire.RecallNames(recall.handle, serial, recall.names)

            def answered(is_answered: bool, key: bytes = key, serial: int = serial) -> None:
                if is_answered:
                    self._answered(key, serial)

            session.ask_soon(request, answered)

    def _answered(self, key: bytes, serial: int) -> None:
        sent_s = self._sent_s.pop((key, serial), None)
        if sent_s is not None:
            self.latency.add(trio.current_time() - sent_s)
        self.owner.returned(key, serial)
        self._settle()

    def _settle(self) -> None:
        self._note_changes()
        self._wake()
        if not len(self.owner):
            self._nothing_held.set()

    async def wait_nothing_held(self) -> None:
        """Until no lease is left, with the server still running."""
        while len(self.owner):
            self._nothing_held = trio.Event()
            await self._nothing_held.wait()

    def describe(self) -> dict[str, Any]:
        """For omfs-admin status."""
        return {
            "held": len(self.owner),
            "grants": self.grants,
            "recalls": self.recalls,
            "recalls_under_way": len(self._sent_s),
            "refusals": self.refusals,
            "waiting": len(self._waiting),
            "ghosts": [key.hex() for key in self._ghosts],
            "unwritten": len(self.writer),
            "table_bytes": self._table.size_bytes,
            "recall_bounds_s": BOUNDS_S,
            "recall_buckets": self.latency.buckets,
            "recall_sum_s": self.latency.sum_s,
        }

    def _wake(self) -> None:
        if self._waiting:
            for ticket in self.owner.ready():
                self._waiting[ticket].set()

    def _note_changes(self) -> None:
        changes = self.owner.changes
        if not changes:
            return
        self.owner.changes = []
        self.index.note(changes)
        self.writer.note(changes)
        shared_again, self.owner.shared_again = self.owner.shared_again, []
        for handle in shared_again:
            self.on_shared_again(handle)

    def close(self) -> None:
        """Write what is to be written; an orderly end."""
        self.writer.close()

    # ------------------------------------------------------------ time

    async def tend(self) -> None:
        """End the leases of those who are silent for a term, until cancelled."""
        while True:
            await trio.sleep(TEND_INTERVAL_S)
            self.look_after(trio.current_time())

    def look_after(self, now_s: float) -> None:
        """End what has lasted too long."""
        if self._waiting:
            self.owner.refuse_stuck(now_s)
            for ticket in self._look_ups:
                ticket.refused |= ticket.session in self._ghosts and now_s - ticket.begun_s >= STUCK_S
            self._wake()
        for key in [key for key, until_s in self._ghosts.items() if now_s >= until_s]:
            self._forget(key)
        self._look_at_grace()
        for key, session in list(self._sessions.items()):
            if self.owner.held_by(key) and session.lease_lapsed(now_s, self._term_s):
                log.info("node %d: not heard for a lease term; what it held is free", session.node_id)
                self._drop_recalls(key)
                self.owner.end_session(key)
                self._settle()
        overdue = {key for (key, _), sent_s in self._sent_s.items() if now_s - sent_s >= self._term_s}
        for key in overdue:
            if key in self._sessions:
                self._end_session(key, f"it did not answer a recall for {self._term_s:g} s")
        self._table.sweep()
