"""The lease table (cache/table.py) is written behind the grants: a transaction for each would cost a fifth of a LookUp.

Before the first grant that is not yet written the table is told that it is behind, and afterwards that it is not; a
daemon that was killed while it was lets changes wait until the holders of before have come back, which they do in a
second, or their term is over.  Invariant: no more is granted than the table says, unless it says that it is behind.
Called by leasing.py; daemon.py runs `run`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

import trio

from omfs.cache.owner import Change
from omfs.cache.table import LeaseTable

WRITE_AFTER_S: Final = 0.05  # many grants in one transaction
WRITE_AGAIN_S: Final = 5.0  # after it failed
BEHIND_FOR_S: Final = 1.0  # without a grant before the table says that it is complete

log = logging.getLogger(__name__)


class TableWriter:
    """*is_uncertain*: of some holder nobody knows what it has, so the table stays behind: the next daemon would not
    know either.  *before*: called before each transaction.
    """

    def __init__(self, table: LeaseTable, is_uncertain: Callable[[], bool], before: Callable[[], None]) -> None:
        self.is_behind = table.was_behind
        self._table = table
        self._is_uncertain = is_uncertain
        self._before = before
        self._unwritten: list[Change] = []
        self._wakes = trio.Event()
        self._has_failed = False

    def __len__(self) -> int:
        """Changes that the table does not have yet."""
        return len(self._unwritten)

    def note(self, changes: Iterable[Change]) -> None:
        """These are about to be told to their holders."""
        self._unwritten += changes
        if not self.is_behind:
            self.is_behind = True
            self._table.note_behind(True)
        self._wakes.set()

    def write(self) -> None:
        """Write the table now.  Where that fails (a full disk) it stays behind, and says so."""
        self._before()
        if not self._unwritten:
            return
        try:
            self._table.note(self._unwritten)
        except OSError as error:
            if not self._has_failed:
                log.error("the lease table can't be written: %s", error.strerror)
            self._has_failed = True
        else:
            self._unwritten = []
            self._has_failed = False

    async def run(self) -> None:
        """Write the table soon after each change, until cancelled."""
        while True:
            if self._unwritten:
                await trio.sleep(WRITE_AFTER_S if not self._has_failed else WRITE_AGAIN_S)
                self.write()
            elif not self._wakes.is_set():
                with trio.move_on_after(BEHIND_FOR_S) as quiet:
                    await self._wakes.wait()
                if quiet.cancelled_caught and self.is_behind and not self._is_uncertain():
                    self._table.note_behind(False)
                    self.is_behind = False
                    await self._wakes.wait()
            else:
                self._wakes = trio.Event()

    def close(self) -> None:
        """Write what is to be written, and say whether that is all; an orderly end, of the table too."""
        self.write()
        if not self._unwritten and not self._is_uncertain():
            self._table.note_behind(False)
        self._table.close()
