"""File locks for holders: POSIX locks as open file description locks; those by flock(2) are flocks.py's.

A POSIX lock belongs to (session, file, lock owner), and each of these has one extra descriptor, so the kernel keeps
the owners apart, merges what one of them holds, and lets native programs on this node compete fairly.  Waiting is
done in worker threads (their number is limited: ENOLCK beyond), and a wait that is cancelled is left: its thread is
signalled until it is out, and a lock that was got in the last moment is given back.  Threads that wait while their
owner gives its locks up leave the old descriptor and go on waiting on a new one, as native ones go on.

Invariants: POSIX locks end with ReleaseLocks, with the last CloseFile of the file in
the session, or with the session.  Deadlocks are not detected (EDEADLK), as for any OFD lock.  Trio thread only, but
for LockWait.run.  Called by export/service.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from omfs import wire
from omfs.config import LOCK_WAITERS_MAX
from omfs.export.files import Opened, SessionFiles, Share
from omfs.export.flocks import Flocks
from omfs.export.movingopens import OFD, FileId, OpenLock, file_id
from omfs.export.rangeowners import Arrival, RangeOwner, SessionLocks, made_writable
from omfs.export.ranges import F_RDLCK, F_UNLCK, F_WRLCK, HeldRanges
from omfs.kernel.filelocks import (
    RANGE_END,
    LockWait,
    RangeLock,
    block_in_range,
    probe_range,
    set_range,
)
from omfs.net.server import Answer

SIGNAL_AGAIN_S: Final = 0.01  # a signal that came before the system call began is lost, so another one follows

HELD_UP_S: Final = 60.0  # guest_timeout_s: as long as the node that a guest has left may take to end its copy

_DONE: Final = wire.Done()


class Locks:
    """All locks that holders have here."""

    def __init__(self) -> None:
        self._waiters = trio.CapacityLimiter(LOCK_WAITERS_MAX)
        self._sessions: set[SessionLocks] = set()
        self._halts: dict[FileId, trio.Event] = {}  # files whose locks go over just now
        self.arrivals: dict[str, Arrival] = {}  # by the attempt to move
        self.flocks = Flocks(self._wait, self.arrivals, self._halt_of, self._wait_not_halted)

    def begin_session(self, share: Share, key: bytes = b"") -> SessionLocks:
        """A session's own table."""
        locks = SessionLocks(share, key)
        self._sessions.add(locks)
        return locks

    def end_session(self, locks: SessionLocks) -> None:
        self._sessions.discard(locks)
        locks.release_all()

    async def _wait(self, share: Share, block: Callable[[], None], give_back: Callable[[], None]) -> None:
        """Run a blocking lock call.  Cancelled: leave it; what was locked nevertheless goes to *give_back*."""
        if self._waiters.available_tokens < 1:
            raise OSError(errno.ENOLCK, "too many programs wait for locks here")
        wait = LockWait(block)
        try:
            with share:
                await trio.to_thread.run_sync(wait.run, limiter=self._waiters, abandon_on_cancel=True)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                while not wait.interrupt():  # noqa: ASYNC110 - signals are what is repeated here
                    await trio.sleep(SIGNAL_AGAIN_S)
            if wait.acquired:
                give_back()
            raise

    # ------------------------------------------------------------ POSIX locks

    def lock_range(
        self, files: SessionFiles, locks: SessionLocks, request: wire.LockRange
    ) -> Answer | Coroutine[Any, Any, Answer]:
        """fcntl F_SETLK or F_SETLKW; EAGAIN when it is taken and the request does not want to wait."""
        if self._held_up(files, locks, request) is not None:
            return self._lock_later(files, locks, request)
        taken = self._try_range(files, locks, request)
        return (_DONE, b"") if taken is None else self._wait_range(files, locks, request, taken)

    async def _lock_later(self, files: SessionFiles, locks: SessionLocks, request: wire.LockRange) -> Answer:
        await self._wait_free(files, locks, request)
        taken = self._try_range(files, locks, request)
        return (_DONE, b"") if taken is None else await self._wait_range(files, locks, request, taken)

    def _held_up(
        self, files: SessionFiles, locks: SessionLocks, request: wire.LockRange | wire.ProbeRange
    ) -> trio.Event | None:
        """What is to be waited for before the kernel tells who has a lock."""
        opened = files.get(request.open_id)
        if (halt := self._halt_of(opened.fd)) is not None:
            return halt
        entry = locks.find(opened.place.handle, request.owner)
        is_move = isinstance(request, wire.LockRange) and request.moving is not None
        return None if entry is None or is_move else entry.elsewhere

    def _halt_of(self, fd: int) -> trio.Event | None:
        return self._halts.get(file_id(fd)) if self._halts else None

    async def _wait_not_halted(self, fd: int) -> None:
        with trio.move_on_after(HELD_UP_S):
            while (halt := self._halt_of(fd)) is not None:
                await halt.wait()
            return
        raise OSError(errno.ENOLCK, "a lock of the file goes over to another node")

    async def _wait_free(
        self, files: SessionFiles, locks: SessionLocks, request: wire.LockRange | wire.ProbeRange
    ) -> None:
        with trio.move_on_after(HELD_UP_S) as waiting:
            while (event := self._held_up(files, locks, request)) is not None:
                await event.wait()
        if waiting.cancelled_caught:
            raise OSError(errno.ENOLCK, "a lock of the program is still at the node that it came from")

    @asynccontextmanager
    async def halted(self, files: Iterable[FileId]) -> AsyncIterator[None]:
        """Nobody asks for locks of these files inside, and nobody waits for one in the kernel."""
        halt, names = trio.Event(), frozenset(files)
        for file in names:
            assert file not in self._halts  # one move at a time (movinglocks.py)
            self._halts[file] = halt
        try:
            await self.flocks.stop_waits(names, SIGNAL_AGAIN_S)
            while waiting := [entry for entry in self._waited_on() if file_id(entry.fd) in names]:
                for entry in waiting:
                    entry.stop_waits()
                await trio.sleep(SIGNAL_AGAIN_S)
            yield
        finally:
            for file in names:
                del self._halts[file]
            halt.set()

    def _waited_on(self) -> list[RangeOwner]:
        return [entry for session in self._sessions for entry in session.all() if entry.is_waited_on]

    def of_file(self, handle: bytes) -> list[RangeOwner]:
        """Each once, though two nodes have it."""
        return list(dict.fromkeys(entry for session in self._sessions for entry in session.of_file(handle)))

    def of_attempt(self, attempt: str) -> list[RangeOwner]:
        """The same, of what moves in this attempt."""
        return list(dict.fromkeys(entry for session in self._sessions for entry in session.of_attempt(attempt)))

    def _take_over(
        self, opened: Opened, locks: SessionLocks, request: wire.LockRange, lock: RangeLock, moving: wire.Moving
    ) -> None:
        """A lock that is held already, by the sender or where it came from.  EAGAIN where it is not."""
        handle = opened.place.handle
        entry = locks.find(handle, request.owner)
        if entry is None:
            found = (one for one in self.of_file(handle) if one.moving == moving and one.has(lock))
            entry = next(found, None)
            if entry is None:
                entry = self._arrived(opened, locks, lock, moving)
            locks.add(handle, request.owner, entry)
        elif not entry.has(lock) and not self._arrives(opened, entry, lock, moving):
            raise BlockingIOError(errno.EAGAIN, "the lock is not held any more")
        entry.moving = moving

    def _arrived(self, opened: Opened, locks: SessionLocks, lock: RangeLock, moving: wire.Moving) -> RangeOwner:
        """The first lock of a process that had it natively."""
        arrival = self.arrivals.get(moving.attempt)
        native = arrival.open_of(moving) if arrival is not None else None
        if arrival is not None and native is not None:
            fd = native.given(opened.fd, _of_open_file(lock))
            entry = RangeOwner(opened, locks.share, fd)
            entry.held.set(lock)
            arrival.copies.append(entry)
            return entry
        if arrival is None or not arrival.has(opened.fd, moving.process, lock):
            raise BlockingIOError(errno.EAGAIN, "the lock is not held any more")
        entry = RangeOwner(opened, locks.share)
        entry.elsewhere = arrival.is_over
        entry.held.set(lock)
        arrival.entries.append(entry)
        return entry

    def _arrives(self, opened: Opened, entry: RangeOwner, lock: RangeLock, moving: wire.Moving) -> bool:
        """Another one of it."""
        arrival = self.arrivals.get(moving.attempt)
        if arrival is None:
            return False
        if entry in arrival.copies:
            native = arrival.open_of(moving)
            if native is None or _of_open_file(lock) not in native.locks:
                return False
        elif entry not in arrival.entries or not arrival.has(opened.fd, moving.process, lock):
            return False
        entry.held.set(lock)
        return True

    def _try_range(self, files: SessionFiles, locks: SessionLocks, request: wire.LockRange) -> RangeOwner | None:
        """None: done; or the lock owner whose descriptor is to be waited on."""
        opened = files.get(request.open_id)
        lock = _checked(request.kind, request.start, request.end, request.pid)
        handle = opened.place.handle
        entry = locks.find(handle, request.owner)
        if lock.kind == F_UNLCK:
            if entry is not None:
                set_range(entry.fd, F_UNLCK, lock.start, lock.end)
                entry.held.set(lock)
                if entry.is_idle:
                    locks.release(handle, request.owner)
            return None
        if not (opened.is_writable if lock.kind == F_WRLCK else opened.is_readable):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if request.moving is not None:
            self._take_over(opened, locks, request, lock, request.moving)
            return None
        if entry is None:
            entry = RangeOwner(opened, locks.share)
            locks.add(handle, request.owner, entry)
        elif lock.kind == F_WRLCK and not entry.is_writable:
            entry = made_writable(entry, opened, locks.share)
        try:
            set_range(entry.fd, lock.kind, lock.start, lock.end)
        except BaseException as error:
            if request.wait and isinstance(error, BlockingIOError):
                return entry
            if entry.is_idle:
                locks.release(handle, request.owner)
            raise
        entry.held.set(lock)
        return None

    async def _wait_range(
        self, files: SessionFiles, locks: SessionLocks, request: wire.LockRange, entry: RangeOwner
    ) -> Answer:
        """Wait until the range is locked, on one descriptor after the other.  OpenLost when the open id is closed."""
        lock = _checked(request.kind, request.start, request.end, request.pid)
        taken: RangeOwner | None = entry
        while taken is not None:
            if not taken.is_released and await self._waited(locks, request.owner, taken, lock):
                break
            await trio.lowlevel.checkpoint()
            await self._wait_free(files, locks, request)
            taken = self._try_range(files, locks, request)
        return _DONE, b""

    async def _waited(self, locks: SessionLocks, owner: int, entry: RangeOwner, lock: RangeLock) -> bool:
        """Wait on this descriptor; False when its owner gave its locks up meanwhile, or nobody may wait now."""
        fd, is_locked = entry.fd, False
        try:
            with entry.waited_on():
                await self._wait(
                    locks.share,
                    lambda: block_in_range(fd, lock.kind, lock.start, lock.end),
                    lambda: _give_back(entry, lock),
                )
                if not entry.is_released:
                    entry.held.set(lock)
                    is_locked = True
        finally:
            if not entry.is_released and entry.is_idle:
                locks.release(entry.handle, owner)
        return is_locked

    def probe(
        self, files: SessionFiles, locks: SessionLocks, request: wire.ProbeRange
    ) -> Answer | Coroutine[Any, Any, Answer]:
        """fcntl F_GETLK; the pid is that of a native program here, or of the program on another node that holds it."""
        if self._held_up(files, locks, request) is not None:
            return self._probe_later(files, locks, request)
        return self._probe(files, locks, request), b""

    async def _probe_later(self, files: SessionFiles, locks: SessionLocks, request: wire.ProbeRange) -> Answer:
        await self._wait_free(files, locks, request)
        return self._probe(files, locks, request), b""

    def _probe(self, files: SessionFiles, locks: SessionLocks, request: wire.ProbeRange) -> wire.RangeProbed:
        opened = files.get(request.open_id)
        lock = _checked(request.kind, request.start, request.end, 0)
        if lock.kind == F_UNLCK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        entry = locks.find(opened.place.handle, request.owner)
        found = probe_range(entry.fd if entry else opened.fd, lock.kind, lock.start, lock.end)
        if found is None:
            return wire.RangeProbed(F_UNLCK, lock.start, lock.end, 0)
        pid = found.pid
        if pid < 0:
            pid = self._pid_of(opened.place.handle, entry, found)
        return wire.RangeProbed(found.kind, found.start, found.end, pid)

    def _pid_of(self, handle: bytes, asker: RangeOwner | None, found: RangeLock) -> int:
        for session in self._sessions:
            for entry in session.of_file(handle):
                blocker = None if entry is asker else entry.held.blocker(F_WRLCK, found.start, found.end)
                if blocker is not None:
                    return blocker.pid
        return found.pid


def _checked(kind: int, start: int, end: int, pid: int) -> RangeLock:
    if kind not in (F_RDLCK, F_WRLCK, F_UNLCK) or not 0 <= start <= end <= RANGE_END:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return RangeLock(kind, start, end, pid)


def _of_open_file(lock: RangeLock) -> OpenLock:
    return OpenLock(OFD, lock.kind, lock.start, lock.end)


def _give_back(entry: RangeOwner, lock: RangeLock) -> None:
    """Undo a lock that came after its wait was cancelled: what was held in its range before is held again."""
    if entry.is_released:
        return
    too_much = HeldRanges()
    too_much.set(lock)
    for part in entry.held.within(lock.start, lock.end):
        too_much.set(part._replace(kind=F_UNLCK))
        try:
            set_range(entry.fd, part.kind, part.start, part.end)
        except BlockingIOError:
            entry.held.set(part._replace(kind=lock.kind))  # it was a write lock, and somebody reads there already
    for part in too_much:
        set_range(entry.fd, F_UNLCK, part.start, part.end)
