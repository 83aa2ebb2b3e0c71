"""File locks for holders: flock on the open id's own descriptor, POSIX locks as open file description locks.

A POSIX lock belongs to (session, file, lock owner), and each of these has one extra descriptor, so the kernel keeps
the owners apart, merges what one of them holds, and lets native programs on this node compete fairly.  Waiting is
done in worker threads (their number is limited: ENOLCK beyond), and a wait that is cancelled is left: its thread is
signalled until it is out, and a lock that was got in the last moment is given back.  Threads that wait while their
owner gives its locks up leave the old descriptor and go on waiting on a new one, as native ones go on.

Invariants: flock locks end with CloseFile, POSIX locks with ReleaseLocks, with the last CloseFile of the file in
the session, or with the session.  Deadlocks are not detected (EDEADLK), as for any OFD lock.  Trio thread only, but
for LockWait.run.  Called by export/service.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

from omfs import wire
from omfs.config import LOCK_WAITERS_MAX
from omfs.export.files import Opened, SessionFiles, Share, perhaps_appending
from omfs.export.ranges import F_RDLCK, F_UNLCK, F_WRLCK, HeldRanges
from omfs.kernel import objects
from omfs.kernel.filelocks import (
    RANGE_END,
    LockWait,
    RangeLock,
    block_in_flock,
    block_in_range,
    probe_range,
    set_range,
)
from omfs.net.server import Answer

SIGNAL_AGAIN_S: Final = 0.01  # a signal that came before the system call began is lost, so another one follows

_DONE: Final = wire.Done()


class RangeOwner:
    """One lock owner's descriptor for one file and what it has locked there."""

    def __init__(self, opened: Opened, share: Share) -> None:
        """OSError: ENFILE, and what opening raises."""
        share.take()
        try:
            self.fd = _lock_descriptor(opened)
        except BaseException:
            share.give_back()
            raise
        self.handle = opened.place.handle
        self.is_writable = opened.is_writable
        self.held = HeldRanges()
        self.is_released = False
        self._share = share
        self._waits: set[trio.CancelScope] = set()  # of threads inside a lock call on the descriptor

    @property
    def is_idle(self) -> bool:
        return not self.held and not self._waits

    def release(self) -> None:
        """All locks end, and all waits on the descriptor; the last one closes it."""
        self.is_released = True
        self._give_up()
        for scope in self._waits:
            scope.cancel()

    def _give_up(self) -> None:
        if self._waits:
            set_range(self.fd, F_UNLCK, 0, RANGE_END)
        else:
            os.close(self.fd)
            self._share.give_back()

    @contextmanager
    def waited_on(self) -> Iterator[None]:
        """Wait on the descriptor inside; left early when the owner is released."""
        with trio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                yield
            finally:
                self._waits.discard(scope)
                if self.is_released:  # also what came in the last moment
                    self._give_up()


class SessionLocks:
    """The POSIX locks of one session, by file handle and lock owner."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._owners: dict[bytes, dict[int, RangeOwner]] = {}

    def find(self, handle: bytes, owner: int) -> RangeOwner | None:
        return self._owners.get(handle, {}).get(owner)

    def add(self, handle: bytes, owner: int, entry: RangeOwner) -> None:
        self._owners.setdefault(handle, {})[owner] = entry

    def of_file(self, handle: bytes) -> list[RangeOwner]:
        return list(self._owners.get(handle, {}).values())

    def release(self, handle: bytes, owner: int) -> None:
        """The owner closed the file: all its locks there end."""
        owners = self._owners.get(handle, {})
        entry = owners.pop(owner, None)
        if entry is not None:
            entry.release()
            if not owners:
                del self._owners[handle]

    def release_file(self, handle: bytes) -> None:
        """The session does not have the file open any more."""
        for entry in self._owners.pop(handle, {}).values():
            entry.release()

    def release_all(self) -> None:
        """The session ended."""
        for handle in list(self._owners):
            self.release_file(handle)


class Locks:
    """All locks that holders have here."""

    def __init__(self) -> None:
        self._waiters = trio.CapacityLimiter(LOCK_WAITERS_MAX)
        self._sessions: set[SessionLocks] = set()

    def begin_session(self, share: Share) -> SessionLocks:
        """A session's own table."""
        locks = SessionLocks(share)
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

    # ------------------------------------------------------------ flock

    def lock_file(self, files: SessionFiles, request: wire.LockFile) -> Answer | Coroutine[Any, Any, Answer]:
        """flock; EAGAIN when it is taken and the request does not want to wait."""
        opened = files.get(request.open_id)
        if request.operation not in (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        try:
            fcntl.flock(opened.fd, request.operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if request.wait:
                return self._wait_file(files.share, opened, request.operation)
            raise
        return _DONE, b""

    async def _wait_file(self, share: Share, opened: Opened, operation: int) -> Answer:
        with opened as fd:
            await self._wait(share, lambda: block_in_flock(fd, operation), lambda: fcntl.flock(fd, fcntl.LOCK_UN))
        return _DONE, b""

    # ------------------------------------------------------------ POSIX locks

    def lock_range(
        self, files: SessionFiles, locks: SessionLocks, request: wire.LockRange
    ) -> Answer | Coroutine[Any, Any, Answer]:
        """fcntl F_SETLK or F_SETLKW; EAGAIN when it is taken and the request does not want to wait."""
        taken = self._try_range(files, locks, request)
        return (_DONE, b"") if taken is None else self._wait_range(files, locks, request, taken)

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
        if entry is None:
            entry = RangeOwner(opened, locks.share)
            locks.add(handle, request.owner, entry)
        elif lock.kind == F_WRLCK and not entry.is_writable:
            entry = _made_writable(entry, opened, locks.share)
            locks.release(handle, request.owner)
            locks.add(handle, request.owner, entry)
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
            taken = self._try_range(files, locks, request)
        return _DONE, b""

    async def _waited(self, locks: SessionLocks, owner: int, entry: RangeOwner, lock: RangeLock) -> bool:
        """Wait on this descriptor; False when its owner gave its locks up meanwhile."""
        fd = entry.fd
        try:
            with entry.waited_on():
                await self._wait(
                    locks.share,
                    lambda: block_in_range(fd, lock.kind, lock.start, lock.end),
                    lambda: _give_back(entry, lock),
                )
                if not entry.is_released:
                    entry.held.set(lock)
        finally:
            if not entry.is_released and entry.is_idle:
                locks.release(entry.handle, owner)
        return not entry.is_released

    def probe(self, files: SessionFiles, locks: SessionLocks, request: wire.ProbeRange) -> wire.RangeProbed:
        """fcntl F_GETLK; the pid is that of a native program here, or of the program on another node that holds it."""
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


def _lock_descriptor(opened: Opened) -> int:
    """A description of its own for one lock owner.

    As the file was opened: only what may write can take a write lock, and opening a file for writing that nobody
    wants to write would copy it up on an overlay and make it unexecutable meanwhile.  Opened with root's rights:
    the mode may have changed since the caller opened it.
    """
    flags = (os.O_RDWR if opened.is_writable else os.O_RDONLY) | os.O_CLOEXEC
    return perhaps_appending(lambda flags: objects.reopen(opened.fd, flags), flags, os.O_APPEND)


def _made_writable(entry: RangeOwner, opened: Opened, share: Share) -> RangeOwner:
    """The owner's read locks on a new descriptor that can take write locks too (both can hold them for a moment)."""
    new = RangeOwner(opened, share)
    try:
        for lock in entry.held:
            set_range(new.fd, F_RDLCK, lock.start, lock.end)
            new.held.set(lock)
    except BaseException:
        new.release()
        raise
    return new


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
