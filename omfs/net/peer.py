"""The holder's side towards one owner: a connection pair that is kept up, and calls that survive its loss.

A call is sent straight from the calling task, which then sleeps until the reader task finds its reply.  There is no
deadline per call: only silence counts, and one task (`_watch`) looks for it.  What it does not do: know files,
or reopen them after the owner restarted (mount/remote.py does).

Invariants: a call in flight is answered, failed, or sent again on every new pair, with the same id; the two connections
of a pair come and go together; the reader tasks never send, so two busy nodes can't block each other.
Built by daemon.py and omfs-admin; called by mount/remote.py.
"""

from __future__ import annotations

import errno
import logging
import os
import ssl
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import trio

from omfs import wire
from omfs.config import BULK_LANE_FROM_BYTES, Settings
from omfs.errors import (
    HelloRefused,
    Interrupted,
    NameAbsent,
    NodeDown,
    NotServed,
    OmfsError,
    OpenLost,
    OutcomeUnknown,
    RemoteFailure,
    WireError,
)
from omfs.net import transport
from omfs.net.calls import Call, CallTable
from omfs.net.channel import Channel
from omfs.net.frames import REPLY_BIT, Buffer, Frame
from omfs.net.hello import SESSION_KEY_BYTES, LocalNode
from omfs.net.pair import Connector, Dial
from omfs.net.pings import Pings
from omfs.net.recalls import LeaseHolder, R
from omfs.net.repeats import ONCE_ONLY, REPEATABLE_AFTER_RESTART
from omfs.net.session import bulk_cost

MAY_NOT_BE_REPEATED: Final = ONCE_ONLY - REPEATABLE_AFTER_RESTART

Linger: TypeAlias = Callable[[tuple[int, int]], int]
"""Wait a moment, blocking the whole process, until one of these descriptors is readable, and return it; or return -1:
there is other work.  The tuple is another object for each pair of connections."""

log = logging.getLogger(__name__)


class Peer(LeaseHolder):
    """One owner as this node sees it.

    *local*, *context* and *addresses* may be replaced while it runs (SIGHUP); they count from the next connection on.
    *hard*: calls wait for a node that is down instead of failing, unless it says that it serves nobody.
    *epoch* grows when the owner has lost our session.
    """

    def __init__(
        self,
        node_id: int,
        addresses: Sequence[str],
        port: int,
        local: LocalNode,
        settings: Settings,
        context: ssl.SSLContext | None = None,
        *,
        hard: bool = False,
        dial: Dial = transport.dial,
    ) -> None:
        super().__init__(node_id)
        self.addresses = addresses
        self.port = port
        self.local = local
        self.context = context
        self.hard = hard
        self.state = "connecting"  # or "up", "down"
        self.refusal = ""  # why our last Hello was refused ...
        self._refused_as: type[HelloRefused] = HelloRefused  # ... and what calls that fail for that raise
        self.fault = ""  # why there is no connection
        self.linger: Linger | None = None  # set by the mount: a reply that is quick saves all task switches
        self.address = ""  # of the current or last connection
        self.software = ""
        self.requests = 0
        self._settings = settings
        self._dial = dial
        self.session_key = os.urandom(SESSION_KEY_BYTES)
        self._instance = b""  # of the owner's daemon; b"" before its first Welcomed
        self._calls = CallTable()
        self._descriptors = (-1, -1)  # theirs
        self._pings = Pings()
        self._abandoned: list[int] = []  # ids of lock waits and opens nobody waits for any more: to be cancelled
        self._heard_s = self._lost_s = 0.0  # last byte of, and end of, the last pair
        self._bytes_in = self._bytes_out = 0  # of earlier pairs

    # ------------------------------------------------------------ what it is like

    @property
    def bytes_in(self) -> int:
        return self._bytes_in + sum(channel.bytes_in for channel in self._channels or ())

    @property
    def bytes_out(self) -> int:
        return self._bytes_out + sum(channel.bytes_out for channel in self._channels or ())

    @property
    def silent_s(self) -> float:
        """Seconds since the last byte from the node (since run() began, if there was none)."""
        heard_s = max((channel.heard_s for channel in self._channels or ()), default=self._heard_s)
        return trio.current_time() - heard_s

    def describe(self) -> dict[str, object]:
        """For omfs-admin status."""
        return {
            "node": self.node_id,
            "state": self.state,
            "address": self.address,
            "software": self.software,
            "refusal": self.refusal,
            "fault": self.fault,
            "epoch": self.epoch,
            "round_trip_us": round(self._pings.round_trip_s * 1e6),
            "silent_s": round(self.silent_s, 1),
            "lapses": self.lapses,
            "requests": self.requests,
            "in_flight": len(self._calls),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }

    # ------------------------------------------------------------ calls

    async def call(self, request: wire.Message, expect: type[R], bulk: Buffer = b"") -> R:
        """Ask the owner and return its reply.

        Raises RemoteFailure (it failed there), OpenLost, NodeDown, HelloRefused, OutcomeUnknown, Interrupted, and
        WireError for a reply of another type.  *bulk* must stay as it is until then.
        """
        return (await self.call_for_bulk(request, expect, bulk))[0]

    async def call_for_bulk(self, request: wire.Message, expect: type[R], bulk: Buffer = b"") -> tuple[R, Buffer]:
        """As `call`; also returns the bulk data beside the reply."""
        if self.state == "down" and self._fails:
            raise self._why_down()
        self.requests += 1
        call: Call | None = None
        if self.linger is not None and self._calls.is_idle and self._channels is not None:
            answer = self._ask_at_once(self.linger, self._channels, request, bulk)
            if isinstance(answer, tuple):
                if type(answer[1]) is expect:
                    return answer[1], answer[2]
                raise self._why_not(Call.answered(request, answer[1]), expect)
            call = answer
        if call is None:
            call = Call(request, bulk)
            self._calls.begin(call)
        try:
            while not call.id and call.error is None:
                await call.wait_woken()
            if self._channels is not None and call.error is None and not call.sent:
                call.sent = True
                await self._send(self._channels[call.lane], call)
            while call.reply is None and call.error is None:
                await call.wait_woken()
        finally:
            self._calls.end(call)
            if call.reply is None and call.sent and call.must_be_undone:
                self._abandon(call)
        reply = call.reply
        if type(reply) is expect:
            return reply, call.reply_bulk
        raise self._why_not(call, expect)

    async def _send(self, channel: Channel, call: Call) -> None:
        try:
            await channel.request(call.id, call.request, call.bulk)
        except OSError:
            pass  # the reader notices too, and the call is sent again on the next pair
        except WireError as error:
            call.fail(error)  # too large: nothing was sent

    def _ask_at_once(
        self, linger: Linger, channels: tuple[Channel, Channel], request: wire.Message, bulk: Buffer
    ) -> Frame | Call | None:
        """Ask and take the reply here, in the calling task, without a task switch: when nothing else is under way.

        The reply; or the call, if that was sent but not answered at once (the reader task will take the reply);
        or None, if nothing was sent.
        """
        channel = channels[wire.Lane.SMALL]
        call_id = self._calls.last_id + 1
        if bulk_cost(request, len(bulk)) >= BULK_LANE_FROM_BYTES:
            return None
        frames: list[Frame] = []
        try:
            if not channel.send_at_once(call_id, request, bulk):
                return None
        except OSError:
            pass  # the reader notices too, and the call is sent again on the next pair
        try:
            if linger(self._descriptors) == self._descriptors[wire.Lane.SMALL]:
                frames = channel.receive_now()
                if len(frames) == 1 and frames[0][0] == call_id | REPLY_BIT:
                    self._calls.last_id = call_id
                    return frames[0]
        except (OSError, WireError) as error:
            self._drop_for(error)
        call = Call(request, bulk)
        self._calls.adopt(call)
        try:
            for frame in frames:
                self._take_reply(frame)
        except Exception as error:
            self._drop_for(error)
        return call

    def _why_not(self, call: Call, expect: type[R]) -> OmfsError:
        """The exception of a call that did not end with what was expected."""
        if call.error is not None:
            return call.error
        reply = call.reply
        if isinstance(reply, wire.Failed):
            if reply.open_lost:
                return OpenLost(f"node {self.node_id} does not know this open file any more")
            if reply.errno == errno.EINTR and call.cancel_wanted:
                return Interrupted(f"{type(call.request).__name__} was interrupted")
            return RemoteFailure(reply.errno, reply.text)
        if isinstance(reply, wire.NameMissing) and isinstance(call.request, wire.LookUp):
            return NameAbsent(reply.serial, reply.parent_mode)
        text = f"answered {type(call.request).__name__} with {type(reply).__name__}, not {expect.__name__}"
        self._drop(text)
        return WireError(f"node {self.node_id} {text}")

    @property
    def _fails(self) -> bool:
        """Whether calls to a node that is down fail."""
        return not self.hard or (bool(self.refusal) and self._refused_as is NotServed)

    def _why_down(self) -> OmfsError:
        if self.refusal:
            return self._refused_as(f"node {self.node_id}: {self.refusal}")
        return NodeDown(f"node {self.node_id} is down")

    # ------------------------------------------------------------ interrupts

    def interrupt(self, task: trio.lowlevel.Task, still_wanted: Callable[[], bool]) -> None:
        """The process on whose behalf *task* calls was signalled.

        A lock wait is given up: the owner is told, and its answer (EINTR, or the lock if it was just granted) ends the
        call.  Any other call goes on, unless the node is silent or down and *still_wanted* says no (asked now
        and again until it ends): then it fails with Interrupted.
        """
        call = self._calls.of_task(task)
        if call is None:
            return
        call.still_wanted = still_wanted
        if call.is_lock_wait and not call.cancel_wanted:
            call.cancel_wanted = True
            if not call.sent:
                call.fail(Interrupted(f"{type(call.request).__name__} was interrupted"))
            elif self._channels is not None and self._nursery is not None:
                self._nursery.start_soon(self._send_aside, self._channels[wire.Lane.SMALL], _cancel(call.id))
        self._look_at_signalled()

    def _look_at_signalled(self) -> None:
        if self._channels is None or self.silent_s > 2 * self._settings.ping_interval_s:
            for call in self._calls.signalled():
                if call.still_wanted is not None and not call.still_wanted():
                    call.fail(Interrupted(f"killed while node {self.node_id} was away"))

    def _abandon(self, call: Call) -> None:
        """Its caller has left: a lock must not be granted, nor a file stay open, for nobody."""
        if self._channels is not None and self._nursery is not None:
            self._nursery.start_soon(self._send_aside, self._channels[wire.Lane.SMALL], _cancel(call.id))
        else:
            self._abandoned.append(call.id)

    async def _send_aside(self, channel: Channel, request: wire.Message, request_id: int = 0) -> None:
        """Send a request whose answer nobody waits for; 0: with an id of its own."""
        try:
            await channel.request(request_id or self._calls.take_id(), request)
        except OSError:
            log.debug("node %d: lost before %s was sent", self.node_id, type(request).__name__)

    # ------------------------------------------------------------ the pair

    async def run(self) -> None:
        """Keep the pair connected until cancelled; calls then fail with NodeDown."""
        self._heard_s = self._lost_s = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._watch)
                nursery.start_soon(self._watch_term)
                while True:
                    channels = await self._wait_connected()
                    await self._use(channels)
                    await trio.lowlevel.checkpoint()
        finally:
            self._nursery = None
            self._drop(_STOPPED)
            self.state = "down"
            self.hard = False  # nobody will connect again: waiting would be for ever
            self._calls.fail_all(self._why_down)

    async def _wait_connected(self) -> tuple[Channel, Channel]:
        """Try the addresses in turn until one answers; the reasons of failures go to the log once."""
        while True:
            refusal = fault = ""
            for address in list(self.addresses):
                try:
                    channels = await self._connect(address)
                except HelloRefused as error:
                    refusal = fault = f"{address}: {error}"
                    self._refused_as = type(error)
                except (OSError, WireError) as error:
                    fault = f"{address}: {error}"
                except Exception:
                    log.exception("node %d: connecting failed by an error of ours", self.node_id)
                    fault = f"{address}: internal error, see the log"
                else:
                    self.address = address
                    return channels
            self._not_connected(fault or "no address", refusal)
            await trio.sleep(self._settings.reconnect_interval_s)

    def _not_connected(self, fault: str, refusal: str) -> None:
        if fault != self.fault:
            log.warning("node %d: cannot connect to %s", self.node_id, fault)
        self.fault, self.refusal = fault, refusal
        if refusal:
            self._set_down()  # waiting would not help: somebody has to do something

    async def _connect(self, address: str) -> tuple[Channel, Channel]:
        """Raises OSError, HelloRefused, WireError."""
        connector = Connector(
            self._dial,
            self.port,
            self.context,
            self._settings.timeo_s,
            self.local,
            self.node_id,
            self.session_key,
            self._calls.take_id,
        )
        pair = await connector.connect(address)
        welcomed = pair.welcomed
        if self._instance and not (welcomed.resumed and welcomed.instance == self._instance):
            self._session_lost()
        self._instance = welcomed.instance
        self.software = welcomed.software
        self._agree(welcomed, pair.hello_s)
        return pair.channels

    def _session_lost(self) -> None:
        """The owner restarted, or gave us up: opens and locks are gone, and nobody knows what was executed."""
        log.warning("node %d lost our session (it restarted, or we were away too long)", self.node_id)
        self.epoch += 1
        self._abandoned.clear()
        self._owner_forgot("the owner has lost our session")
        for call in self._calls.open_calls():
            if call.sent and type(call.request) in MAY_NOT_BE_REPEATED:
                kind = type(call.request).__name__
                call.fail(OutcomeUnknown(f"node {self.node_id} restarted while it had our {kind}"))

    async def _use(self, channels: tuple[Channel, Channel]) -> None:
        """Install a new pair and read from it until it is lost."""
        # No await from here to the resend lists: a call is either in them or sends itself on the new pair.
        self._channels = channels
        self._descriptors = (channels[0].transport.fileno(), channels[1].transport.fileno())
        self.state, self.refusal, self.fault = "up", "", ""
        log.info("node %d: connected to %s (%s)", self.node_id, self.address, self.software)
        self._return_soon()
        abandoned, self._abandoned = self._abandoned, []
        again = self._calls.open_calls()
        for call in again:
            call.sent = True
            call.bulk = bytes(call.bulk)  # its caller may be gone, and the buffer in use again, before it is sent
        async with trio.open_nursery() as nursery:
            for lane, channel in zip(wire.Lane, channels, strict=True):
                nursery.start_soon(self._read, channel)
                nursery.start_soon(self._resend, channels, lane, [call for call in again if call.lane is lane])
            for call_id in abandoned:
                nursery.start_soon(self._send_aside, channels[wire.Lane.SMALL], _cancel(call_id))

    async def _resend(self, channels: tuple[Channel, Channel], lane: wire.Lane, calls: list[Call]) -> None:
        for call in calls:
            if call.is_open:
                await self._send(channels[lane], call)
                if call.cancel_wanted:
                    await self._send_aside(channels[wire.Lane.SMALL], _cancel(call.id))

    async def _read(self, channel: Channel) -> None:
        try:
            while True:
                for frame in await channel.receive():
                    self._take_reply(frame)
        except Exception as error:
            self._drop_for(error)

    def _drop_for(self, error: Exception) -> None:
        if isinstance(error, OSError | WireError):
            self._drop(str(error))
        else:
            log.error("node %d: connection closed by an error of ours", self.node_id, exc_info=error)
            self._drop("internal error")

    def _take_reply(self, frame: Frame) -> None:
        frame_id, reply, bulk = frame
        call_id = frame_id ^ REPLY_BIT
        call = self._calls.in_flight.get(call_id)
        if call is not None:
            call.answer(reply, bulk)
        elif call_id & REPLY_BIT:  # no reply: the owner asks
            self._take_recall(frame_id, reply, bulk)
        elif (sent_s := self._pings.take_answered(call_id, trio.current_time())) is not None:
            self._answered(sent_s)
        elif not 0 < call_id <= self._calls.last_id:  # others were given up by their callers
            raise WireError(f"sent a {type(reply).__name__} that nobody asked for")

    def _drop(self, reason: str) -> None:
        """Close the pair; `run` makes a new one."""
        channels = self._channels
        if channels is None:
            return
        level = logging.INFO if reason == _STOPPED else logging.WARNING
        log.log(level, "node %d: connection lost: %s", self.node_id, reason)
        self._bytes_in, self._bytes_out = self.bytes_in, self.bytes_out
        self._heard_s = max(channel.heard_s for channel in channels)
        self._lost_s = trio.current_time()
        self._channels = None
        self._pings.forget()
        self.state, self.fault = "connecting", reason
        for channel in channels:
            channel.close(reason)

    # ------------------------------------------------------------ silence

    async def _watch(self) -> None:
        """Ping, and notice when nothing comes back; one task for all calls."""
        settings = self._settings
        pinged_s = woken_s = trio.current_time()
        while True:
            interval_s = min(settings.ping_interval_s, self._term.renew_every_s)
            tick_s = min(interval_s, settings.timeo_s) / 4
            await trio.sleep(tick_s)
            now = trio.current_time()
            was_late = now - woken_s > tick_s + settings.ping_interval_s
            woken_s = now
            if was_late:  # we did not run ourselves: what the node sent may wait unread in our sockets
                self._lost_s = max(self._lost_s, now - tick_s)
                for channel in self._channels or ():
                    channel.assume_heard()
            self._look_at_silence(now)
            self._look_at_signalled()
            if now - pinged_s >= interval_s:
                pinged_s = now
                self._ping()

    def _look_at_silence(self, now: float) -> None:
        timeo_s = self._settings.timeo_s
        if self._channels is None:
            if now - self._lost_s >= timeo_s:
                self._set_down()
            return
        # Pings keep something outstanding on both lanes, so silence needs no further condition.
        if any(now - channel.heard_s >= timeo_s for channel in self._channels):
            self._drop(f"silent for {timeo_s:g} s")
            self._set_down()

    def _set_down(self) -> None:
        if self.state != "down":
            self.state = "down"
            log.warning("node %d is down", self.node_id)
        if self._fails:
            self._calls.fail_all(self._why_down)

    def _ping(self) -> None:
        if self._channels is None or self._nursery is None:
            return
        for lane in self._pings.idle_lanes():
            ping_id = self._calls.take_id()
            self._pings.sent(ping_id, lane, trio.current_time())
            self._nursery.start_soon(self._send_aside, self._channels[lane], _PING, ping_id)


_PING: Final = wire.Ping()
_STOPPED: Final = "this node's mount stops"


def _cancel(request_id: int) -> wire.CancelRequest:
    return wire.CancelRequest(request_id=request_id)
