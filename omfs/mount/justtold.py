"""One stat(2), one question: the GETATTR that the kernel sends right after its LOOKUP is answered from the LOOKUP.

With timeouts of 0 the kernel asks twice for one stat(path): LOOKUP, and at once GETATTR, from the same thread.  The
first answer is the owner's, given during this very system call, so it may serve for the second.  Only one caller
could mistake an older call's answer for its own: open(O_PATH) followed by fstat within WITHIN_S; the answer it gets is
at most that old.  Every entry is used once.  Pure.  Called by operations_names.py and operations_attributes.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from pyfuse3 import EntryAttributes

WITHIN_S: Final = 0.0005  # the kernel needs 20-50 us from one to the other; later ones are asked again
_KEPT_MAX: Final = 1024


class JustTold:
    """What each thread's last LOOKUP was answered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[int, tuple[float, EntryAttributes]] = {}

    def note(self, thread: int, entry: EntryAttributes) -> None:
        """A LOOKUP of *thread* is being answered with *entry*."""
        if len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        self._kept[thread] = (self._clock(), entry)

    def take(self, thread: int, number: int) -> EntryAttributes | None:
        """The attributes for a GETATTR of *number* that *thread* makes now, or None: ask."""
        kept = self._kept.pop(thread, None)
        if kept is None or kept[1].st_ino != number or self._clock() - kept[0] > WITHIN_S:
            return None
        return kept[1]
