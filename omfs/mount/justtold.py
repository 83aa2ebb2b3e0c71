"""One stat(2), one question: the GETATTR that the kernel sends right after its LOOKUP is answered from the LOOKUP.

Without a lease on it the kernel asks twice for an object: LOOKUP (or MKDIR, CREATE), and at once GETATTR, from the same
thread: for stat(2), and to check access to every directory of a path and to what open(2) has made.  The
first answer is the owner's, given during this very system call, so it may serve for the second.  The hook forgets it
when the thread asks anything else first: its own chmod must show.  Only one caller could mistake an older call's answer
for its own: open(O_PATH) followed by fstat within WITHIN_S, less than another node needs to hear of the first, change
the object and tell.  Every answer is used once; thread 0 stands for many (those that the daemon's PID namespace does
not show), so nothing is kept for it.  Pure.  Called by takenops.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

WITHIN_S: Final = 0.00025  # the kernel needs 20-50 us from one to the other; later ones are asked again
_KEPT_MAX: Final = 1024


class JustTold:
    """What each thread's last LOOKUP was answered."""

    def __init__(self, kept: dict[int, tuple[float, int, bytes]], clock: Callable[[], float] = time.monotonic) -> None:
        """*kept* is by thread (`Hook.next_answers`)."""
        self._clock = clock
        self._kept = kept

    def note(self, thread: int, number: int, attr: bytes) -> None:
        """A LOOKUP of *thread* is being answered with object *number* and these attributes."""
        if not thread:
            return
        if len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        self._kept[thread] = (self._clock(), number, attr)

    def take(self, thread: int, number: int) -> bytes | None:
        """The attributes for a GETATTR of *number* that *thread* makes now, or None: ask."""
        kept = self._kept.pop(thread, None)
        if kept is None or kept[1] != number or self._clock() - kept[0] > WITHIN_S:
            return None
        return kept[2]
