"""What the owner asks of one holder: sent at once over its connection, and again over every new one until answered.

Requests go out in the order in which they were asked, and behind every reply that was sent before: a recall is never
seen ahead of the grant that it voids.  No more are under way at a time than the holder takes.  What it does not do:
decide when a holder has waited too long (the service does, see Session.lease_lapsed).

Invariants: an answer is taken once, on the connection where the request went out last; *on_answer* is called once, and
never before `ask_soon` has returned.  Called by net/session.py only.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

import trio

from omfs import wire
from omfs.config import IN_FLIGHT_MAX
from omfs.errors import WireError
from omfs.net.channel import Channel
from omfs.net.frames import Buffer, encode

OnAnswer: TypeAlias = Callable[[bool], None]
"""True: answered; False: the session has ended, and with it everything the holder had."""

log: Final = logging.getLogger(__name__)


class _Ask:
    __slots__ = ("id", "on_answer", "request", "sent")

    def __init__(self, ask_id: int, request: wire.Recall, on_answer: OnAnswer) -> None:
        self.id = ask_id
        self.request = request
        self.on_answer = on_answer
        self.sent = False  # on the current connection

    def tell(self, answered: bool) -> None:
        try:
            self.on_answer(answered)
        except Exception:
            log.exception("what waited for a %s failed", type(self.request).__name__)


class Asks:
    """All requests to one holder that are not answered yet."""

    def __init__(self) -> None:
        self._open: dict[int, _Ask] = {}  # oldest first
        self._unsent: deque[_Ask] = deque()  # of them, oldest first
        self._last_id = 0
        self._channel: Channel | None = None
        self._sender: Channel | None = None  # a task sends there what is unsent
        self._ended = False

    def __len__(self) -> int:
        return len(self._open)

    def ask_soon(self, request: wire.Recall, on_answer: OnAnswer) -> None:
        """Raises WireError when the request is too large; then nothing was asked."""
        self._last_id += 1
        encode(self._last_id, request)
        ask = _Ask(self._last_id, request, on_answer)
        if self._ended:
            trio.lowlevel.current_trio_token().run_sync_soon(ask.tell, False)
            return
        self._open[ask.id] = ask
        self._unsent.append(ask)
        self._send()

    def use(self, channel: Channel | None) -> None:
        """From now on this is the connection; what is not answered is asked again there."""
        if channel is self._channel:
            return  # a second BULK lane beside the same SMALL one: the holder has our questions
        self._channel = channel
        self._unsent = deque(self._open.values())
        for ask in self._unsent:
            ask.sent = False
        self._send()

    def take_answer(self, channel: Channel, ask_id: int, answer: wire.Message, bulk: Buffer) -> None:
        """Raises WireError for what is no answer to anything."""
        ask = self._open.get(ask_id)
        if ask is None or not ask.sent or channel is not self._channel:
            raise WireError(f"a {type(answer).__name__} that nobody asked for")
        if type(answer) is not wire.LeaseReturned or bulk:
            raise WireError(f"answered {type(ask.request).__name__} with {type(answer).__name__}")
        del self._open[ask_id]
        self._send()
        ask.tell(True)

    def end(self) -> None:
        """The session has ended: nobody will answer."""
        self._ended = True
        self._channel = None
        asks, self._open = self._open, {}
        self._unsent.clear()
        for ask in asks.values():
            ask.tell(False)

    # ------------------------------------------------------------ sending

    def _next(self) -> _Ask | None:
        """What is to be sent now."""
        if not self._unsent or len(self._open) - len(self._unsent) >= IN_FLIGHT_MAX:
            return None
        return self._unsent[0]

    def _send(self) -> None:
        channel = self._channel
        if channel is None or channel is self._sender or channel.closed_because:
            return
        while ask := self._next():
            try:
                if not channel.send_at_once(ask.id, ask.request):
                    self._sender = channel
                    trio.lowlevel.spawn_system_task(self._send_in_turn, channel)
                    return
            except OSError:
                return  # its reader notices too, and all is asked again on the next
            self._unsent.popleft()
            ask.sent = True

    async def _send_in_turn(self, channel: Channel) -> None:
        """Send what must wait behind frames that are partly sent."""
        try:
            while channel is self._channel and (ask := self._next()):
                self._unsent.popleft()
                ask.sent = True  # its answer may come before this task goes on
                await channel.request(ask.id, ask.request)
        except OSError:
            pass  # as above
        finally:
            if self._sender is channel:
                self._sender = None
