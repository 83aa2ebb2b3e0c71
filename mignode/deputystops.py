"""mosrun was stopped by somebody (kill -STOP): home sees it, and the program is stopped where it runs.

No event tells of it: a stop is told to the parent and to a tracer only, and mosrun can't do anything.  So mosrun's
state is looked at, five times a second as long as there is a mosrun, from an open /proc/<pid>/status: that never waits
for the process (processes.py), and is nobody else's when the pid is.  What continues mosrun it says itself.

Which stop is an answer to one of the program, the guest's end knows (stops.py).  Called by guesthouse.py.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

import trio

from mignode.deputies import Deputies, Deputy

LOOK_EVERY_S: Final = 0.2
_READ_BYTES: Final = 256  # the state is the third line; before it is the name, of at most 64 bytes when spelled out
_STOPPED: Final = b"\nState:\tT"


class DeputyStops:
    """Of this node's deputies."""

    def __init__(self, deputies: Deputies) -> None:
        self._deputies = deputies
        self._open: dict[str, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._deputies.wait_some()
                self.look()
                await trio.sleep(LOOK_EVERY_S)
        finally:
            self.close()

    def look(self) -> None:
        """At each of them."""
        self._keep_only({deputy.traits.name for deputy in self._deputies})
        for deputy in self._deputies:
            if deputy.stream is not None:  # then it is that process (door.py)
                deputy.stopped(self._is_stopped(deputy))

    def close(self) -> None:
        """What it has open."""
        self._keep_only(set())

    def _is_stopped(self, deputy: Deputy) -> bool:
        name = deputy.traits.name
        try:
            if name not in self._open:
                self._open[name] = os.open(f"/proc/{deputy.traits.pid}/status", os.O_RDONLY | os.O_CLOEXEC)
            return _STOPPED in os.pread(self._open[name], _READ_BYTES, 0)
        except OSError:  # it has ended
            return False

    def _keep_only(self, names: set[str]) -> None:
        for name in self._open.keys() - names:
            with contextlib.suppress(OSError):
                os.close(self._open.pop(name))
