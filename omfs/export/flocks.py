"""flock(2) for holders: who has and who waits.  What an open id has is flock.py's.

Invariants: flock locks end with CloseFile, or with the session; of a guest that moves, with the last copy of the open
file, which are here, at its old and at its new node.  Trio thread only, but for the waiting.  Called by locks.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import trio

from omfs import wire
from omfs.export.files import Opened, SessionFiles, Share
from omfs.export.flock import Flock
from omfs.export.movingopens import FLOCK, FileId, OpenLock, file_id
from omfs.export.rangeowners import Arrival
from omfs.export.ranges import F_RDLCK, F_WRLCK
from omfs.kernel.filelocks import RANGE_END, block_in_flock
from omfs.net.server import Answer

Wait = Callable[[Share, Callable[[], None], Callable[[], None]], Awaitable[None]]

_DONE: Final = wire.Done()


class Flocks:
    """All of them.  *wait*: inside a blocking call (locks.py).  *wait_free*: until nobody keeps the file still."""

    def __init__(
        self,
        wait: Wait,
        arrivals: Mapping[str, Arrival],
        halt_of: Callable[[int], trio.Event | None],
        wait_free: Callable[[int], Awaitable[None]],
    ) -> None:
        self._wait = wait
        self._arrivals = arrivals
        self._halt_of = halt_of
        self._wait_free = wait_free
        self._waiting: dict[trio.CancelScope, FileId] = {}
        self._movers: dict[wire.Moving, list[Opened]] = {}

    def lock(self, files: SessionFiles, key: bytes, request: wire.LockFile) -> Answer | Coroutine[Any, Any, Answer]:
        """*key*: of the session.  EAGAIN when it is taken and the request does not want to wait."""
        opened = files.get(request.open_id)
        if request.operation not in (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._halt_of(opened.fd) is None and self._has_tried(key, opened, request):
            return _DONE, b""
        return self._lock_later(files, key, request)

    def _has_tried(self, key: bytes, opened: Opened, request: wire.LockFile) -> bool:
        """False: it is to be waited for."""
        if opened.flock is None:
            opened.flock = Flock(opened.fd, key)
        if request.moving is not None:
            self._take_over(opened, opened.flock, request.operation, request.moving)
            return True
        try:
            opened.flock.lock(request.operation)
        except BlockingIOError:
            if request.wait:
                return False
            raise
        return True

    async def _lock_later(self, files: SessionFiles, key: bytes, request: wire.LockFile) -> Answer:
        while True:
            opened = files.get(request.open_id)
            await self._wait_free(opened.fd)
            if self._has_tried(key, opened, request) or await self._has_waited(files.share, opened, request):
                return _DONE, b""
            await trio.lowlevel.checkpoint()

    async def _has_waited(self, share: Share, opened: Opened, request: wire.LockFile) -> bool:
        """False when nobody may wait now."""
        assert opened.flock is not None
        flock, fd = opened.flock, os.dup(opened.flock.fd)  # its number is ours while a thread is inside
        try:
            with trio.CancelScope() as scope:
                self._waiting[scope] = file_id(fd)
                await self._wait(
                    share, lambda: block_in_flock(fd, request.operation), lambda: fcntl.flock(fd, fcntl.LOCK_UN)
                )
                flock.operation = request.operation
                return True
        finally:
            del self._waiting[scope]
            os.close(fd)
        return False

    async def stop_waits(self, files: frozenset[FileId], again_s: float) -> None:
        """Until nobody is inside a call for one of them; they come again when they may."""
        while waiting := [scope for scope, file in self._waiting.items() if file in files]:
            for scope in waiting:
                scope.cancel()
            await trio.sleep(again_s)

    # ------------------------------------------------------------ of guests that move

    def _take_over(self, opened: Opened, flock: Flock, operation: int, moving: wire.Moving) -> None:
        """A lock that is held already, by the sender or where it came from.  EAGAIN where it is not."""
        if flock.operation != operation:
            giver = self.mover(moving)
            if giver is not None and giver.operation == operation:
                flock.pass_to(os.dup(giver.fd))
            else:
                self._arrive(opened, flock, operation, moving)
            flock.operation = operation
        flock.moving = moving
        self._movers = {name: left for name, opens in self._movers.items() if (left := _still(name, opens))}
        self._movers.setdefault(moving, []).append(opened)

    def _arrive(self, opened: Opened, flock: Flock, operation: int, moving: wire.Moving) -> None:
        """From a process that has it natively."""
        arrival = self._arrivals.get(moving.attempt)
        native = arrival.open_of(moving) if arrival is not None else None
        if arrival is None or native is None:
            raise BlockingIOError(errno.EAGAIN, "the lock is not held any more")
        kind = F_WRLCK if operation == fcntl.LOCK_EX else F_RDLCK
        flock.pass_to(native.given(opened.fd, OpenLock(FLOCK, kind, 0, RANGE_END)))
        arrival.copies.append(flock)

    def mover(self, moving: wire.Moving) -> Flock | None:
        """What has the lock that goes over under this name."""
        return next((opened.flock for opened in _still(moving, self._movers.get(moving, []))), None)

    def of_attempt(self, attempt: str) -> list[Flock]:
        return [mover for name in self._movers if name.attempt == attempt and (mover := self.mover(name)) is not None]


def _still(moving: wire.Moving, opens: list[Opened]) -> list[Opened]:
    """Those that are open, and have a lock that moves under this name."""
    return [one for one in opens if one.flock is not None and one.flock.moving == moving and one.flock.operation]
