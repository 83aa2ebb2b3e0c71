"""The owner's door: accepts connections, checks who it is, hands requests to the service and its answers back.

Here: TLS and Hello with a deadline, sessions and their end, Ping and CancelRequest, limits.  What it does not do:
know files.  Bad input of any kind costs its sender the connection and one log line and disturbs nobody else; an
exception in the service is logged and answered with EIO.

Cheap requests are answered by the service at once, in the reader task; slow ones return a coroutine, which runs in the
server's nursery.  Built by daemon.py; export/service.py implements `Service`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import select
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol, TypeAlias

import trio

from omfs import wire
from omfs.config import Settings
from omfs.errors import BadHandle, HelloRefused, NotServed, OmfsError, OpenLost, RuleBroken, WireError
from omfs.net.accepting import Entrance, Stranger, tls_reason
from omfs.net.channel import Bulk, Channel
from omfs.net.frames import REPLY_BIT, Buffer
from omfs.net.hello import LocalNode, check_hello
from omfs.net.repeats import ONCE_ONLY
from omfs.net.session import Session, bulk_cost
from omfs.net.sockets import SocketTransport, tune, wait_tls
from omfs.net.spin import Spinner
from omfs.net.tls import peer_node_id
from omfs.net.transport import FileSlice, Transport

__all__ = ["Answer", "Buffer", "Bulk", "FileSlice", "LocalNode", "Server", "Service", "Session"]

HELLO_TIMEOUT_S: Final = 5.0  # for TLS and Hello together: a round trip or two
STRANGERS_MAX: Final = 128  # connections that have not said Hello yet
SESSIONS_PER_NODE_MAX: Final = 64  # mounts of one node, counting those that ended within the last minute
SWEEP_INTERVAL_S: Final = 1.0
_LINGER_S: Final = 0.001  # the least that epoll can wait in Python; a program's next request comes sooner
_FAIR_EVERY: Final = 32  # receives in a row before other tasks get their turn

Answer: TypeAlias = tuple[wire.Message, Bulk]

log = logging.getLogger(__name__)


class Service(Protocol):
    """What the server serves."""

    def answer(self, session: Session, request: wire.Request, bulk: Buffer) -> Answer | Coroutine[Any, Any, Answer]:
        """Answer at once, or with a coroutine when it may take long.

        OSError and OmfsError become wire.Failed, but RuleBroken costs the holder its connections.
        """

    def given_up(self, session: Session, reply: wire.Message) -> None:
        """The holder will never take this reply to a request that was executed: close what it opened."""

    def session_ended(self, session: Session) -> None:
        """The holder is gone for good: close what it had open, release its locks."""


def admit_all(_: wire.Hello) -> None:
    """Whoever fits is let in."""


class Server:
    """The owner's side of all connections.  *local* and *context* may be replaced while it runs (SIGHUP).

    So may *service*, and *admit*, which raises HelloRefused for a Hello that fits and is not to be let in all the same.
    """

    def __init__(
        self, local: LocalNode, settings: Settings, service: Service, context: ssl.SSLContext | None = None
    ) -> None:
        self.local = local
        self.context = context
        self.instance = os.urandom(16)
        self.sessions: dict[bytes, Session] = {}
        self.requests = 0
        self._settings = settings
        self.service = service
        self.admit: Callable[[wire.Hello], None] = admit_all
        self._channels: set[Channel] = set()
        self._bytes_in = 0  # of closed connections
        self._bytes_out = 0
        self._entrance = Entrance()
        self._nursery: trio.Nursery | None = None
        self._poll: select.epoll | None = None  # all connections, while running
        self._executing = 0  # requests that run beside the readers
        self._spinner = Spinner()

    @property
    def bytes_in(self) -> int:
        return self._bytes_in + sum(channel.bytes_in for channel in self._channels)

    @property
    def bytes_out(self) -> int:
        return self._bytes_out + sum(channel.bytes_out for channel in self._channels)

    async def run(
        self, listeners: Iterable[socket.socket] = (), *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; the listeners (see accepting.py) are closed at the end."""
        listeners = list(listeners)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._poll = select.epoll()
                nursery.start_soon(self._sweep)
                for listener in listeners:
                    nursery.start_soon(self._entrance.accept, listener, STRANGERS_MAX, self._let_in)
                task_status.started()
        finally:
            self._nursery = None
            if self._poll is not None:
                self._poll.close()
                self._poll = None
            for listener in listeners:
                listener.close()
            for session in list(self.sessions.values()):
                self._end(session, "this node's export stops")

    # ------------------------------------------------------------ connections

    def _let_in(self, sock: socket.socket, name: str, stranger: Stranger) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._serve_socket, sock, name, stranger)

    async def _serve_socket(self, sock: socket.socket, name: str, stranger: Stranger) -> None:
        """Shake hands and serve; counted among the strangers until the handshake is done."""
        transport: Transport | None = None
        try:
            with trio.move_on_after(HELLO_TIMEOUT_S) as deadline:
                tune(sock, self._settings.timeo_s)
                if self.context is not None:
                    transport = await wait_tls(sock, name, self.context, server_side=True)
                else:
                    transport = SocketTransport(sock, name)
            if transport is None or deadline.cancelled_caught:
                log.warning("%s: no TLS handshake within %g s (is it sec=none there?)", name, HELLO_TIMEOUT_S)
                return
            stranger.leave()
            await self.serve(transport)
        except ssl.SSLError as error:
            log.warning("%s: TLS handshake failed: %s", name, tls_reason(error))
        except OSError as error:
            log.warning("%s: lost before it said Hello: %s", name, error)
        finally:
            stranger.leave()
            sock.close()

    async def serve(self, transport: Transport) -> None:
        """Serve one connection until it ends.  Called directly only by tests; never raises but Cancelled."""
        channel = Channel(transport)
        self._channels.add(channel)
        stranger = self._entrance.stranger()
        session: Session | None = None
        lane = wire.Lane.SMALL
        try:
            with trio.move_on_after(HELLO_TIMEOUT_S) as deadline:
                session, lane = await self._wait_hello(channel)
            stranger.leave()
            if session is not None:
                await self._read(session, lane, channel)
            elif deadline.cancelled_caught:
                log.warning("%s: no Hello within %g s", channel.name, HELLO_TIMEOUT_S)
        except WireError as error:
            log.warning("%s: %s; connection closed", _who(channel, session), error)
        except HelloRefused as error:
            level = logging.DEBUG if isinstance(error, NotServed) else logging.WARNING  # it comes again every second
            log.log(level, "%s: refused: %s", channel.name, error)
        except OSError as error:
            if session is None:
                log.warning("%s: lost before it said Hello: %s", channel.name, error)
            else:
                log.info("%s: %s connection lost: %s", _who(channel, session), lane.name, error)
        except Exception:
            log.exception("%s: connection closed by an error of ours", _who(channel, session))
        finally:
            stranger.leave()
            if session is not None:
                session.detach(lane, channel)
            channel.close("closed")
            self._channels.discard(channel)
            self._bytes_in += channel.bytes_in
            self._bytes_out += channel.bytes_out

    async def _wait_hello(self, channel: Channel) -> tuple[Session, wire.Lane]:
        """Receive and answer the Hello.  Raises HelloRefused (after telling the other side), WireError, OSError."""
        frames = await channel.receive()
        frame_id, hello, _ = frames[0]
        if frame_id & REPLY_BIT or not isinstance(hello, wire.Hello) or len(frames) > 1:
            raise WireError(f"began with {type(hello).__name__} instead of one Hello")
        try:
            certificate = channel.transport.certificate
            certified = None if certificate is None else peer_node_id(certificate)
            check_hello(hello, self.local, certified)
            self.admit(hello)
            session, resumed = self._find_session(hello)
        except HelloRefused as error:
            await channel.reply(frame_id, wire.Refused(str(error), isinstance(error, NotServed)))
            raise
        session.attach(hello.lane, channel)
        session.note(frame_id)
        channel.admit(hello.lane)
        welcomed = wire.Welcomed(
            version=wire.PROTOCOL_VERSION,
            software=self.local.software,
            node_id=self.local.node_id,
            instance=self.instance,
            resumed=resumed,
            # Not longer than the session: with it we forget what the holder has.
            lease_term_s=min(self._settings.lease_term_s, self._settings.session_timeout_s),
        )
        await channel.reply(frame_id, welcomed)
        log.info("%s: node %d, %s connection", channel.name, hello.node_id, hello.lane.name)
        return session, hello.lane

    def _find_session(self, hello: wire.Hello) -> tuple[Session, bool]:
        """(session, resumed).  Raises HelloRefused."""
        session = self.sessions.get(hello.session)
        if session is not None:
            if session.node_id != hello.node_id:
                raise HelloRefused(f"this session belongs to another node than {hello.node_id}")
            # Not confirmed: the Welcomed that told "not resumed" may never have arrived, so say it again.
            return session, session.confirmed
        if hello.lane is not wire.Lane.SMALL:
            raise HelloRefused("no such session; connect the SMALL lane first")
        if sum(other.node_id == hello.node_id for other in self.sessions.values()) >= SESSIONS_PER_NODE_MAX:
            raise HelloRefused(f"node {hello.node_id} has {SESSIONS_PER_NODE_MAX} sessions already")
        session = self.sessions[hello.session] = Session(hello.node_id, hello.session)
        session.software = hello.software[:64]
        return session, False

    # ------------------------------------------------------------ requests

    def _comes_soon(self, descriptor: int) -> bool:
        """Wait a moment, here, for the holder's next request: it often makes several in a row, and that is quicker.

        Only while nothing else runs; news on any other connection ends it.
        """
        if self._executing or self._poll is None:
            return False
        events = self._spinner.poll(self._poll, _LINGER_S)
        return len(events) == 1 and events[0][0] == descriptor

    async def _read(self, session: Session, lane: wire.Lane, channel: Channel) -> None:
        descriptor = channel.transport.fileno()
        if self._poll is not None and descriptor >= 0:
            with contextlib.suppress(FileExistsError):  # a closed one leaves by itself
                self._poll.register(descriptor, select.EPOLLIN)
            channel.comes_soon = self._comes_soon
        for received in itertools.count(1):
            if received % _FAIR_EVERY == 0:
                await trio.lowlevel.checkpoint()
            for frame_id, message, bulk in await channel.receive():
                if frame_id & REPLY_BIT:
                    session.take_answer(channel, frame_id ^ REPLY_BIT, message, bulk)
                    continue
                self.requests += 1
                await self._handle(session, lane, channel, frame_id, message, bulk)

    async def _handle(  # the hot path of the owner: no await but for the reply
        self, session: Session, lane: wire.Lane, channel: Channel, request_id: int, request: Any, bulk: Buffer
    ) -> None:
        kind = type(request)
        if kind is wire.Ping:
            await channel.reply(request_id, _PONGED)
            return
        session.note(request_id)
        if session.is_executing(request_id):
            return  # a repeat after a reconnect: the answer goes out when it is there, over the new connection
        if kind in ONCE_ONLY and (known := session.remembered(request_id, request)) is not None:
            await channel.reply(request_id, known)
            return
        if kind is wire.CancelRequest:
            executed = session.cancel(request.request_id)
            if executed is not None:
                self.service.given_up(session, executed)
            await channel.reply(request_id, _DONE)
            return
        if kind is wire.Hello:
            raise WireError("a second Hello on the same connection")
        try:
            answer = self.service.answer(session, request, bulk)
        except Exception as error:
            answer = _refusal(session, error, request), b""
        if not isinstance(answer, tuple):
            self._start(session, lane, request_id, request, len(bulk), answer)
            return
        reply, reply_bulk = answer
        if kind in ONCE_ONLY:
            session.remember(request_id, reply)
        try:
            if isinstance(reply_bulk, FileSlice) or not channel.send_at_once(request_id | REPLY_BIT, reply, reply_bulk):
                await channel.reply(request_id, reply, reply_bulk)
        except WireError as error:
            await channel.reply(request_id, failure(error, request))

    def _start(
        self,
        session: Session,
        lane: wire.Lane,
        request_id: int,
        request: wire.Message,
        bulk_bytes: int,
        work: Coroutine[Any, Any, Answer],
    ) -> None:
        """Run *work* in the nursery.  Raises WireError when the session has too much under way."""
        assert self._nursery is not None
        self._executing += 1
        cost_bytes = bulk_cost(request, bulk_bytes)
        try:
            scope = session.begin(request_id, cost_bytes, _may_wait_for_ever(request))
        except WireError:
            self._executing -= 1
            work.close()
            raise
        self._nursery.start_soon(self._execute, session, lane, request_id, request, cost_bytes, scope, work)

    async def _execute(
        self,
        session: Session,
        lane: wire.Lane,
        request_id: int,
        request: wire.Message,
        cost_bytes: int,
        scope: trio.CancelScope,
        work: Coroutine[Any, Any, Answer],
    ) -> None:
        reply: wire.Message = _INTERRUPTED
        bulk: Bulk = b""
        try:
            with scope:
                try:
                    reply, bulk = await work
                except RuleBroken as error:
                    log.warning("node %d: %s; connection closed", session.node_id, error)
                    session.close_channels("broke the rules")
                    reply = failure(error, request)
                except Exception as error:
                    reply = _refusal(session, error, request)
        finally:
            # No await between these two: a repeat finds the request executing, or its reply.
            self._executing -= 1
            session.executed(request_id)
            if type(request) in ONCE_ONLY:
                session.remember(request_id, reply)
        try:
            await session.reply(lane, request_id, reply, bulk)
        except WireError as error:
            await session.reply(lane, request_id, failure(error, request), b"")
        finally:
            session.release(cost_bytes)

    # ------------------------------------------------------------ the end of sessions

    async def _sweep(self) -> None:
        """End sessions whose holder was not heard for session_timeout_s."""
        timeout_s = self._settings.session_timeout_s
        last_s = trio.current_time()
        while True:
            await trio.sleep(min(SWEEP_INTERVAL_S, timeout_s / 4))
            now = trio.current_time()
            was_late = now - last_s > 3 * SWEEP_INTERVAL_S
            last_s = now
            if was_late:
                continue  # we did not run ourselves: their bytes may wait unread in our sockets
            for session in list(self.sessions.values()):
                if now - session.heard_s >= timeout_s:
                    log.warning("node %d: its session ends, nothing heard for %g s", session.node_id, timeout_s)
                    self._end(session, f"not heard for {timeout_s:g} s")

    def end_session(self, key: bytes, reason: str) -> None:
        """Throw out a holder that does not do what it must; it may come back with nothing."""
        session = self.sessions.get(key)
        if session is not None:
            log.warning("node %d: its session ends: %s", session.node_id, reason)
            self._end(session, reason)

    def _end(self, session: Session, reason: str) -> None:
        session.ended = True
        session.close_channels(reason)
        session.cancel_all()
        self.sessions.pop(session.key, None)
        try:
            self.service.session_ended(session)
        except Exception:
            log.exception("node %d: ending its session failed", session.node_id)
        session.end_asks()


_PONGED: Final = wire.Ponged()
_DONE: Final = wire.Done()
_INTERRUPTED: Final = wire.Failed(errno=errno.EINTR, text="cancelled")


def failure(error: Exception, request: wire.Message) -> wire.Failed:
    """What an exception in the service becomes on the wire; what nobody expected is logged and becomes EIO."""
    if isinstance(error, OmfsError):
        return wire.Failed(errno=error.errno, text=str(error)[:200], open_lost=isinstance(error, OpenLost))
    if isinstance(error, OSError) and error.errno:
        return wire.Failed(errno=error.errno, text=(error.strerror or "")[:200])
    log.error("%s failed here", type(request).__name__, exc_info=error)
    return wire.Failed(errno=errno.EIO, text="internal error, see the owner's log")


def _refusal(session: Session, error: Exception, request: wire.Message) -> wire.Failed:
    """As `failure`, but raises RuleBroken.

    Of a holder with handles that are none of ours, forged or sealed with a key that we lost, is said so once.
    """
    if isinstance(error, RuleBroken):
        raise error
    if isinstance(error, BadHandle) and not session.has_bad_handles:
        session.has_bad_handles = True
        log.warning("node %d: %s; answered with ESTALE, and not said again of this session", session.node_id, error)
    return failure(error, request)


def _may_wait_for_ever(request: wire.Message) -> bool:
    return isinstance(request, wire.LockFile | wire.LockRange) and request.wait


def _who(channel: Channel, session: Session | None) -> str:
    return channel.name if session is None else f"node {session.node_id} ({channel.name})"
