"""File locks follow a guest: what the source tells of them, and what the destination does for them.

A POSIX lock on a file of a third node is held there by that node's omfs-export.  The source's mount tells it that the
lock *moves*, under the attempt's name; what the copy locks while it is restored, the destination's mount asks for under
the same name, so both have the one lock.  It ends when the last of them gives it up: the copy that is killed does.
Where the file is of the source or the destination, a process has the lock natively there, and the node's own
omfs-export lets it go over (omfs/export/movinglocks.py); whoever is killed while it has one is killed between `hold`
and `settle`.  Nothing is ever given up before somebody else has it; where that can't be arranged the guest stays.

What locks there are is looked at while the guest is frozen.  Those that CRIU does not see go into its image, so CRIU
takes them again; those of open files (flock, OFD) are openlocks.py's.  Called by migrate.py, saving.py, receive.py and
recovery.py.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from mignode import openlocks
from mignode.body import Body
from mignode.guest import Guest
from mignode.lockimages import FLOCK, LOCKS, OFD, OPEN_LOCKS, POSIX, Held, held_in, image_with
from mignode.mountlocks import MountFile, ask_locked, marked, open_ones
from mignode.openlocks import IN_DOUBT, described, held_through, natives_once
from mignode.reasons import Kind
from omfs.errors import CheckpointError, ControlError, NotRunning, OmfsError, RemoteFailure
from omfs.kernel.filelocks import RANGE_END
from omfs.kernel.processes import read_all
from omfs.kernel.procobjects import ShownLock, parse_fdinfo, shown_flocks, shown_locks
from omfs.net import control
from omfs.net.control import LockedRange

_OFFER_WITHIN_S: Final = 20.0
_LEND_WITHIN_S: Final = 95.0  # as long as the export may take; the restore has its own time
_HOLD_WITHIN_S: Final = 30.0
_HOLD_AGAIN_S: Final = 0.5

log: Final = logging.getLogger(__name__)


def attempt_name(guest: str, attempt: int) -> str:
    """What both nodes call a lock that moves with it."""
    return f"{guest}/{attempt}"


def namespace_of(body: Body) -> int:
    """The inode number of the guest's PID namespace.  Raises OSError where its init has ended."""
    return os.stat(f"/proc/{body.pid}/ns/pid").st_ino


class OwnLocks:
    """What a guest's processes have locked natively here, told to this node's omfs-export.  *run_dir*: its socket's."""

    def __init__(self, run_dir: Path, guest: str) -> None:
        self._export = run_dir / "export.sock"
        self._guest = guest

    async def offer(self, attempt: int, body: Body, held: Sequence[Held], pids: Mapping[int, int]) -> None:
        """Of a guest that is frozen.  Raises OmfsError, OSError."""
        name, locks = attempt_name(self._guest, attempt), described(held, pids)
        await control.ask(self._export, "offer_locks", attempt=name, namespace=namespace_of(body), locks=locks)

    async def lend(self, attempt: int, body: Body) -> None:
        """To one that is being restored.  Raises OmfsError, OSError."""
        name = attempt_name(self._guest, attempt)
        await control.ask(
            self._export, "lend_locks", deadline_s=_LEND_WITHIN_S, attempt=name, namespace=namespace_of(body)
        )

    @asynccontextmanager
    async def handed_on(self) -> AsyncIterator[None]:
        """Kill it inside: its locks are nobody else's meanwhile, and then of the guest at the other node, if it is."""
        is_known = await self.hold()
        try:
            yield
        finally:
            if is_known:
                await self._settle(ended=True)

    async def hold(self) -> bool:
        """Whether there is anything to settle.

        Again and again: a lock that goes over while others may ask for it may be lost.
        """
        with trio.CancelScope(shield=True), trio.move_on_after(_HOLD_WITHIN_S):
            while True:
                answer = await self._tell("hold_locks", deadline_s=_HOLD_WITHIN_S)
                if answer is not None:
                    return answer.get("known") is True
                await trio.sleep(_HOLD_AGAIN_S)
        return True

    async def settled(self) -> None:
        """It goes on here, and has them itself."""
        await self._settle(ended=False)

    async def _settle(self, *, ended: bool) -> None:
        with trio.CancelScope(shield=True):
            await self._tell("settle_locks", ended=ended)

    async def _tell(self, command: str, **arguments: Any) -> control.Arguments | None:
        """None: it could not."""
        try:
            return await control.ask(self._export, command, guest=self._guest, **arguments)
        except NotRunning:  # it has no locks, then
            return {}
        except ControlError as error:
            log.warning("guest %s: %s: %s", self._guest, command, error)
            return None


async def are_held(mount: Path, pids: Iterable[int], images: Path) -> bool:
    """Whether processes that are frozen have a lock, which CRIU's *images* show where it is this kernel's."""
    locked = await ask_locked(mount)
    inodes = {*locked.inodes, *(one.inode for one in locked.ranges)}
    return (images / LOCKS).exists() or bool(await trio.to_thread.run_sync(open_ones, tuple(pids), inodes))


# ---------------------------------------------------------------- the source


async def offer(guest: Guest, attempt: int, images: Path, run_dir: Path) -> None:
    """Of one that is frozen: its locks wait for it, and are in *images*.

    Raises RemoteFailure (EROFS: one of them can't move), OmfsError, OSError.
    """
    body, mount = guest.body, run_dir / "mount.sock"
    pids = await body.all_pids()
    locked = await ask_locked(mount)
    inodes = {*locked.inodes, *(one.inode for one in locked.ranges)}
    files = await trio.to_thread.run_sync(open_ones, pids.values(), inodes)
    async with marked(mount, files) as shown:
        if files:
            locked = await ask_locked(mount)  # now it knows which ranges are of open files
        if not set(locked.unsure).isdisjoint(pids.values()):
            raise RemoteFailure(errno.EROFS, IN_DOUBT)
        natives = await trio.to_thread.run_sync(_natives, images / LOCKS, pids)
        numbers = {outer: inner for inner, outer in pids.items()}
        has_open = {file.info.inode for file in files}  # of others the mount only has to hear that they were closed
        ranges = [one for one in locked.ranges if one.pid in numbers and one.inode in has_open]
        held = await trio.to_thread.run_sync(_taken_through, ranges, files, numbers, abandon_on_cancel=True)
        opens = await trio.to_thread.run_sync(held_through, shown, numbers, abandon_on_cancel=True)
        _write(images, [*natives, *held, *(one for locks in opens.values() for one in locks)])
        if natives:
            await OwnLocks(run_dir, guest.name).offer(attempt, body, natives, pids)
        if held or opens:
            names = {mark: (locks[0].process, locks[0].descriptor) for mark, locks in opens.items()}
            name = attempt_name(guest.name, attempt)
            await control.ask(
                mount, "offer_locks", deadline_s=_OFFER_WITHIN_S, attempt=name, processes=numbers, opens=names
            )


def _write(images: Path, held: Sequence[Held]) -> None:
    """CRIU takes those of processes again, and sees no others."""
    for name, of_process in ((LOCKS, True), (OPEN_LOCKS, False)):
        those = [one for one in held if (one.flag == POSIX) is of_process]
        if those:
            (images / name).write_bytes(image_with(b"", those))
        else:
            (images / name).unlink(missing_ok=True)


def _natives(image: Path, pids: Mapping[int, int]) -> list[Held]:
    """Each lock once, through a descriptor that it can be taken through again.  In a thread."""
    found: dict[tuple[object, ...], Held] = {}
    of_opens: list[Held] = []
    shown: set[bytes] = set()
    for one in held_in(image.read_bytes()) if image.exists() else ():
        path = f"/proc/{pids.get(one.process, 0)}/fd/{one.descriptor}"
        status = os.stat(path)  # of this node: CRIU sees no other locks, but of directories
        if one.flag not in (POSIX, FLOCK, OFD) or not status.st_nlink or not stat.S_ISREG(status.st_mode):
            raise RemoteFailure(errno.EROFS, Kind.LOCK.value)
        text = read_all(path.replace("/fd/", "/fdinfo/"))
        if one.flag != POSIX:
            of_opens.append(one)
            shown.update(file for _, file in shown_flocks(text))
            continue
        info = parse_fdinfo(text)
        if info.writes if one.kind else info.reads:
            found.setdefault((one.process, status.st_dev, status.st_ino, one.kind, one.start, one.end), one)
    if any(pid in pids.values() and file not in shown for pid, file in shown_flocks(read_all("/proc/locks"))):
        raise RemoteFailure(errno.EROFS, f"{Kind.LOCK.value} that none of its descriptors leads to")
    return [*found.values(), *natives_once(of_opens, pids)]


def _taken_through(ranges: list[LockedRange], files: list[MountFile], numbers: Mapping[int, int]) -> list[Held]:
    """In a thread: owners are asked whether the file has a name; a path that ends with " (deleted)" may be a cached one
    that was dropped."""
    return [_through(one, files, numbers) for one in ranges]


def _through(lock: LockedRange, files: list[MountFile], numbers: Mapping[int, int]) -> Held:
    """Which descriptor it can be taken through again."""
    for pid, number, info in files:
        may_take = (pid, info.inode) == (lock.pid, lock.inode) and (info.writes if lock.kind else info.reads)
        if may_take and os.stat(f"/proc/{pid}/fd/{number}").st_nlink:
            return Held(numbers[pid], number, lock.kind, lock.start, lock.end)
    raise RemoteFailure(errno.EROFS, f"{Kind.LOCK.value} that it could not take again")


# ---------------------------------------------------------------- the destination


def _read(image: Path) -> list[Held]:
    return held_in(image.read_bytes()) if image.exists() else []


class ComingLocks:
    """Of a guest that is restored from *images*."""

    def __init__(self, guest: Guest, images: Path, run_dir: Path) -> None:
        self._attempt = guest.epoch
        self._name = attempt_name(guest.name, guest.epoch)
        self._body = guest.body
        self._mount = run_dir / "mount.sock"
        self._own = OwnLocks(run_dir, guest.name)
        self._run_dir = run_dir
        self._held = _read(images / LOCKS)
        self._of_opens = _read(images / OPEN_LOCKS)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """It is restored inside, and has all its locks afterwards.  Raises CheckpointError, and what is raised inside.

        Whatever happens, `expect_no_more` is to be called.
        """
        if any(one.flag != POSIX for one in self._held):
            raise CheckpointError("its images have locks that can't move")
        async with self._taken_by_processes():
            yield
        if self._of_opens:
            await openlocks.take(self._of_opens, self._name, self._body, namespace_of(self._body), self._run_dir)

    @asynccontextmanager
    async def _taken_by_processes(self) -> AsyncIterator[None]:
        if not self._held:
            yield
            return
        await self._tell_mount("expect_locks")
        failures: list[Exception] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lend, failures, nursery.cancel_scope)
            try:
                yield
            except Exception as error:  # out of the nursery, which would wrap it
                failures.append(error)
                nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        await self._check()

    async def _lend(self, failures: list[Exception], restoring: trio.CancelScope) -> None:
        try:
            await self._own.lend(self._attempt, self._body)
        except NotRunning:  # nothing of this node is locked by another one, then
            return
        except (OmfsError, OSError) as error:
            failures.append(CheckpointError(str(error)))
            restoring.cancel()

    async def _check(self) -> None:
        """Raises ControlError, CheckpointError."""
        pids = await self._body.all_pids()
        ranges = (await ask_locked(self._mount)).ranges
        for one in self._held:
            outer = pids.get(one.process, 0)
            has: list[LockedRange | ShownLock] = [lock for lock in ranges if lock.pid == outer]
            has += shown_locks(read_all(f"/proc/{outer}/fdinfo/{one.descriptor}"))
            if not any(one.kind == lock.kind and lock.start <= one.start and one.end <= lock.end for lock in has):
                end = "the end" if one.end == RANGE_END else one.end
                raise CheckpointError(f"process {one.process} has lost its lock of bytes {one.start} to {end}")

    async def expect_no_more(self) -> None:
        """It runs, or is no more.  Raises OmfsError, OSError."""
        if self._held:
            await self._tell_mount("expect_no_locks")

    async def settled(self) -> None:
        """It runs here."""
        if self._held or self._of_opens:
            await self._own.settled()

    async def hold(self) -> None:
        """It is going to be killed, and has not run."""
        if self._held:
            await self._own.hold()

    async def _tell_mount(self, command: str) -> None:
        try:
            await control.ask(self._mount, command, attempt=self._name, namespace=namespace_of(self._body))
        except NotRunning:
            raise CheckpointError("no mount runs here, and it holds locks on files of other nodes") from None
