"""Home's watch over its guests: whose deputy does not come back, and who was lost with the node where it ran.

A deputy (mosrun) whose connection ended with an earlier mignode comes back within a second, unless it has died; then
the guest is ended as if it had been there.  A guest that is away keeps up a link; where there is none for
guest_timeout_s, its node has died or can't be reached, and by then that node has ended it (links.py): home forgets it,
and tells the deputy.

Called by guesthouse.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from mignode.deputies import Deputies, Deputy
from mignode.guestfolder import GuestFolder
from mignode.record import guest_name
from omfs.kernel import processes

_LOOK_EVERY_S: Final = 1.0


class Vigil:
    """On the node *here*.  *give_up*: (deputy, why): the guest is lost."""

    def __init__(
        self, deputies: Deputies, run_dir: Path, here: int, timeout_s: float, give_up: Callable[[Deputy, str], None]
    ) -> None:
        self._deputies = deputies
        self._run_dir = run_dir
        self._here = here
        self._timeout_s = timeout_s
        self._give_up = give_up
        self._silent: dict[str, tuple[int, float]] = {}  # by guest: the node that does not say it has it; since when
        self._alone: dict[str, float] = {}  # since when there is no deputy

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            for deputy in self._deputies:
                self._look_for_deputy(deputy)
                self._look_for_guest(deputy)
            there = {deputy.traits.name for deputy in self._deputies}
            self._silent = {name: seen for name, seen in self._silent.items() if name in there}
            self._alone = {name: seen for name, seen in self._alone.items() if name in there}

    def _look_for_deputy(self, deputy: Deputy) -> None:
        name = deputy.traits.name
        if deputy.stream is not None or deputy.is_orphan:
            self._alone.pop(name, None)
            return
        since_s = self._alone.setdefault(name, trio.current_time())
        process = processes.identify(deputy.traits.pid)
        lives = process is not None and guest_name(self._here, *process) == name
        if not lives or trio.current_time() - since_s > self._timeout_s:
            self._deputies.lost(deputy)

    def _look_for_guest(self, deputy: Deputy) -> None:
        name = deputy.traits.name
        folder = GuestFolder(self._run_dir, name)
        record = folder.record
        if record is None:
            return
        is_found = deputy.way is not None and deputy.way.node_id == record.node
        if is_found or (record.node == self._here and folder.stay is not None):
            self._silent.pop(name, None)
            return
        node, since_s = self._silent.setdefault(name, (record.node, trio.current_time()))
        if node != record.node:
            self._silent[name] = (record.node, trio.current_time())
        elif trio.current_time() - since_s > self._timeout_s:
            self._give_up(deputy, f"node {node}, where it ran, was silent for {self._timeout_s:.0f} s")
