"""POSIX locks that go over to another node with the guest that holds them (mignode/guestlocks.py says when).

At the source the owner of each locked file is told under which name the lock moves; at the destination what the
guest's copy locks while it is restored is asked for under that name, so it is the same lock, or none.  The kernel tells
nobody of locks through FUSE; here is said who has which (`locked`).

A lock of an open file (flock, OFD) belongs to one of our opens, and which one a descriptor of a program is can only be
seen by what is asked through it.  So mignode probes a copy of the descriptor (F_OFD_GETLK) at a byte that it has told
us before, a *mark*; that also shows as which lock owner the open file has OFD locks.  What a guest's copy had locked so
is taken for its opens when it is restored.  Built by daemon.py, asked by takenops.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

import msgspec
import trio

from omfs import wire
from omfs.errors import ControlError
from omfs.kernel.processes import read_file
from omfs.kernel.procfs import parse_status
from omfs.mount.ranges import Range
from omfs.mount.remote import RemoteNode
from omfs.mount.remotefile import RemoteFile
from omfs.net.control import Arguments, Handler, LockedRange, LockedReply, MarkedOpen, MarkedReply

OFFER_WITHIN_S: Final = 15.0
SETTLE_WITHIN_S: Final = 1.0  # the guest is frozen meanwhile
_MARKS_MAX: Final = 100_000
S = TypeVar("S", bound=msgspec.Struct)


class _Offer(msgspec.Struct):
    """*processes*: of the guest, by their pids here; their numbers in it.  *opens*: process and descriptor, by mark."""

    attempt: str
    processes: dict[int, int]
    opens: dict[int, tuple[int, int]] = {}


class _Marks(msgspec.Struct):
    marks: tuple[int, ...]


class _Take(msgspec.Struct):
    """What the open file of *mark* is to have, as MarkedOpen has it: descriptor *descriptor* of process *process*."""

    mark: int
    process: int
    descriptor: int
    pid: int
    flock: int
    ranges: tuple[tuple[int, int, int], ...]


class _Taking(msgspec.Struct):
    attempt: str
    opens: tuple[_Take, ...]


class _Expectation(msgspec.Struct):
    """*namespace*: the inode number of the PID namespace of the guest that is being restored."""

    attempt: str
    namespace: int


class MovingLocks:
    """*nodes*: those of the map, as it changes."""

    def __init__(self, nodes: Mapping[int, RemoteNode]) -> None:
        self._nodes = nodes
        self._expected: dict[int, str] = {}  # attempts, by namespace
        self._marks: dict[int, RemoteFile | None] = {}  # oldest first; None: not seen yet

    @property
    def handlers(self) -> dict[str, Handler]:
        """For net/control.py."""
        return {
            "locked": self.tell_locked, "offer_locks": self.offer, "expect_locks": self.expect,
            "expect_no_locks": self.expect_no_more, "expect_marks": self.expect_marks, "marked": self.tell_marked,
            "forget_marks": self.forget_marks, "take_locks": self.take,
        }  # fmt: skip

    def moving(self, pid: int) -> wire.Moving | None:
        """For a lock that process *pid* asks for: whether it had it where it came from."""
        if not self._expected:
            return None
        try:
            attempt = self._expected.get(os.stat(f"/proc/{pid}/ns/pid").st_ino)
            if attempt is None:
                return None
            return wire.Moving(attempt, parse_status(read_file(f"/proc/{pid}/status")).namespace_pids[-1])
        except OSError:  # it has ended
            return None

    def is_mark(self, file: RemoteFile, owner: int, place: int) -> bool:
        """Whether this probe of byte *place* only shows which open it goes through, and as which lock owner."""
        if place not in self._marks:
            return False
        self._marks[place] = file
        file.locks.own_owner = owner
        return True

    # ------------------------------------------------------------ what mignode asks

    async def tell_locked(self, _: Arguments) -> LockedReply:
        """What programs of this node have locked through this mount, also where that is in doubt.

        It is so for a moment where a process was frozen that waited for a lock.
        """
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(SETTLE_WITHIN_S):
            for node in list(self._nodes.values()):
                await node.settle_doubts()
        inodes, ranges, unsure = set(), [], set()
        for file in self._files():
            if file.inode is None:
                continue
            unsure.update(file.locks.unsure)
            number, owner_node = file.inode.id, file.node.node_id
            owned = file.locks.owned_ranges()
            if file.locks.flock != 0 or any(owner == file.locks.own_owner for owner, _ in owned):
                inodes.add(number)
            ranges += [
                LockedRange(owner_node, number, lock.pid, lock.kind, lock.start, lock.end)
                for owner, lock in owned
                if owner != file.locks.own_owner
            ]
        return LockedReply(tuple(inodes), tuple(ranges), tuple(unsure))

    async def offer(self, arguments: Arguments) -> dict[str, int]:
        """These processes are going to another node: their locks wait for them at the files' owners.

        ControlError where one of them is not held any more, or its owner does not answer.
        """
        offer = _converted(arguments, _Offer)
        with trio.move_on_after(OFFER_WITHIN_S):
            return {"offered": await self._offer(offer)}
        raise ControlError("the owner of a locked file does not answer")

    async def _offer(self, offer: _Offer) -> int:
        offered = 0
        for file in list(self._files()):
            for owner, lock in file.locks.owned_ranges():
                inner = offer.processes.get(lock.pid)
                if inner is not None and owner != file.locks.own_owner:
                    await _offer_range(file, owner, lock, wire.Moving(offer.attempt, inner))
                    offered += 1
        for mark, (process, descriptor) in offer.opens.items():
            await _offer_open(self._of_mark(mark), wire.Moving(offer.attempt, process, descriptor))
            offered += 1
        return offered

    def _of_mark(self, mark: int) -> RemoteFile:
        """Raises ControlError."""
        file = self._marks.get(mark)
        if file is None:
            raise ControlError("a locked file was not found by its mark")
        return file

    async def take(self, arguments: Arguments) -> dict[str, int]:
        """What open files of a guest that was restored had locked where they come from.

        ControlError where it is not held there any more.
        """
        taking = _converted(arguments, _Taking)
        with trio.move_on_after(OFFER_WITHIN_S):
            for one in taking.opens:
                await self._take(one, wire.Moving(taking.attempt, one.process, one.descriptor))
            return {"taken": len(taking.opens)}
        raise ControlError("the owner of a locked file does not answer")

    async def _take(self, wanted: _Take, moving: wire.Moving) -> None:
        file = self._of_mark(wanted.mark)
        assert file.locks.own_owner is not None  # a mark tells it
        if wanted.flock:
            await file.locks.lock_file(wanted.flock, False, moving)
        for kind, start, end in wanted.ranges:
            await file.locks.lock_range(file.locks.own_owner, Range(start, end, kind, wanted.pid), False, moving)

    async def expect_marks(self, arguments: Arguments) -> dict[str, int]:
        """Probes of these bytes are none."""
        await trio.lowlevel.checkpoint()
        marks = _converted(arguments, _Marks).marks
        self._marks |= dict.fromkeys(marks)
        while len(self._marks) > _MARKS_MAX:  # of a mignode that was killed before it forgot them
            del self._marks[next(iter(self._marks))]
        return {"expected": len(marks)}

    async def tell_marked(self, arguments: Arguments) -> MarkedReply:
        """Which open files were shown."""
        await trio.lowlevel.checkpoint()
        by_file: dict[RemoteFile, list[int]] = {}
        for mark in _converted(arguments, _Marks).marks:
            if (file := self._marks.get(mark)) is not None:
                by_file.setdefault(file, []).append(mark)
        return MarkedReply(tuple(_shown(file, marks) for file, marks in by_file.items()))

    async def forget_marks(self, arguments: Arguments) -> dict[str, int]:
        """They are bytes like others."""
        await trio.lowlevel.checkpoint()
        marks = _converted(arguments, _Marks).marks
        for mark in marks:
            self._marks.pop(mark, None)
        return {"forgotten": len(marks)}

    async def expect(self, arguments: Arguments) -> dict[str, bool]:
        """What processes of this namespace lock from now on they had locked where they came from."""
        await trio.lowlevel.checkpoint()
        expectation = _converted(arguments, _Expectation)
        self._expected[expectation.namespace] = expectation.attempt
        return {"expected": True}

    async def expect_no_more(self, arguments: Arguments) -> dict[str, bool]:
        """They run, or have ended."""
        await trio.lowlevel.checkpoint()
        self._expected.pop(_converted(arguments, _Expectation).namespace, None)
        return {"expected": False}

    def _files(self) -> Iterator[RemoteFile]:
        return (file for node in self._nodes.values() for same in node.files.values() for file in same)


async def _offer_open(file: RemoteFile, moving: wire.Moving) -> None:
    """What this open itself has locked goes over under that name.  Raises OmfsError."""
    if file.locks.flock:
        await file.node.peer.call(wire.LockFile(file.open_id, file.locks.flock, False, moving), wire.Done)
    for owner, lock in file.locks.owned_ranges():
        if owner == file.locks.own_owner:
            await _offer_range(file, owner, lock, moving)


async def _offer_range(file: RemoteFile, owner: int, lock: Range, moving: wire.Moving) -> None:
    request = wire.LockRange(file.open_id, owner, lock.kind, lock.start, lock.end, lock.pid, False, moving)
    await file.node.peer.call(request, wire.Done)


def _shown(file: RemoteFile, marks: list[int]) -> MarkedOpen:
    locks = file.locks
    own = tuple((lock.kind, lock.start, lock.end) for owner, lock in locks.owned_ranges() if owner == locks.own_owner)
    return MarkedOpen(tuple(marks), locks.flock, own)


def _converted(arguments: Arguments, shape: type[S]) -> S:
    try:
        return msgspec.convert(arguments, shape, str_keys=True)
    except msgspec.ValidationError as error:
        raise ControlError(f"bad request: {error}") from None
