"""What programs have locked through one open file: flock(2), and fcntl(2)'s ranges by lock owner.

POSIX locks belong to the process and the object, not to the open through which they were taken, so what concerns them
looks at all open files of the object.  When the owner restarted the locks are taken again (`take_again`).  One that
somebody else got meanwhile is lost: then every further read and write through the file fails with EIO, as the program
believes itself alone.  A lock call whose outcome is not known leaves a doubt: the owner may hold a lock for nobody
until it is told what we hold (`settle_doubts`).

One per remotefile.RemoteFile, which calls it, as do takenops.py, movinglocks.py, operations_files.py and remote.py.
"""

from __future__ import annotations

import fcntl
import logging
from typing import TYPE_CHECKING, Final

from omfs import wire
from omfs.errors import HelloRefused, Interrupted, LockLost, NodeDown, OpenLost, OutcomeUnknown, RemoteFailure
from omfs.mount.ranges import Range, changed, requests_for

if TYPE_CHECKING:
    from omfs.mount.remotefile import RemoteFile

log = logging.getLogger(__name__)

_INDEFINITE: Final = (NodeDown, Interrupted, HelloRefused, OutcomeUnknown)  # a lock call that was sent may have worked


class FileLocks:
    """*own_owner*: the lock owner that this open itself is (F_OFD_SETLK), once that is seen."""

    def __init__(self, file: RemoteFile) -> None:
        self.own_owner: int | None = None
        self._file = file
        self._node = file.node
        self._flock = 0  # LOCK_SH, LOCK_EX or 0
        self._ranges: dict[int, tuple[Range, ...]] = {}  # by lock owner
        self._is_lost = False
        self._flock_doubtful = False  # the owner may hold another flock than _flock
        self._doubts: list[tuple[int, Range]] = []  # lock owner and where it may hold other ranges than _ranges
        self._locking = 0  # flock calls under way
        self._asking: list[int] = []  # processes with POSIX lock calls under way

    # ------------------------------------------------------------ what is held

    @property
    def are_held(self) -> bool:
        """Some are, through this open file."""
        return bool(self._flock or self._ranges)

    @property
    def flock(self) -> int | None:
        """LOCK_SH, LOCK_EX or 0; None where that is in doubt."""
        return None if self._locking or self._flock_doubtful else self._flock

    @property
    def unsure(self) -> list[int]:
        """Processes that may hold other ranges than those that are known."""
        return [*self._asking, *(doubt.pid for _, doubt in self._doubts)]

    def owned_ranges(self) -> list[tuple[int, Range]]:
        """With their lock owners."""
        return [(owner, lock) for owner, held in self._ranges.items() for lock in held]

    @property
    def is_range_locked(self) -> bool:
        """Some process holds POSIX locks on the object through this mount (or may: see `_doubts`)."""
        return any(file.locks._ranges or file.locks._doubts for file in self._node.files.get(self._file.handle, ()))

    def check(self) -> None:
        """Raises LockLost where a program believes in locks that it has not any more."""
        if self._is_lost:
            raise LockLost(f"a lock was lost when node {self._node.node_id} restarted")

    def _of_object(self) -> list[FileLocks]:
        return [file.locks for file in self._node.files.get(self._file.handle, ())]

    def _all_ranges(self, owner: int) -> tuple[Range, ...]:
        return tuple(lock for locks in self._of_object() for lock in locks._ranges.get(owner, ()))

    # ------------------------------------------------------------ locking

    async def lock_file(self, operation: int, wait: bool, moving: wire.Moving | None = None) -> None:
        """flock(2): LOCK_SH, LOCK_EX or LOCK_UN; of *moving* another has it too.  As `lock_range`."""
        await self._settle_all_doubts()
        self._locking += 1
        try:
            await self._file.call(lambda: wire.LockFile(self._file.open_id, operation, wait, moving), wire.Done)
            self._flock = 0 if operation == fcntl.LOCK_UN else operation
        except _INDEFINITE:
            if operation == fcntl.LOCK_UN:  # nobody counts on it any more
                self._flock = 0
            if moving is None:
                self._flock_doubtful = True
                self._node.doubtful.add(self)
            raise
        finally:
            self._locking -= 1

    async def lock_range(self, owner: int, new: Range, wait: bool, moving: wire.Moving | None = None) -> None:
        """fcntl(2) F_SETLK, or F_SETLKW where *wait*; of *moving* another has it too, so only a close gives it back.

        Raises RemoteFailure (EAGAIN), Interrupted.
        """

        def request() -> wire.Message:
            return wire.LockRange(self._file.open_id, owner, new.kind, new.start, new.end, new.pid, wait, moving)

        await self._settle_all_doubts()
        self._asking.append(new.pid)
        try:
            await self._file.call(request, wire.Done)
        except _INDEFINITE:
            self._ranges.setdefault(owner, ())  # so that a close releases what we do not know of
            if moving is None:
                self._doubts.append((owner, new))
                self._node.doubtful.add(self)
                if new.kind == fcntl.F_UNLCK:  # nobody counts on it any more
                    self._note_range(owner, new)
            raise
        finally:
            self._asking.remove(new.pid)
        self._note_range(owner, new)

    def _note_range(self, owner: int, new: Range) -> None:
        held = changed(self._all_ranges(owner), new)
        for locks in self._of_object():
            locks._ranges.pop(owner, None)
        if held:
            self._ranges[owner] = held

    async def probe_range(self, owner: int, kind: int, start: int, end: int) -> wire.RangeProbed:
        """fcntl(2) F_GETLK."""
        return await self._file.call(
            lambda: wire.ProbeRange(self._file.open_id, owner, kind, start, end), wire.RangeProbed
        )

    # ------------------------------------------------------------ giving back

    async def release_ranges(self, owner: int) -> None:
        """A descriptor of the object was closed by *owner*: its POSIX locks there end.  Costs nothing without any."""
        holding = [locks for locks in self._of_object() if owner in locks._ranges]
        if not holding:
            return
        for locks in holding:
            del locks._ranges[owner]
            locks._doubts = [doubt for doubt in locks._doubts if doubt[0] != owner]
        await self._node.settle(wire.ReleaseLocks(holding[0]._file.open_id, owner))

    async def release_own(self) -> None:
        """This open file is closed: locks of open file descriptions end with it.  Its flock ends with its open id."""
        for owner in list(self._ranges):
            await self._node.settle(wire.ReleaseLocks(self._file.open_id, owner))

    def forget_doubts(self) -> None:
        """The owner holds nothing for this open file, or just what is known here."""
        self._flock_doubtful = False
        self._doubts.clear()
        self._node.doubtful.discard(self)

    # ------------------------------------------------------------ doubts

    async def _settle_all_doubts(self) -> None:
        """Before another lock of the object is asked for: what is told to the owner later would undo that one."""
        for locks in self._of_object():
            while locks._flock_doubtful or locks._doubts:
                await locks._settle_one_doubt()

    async def settle_doubts(self) -> None:
        """Tell the owner what we hold where it may hold more, or less, for us.  Raises NodeDown and the like.

        Left to a lock call of the object where one is under way: it may be granted before we hear of it.
        """
        while (self._flock_doubtful or self._doubts) and not any(
            locks._locking or locks._asking for locks in self._of_object()
        ):
            await self._settle_one_doubt()
        if not self._flock_doubtful and not self._doubts:
            self._node.doubtful.discard(self)

    async def _settle_one_doubt(self) -> None:
        if not self._doubts:
            await self._settle_flock()
            return
        doubt = owner, where = self._doubts[0]
        # Looked up with no await before it is sent, and what is held is only asked for again.
        for request in requests_for(self._file.open_id, owner, where, self._all_ranges(owner)):
            try:
                await self._node.peer.call(request, wire.Done)
            except OpenLost:  # with the session every lock of it is gone
                break
            except RemoteFailure as error:
                if request.kind != fcntl.F_UNLCK:
                    log.warning("node %d: a lock was lost while it was away: %s", self._node.node_id, error)
                    self._lose()
                    await self._node.settle(wire.ReleaseLocks(self._file.open_id, owner))
                    break
            if doubt not in self._doubts:
                return  # another task settled it meanwhile, and a newer lock may be there
        if doubt in self._doubts:
            self._doubts.remove(doubt)

    async def _settle_flock(self) -> None:
        request = wire.LockFile(self._file.open_id, self._flock or fcntl.LOCK_UN, wait=False)
        try:
            await self._node.peer.call(request, wire.Done)
        except OpenLost:
            pass
        except RemoteFailure:
            self._flock = 0  # flock(2): a conversion that fails may lose the old lock
        self._flock_doubtful = False

    # ------------------------------------------------------------ after a restart of the owner

    async def take_again(self, open_id: int) -> None:
        """As the file is open again, under this id; a lock that is refused is lost.

        Raises NodeDown and the like where the owner went away again; then nothing is changed.
        """
        owners = list(self._ranges)
        try:
            if self._flock:
                await self._node.peer.call(wire.LockFile(open_id, self._flock, wait=False), wire.Done)
            for owner, ranges in list(self._ranges.items()):
                for lock in ranges:
                    request = wire.LockRange(open_id, owner, lock.kind, lock.start, lock.end, lock.pid, wait=False)
                    await self._node.peer.call(request, wire.Done)
        except RemoteFailure as error:
            log.warning("node %d restarted and a lock was lost: %s", self._node.node_id, error)
            self._lose()
        while gone := [owner for owner in owners if not self._all_ranges(owner)]:  # released meanwhile
            owners.remove(gone[0])
            await self._node.settle(wire.ReleaseLocks(open_id, gone[0]))

    def _lose(self) -> None:
        """Somebody else may have them: every further use of the data fails."""
        for locks in self._of_object() if self._ranges else [self]:
            locks._is_lost = True
        self._flock = 0
        self._ranges.clear()
