"""What this node's own programs do, and what that means for leases: localchanges.py joined to leasing.py.

A file whose data are cached elsewhere is guarded by a kernel lease: a native program that opens it for writing waits
until everybody has given it back.  One that somebody holds EXCLUSIVE is guarded against all who open it; that guard
lives as long as the lease.  Other native changes are recalled as they are told.  Every file system that is used is
watched from the moment it is found; what can't be watched is not leased.  Where the table of mounts changes, other
objects may have the names that are cached: everything is recalled.

Trio thread only.  Called by underleases.py; built by daemon.py, which runs `run` and `follow_mounts`.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from typing import Final

import trio

from omfs.cache.owner import Need
from omfs.cache.rules import Use
from omfs.export.disk import Disk, Place
from omfs.export.handles import is_directory, mount_of, prepared_of
from omfs.export.leasing import Leasing
from omfs.export.localchanges import Change, ChangeKind, LocalChanges
from omfs.export.mounts import Mount
from omfs.kernel.filelease import LeaseState
from omfs.net.control import BrokenGuard

MOUNTS_CHECK_S: Final = 1.0  # at the latest, where the kernel's word was missed
MOUNTS_TOGETHER_S: Final = 0.02  # changes that are looked at as one, twice as long for each that comes soon after
GRACE_CHECK_S: Final = 1.0
NAMES_MAX: Final = 1024  # in one recall, which is one message; the whole directory is given back where more changed
UNCACHED_NS: Final = 2_000_000_000  # so long after its last change the data of a file are not cached
END_WITHIN_S: Final = 2.0  # holders that are there give everything back in much less
_DESCRIPTORS_SHARE: Final = 4  # guards may take the nth part of all descriptors

_NOBODY: Final = b""  # no session's key: a native program is nobody's holder


def guards_max() -> int:
    """How many files can be guarded at once by this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _DESCRIPTORS_SHARE


def _changed_just_now(fd: int) -> bool:
    return abs(time.time_ns() - os.fstat(fd).st_ctime_ns) < UNCACHED_NS


class Guards:
    """*changes* is given later (`watch`): it tells this object from its first moment."""

    def __init__(self, disk: Disk, leasing: Leasing) -> None:
        self._disk = disk
        self._leasing = leasing
        self._changes: LocalChanges | None = None
        self._guarded: set[bytes] = set()  # keys of localchanges.py
        self._exclusive: dict[bytes, bytes] = {}  # keys by handle,
        self._exclusive_keys: set[bytes] = set()  # and alone
        self._to_give_way: list[tuple[bytes, Use]] = []  # keys that were told before `run`
        self._nursery: trio.Nursery | None = None
        self._generation = disk.mounts.generation
        leasing.on_shared_again = self.shared_again

    # ------------------------------------------------------------ guards

    @property
    def any(self) -> bool:
        return bool(self._guarded or self._exclusive)

    def in_the_way(self, handle: bytes, use: Use) -> tuple[Need, ...]:
        """What else is needed to open this file, to LOOK or to CHANGE it: nobody may rely on a guard that would block

        our own open, under whatever handle, not even who opens it.
        """
        key = self._key(handle)
        if key is None:
            return ()
        if key in self._guarded and use is not Use.LOOK:
            return self._everybody(key, Use.CHANGE, handle)
        if key in self._exclusive_keys:
            return self._everybody(key, Use.LOOK, handle)
        return ()

    def _everybody(self, key: bytes, use: Use, *handles: bytes) -> tuple[Need, ...]:
        known = dict.fromkeys((*handles, *self._leasing.index.handles_of(key)))
        return tuple(Need(handle, use, everybody=True) for handle in known)

    def put(self, place: Place, fd: int) -> bool:
        """Whether the data of the file, open as *fd*, may be cached from now on.  What was read before may be old.

        Not while it is being written now and then: that would cost everybody recalls, and it is safer, as a descriptor
        that was opened while nobody wrote reads through the page cache until it is closed, whoever writes meanwhile.
        """
        key = self._key(place.handle)
        if self._changes is None or key is None or not place.is_regular or _changed_just_now(fd):
            return False
        if not self._changes.guard_data(key, lambda flags: self._disk.open_as_root(place, flags)):
            return False
        self._guarded.add(key)
        self._changes.drain()  # nobody writes from now on; attributes of before are recalled, the size above all
        return True

    def put_exclusive(self, place: Place, fd: int) -> bool:
        """Whether the file, open for writing as *fd*, can be held EXCLUSIVE: nobody else has it open.

        To be called just before that is granted; `shared_again` where it was not.
        """
        key = self._key(place.handle)
        if self._changes is None or key is None or not place.is_regular:
            return False
        if not self._changes.guard_exclusive(key, fd):
            return False
        self._note_exclusive(place.handle, key)
        self._changes.drain()  # as above
        return True

    def _note_exclusive(self, handle: bytes, key: bytes) -> None:
        self._exclusive[handle] = key
        self._exclusive_keys.add(key)

    def shared_again(self, handle: bytes) -> None:
        """For Leasing: nobody holds it EXCLUSIVE any more."""
        key = self._exclusive.pop(handle, None)
        if self._changes is not None and key is not None:
            self._exclusive_keys.discard(key)
            self._changes.unguard(key)

    def claim(self, handle: bytes, flags: int) -> int:
        """The descriptor of before a restart, for who held the file EXCLUSIVE and opens it again; -1: there is none."""
        self._disk.locate(handle)  # so that its mount is watched
        key = self._key(handle)
        if self._changes is None or key is None:
            return -1
        fd = self._changes.claim(key, flags)
        if fd >= 0:
            self._note_exclusive(handle, key)
        return fd

    def make_way(self, needs: tuple[Need, ...]) -> None:
        """It is opened, and nobody caches the data any more: what was `in_the_way` is gone."""
        for need in needs:
            if need.everybody:
                self.shared_again(need.handle)  # claimed by one of whom the table did not say that he had it
                key = self._key(need.handle)
                if self._changes is not None and key is not None and key in self._guarded:
                    self._guarded.discard(key)
                    self._changes.unguard(key)

    def keeps_writers_out(self, handle: bytes) -> bool:
        """Whether the data of this file may be cached, as far as native programs are concerned."""
        key = self._key(handle)
        if self._changes is None or key is None or not (key in self._guarded or key in self._exclusive_keys):
            return False
        return self._changes.is_guarded(key)

    def broken(self) -> list[BrokenGuard]:
        """Files whose data may be cached elsewhere while the kernel keeps no writer waiting; for omfs-admin check.

        One that is being broken is well if that was told: then it is being recalled.
        """
        found: list[BrokenGuard] = []
        changes = self._changes
        if changes is None:
            return found
        changes.drain()  # what waits to be told is not lost
        for key in {*self._guarded, *self._exclusive_keys}:
            now = changes.look_at(key)
            handles = tuple(self._leasing.index.handles_of(key))
            if not handles or now.lease is LeaseState.ACTIVE or (now.lease is LeaseState.BREAKING and now.is_told):
                continue
            state = "missing" if now.lease is None else now.lease.value
            found.append(BrokenGuard(handles, state, self._leasing.nodes_with(handles)))
        return found

    async def take_back(self, handles: Iterable[bytes]) -> int:
        """Recall these objects from everybody, and end their guards; the number of leases."""
        handles = tuple(handles)
        needs = tuple(Need(handle, Use.CHANGE, everybody=True) for handle in handles)
        count = sum(len(self._leasing.owner.holders_of(handle)) for handle in handles)
        async with self._leasing.recalled(_NOBODY, needs):
            self.make_way(needs)
        return count

    def _key(self, handle: bytes) -> bytes | None:
        """None where the mount is not watched."""
        begin = self._leasing.index.watched.get(mount_of(handle))
        return None if begin is None else begin + prepared_of(handle)

    # ------------------------------------------------------------ what is told

    def told(self, change: Change) -> None:
        """For LocalChanges: a native program changed something."""
        leasing = self._leasing
        if change.kind is ChangeKind.EVERYTHING:
            leasing.recall_all()
            return
        assert change.key is not None
        for handle in leasing.index.handles_of(change.key):
            if change.kind is ChangeKind.NAMES:
                leasing.changed_here(handle, tuple(change.names) if len(change.names) <= NAMES_MAX else None)
            elif change.kind is ChangeKind.ATTRIBUTES:
                leasing.changed_here(handle, () if is_directory(handle) else None)
        if change.kind in (ChangeKind.DATA, ChangeKind.READ, ChangeKind.EVICTED):
            use = Use.LOOK if change.kind is ChangeKind.READ else Use.CHANGE
            if self._nursery is None:
                self._to_give_way.append((change.key, use))
            else:
                self._nursery.start_soon(self._give_way, change.key, use)

    async def _give_way(self, key: bytes, use: Use) -> None:
        """Recall the file from everybody; then whoever waits in open(2) may go on."""
        async with self._leasing.recalled(_NOBODY, self._everybody(key, use)):
            if self._changes is not None and self._changes.give_way(key):
                self._guarded.discard(key)

    # ------------------------------------------------------------ mounts

    def watch(self, changes: LocalChanges) -> None:
        """Watch every file system that is used, from now on."""
        self._changes = changes
        mounts = self._disk.mounts
        mounts.on_found = self._watch_mount
        for mount in mounts.in_use():
            self._watch_mount(mount)
        for lease in self._leasing.owner.leases():
            mounts.find(mount_of(lease.handle))
        self._leasing.index.note_held(lease.handle for lease in self._leasing.owner.leases())

    def _watch_mount(self, mount: Mount) -> None:
        assert self._changes is not None
        if self._changes.watch_mount(mount, self._disk.mounts.descriptor(mount)):
            self._leasing.index.watched[mount.stable_id] = self._changes.key(mount, b"")
        else:
            self._leasing.index.watched.pop(mount.stable_id, None)

    def _look_at_mounts(self) -> bool:
        """Whether they have changed: then everything is asked anew."""
        mounts = self._disk.mounts
        mounts.refresh()
        if mounts.generation == self._generation or self._changes is None:
            return False
        self._generation = mounts.generation
        self._leasing.recall_all()
        self._changes.mounts_changed()
        self._leasing.index.watched.clear()
        for mount in mounts.in_use():
            self._watch_mount(mount)
        return True

    async def end(self) -> None:
        """Before an orderly end: recall everything."""
        self._leasing.recall_all()
        with trio.move_on_after(END_WITHIN_S):
            await self._leasing.wait_nothing_held()

    def close(self) -> None:
        """When `run` has ended.  Where somebody still holds something, the guards are left to the keeper."""
        if self._changes is None:
            return
        if len(self._leasing.owner):
            self._changes.keep()
        else:
            self._changes.close()

    async def run(self) -> None:
        """Until cancelled."""
        assert self._changes is not None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for key, use in self._to_give_way:
                nursery.start_soon(self._give_way, key, use)
            nursery.start_soon(self._changes.run)
            while self._changes.in_grace:
                await trio.sleep(GRACE_CHECK_S)
                if not self._leasing.has_ghosts:
                    self._changes.end_grace()

    async def follow_mounts(self) -> None:
        """What is mounted and unmounted from now on, until cancelled."""
        together_s = MOUNTS_TOGETHER_S
        while True:
            have_changed = self._look_at_mounts()
            together_s = min(together_s * 2, MOUNTS_CHECK_S) if have_changed else MOUNTS_TOGETHER_S
            with trio.move_on_after(MOUNTS_CHECK_S):
                await self._disk.mounts.wait_changed()
                await trio.sleep(together_s)
