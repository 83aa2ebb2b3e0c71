"""Waiting for a descriptor that is expected to become readable very soon: first by looking, then by sleeping.

Going to sleep and waking up costs more than a whole small request takes (on virtual machines 20 us and a cold cache),
so for SPIN_S the caller looks again and again, leaving the processor to whoever else wants it.  It blocks the process:
for moments when nothing else is to be done.  Called by net/server.py and mount/loop.py.
"""

from __future__ import annotations

import os
import select
import time
from typing import Final

SPIN_S: Final = 0.00015  # most replies within one network have come by then


def poll(poller: select.epoll, timeout_s: float) -> list[tuple[int, int]]:
    """The events of *poller* within *timeout_s* seconds, none if there are none."""
    look, leave = poller.poll, os.sched_yield
    end = time.perf_counter() + SPIN_S
    while True:
        events = look(0)
        if events:
            return events
        if time.perf_counter() > end:
            return look(timeout_s)
        leave()
