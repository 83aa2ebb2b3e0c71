"""The holder's side of leases towards one owner: takes its recalls, and knows whether leases may be used.

Recalls come among the replies.  Each is handled in a task of its own by the mount (`on_recall`) and then answered, over
the connection on which it was asked last: where that is lost, the owner asks again on the next, and what is handled
already, or just now, is not handled twice.  A handler that fails makes all leases lapse, which answers the recall too.

When they lapse (net/term.py says why and when), the mount hears it (`on_lapse`), drops everything it cached of this
owner and says `lapse_handled()`; then the owner is told, and with its answer a new round of leases begins.
What it does not do: know leases, caches or serials (cache/holder.py does).  Base of net/peer.py's Peer, which brings
the connection; the mount sets the three callbacks before it runs.  Where nobody does, nothing is cached, and every
recall is answered at once.
"""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from omfs import wire
from omfs.config import IN_FLIGHT_MAX
from omfs.errors import OmfsError, WireError
from omfs.net.channel import Channel
from omfs.net.frames import Buffer
from omfs.net.term import State, Term

RECALLS_KEPT: Final = 2 * IN_FLIGHT_MAX  # ids of answered recalls: any that the owner may ask again is among them
R = TypeVar("R", bound=wire.Message)

log = logging.getLogger(__name__)


class _Recall:
    """One that is being handled; *channel*: on which it was asked last."""

    __slots__ = ("channel", "id", "request")

    def __init__(self, recall_id: int, request: wire.Recall, channel: Channel) -> None:
        self.id = recall_id
        self.request = request
        self.channel = channel


class LeaseHolder(abc.ABC):
    """*on_recall*: returns when nothing of what is named is cached; one task for each.

    *on_recall_seen*: called the moment a recall is taken from the connection, before any task that waits for an earlier
    reply goes on.  *on_lapse*: everything must be dropped, for this reason; then call `lapse_handled()`.
    """

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.epoch = 0
        self.on_recall: Callable[[wire.Recall], Awaitable[None]] | None = None
        self.on_recall_seen: Callable[[wire.Recall], None] | None = None
        self.on_lapse: Callable[[str], None] | None = None
        self._nursery: trio.Nursery | None = None
        self._channels: tuple[Channel, Channel] | None = None  # by lane
        self._term = Term()
        self._term_changed = trio.lowlevel.ParkingLot()  # its state or length
        self._returning = False  # RETURN_EVERYTHING is under way
        self._running: dict[int, _Recall] = {}
        self._running_count = 0  # also of those of a session that is lost
        self._handled: dict[int, None] = {}  # ids, oldest first

    # ------------------------------------------------------------ for the mount

    @property
    def lease_round(self) -> int:
        """0: what is granted now must not be cached.  Otherwise the number of this unbroken stretch of validity:
        a grant counts only where it is the same before the request is made and after its reply."""
        return self._term.round_at(trio.current_time())

    @property
    def lease_valid(self) -> bool:
        return self.lease_round != 0

    @property
    def lapses(self) -> int:
        return self._term.lapses

    def lapse_handled(self) -> None:
        """Nothing of this owner is cached any more; to be called after each `on_lapse`."""
        self._term.dropped()
        self._term_changed.unpark_all()
        self._return_soon()

    @abc.abstractmethod
    async def call(self, request: wire.Message, expect: type[R], bulk: Buffer = b"") -> R:
        """Ask the owner (net/peer.py)."""

    # ------------------------------------------------------------ recalls

    def _take_recall(self, recall_id: int, request: wire.Message, bulk: Buffer) -> None:
        """Raises WireError for what breaks the rules."""
        assert isinstance(
            request, wire.RecallLease | wire.RecallNames | wire.RecallAll
        )  # a holder's reader decodes no other request
        channels, nursery = self._channels, self._nursery
        if channels is None or nursery is None:
            return  # lost just now: the owner asks again
        if bulk:
            raise WireError(f"sent bulk data with {type(request).__name__}")
        channel = channels[wire.Lane.SMALL]
        running = self._running.get(recall_id)
        if running is not None:
            running.channel = channel
        elif recall_id in self._handled:
            nursery.start_soon(_return_lease, channel, recall_id)  # a task, as readers never send
        elif self._running_count >= IN_FLIGHT_MAX:
            raise WireError(f"too many recalls at once ({self._running_count})")
        else:
            if self.on_recall_seen is not None:
                self.on_recall_seen(request)
            recall = self._running[recall_id] = _Recall(recall_id, request, channel)
            self._running_count += 1
            nursery.start_soon(self._handle_recall, recall)

    async def _handle_recall(self, recall: _Recall) -> None:
        try:
            if self.on_recall is not None:
                await self.on_recall(recall.request)
        except Exception:
            log.exception("node %d: its %s failed here", self.node_id, type(recall.request).__name__)
            self._lapse("a recall failed here")
        finally:
            self._running_count -= 1
        while self._term.state is State.LAPSED:  # the mount may know of no lease any more and be dropping it still
            await self._term_changed.park()
        if self._running.get(recall.id) is recall:  # otherwise the session that asked is lost
            # No await from here to the choice of the channel: a repeat finds it running, or handled.
            del self._running[recall.id]
            self._handled[recall.id] = None
            if len(self._handled) > RECALLS_KEPT:
                del self._handled[next(iter(self._handled))]
            await _return_lease(recall.channel, recall.id)

    # ------------------------------------------------------------ the term

    def _agree(self, welcomed: wire.Welcomed, sent_s: float) -> None:
        """A new pair's Hello, sent at *sent_s*, was answered."""
        self._term.agree(welcomed.lease_term_s)
        self._answered(sent_s)
        self._term_changed.unpark_all()

    def _answered(self, sent_s: float) -> None:
        """The owner has answered what was sent at *sent_s*."""
        before = self._term.state
        self._term.answered(sent_s, trio.current_time())
        if self._term.state is not before:
            self._term_changed.unpark_all()
        self._return_soon()

    def _owner_forgot(self, reason: str) -> None:
        """The session is lost and with it all leases and recalls; the ids of recalls may begin again."""
        self._running = {}
        self._handled = {}
        if self._term.owner_forgot():
            self._drop_leases(reason)

    def _lapse(self, reason: str) -> None:
        if self._term.lapse():
            self._drop_leases(reason)

    def _drop_leases(self, reason: str) -> None:
        if self.on_lapse is None:  # nobody caches anything, so there is nothing to say either
            self._term.dropped()
            self._term.returned()
            return
        log.info("node %d: its leases lapse: %s", self.node_id, reason)
        try:
            self.on_lapse(reason)
        except Exception:
            log.exception("node %d: dropping its leases failed; none will be used", self.node_id)

    async def _watch_term(self) -> None:
        """Let the leases lapse at the moment when their span ends."""
        while True:
            term = self._term
            with trio.move_on_at(term.until_s if term.state is State.HELD else math.inf):
                await self._term_changed.park()
            if term.is_over(trio.current_time()):
                self._lapse("nothing was answered for too long")

    def _return_soon(self) -> None:
        """Tell the owner that nothing is held, if it must hear that and can; tried anew with every answered Ping."""
        if self._term.state is State.DROPPED and not self._returning and self._channels is not None:
            assert self._nursery is not None
            self._returning = True
            self._nursery.start_soon(self._return_everything)

    async def _return_everything(self) -> None:
        epoch, sent_s = self.epoch, trio.current_time()
        try:
            await self.call(_RETURN_EVERYTHING, wire.Done)
        except OmfsError as error:
            log.debug("node %d: not told that nothing is held: %s", self.node_id, error)
            return
        finally:
            self._returning = False
        if self.epoch == epoch:  # otherwise nobody knows which session answered
            self._term.returned()
            self._answered(sent_s)


_RETURN_EVERYTHING: Final = wire.ReturnLeases(leases=(), everything=True)
_RETURNED: Final = wire.LeaseReturned()


async def _return_lease(channel: Channel, recall_id: int) -> None:
    try:
        await channel.reply(recall_id, _RETURNED)
    except OSError:
        log.debug("%s: lost before a lease was returned; the owner asks again", channel.name)
