"""Locks that go over between a process of this node and another node, with the guest that moves from or to here.

A guest leaves the node whose file it has locked: its frozen processes have the locks natively until the copy runs at
the other node, and what the copy takes there is noted (locks.py) and awaits them.  When the copy runs, the processes
are killed and the locks taken for it.  A guest comes to the node whose file it has locked: the locks are ours, for the
node that it leaves, until the process that is being restored waits for them; then they are left to it, and taken back
if it is killed before it runs.  The kernel knows no such step, so everybody else stands still meanwhile (`held`:
kernel/standstill.py for programs of this node, `Locks.halted` for other nodes), at most HELD_S.

Locks of open files (flock, OFD) are simpler: of these we can have a copy (movingopens.py).  Who asks for one at the
other node gets that of the frozen process; for one that was restored we take the lock ourselves, and keep a copy until
it runs (openloans.py).

mignode says what happens when, over our control socket: `offer_locks`, `lend_locks` and `lend_opens` before the
commit, `hold_locks` before it kills processes, `settle_locks` when it is known who has them.  Where that never comes
(it was killed, too) the next mignode says so.  Trio thread only.  Built by daemon.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import Final, TypeVar

import msgspec
import trio

from omfs import wire
from omfs.errors import ControlError, OmfsError, StandstillFailed
from omfs.export.locks import Locks
from omfs.export.movingopens import FileId, NativeOpen, file_id
from omfs.export.openloans import POSIX, Loan, Offered, loan_of, opens_of
from omfs.export.rangeowners import Arrival, NativeLock, RangeOwner
from omfs.kernel.processes import read_all, read_file
from omfs.kernel.procfs import parse_status
from omfs.kernel.procobjects import shown_locks
from omfs.kernel.standstill import Standstill
from omfs.net.control import Arguments, Handler

STOP_WITHIN_S: Final = 5.0  # everybody who has the file open; ms, but on an overloaded machine
HELD_S: Final = 5.0  # from then until mignode has done what it wanted
WAITING_WITHIN_S: Final = 60.0  # for a process that is being restored to come to its locks
TAKEN_WITHIN_S: Final = 5.0
ENDED_WITHIN_S: Final = 2.0  # of HELD_S
_LOOK_AGAIN_S: Final = 0.002
log = logging.getLogger(__name__)
S = TypeVar("S", bound=msgspec.Struct)


class _Offer(msgspec.Struct):
    """*namespace*: the inode number of the guest's PID namespace here."""

    attempt: str
    namespace: int
    locks: tuple[Offered, ...]


class _Arrival(msgspec.Struct):
    attempt: str
    namespace: int


class _OfGuest(msgspec.Struct):
    guest: str


class _Settlement(msgspec.Struct):
    """*ended*: the processes here were killed; else they go on with their locks."""

    guest: str
    ended: bool


def guest_in(attempt: str) -> str:
    return attempt.rpartition("/")[0]


class Move:
    """One *attempt*, as far as locks of this node's processes are concerned.  *files*: descriptors, closed in the end.

    *attempt* is "GUEST/NUMBER" (mignode/guestlocks.py): a guest is in one at a time.
    """

    def __init__(self, attempt: str, namespace: int, arrival: Arrival, files: Iterable[int]) -> None:
        self.attempt = attempt
        self.guest = guest_in(attempt)
        self.namespace = namespace
        self.arrival = arrival
        self.files = tuple(files)
        self.is_held = False
        self._processes: dict[int, int] = {}  # pidfds, by pid
        self.is_settled = trio.Event()

    def has(self, pids: Iterable[int]) -> None:
        """The locks are these processes'."""
        for pid in set(pids) - self._processes.keys():
            with contextlib.suppress(ProcessLookupError):
                self._processes[pid] = os.pidfd_open(pid)

    async def wait_ended(self) -> None:
        """They were killed; they give their locks up a moment later."""
        for pidfd in self._processes.values():
            await trio.lowlevel.wait_readable(pidfd)

    def close(self) -> None:
        for fd in (*self.files, *self._processes.values()):
            os.close(fd)
        for native in self.arrival.opens.values():
            native.close()
        self.files = ()
        self._processes.clear()


class MovingLocks:
    """*lose* ends the session with this key: it finds out that a lock of it is lost when it takes them again."""

    def __init__(self, locks: Locks, lose: Callable[[bytes, str], None]) -> None:
        self._locks = locks
        self._lose = lose
        self._moves: dict[str, Move] = {}  # by guest
        self._turn = trio.Lock()  # one standstill at a time
        self._nursery: trio.Nursery

    @property
    def handlers(self) -> dict[str, Handler]:
        """For net/control.py."""
        return {
            "offer_locks": self.offer, "lend_locks": self.lend, "lend_opens": self.lend_opens,
            "hold_locks": self.hold, "settle_locks": self.settle,
        }  # fmt: skip

    # ------------------------------------------------------------ what mignode says

    async def offer(self, arguments: Arguments) -> dict[str, int]:
        """A frozen guest has these locks, and another node may take them over.

        ControlError where nobody could make sure, later, that it gets them.
        """
        offer = _converted(arguments, _Offer)
        natives: list[NativeLock] = []
        files: dict[FileId, int] = {}
        with contextlib.ExitStack() as opened:
            for one in offer.locks:
                if one.flag != POSIX:
                    continue
                try:
                    fd = os.open(f"/proc/{one.pid}/fd/{one.descriptor}", os.O_PATH | os.O_CLOEXEC)
                except OSError as error:
                    raise ControlError(f"a file that it has locked can't be looked at: {_said(error)}") from None
                opened.callback(os.close, fd)
                file = file_id(fd)
                files.setdefault(file, fd)
                natives.append(NativeLock(file, one.process, one.kind, one.start, one.end))
            opens = opens_of(offer.locks)
            kept = [os.dup(fd) for fd in files.values()]
        move = Move(offer.attempt, offer.namespace, Arrival(natives, opens), kept)
        move.has(one.pid for one in offer.locks)
        try:
            if move.files:
                await trio.to_thread.run_sync(Standstill(move.files, move.namespace).check)
        except (OSError, StandstillFailed) as error:
            move.close()
            raise ControlError(f"its locks can't go over: {_said(error)}") from None
        self._begin(move)
        return {"offered": len(offer.locks)}

    async def lend(self, arguments: Arguments) -> dict[str, int]:
        """A guest is being restored here: what it had locked on files of this node its processes take themselves.

        Ends when they have; who only reads need not wait for it, and who comes through our own mount (dfsa=0) has them
        as at any other node.  ControlError where they don't.
        """
        asked = _converted(arguments, _Arrival)
        movers = [entry for entry in self._locks.of_attempt(asked.attempt) if entry.held]
        entries = [entry for entry in movers if not entry.is_of_open]
        if not entries:
            await trio.lowlevel.checkpoint()
            return {"lent": 0}
        kept = [*(one.fd for one in movers), *(one.fd for one in self._locks.flocks.of_attempt(asked.attempt))]
        move = Move(asked.attempt, asked.namespace, Arrival(), map(os.dup, kept))
        self._begin(move)
        files = {entry: _file_of(entry) for entry in entries}
        await self._until(
            WAITING_WITHIN_S,
            move,
            lambda: _is_waited_for(files.values(), move.namespace) or _are_taken(files, move.namespace),
            lambda: _are_shared(entries),
        )
        if _are_shared(entries):
            return {"lent": 0}
        await self._hold(move)
        for entry in entries:
            move.arrival.lend(entry)
        try:
            await self._until(TAKEN_WITHIN_S, move, lambda: _are_taken(files, move.namespace))
        finally:
            if not move.is_settled.is_set():
                move.has(one.pid for one in shown_locks(read_all("/proc/locks")) if _number_in(one.pid, move.namespace))
        return {"lent": len(entries)}

    async def lend_opens(self, arguments: Arguments) -> dict[str, int]:
        """The open files of a guest that was restored here have no locks yet; they do when this returns.

        ControlError where they don't: another one has them.
        """
        asked = _converted(arguments, _Offer)
        opens = opens_of(asked.locks)
        loans: list[Loan] = []
        try:
            loans += (self._loan(asked.attempt, number, native) for number, native in opens.items())
            move = self._moves.get(guest_in(asked.attempt))
            if move is None:
                move = Move(asked.attempt, asked.namespace, Arrival(), (os.dup(loan.copy) for loan in loans))
                self._begin(move)
            if not move.is_held:
                async with self._still([loan.copy for loan in loans], asked.namespace):
                    self._pass_all(loans, move)
            else:  # others are being lent, and the files of these stand still as well
                self._pass_all(loans, move)
        except (OSError, StandstillFailed) as error:
            raise ControlError(f"its locks can't go over: {_said(error)}") from None
        finally:
            for native in opens.values():
                native.close()
            for loan in loans:
                os.close(loan.copy)
        return {"lent": len(loans)}

    def _loan(self, attempt: str, number: tuple[int, int], native: NativeOpen) -> Loan:
        """Raises OSError, ControlError."""
        moving = wire.Moving(attempt, *number)
        ranges = next((one for one in self._locks.of_attempt(attempt) if one.moving == moving), None)
        return loan_of(native, self._locks.flocks.mover(moving), ranges)

    def _pass_all(self, loans: Iterable[Loan], move: Move) -> None:
        """Raises OSError."""
        for loan in loans:
            try:
                move.arrival.copies += loan.pass_on()
            except BlockingIOError:
                if not loan.has_taken_back():
                    for key in loan.sessions():
                        self._lose(key, "a lock was lost when the program that has it came here")
                raise

    async def hold(self, arguments: Arguments) -> dict[str, bool]:
        """The guest's processes here are going to be killed: nobody else gets their locks until it is settled.

        Whether there is anything to settle.
        """
        move = self._moves.get(_converted(arguments, _OfGuest).guest)
        await trio.lowlevel.checkpoint()
        if move is not None and move.arrival.entries and not move.is_held:
            await self._hold(move)
        return {"known": move is not None}

    async def settle(self, arguments: Arguments) -> dict[str, bool]:
        """Who has the locks from now on."""
        settlement = _converted(arguments, _Settlement)
        await trio.lowlevel.checkpoint()
        move = self._moves.pop(settlement.guest, None)
        if move is None:
            return {"settled": False}
        if settlement.ended:
            with trio.move_on_after(ENDED_WITHIN_S):
                await move.wait_ended()
            if move.arrival.entries and not move.is_held:
                log.warning("locks of guest %s go over while others may ask for them", move.guest)
            for entry in move.arrival.take():
                for session, _ in entry.claims():
                    self._lose(session.key, "a lock was lost when the program that has it came from here")
        else:
            move.arrival.leave()
        del self._locks.arrivals[move.attempt]
        move.is_settled.set()
        move.close()
        return {"settled": True}

    # ------------------------------------------------------------ standing still

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As long as the daemon."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def _hold(self, move: Move) -> None:
        """Until it is settled, but not longer than HELD_S.  Raises ControlError."""
        try:
            await self._nursery.start(self._keep_still, move)
        except (OSError, StandstillFailed) as error:
            raise ControlError(f"its locks can't go over: {_said(error)}") from None

    async def _keep_still(self, move: Move, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._still(move.files, move.namespace):
            try:
                move.is_held = True
                task_status.started()
                with trio.move_on_after(HELD_S):
                    await move.is_settled.wait()
                if not move.is_settled.is_set():  # mignode was killed, perhaps with those who had the locks
                    move.arrival.take_free()
            finally:
                move.is_held = False

    @contextlib.asynccontextmanager
    async def _still(self, files: Collection[int], namespace: int) -> AsyncIterator[None]:
        """Nobody touches the locks of these files inside.  Raises StandstillFailed, OSError."""
        standstill = Standstill(files, namespace)
        async with self._turn, self._locks.halted(map(file_id, files)):
            await trio.to_thread.run_sync(standstill.begin, STOP_WITHIN_S)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(standstill.end)

    def _begin(self, move: Move) -> None:
        if move.guest in self._moves:
            move.close()
            raise ControlError(f"the locks of guest {move.guest} are on their way already")
        self._moves[move.guest] = move
        self._locks.arrivals[move.attempt] = move.arrival

    async def _until(
        self, within_s: float, move: Move, is_so: Callable[[], bool], is_moot: Callable[[], bool] = lambda: False
    ) -> None:
        """*is_so* is asked in a thread.  Raises ControlError."""
        with trio.move_on_after(within_s):
            while not move.is_settled.is_set():
                if is_moot() or await trio.to_thread.run_sync(is_so):
                    return
                await trio.sleep(_LOOK_AGAIN_S)
        raise ControlError("the process that is being restored does not take its locks")


# ---------------------------------------------------------------- what the kernel shows


def _file_of(entry: RangeOwner) -> bytes:
    """As /proc/locks names it, which not every file system's stat(2) does."""
    return next(shown_locks(read_file(f"/proc/self/fdinfo/{entry.fd}"))).file


def _is_waited_for(files: Collection[bytes], namespace: int) -> bool:
    """Whether a process of the namespace waits for a lock of one of them."""
    locks = shown_locks(read_all("/proc/locks"))
    return any(one.is_waiting and one.file in files and _number_in(one.pid, namespace) for one in locks)


def _are_taken(files: Mapping[RangeOwner, bytes], namespace: int) -> bool:
    """Whether the processes of the namespace have all of these owners' locks."""
    locks = [one for one in shown_locks(read_all("/proc/locks")) if not one.is_waiting]
    return all(
        any(
            (one.file, one.kind) == (file, lock.kind)
            and one.start <= lock.start
            and lock.end <= one.end
            and entry.moving is not None
            and _number_in(one.pid, namespace) == entry.moving.process
            for one in locks
        )
        for entry, file in files.items()
        for lock in entry.held
    )


def _are_shared(entries: Iterable[RangeOwner]) -> bool:
    """Whether both copies of the guest have them."""
    return all(len(entry.claims()) > 1 for entry in entries)


def _number_in(pid: int, namespace: int) -> int:
    """The number of process *pid* in the PID namespace, 0 where it is not of it."""
    try:
        if os.stat(f"/proc/{pid}/ns/pid").st_ino != namespace:
            return 0
        return parse_status(read_file(f"/proc/{pid}/status")).namespace_pids[-1]
    except OSError:  # it has ended
        return 0


def _said(error: OmfsError | OSError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _converted(arguments: Arguments, shape: type[S]) -> S:
    try:
        return msgspec.convert(arguments, shape)
    except msgspec.ValidationError as error:
        raise ControlError(f"bad request: {error}") from None
