"""The owner's memory of one holder: what must survive a lost connection.

A session is chosen by the holder (16 random bytes) and lives over its reconnects.  Here: the current connection of
each lane, the requests being executed, the replies of requests that must not be executed twice, and what the owner
itself asks.  What it does not do: execute, listen, know what a request means.  The service keeps its opens and locks in
`data`.

Invariants: a request id is executed at most once at a time, and those of ONCE_ONLY at most once at all within
a session (their replies are kept; where a reply was forgotten already, a repeat is refused, not executed); a reply goes
to the connection that is current when it is ready.  Called by net/server.py; `data`, `key`, `node_id` by the service.
"""

from __future__ import annotations

import errno
from typing import Any, Final

import trio

from omfs import wire
from omfs.config import IN_FLIGHT_MAX, REPLIES_KEPT, WHOLE_FILE_MAX_BYTES
from omfs.errors import SessionEnded, WireError
from omfs.net.asks import Asks, OnAnswer
from omfs.net.channel import Bulk, Channel
from omfs.net.frames import Buffer

BULK_IN_FLIGHT_MAX_BYTES: Final = 64 << 20  # bulk data one session may have under way, both directions together


def bulk_cost(request: wire.Message, bulk_bytes: int) -> int:
    """Bytes of bulk data that *request* makes the owner hold until it is answered."""
    if type(request) is wire.ReadBlocks:
        return bulk_bytes + max(0, request.size_bytes)
    if type(request) is wire.OpenFile and request.wants_data:
        return WHOLE_FILE_MAX_BYTES
    return bulk_bytes


class Session:
    """One holder's session.  *data* belongs to the service; *heard_s*: trio time of the last byte from the holder."""

    def __init__(self, node_id: int, key: bytes) -> None:
        self.node_id = node_id
        self.key = key
        self.data: Any = None
        self.software = ""
        self.confirmed = False  # the holder is known to have seen its Welcomed
        self.ended = False
        self.has_bad_handles = False  # of another owner, or forged; it was said
        self.requests = 0
        self._channels: list[Channel | None] = [None, None]
        self._lost_s = trio.current_time()  # when the last connection went
        self._asks = Asks()
        self._executing: dict[int, trio.CancelScope] = {}
        self._lock_waits: set[int] = set()  # among them
        self._progress = trio.lowlevel.ParkingLot()  # one of them is done
        self._held_bytes = 0
        self._replies: dict[int, wire.Message] = {}  # in the order of execution
        self._forgotten_id = 0  # no reply up to this id is certain to be in _replies
        self._highest_id = 0
        self._repeats_up_to = 0  # ids up to here may be repeats: they may have been sent before the last reconnect

    @property
    def small(self) -> Channel | None:
        return self._channels[wire.Lane.SMALL]

    @property
    def bulk(self) -> Channel | None:
        return self._channels[wire.Lane.BULK]

    @property
    def heard_s(self) -> float:
        return max((c.heard_s for c in self._channels if c), default=self._lost_s)

    def lease_lapsed(self, now_s: float, term_s: float) -> bool:
        """Whether the holder must have dropped all it cached: for *term_s* nothing was heard, so nothing answered."""
        return now_s - self.heard_s >= term_s

    # ------------------------------------------------------------ connections

    def attach(self, lane: wire.Lane, channel: Channel) -> None:
        """Make *channel* the current one.  A new SMALL lane begins a new pair: nothing more is read from the old one.

        Otherwise a request left in the old connection could be executed after its repeat and undo what came between.
        """
        if lane is wire.Lane.SMALL:
            self.close_channels("replaced by a new connection of the same session")
            self._repeats_up_to = self._highest_id
            self._channels[lane] = channel
        else:
            self.confirmed = True
            if old := self.bulk:
                old.close("replaced by a new connection of the same session")
            self._channels[lane] = channel
            # Only now: the holder must find nothing behind the Welcomed of its SMALL lane, and has taken that one.
            self._asks.use(self.small)

    def detach(self, lane: wire.Lane, channel: Channel) -> None:
        """*channel* is lost."""
        if self._channels[lane] is channel:
            self._lost_s = self.heard_s
            self._channels[lane] = None

    def close_channels(self, reason: str) -> None:
        self._lost_s = self.heard_s
        for lane, channel in enumerate(self._channels):
            self._channels[lane] = None
            if channel:
                channel.close(reason)

    # ------------------------------------------------------------ what the owner asks

    def ask_soon(self, request: wire.Recall, on_answer: OnAnswer) -> None:
        """Ask the holder, now and over every new connection until it answers; *on_answer* is called once.

        It gets True in the reader's task when answered, False when the session has ended (after the service has heard
        of that); never before this returns.  It must not wait.  What was sent to the holder before (a reply that
        grants) is seen there before.  Raises WireError when the request is too large to send: nothing was asked.
        """
        self._asks.ask_soon(request, on_answer)

    async def ask(self, request: wire.Recall) -> None:
        """As `ask_soon`, and wait for the answer.  A caller that is cancelled does not take the question back.

        Raises SessionEnded, WireError.
        """
        outcome: list[bool] = []
        over = trio.Event()

        def on_answer(answered: bool) -> None:
            outcome.append(answered)
            over.set()

        self._asks.ask_soon(request, on_answer)
        await over.wait()
        if outcome != [True]:
            raise SessionEnded(f"the session of node {self.node_id} ended before its {type(request).__name__}")

    @property
    def asks(self) -> int:
        """How many the holder has not answered yet."""
        return len(self._asks)

    def take_answer(self, channel: Channel, ask_id: int, answer: wire.Message, bulk: Buffer) -> None:
        """Raises WireError."""
        self._asks.take_answer(channel, ask_id, answer, bulk)

    def end_asks(self) -> None:
        """The session has ended."""
        self._asks.end()

    # ------------------------------------------------------------ requests

    def is_executing(self, request_id: int) -> bool:
        return request_id in self._executing

    def remembered(self, request_id: int, request: wire.Message) -> wire.Message | None:
        """The reply to a ONCE_ONLY request that was executed before, or None: execute it."""
        reply = self._replies.get(request_id)
        if reply is None and request_id <= min(self._forgotten_id, self._repeats_up_to):
            return wire.Failed(errno=errno.EIO, text=f"whether this {type(request).__name__} was executed is forgotten")
        return reply

    def note(self, request_id: int) -> None:
        """A request with this id has arrived."""
        self.requests += 1
        if request_id > self._highest_id:
            self._highest_id = request_id

    def remember(self, request_id: int, reply: wire.Message) -> None:
        """Keep the reply of an executed ONCE_ONLY request for a repeat."""
        replies = self._replies
        replies[request_id] = reply
        if len(replies) > REPLIES_KEPT:
            oldest = next(iter(replies))
            del replies[oldest]
            self._forgotten_id = max(self._forgotten_id, oldest)

    def begin(self, request_id: int, cost_bytes: int, is_lock_wait: bool = False) -> trio.CancelScope:
        """Note that a request takes longer.  Raises WireError when the holder has too many of them under way."""
        if len(self._executing) >= IN_FLIGHT_MAX or self._held_bytes + cost_bytes > BULK_IN_FLIGHT_MAX_BYTES:
            raise WireError(
                f"too many requests at once ({len(self._executing)} with {self._held_bytes} bytes of bulk data)"
            )
        self._held_bytes += cost_bytes
        scope = self._executing[request_id] = trio.CancelScope()
        if is_lock_wait:
            self._lock_waits.add(request_id)
        return scope

    def executed(self, request_id: int) -> None:
        del self._executing[request_id]
        self._lock_waits.discard(request_id)
        self._progress.unpark_all()

    async def wait_executed(self) -> None:
        """Until what is executed now is done, but for waits for locks.  What is asked next comes behind the replies."""
        waited_for = self._executing.keys() - self._lock_waits
        while not waited_for.isdisjoint(self._executing):
            await self._progress.park()

    def release(self, cost_bytes: int) -> None:
        """The reply is out: its bulk data are no longer held."""
        self._held_bytes -= cost_bytes

    def cancel(self, request_id: int) -> wire.Message | None:
        """Cancel a request that is being executed; its answer will be EINTR unless it is done by then.

        Returns the reply if it was executed already and its reply is remembered: the holder gave it up.
        """
        if scope := self._executing.get(request_id):
            scope.cancel()
            return None
        return self._replies.get(request_id)

    def cancel_all(self) -> None:
        for scope in self._executing.values():
            scope.cancel()

    async def reply(self, lane: wire.Lane, request_id: int, reply: wire.Message, bulk: Bulk) -> None:
        """Send over the current connection of *lane*; where there is none, the holder will ask again.

        Raises WireError when the reply is too large.
        """
        channel = self._channels[lane]
        if channel is not None:
            try:
                await channel.reply(request_id, reply, bulk)
            except OSError:
                channel.close("lost while sending a reply")
