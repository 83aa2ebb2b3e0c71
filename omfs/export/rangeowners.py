"""The lock owners of holders: who has POSIX locks on a file here, each on an open file description of its own.

A description's own locks (OFD) look like those of an owner that nobody shares.  Of a guest that comes from here, or has
come here, they are on a copy of its own description (movingopens.py).  What may be locked when, and the waiting, is
locks.py's; locks that go over from or to a process of this node are movinglocks.py's.  Trio thread only.  Called by
both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import trio

from omfs import wire
from omfs.export.files import Opened, Share, perhaps_appending
from omfs.export.flock import Flock
from omfs.export.movingopens import FileId, NativeOpen, file_id
from omfs.export.ranges import F_RDLCK, F_UNLCK, HeldRanges
from omfs.kernel import objects
from omfs.kernel.filelocks import RANGE_END, RangeLock, set_range


class NativeLock(NamedTuple):
    """*process*: by its number in its guest."""

    file: FileId
    process: int
    kind: int
    start: int
    end: int


class Arrival:
    """What the processes of a guest have locked natively here, while they stand still and the guest moves.

    *entries*: whose locks that are, at the node where it goes to or came from; their descriptors have none of them.
    Which of the two is to have them is said once: by `take`, when the processes have ended, or by `leave`.
    """

    def __init__(self, natives: Iterable[NativeLock] = (), opens: Mapping[tuple[int, int], NativeOpen] = {}) -> None:
        """*opens*: the open files that have locks, by process and descriptor in the guest."""
        self.natives = frozenset(natives)
        self.opens = opens
        self.entries: list[RangeOwner] = []
        self.copies: list[RangeOwner | Flock] = []  # those that have locks on open files of the processes
        self.is_over = trio.Event()

    def has(self, fd: int, process: int, lock: RangeLock) -> bool:
        return NativeLock(file_id(fd), process, lock.kind, lock.start, lock.end) in self.natives

    def open_of(self, moving: wire.Moving) -> NativeOpen | None:
        return self.opens.get((moving.process, moving.descriptor))

    def lend(self, entry: RangeOwner) -> None:
        """Its locks are free for a process of this node; nobody else may be able to take them now."""
        entry.elsewhere = self.is_over
        self.entries.append(entry)
        set_range(entry.fd, F_UNLCK, 0, RANGE_END)

    def take(self) -> list[RangeOwner]:
        """The processes have ended: the entries have their locks; those that lost one, as somebody else was faster."""
        lost = []
        for entry in self._end():
            try:
                for lock in entry.held:
                    set_range(entry.fd, lock.kind, lock.start, lock.end)
            except BlockingIOError:
                lost.append(entry)
        return lost

    def take_free(self) -> None:
        """The same, where nobody has said yet what became of the processes: of those that have ended."""
        for entry in [entry for entry in self.entries if not entry.is_released]:
            try:
                for lock in entry.held:
                    set_range(entry.fd, lock.kind, lock.start, lock.end)
            except BlockingIOError:  # a process that lives has all of its locks
                continue
            entry.elsewhere = None
            self.entries.remove(entry)
        if not self.entries:
            self.is_over.set()

    def leave(self) -> None:
        """The processes go on, and have their locks themselves."""
        for entry in self._end():
            entry.held = HeldRanges()
        for copy in self.copies:
            copy.leave()
        self.copies.clear()

    def _end(self) -> list[RangeOwner]:
        entries = [entry for entry in self.entries if not entry.is_released]
        for entry in entries:
            entry.elsewhere = None
        self.is_over.set()
        return entries


class RangeOwner:
    """One lock owner's descriptor for one file and what it has locked there.

    While a guest moves, the owner at its old and the one at its new node have it both (*moving*: under which name), so
    no lock is free for a moment; it is released when the last of them gives it up.  *elsewhere*: until that is set,
    what it holds is not locked by its descriptor but by a process of this node that does not run (movinglocks.py).
    """

    def __init__(self, opened: Opened, share: Share, fd: int | None = None) -> None:
        """*fd*: the description that has the locks, ours from now on; else one of its own.

        OSError: ENFILE, and what opening raises.
        """
        try:
            share.take()
        except OSError:
            if fd is not None:
                os.close(fd)
            raise
        try:
            self.fd = _lock_descriptor(opened) if fd is None else fd
        except BaseException:
            share.give_back()
            raise
        self.handle = opened.place.handle
        self.is_writable = opened.is_writable
        self.held = HeldRanges()
        self.moving: wire.Moving | None = None
        self.elsewhere: trio.Event | None = None
        self.is_released = False
        self._claims: set[tuple[SessionLocks, int]] = set()
        self._share = share
        self._waits: set[trio.CancelScope] = set()  # of threads inside a lock call on the descriptor

    @property
    def is_idle(self) -> bool:
        return not self.held and not self._waits

    @property
    def is_of_open(self) -> bool:
        """Of an open file that moves, not of a process."""
        return self.moving is not None and self.moving.descriptor >= 0

    @property
    def is_waited_on(self) -> bool:
        return bool(self._waits)

    def has(self, lock: RangeLock) -> bool:
        """Whether all of its range is held, in its kind."""
        at = lock.start
        for part in self.held.within(lock.start, lock.end):
            if part.start != at or part.kind != lock.kind:
                return False
            at = part.end + 1
        return at > lock.end

    def claim(self, session: SessionLocks, owner: int) -> None:
        self._claims.add((session, owner))

    def claims(self) -> list[tuple[SessionLocks, int]]:
        return list(self._claims)

    def drop(self, session: SessionLocks, owner: int) -> None:
        """The last one that drops it releases it."""
        self._claims.discard((session, owner))
        if not self._claims:
            self.release()

    def pass_to(self, fd: int) -> None:
        """Its locks are those of this description now, which is ours."""
        os.close(self.fd)
        self.fd = fd

    def leave(self) -> None:
        """The processes whose description it has go on without us."""
        for session, owner in self.claims():
            session.release(self.handle, owner)

    def release(self) -> None:
        """All locks end, and all waits on the descriptor; the last one closes it."""
        self.is_released = True
        self._give_up()
        self.stop_waits()

    def stop_waits(self) -> None:
        """Who waits on the descriptor leaves it, and looks again."""
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

    def __init__(self, share: Share, key: bytes) -> None:
        self.share = share
        self.key = key
        self._owners: dict[bytes, dict[int, RangeOwner]] = {}

    def find(self, handle: bytes, owner: int) -> RangeOwner | None:
        return self._owners.get(handle, {}).get(owner)

    def add(self, handle: bytes, owner: int, entry: RangeOwner) -> None:
        self._owners.setdefault(handle, {})[owner] = entry
        entry.claim(self, owner)

    def of_attempt(self, attempt: str) -> list[RangeOwner]:
        """What one that moves in this attempt has locked."""
        return [entry for entry in self.all() if entry.moving is not None and entry.moving.attempt == attempt]

    def all(self) -> list[RangeOwner]:
        return [entry for owners in self._owners.values() for entry in owners.values()]

    def of_file(self, handle: bytes) -> list[RangeOwner]:
        return list(self._owners.get(handle, {}).values())

    def release(self, handle: bytes, owner: int) -> None:
        """The owner closed the file: all its locks there end."""
        owners = self._owners.get(handle, {})
        entry = owners.pop(owner, None)
        if entry is not None:
            entry.drop(self, owner)
            if not owners:
                del self._owners[handle]

    def release_file(self, handle: bytes) -> None:
        """The session does not have the file open any more."""
        for owner, entry in self._owners.pop(handle, {}).items():
            entry.drop(self, owner)

    def release_all(self) -> None:
        """The session ended."""
        for handle in list(self._owners):
            self.release_file(handle)


def made_writable(entry: RangeOwner, opened: Opened, share: Share) -> RangeOwner:
    """The owner's read locks on a new descriptor that can take write locks too (both can hold them for a moment).

    Who has the old one has the new one afterwards.
    """
    new = RangeOwner(opened, share)
    try:
        for lock in entry.held:
            set_range(new.fd, F_RDLCK, lock.start, lock.end)
            new.held.set(lock)
    except BaseException:
        new.release()
        raise
    new.moving = entry.moving
    for session, owner in entry.claims():
        session.release(entry.handle, owner)
        session.add(entry.handle, owner, new)
    return new


def _lock_descriptor(opened: Opened) -> int:
    """A description of its own for one lock owner.

    As the file was opened: only what may write can take a write lock, and opening a file for writing that nobody
    wants to write would copy it up on an overlay and make it unexecutable meanwhile.  Opened with root's rights:
    the mode may have changed since the caller opened it.
    """
    flags = (os.O_RDWR if opened.is_writable else os.O_RDONLY) | os.O_CLOEXEC
    return perhaps_appending(lambda flags: objects.reopen(opened.fd, flags), flags, os.O_APPEND)
