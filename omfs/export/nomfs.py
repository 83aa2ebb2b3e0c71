"""nomfs: other nodes are refused for as long as the administrator of this one wants it.

    off       everybody is served, and nothing of this is in any request's way
    closing   what others hold is recalled; meanwhile they may finish: send what is written, close, give back.  What was
              asked before is executed; whatever else they ask is refused, and so is who was not here
    closed    their sessions are ended, with their open files and locks, and who connects is told why it is refused

A recall of everything is answered when the holder's caches are dropped and its unsent writes are here, so nothing is
lost.  The last one goes out when nothing of that holder is executed any more: its answer says that all replies have
arrived, and no program is left with a call of which nobody knows the outcome.  Who does not answer is waited for a
lease term at most; what it caches ends with its term, as always, and until then changes here wait for that.

It is kept by a file in run_dir, for an export that crashes and is started again: nobody is served in between.  One that
was killed while it closed, or while others held something in spite of it, goes on closing; holders that come back are
let in until they have said that they dropped everything (they send first what is unsent).  A boot clears it.  This
node's own mount (dfsa=0) is always served.

What it does not do: tell the holders.  Their peers try again, are refused with the reason (NotServed: EACCES), and are
let in within reconnect_interval_s of its end; what they had open they open again, as after a restart of ours.
Built by daemon.py, which runs `run`; takes the server's place as its service while it holds.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import trio

from omfs import wire
from omfs.errors import ControlError, NotServed
from omfs.export.leasing import Leasing
from omfs.export.service import MaybeSlow
from omfs.net.control import Arguments
from omfs.net.server import Buffer, Server, Session, admit_all

FLAG: Final = "nomfs"  # the file in run_dir
CLOSE_WITHIN_MIN_S: Final = 2.0  # where the leases' term is none

_FINISHING: Final = frozenset(
    {
        wire.WriteBlocks, wire.AppendBlocks, wire.SyncFile, wire.CloseFile, wire.CloseFiles, wire.ReleaseLocks,
        wire.ReturnLeases,
    }
)  # fmt: skip

log = logging.getLogger(__name__)


class _Closing:
    """From the moment when it is switched on.  *is_last*: everything was given back, and nothing more is taken.

    *over*: nobody else is served any more, or it was switched off.
    """

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self.is_last = False


class Nomfs:
    """A net.server.Service in front of the *server*'s own."""

    def __init__(self, run_dir: Path, server: Server, leasing: Leasing, term_s: float) -> None:
        self._flag = run_dir / FLAG
        self._server = server
        self._leasing = leasing
        self._within_s = max(term_s, CLOSE_WITHIN_MIN_S)
        self._served = server.service
        self._closing: _Closing | None = None
        self._switched = trio.lowlevel.ParkingLot()
        if self._flag.exists():
            log.warning("nomfs: other nodes are still refused; omfs-export was started again")
            self._begin()

    @property
    def is_on(self) -> bool:
        """Whether others are refused; they may still be finishing."""
        return self._closing is not None

    async def switch(self, arguments: Arguments) -> dict[str, bool]:
        """The handler of "nomfs": {"on": true or false}, or {} to hear only -> {"on": what holds now}.

        Returns when it holds; false after {"on": true} means that another command switched it off meanwhile.
        """
        on = arguments.get("on")
        if on is True:
            if self._closing is None:
                self._note(True)
                log.warning("nomfs: other nodes are refused from now on")
                self._begin()
            assert self._closing is not None
            await self._closing.over.wait()
        elif on is False:
            self._end()
        elif on is not None:
            raise ControlError("nomfs is switched with true or false")
        return {"on": self.is_on}

    async def run(self) -> None:
        """Close whenever it is switched on, until cancelled."""
        while True:
            closing = self._closing
            if closing is None or closing.over.is_set():
                await self._switched.park()
                continue
            with closing.scope:
                await self._close(closing)
            closing.over.set()

    # ------------------------------------------------------------ switching

    def _note(self, on: bool) -> None:
        try:
            if on:
                self._flag.touch()
            else:
                self._flag.unlink(missing_ok=True)
        except OSError as error:
            raise ControlError(f"{self._flag}: {error.strerror}; nothing has changed") from None

    def _begin(self) -> None:
        self._closing = _Closing()
        self._server.service, self._server.admit = self, self._admit
        self._switched.unpark_all()

    def _end(self) -> None:
        closing = self._closing
        if closing is not None:
            self._note(False)
            log.warning("nomfs: other nodes are served again")
            self._closing = None
            self._server.service, self._server.admit = self._served, admit_all
            closing.scope.cancel()
            closing.over.set()

    # ------------------------------------------------------------ closing

    async def _close(self, closing: _Closing) -> None:
        """The sessions of others are ended when they have given everything back, or the time is over."""
        with trio.move_on_after(self._within_s) as term:
            # At once, though what is executed now may be granted more: it may also wait for long.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._leasing.wait_no_ghosts)
                self._recall(nursery)
            await self._wait_executed()
            async with trio.open_nursery() as nursery:
                self._recall(nursery)
            closing.is_last = True
            await self._wait_executed()
        if term.cancelled_caught:
            log.warning("nomfs: not everything was given back within %g s", self._within_s)
        for session in self._others():
            self._server.end_session(session.key, "nomfs")

    def _recall(self, nursery: trio.Nursery) -> None:
        for node_id in {session.node_id for session in self._others()}:
            nursery.start_soon(self._leasing.drop_node, node_id)

    async def _wait_executed(self) -> None:
        for session in self._others():
            await session.wait_executed()

    def _others(self) -> list[Session]:
        own_id = self._server.local.node_id
        return [session for session in self._server.sessions.values() if session.node_id != own_id]

    # ------------------------------------------------------------ for net/server.py

    def _admit(self, hello: wire.Hello) -> None:
        closing, own_id = self._closing, self._server.local.node_id
        if closing is None or hello.node_id == own_id:
            return
        is_finishing = hello.session in self._server.sessions or self._leasing.is_returning(hello.session)
        if closing.over.is_set() or not is_finishing:
            raise self._refusal()

    def _refusal(self) -> NotServed:
        return NotServed(f"node {self._server.local.node_id} serves no files at the moment (nomfs)")

    def _is_taken(self, session: Session, request: wire.Request) -> bool:
        if self._closing is None or session.node_id == self._server.local.node_id:
            return True
        if self._closing.is_last:
            return False
        return type(request) in _FINISHING or self._leasing.is_returning(session.key)

    def answer(self, session: Session, request: wire.Request, bulk: Buffer) -> MaybeSlow:
        """As the service in front of which this is.  NotServed."""
        if not self._is_taken(session, request):
            raise self._refusal()
        return self._served.answer(session, request, bulk)

    def given_up(self, session: Session, reply: wire.Message) -> None:
        """As there."""
        self._served.given_up(session, reply)

    def session_ended(self, session: Session) -> None:
        """As there."""
        self._served.session_ended(session)
