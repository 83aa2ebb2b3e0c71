"""An owner with leases but without a network, and holders that answer recalls when the test wants them to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from omfs import wire
from omfs.cache.table import LeaseTable
from omfs.export.guards import Guards
from omfs.export.leasing import Leasing
from omfs.export.localchanges import GuardNow
from omfs.export.mounts import Mount
from omfs.export.service import ExportService
from omfs.export.underleases import UnderLeases
from omfs.kernel.filelease import LeaseState
from tests.unit.exportroom import Asker, FakeSession

TERM_S = 12.0


class FakeChanges:
    """As LocalChanges, without the kernel: everything is watched, every file can be guarded unless *is_written*,

    and be EXCLUSIVE unless *is_open_elsewhere*.
    """

    def __init__(self) -> None:
        self.guards: set[bytes] = set()
        self.exclusive: set[bytes] = set()
        self.is_written = self.is_open_elsewhere = False
        self.lost: dict[bytes, GuardNow] = {}  # those of which the kernel has no whole lease
        self.in_grace = False
        self.undrained: list[Callable[[], None]] = []  # what `drain` tells

    def watch_mount(self, mount: Mount, fd: int) -> bool:
        return True

    def key(self, mount: Mount, prepared: bytes) -> bytes:
        return b"filesyst" + prepared

    def guard_data(self, key: bytes, open_fd: Callable[[int], int]) -> bool:
        if not self.is_written:
            self.guards.add(key)
        return not self.is_written

    def guard_exclusive(self, key: bytes, fd: int) -> bool:
        if not self.is_open_elsewhere:
            self.exclusive.add(key)
        return not self.is_open_elsewhere

    def claim(self, key: bytes, flags: int) -> int:
        return -1

    def give_way(self, key: bytes) -> bool:
        self.unguard(key)
        return True

    def is_guarded(self, key: bytes) -> bool:
        return key in self.guards and key not in self.lost

    def look_at(self, key: bytes) -> GuardNow:
        if key not in self.guards:
            return GuardNow(None, False)
        return self.lost.get(key, GuardNow(LeaseState.ACTIVE, False))

    def drain(self) -> None:
        undrained, self.undrained = self.undrained, []
        for tell in undrained:
            tell()

    def unguard(self, key: bytes) -> None:
        self.guards.discard(key)
        self.exclusive.discard(key)
        self.lost.pop(key, None)


class HoldingSession(FakeSession):
    """A session whose recalls are kept until `answer_recalls`; *answers_at_once*: at the next turn of the loop."""

    def __init__(self, node_id: int) -> None:
        super().__init__(node_id)
        self.software = "test"
        self.heard_s = trio.current_time()
        self.small: Any = "connected"
        self.asked: list[tuple[wire.Recall, Callable[[bool], None]]] = []
        self.seen: list[wire.Recall] = []

    def ask_soon(self, request: wire.Recall, on_answer: Callable[[bool], None]) -> None:
        self.asked.append((request, on_answer))
        self.seen.append(request)

    def lease_lapsed(self, now_s: float, term_s: float) -> bool:
        return now_s - self.heard_s >= term_s

    def answer_recalls(self) -> None:
        asked, self.asked = self.asked, []
        for _, on_answer in asked:
            on_answer(True)


class Room:
    """The owner, and a holder for each node id asked for."""

    def __init__(self, under: UnderLeases, changes: Any, leasing: Leasing, table: LeaseTable, guards: Guards) -> None:
        self.under = under
        self.guards = guards
        self.changes = changes
        self.leasing = leasing
        self.table = table
        self.ended: list[bytes] = []
        self.is_killed = False  # the daemon ends without a chance to write

    def holder(self, node_id: int) -> tuple[Asker, HoldingSession]:
        session = HoldingSession(node_id)
        return Asker(self.under, session), session  # type: ignore[arg-type]


@contextmanager
def leasing_room(state: Path, service: ExportService, changes: Any = None, boot_id: str = "boot") -> Iterator[Room]:
    """Within a trio run."""
    table = LeaseTable.open(state / "leases", boot_id)
    ended: list[bytes] = []
    leasing = Leasing(table, TERM_S, lambda key, reason: ended.append(key))
    guards = Guards(service.disk, leasing)
    under = UnderLeases(service, leasing, guards)
    fake = changes or FakeChanges()
    guards.watch(fake)
    room = Room(under, fake, leasing, table, guards)
    room.ended = ended
    try:
        yield room
    finally:
        service.disk.mounts.on_found = None
        if room.is_killed:
            table.close()
        else:
            leasing.close()
