"""Waiting for a descriptor that is expected to become readable very soon: first by looking, then by sleeping.

Going to sleep and waking up costs more than a whole small request takes (on virtual machines 20 us and a cold cache),
so the caller looks again and again for a while, leaving the processor to whoever else wants it.  It blocks the process:
for moments when nothing else is to be done.

For how long is learned, as halt polling of virtual machines does.  Two ends that wait for each other must not fall
asleep a little too early: each one's waking up is then what the other waits too long for, and so every round trip takes
twice as long (measured: 490-660 us instead of 170-230, on a busy machine).  So who slept, and would not have had to if
it had looked for SPIN_MAX_S, does so from then on, until looking so long was in vain.

Where somebody else has work for the processor, who leaves it gets it back a whole time slice later, while who sleeps is
woken in time: then nobody looks (measured with two busy loops beside, on two processors: 3.9 ms instead of 0.6).

Both ends gain when one of them looks: its processor is not halted, and the other one's is for a shorter time.  A byte
to and fro through pipes between two idle processors of a virtual machine took 62 to 82 us, 15 to 20 where one of the
two looked, and 7 on one processor.
Called by net/server.py and mount/loop.py.
"""

from __future__ import annotations

import os
import select
import time
from typing import Final

SPIN_MIN_S: Final = 0.00015  # most replies within one network have come by then
SPIN_MAX_S: Final = 0.0006  # with a program's own work, and a busy processor, between two requests
BUSY_S: Final = 0.001  # away for so long: another process computes
BUSY_FOR_S: Final = 0.1  # so long it is left alone then; a slice is lost each time that we look whether it still does


class _Processor:
    """Where we run.  *busy_until_s*: somebody else is taken to compute there until then."""

    busy_until_s = 0.0


class Spinner:
    """Remembers how long looking pays; one per place that waits.

    *beside*: another one of this thread, which shares what either finds out about who else computes.
    """

    def __init__(self, beside: Spinner | None = None) -> None:
        self.spin_s = SPIN_MIN_S
        self._processor: _Processor = _Processor() if beside is None else beside._processor

    def poll(self, poller: select.epoll, timeout_s: float) -> list[tuple[int, int]]:
        """The events of *poller* within *timeout_s* seconds after looking was given up, none if there are none."""
        look, leave, clock = poller.poll, os.sched_yield, time.perf_counter
        begun_s = now_s = clock()
        end_s = begun_s + self.spin_s if begun_s >= self._processor.busy_until_s else begun_s
        while not (events := look(0)) and now_s < end_s:
            leave()
            left_s, now_s = now_s, clock()
            if now_s - left_s > BUSY_S:
                end_s = now_s
                self._processor.busy_until_s = now_s + BUSY_FOR_S
        if not events:
            events = look(timeout_s)
            self.spin_s = SPIN_MAX_S if events and clock() - begun_s < SPIN_MAX_S else SPIN_MIN_S
        return events
