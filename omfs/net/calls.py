"""The holder's calls that are under way to one owner.

Here: ids, room (the owner closes the connection of whoever has more under way than the limits), waking.  What it does
not do: send, connect, judge.  Invariants: ids grow and are never used twice; a call has an id exactly when it counts
against the limits; a task is woken only while it sleeps in `wait_woken`.  Called by net/peer.py only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from omfs import wire
from omfs.config import BULK_LANE_FROM_BYTES, IN_FLIGHT_MAX
from omfs.errors import OmfsError
from omfs.net.frames import Buffer
from omfs.net.session import BULK_IN_FLIGHT_MAX_BYTES, bulk_cost

_OPENS: Final = frozenset({wire.OpenFile, wire.CreateFile, wire.OpenDirectory})


class Call:
    """One call of one task, from its beginning until its task has the outcome (*reply* or *error*)."""

    __slots__ = (
        "_asleep",
        "bulk",
        "cancel_wanted",
        "cost_bytes",
        "error",
        "id",
        "lane",
        "reply",
        "reply_bulk",
        "request",
        "sent",
        "still_wanted",
        "task",
    )  # fmt: skip

    def __init__(self, request: wire.Message, bulk: Buffer) -> None:
        self.id = 0  # 0: waits for room
        self.request = request
        self.bulk = bulk
        self.cost_bytes = bulk_cost(request, len(bulk))
        self.lane = wire.Lane.SMALL if self.cost_bytes < BULK_LANE_FROM_BYTES else wire.Lane.BULK
        self.task = trio.lowlevel.current_task()
        self.sent = False  # a byte of it may have reached the owner
        self.reply: wire.Message | None = None
        self.reply_bulk: Buffer = b""
        self.error: OmfsError | None = None
        self.cancel_wanted = False  # a lock wait that was interrupted: the owner is asked to give it up
        self.still_wanted: Callable[[], bool] | None = None  # set once its process was signalled
        self._asleep = False

    @classmethod
    def answered(cls, request: wire.Message, reply: wire.Message) -> Call:
        """A call that was over before it needed to be one."""
        call = cls(request, b"")
        call.reply = reply
        return call

    @property
    def is_open(self) -> bool:
        return self.reply is None and self.error is None

    @property
    def is_lock_wait(self) -> bool:
        return isinstance(self.request, wire.LockFile | wire.LockRange) and self.request.wait

    @property
    def must_be_undone(self) -> bool:
        """Whether the owner must hear of it when the caller leaves without the answer (CancelRequest)."""
        return self.is_lock_wait or type(self.request) in _OPENS

    def answer(self, reply: wire.Message, bulk: Buffer) -> None:
        if self.reply is None and self.error is None:
            self.reply = reply
            self.reply_bulk = bulk
            self.wake()

    def fail(self, error: OmfsError) -> None:
        if self.is_open:
            self.error = error
            self.wake()

    def wake(self) -> None:
        if self._asleep:
            self._asleep = False
            trio.lowlevel.reschedule(self.task)

    async def wait_woken(self) -> None:
        self._asleep = True
        await trio.lowlevel.wait_task_rescheduled(self._stop_sleeping)

    def _stop_sleeping(self, _: Any) -> trio.lowlevel.Abort:
        self._asleep = False
        return trio.lowlevel.Abort.SUCCEEDED


class CallTable:
    """All calls to one owner: in flight by id, and those that wait for room, first come first served."""

    def __init__(self) -> None:
        self.in_flight: dict[int, Call] = {}
        self.last_id = 0
        self._bulk_bytes = 0
        self._waiting: deque[Call] = deque()

    def __len__(self) -> int:
        return len(self.in_flight) + len(self._waiting)

    def take_id(self) -> int:
        self.last_id += 1
        return self.last_id

    @property
    def is_idle(self) -> bool:
        """Nothing is in flight and nothing waits."""
        return not self.in_flight and not self._waiting

    def adopt(self, call: Call) -> None:
        """Count a call that was sent with the next id while nothing else was in flight."""
        call.sent = True
        self._let_in(call)

    def begin(self, call: Call) -> None:
        """Give the call an id if there is room; otherwise it gets one (and is woken) when there is."""
        if self._waiting or not self._has_room(call):
            self._waiting.append(call)
        else:
            self._let_in(call)

    def end(self, call: Call) -> None:
        """The task has the outcome, or gave up."""
        if call.id:
            del self.in_flight[call.id]
            self._bulk_bytes -= call.cost_bytes
        else:
            self._waiting.remove(call)
        while self._waiting and self._has_room(self._waiting[0]):
            entered = self._waiting.popleft()
            self._let_in(entered)
            entered.wake()

    def open_calls(self) -> list[Call]:
        """In flight and not answered, oldest first."""
        return [call for call in self.in_flight.values() if call.is_open]

    def of_task(self, task: trio.lowlevel.Task) -> Call | None:
        return next((call for call in self._all() if call.task is task and call.is_open), None)

    def signalled(self) -> list[Call]:
        """Open calls whose process was signalled."""
        return [call for call in self._all() if call.still_wanted is not None and call.is_open]

    def fail_all(self, error: Callable[[], OmfsError]) -> None:
        """Every call gets an exception of its own: a raised one collects its traceback."""
        for call in self._all():
            call.fail(error())

    def _all(self) -> list[Call]:
        return [*self.in_flight.values(), *self._waiting]

    def _has_room(self, call: Call) -> bool:
        if len(self.in_flight) >= IN_FLIGHT_MAX:
            return False
        return not call.cost_bytes or self._bulk_bytes + call.cost_bytes <= BULK_IN_FLIGHT_MAX_BYTES

    def _let_in(self, call: Call) -> None:
        call.id = self.last_id = self.last_id + 1
        self.in_flight[call.id] = call
        self._bulk_bytes += call.cost_bytes
