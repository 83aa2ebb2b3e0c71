"""Who has locks of a file, natively or through a node, and what he believes to have; for test_moving_locks.py."""

from __future__ import annotations

import fcntl
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final

from omfs import wire
from omfs.export.ranges import F_RDLCK, F_UNLCK, F_WRLCK, HeldRanges
from omfs.kernel.filelocks import RangeLock, set_range
from tests.unit.exportroom import Asker

OPERATIONS: Final = {F_RDLCK: fcntl.LOCK_SH, F_WRLCK: fcntl.LOCK_EX, F_UNLCK: fcntl.LOCK_UN}


def answered(asker: Asker, request: wire.Message) -> Any:
    """What needs no waiting."""
    answer = asker.begin(request)
    assert isinstance(answer, tuple), answer
    return answer[0]


class Holder(ABC):
    """Who has locks: through a node, or natively; *held* is what it believes to have."""

    def __init__(self, held: HeldRanges | None = None) -> None:
        self.held = HeldRanges()
        for lock in held or ():
            self.held.set(lock)

    def allows(self, kind: int, start: int, end: int) -> bool:
        return self.held.blocker(kind, start, end) is None

    @abstractmethod
    def ask(self, kind: int, start: int, end: int, moving: wire.Moving | None = None) -> None:
        """BlockingIOError where it is another's."""

    def lock(self, kind: int, start: int, end: int) -> bool:
        try:
            self.ask(kind, start, end)
        except BlockingIOError:
            return False
        self.held.set(RangeLock(kind, start, end, 5))
        return True

    @abstractmethod
    def end(self) -> None:
        """As if it was killed."""


class FlockHolder(Holder):
    """By flock(2), which has no ranges, and gives up what it had before it takes another kind."""

    def lock(self, kind: int, start: int, end: int) -> bool:
        if kind != F_UNLCK and not super().lock(F_UNLCK, start, end):
            return False
        return super().lock(kind, start, end)


class OfNode(Holder):
    numbers = iter(range(1, 1 << 30))

    def __init__(self, asker: Asker, handle: bytes, held: HeldRanges | None = None) -> None:
        super().__init__(held)
        self.asker = asker
        self.owner = next(self.numbers)
        self.open_id = answered(asker, wire.OpenFile(handle, os.O_RDWR, wire.Caller(0, 0))).open_id

    def ask(self, kind: int, start: int, end: int, moving: wire.Moving | None = None) -> None:
        answered(self.asker, wire.LockRange(self.open_id, self.owner, kind, start, end, 5, wait=False, moving=moving))

    def end(self) -> None:
        answered(self.asker, wire.ReleaseLocks(self.open_id, self.owner))
        answered(self.asker, wire.CloseFile(self.open_id))


class FlockOfNode(FlockHolder, OfNode):
    def ask(self, kind: int, start: int, end: int, moving: wire.Moving | None = None) -> None:
        answered(self.asker, wire.LockFile(self.open_id, OPERATIONS[kind], wait=False, moving=moving))

    def end(self) -> None:
        answered(self.asker, wire.CloseFile(self.open_id))


class Native(Holder):
    def __init__(self, path: Path, held: HeldRanges | None = None) -> None:
        super().__init__(held)
        self.fd = os.open(path, os.O_RDWR)

    def ask(self, kind: int, start: int, end: int, moving: wire.Moving | None = None) -> None:
        set_range(self.fd, kind, start, end)

    def end(self) -> None:
        os.close(self.fd)


class FlockNative(FlockHolder, Native):
    def ask(self, kind: int, start: int, end: int, moving: wire.Moving | None = None) -> None:
        fcntl.flock(self.fd, OPERATIONS[kind] | fcntl.LOCK_NB)
