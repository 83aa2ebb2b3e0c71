"""The watch over this node's own programs: what they change natively, while other nodes have it cached.

Data are guarded by a kernel lease per file: a program that opens it for writing stays blocked in open(2) until
`unguard`; and where somebody has it EXCLUSIVE (`guard_exclusive`), one that opens it at all.  Attributes and names are
watched with fanotify on the whole file system: told within about a millisecond, and at once by `drain`.  This room
knows neither sessions nor grants: it is told what is cached elsewhere (`guard_data`, `is_of_interest`) and tells what
changed (`on_change`, called in the trio thread, in the middle of `drain`, `guard_data` or `run`; it must not wait).
What this process itself does is not told; the caller knows it.

Whoever has a file guarded must not open it for writing, nor truncate it by its path, before `unguard`: the kernel would
block this process too (O_NONBLOCK: EWOULDBLOCK, and the guard counts as broken).  A guard keeps its file open, so its
file system can't be unmounted and a removed file keeps its blocks; when the last name of a guarded file goes it is told
as EVICTED.

After a crash the keeper gives the guards back (export/leasekeeper.py).  Nobody knows any more who relied on them, so
until `end_grace` none is released: the caller calls it when all that the former process granted has run out or come
back.  But for a file that somebody had EXCLUSIVE: its guard is the very descriptor that was opened for writing, and who
had it opens the file again with `claim`, while programs go on waiting.  The keeper gets such a guard KEEP_AFTER_S after
it was taken, as most are over by then: of younger ones nobody is kept off when this process is killed.

Invariants: one descriptor and one kernel lease per key; a guard that was told is never granted on again and lives until
`unguard`.  Not seen: stores into shared mappings change timestamps without an event, but not while a guard is held,
since nobody has the file open for writing then.  Built by export/service.py.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import logging
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import trio

from omfs.export.leasekeeper import LeaseKeeper
from omfs.export.mounts import Mount
from omfs.kernel import fanotify
from omfs.kernel.filelease import FileLeases, LeaseState, state_of

KEEP_AFTER_S: Final = 0.05
READ_PAUSE_S: Final = 0.001  # between two reads of events: meanwhile the kernel merges them, and we do other things
OVERDUE_SHARE: Final = 8  # so many guards (a share of the limit) may wait for `unguard` beyond it

_GUARD_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY

log = logging.getLogger(__name__)


class ChangeKind(enum.Enum):
    """What happened to the object of a Change."""

    ATTRIBUTES = enum.auto()  # attributes or extended attributes; of a file perhaps its data, which the guard covers
    NAMES = enum.auto()  # of a directory: these names, and so its listing and attributes
    DATA = enum.auto()  # a program wants to write: it is blocked until `unguard`
    READ = enum.auto()  # a program wants to read what is EXCLUSIVE: as DATA; or the guard is wanted back
    EVICTED = enum.auto()  # the guard is wanted back: recall the data, then `unguard`
    EVERYTHING = enum.auto()  # events were lost: anything watched may have changed


class Change(NamedTuple):
    """*key*: None for EVERYTHING.  *names*: of NAMES only."""

    kind: ChangeKind
    key: bytes | None
    names: frozenset[bytes] = frozenset()


class GuardNow(NamedTuple):
    """*lease*: what the kernel has of it, None: there is no guard.  *is_told*: as DATA or EVICTED."""

    lease: LeaseState | None
    is_told: bool


class _Guard:
    __slots__ = ("fd", "is_exclusive", "is_kept", "is_recovered", "is_told", "is_unclaimed", "key")

    def __init__(self, key: bytes, fd: int, is_exclusive: bool, is_recovered: bool = False) -> None:
        self.key = key
        self.fd = fd
        self.is_exclusive = is_exclusive
        self.is_kept = is_recovered  # by the keeper
        self.is_told = False  # as DATA or EVICTED
        self.is_recovered = is_recovered  # of a former process,
        self.is_unclaimed = is_recovered  # and not granted on by us


class LocalChanges:
    """What this node's programs change; see above.  Trio thread only."""

    def __init__(
        self,
        on_change: Callable[[Change], None],
        is_of_interest: Callable[[bytes], bool],
        keeper: LeaseKeeper,
        guards_max: int,
    ) -> None:
        """*is_of_interest*: whether anybody caches the object with this key; asked for each event, so it must be quick.

        The lease signals must be blocked in all threads (kernel/filelease.py).  Raises OSError when the keeper can't be
        started.
        """
        self._on_change = on_change
        self._is_of_interest = is_of_interest
        self._keeper = keeper
        self._guards_max = guards_max
        self._own_pid = os.getpid()
        self._guards: dict[bytes, _Guard] = {}  # the one granted on last at the end
        self._by_fd: dict[int, _Guard] = {}
        self._told = 0  # how many of them were told and wait for `unguard`
        self._unkept: list[_Guard] = []  # EXCLUSIVE ones of the last moment
        self._unkept_wakes = trio.Event()
        self._deferred: set[bytes] = set()  # unguarded in the grace
        self._in_grace = False
        self._file_systems: dict[
            bytes, tuple[Mount, bytes | None]
        ] = {}  # by stable id: its id in keys, None: unwatched
        self._refused: set[bytes] = set()  # stable ids of mounts that can't be watched, as the log says
        self._without_leases: set[bytes] = set()  # ids of file systems
        self._failures: set[int | None] = {
            errno.EWOULDBLOCK,
            errno.ESTALE,
        }  # errnos that are not worth a line in the log
        self._leases = FileLeases()
        recovered = keeper.recover()
        self._watcher = self._begin_watch(recovered.group)
        self._poll = select.poll()
        self._poll.register(self._leases.descriptor, select.POLLIN)
        if self._watcher is not None:
            self._poll.register(self._watcher.descriptor, select.POLLIN)
        self._adopt(recovered.leases)

    def _begin_watch(self, group: int) -> fanotify.Watcher | None:
        try:
            watcher = fanotify.Watcher(group)
        except OSError as error:
            log.error("fanotify: %s; nothing of this node can be cached elsewhere", error.strerror)
            return None
        if group < 0:
            self._keeper.watch(watcher.descriptor)
        return watcher

    def _adopt(self, leases: dict[bytes, int]) -> None:
        for key, fd in leases.items():
            self._leases.take_over(fd)  # broken ones, too, stay as they are until the grace has ended
            is_exclusive = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            self._guards[key] = self._by_fd[fd] = _Guard(key, fd, is_exclusive, is_recovered=True)
        if leases:
            self._in_grace = True
            log.info("%d kernel leases of the former omfs-export are kept for now", len(leases))

    def close(self) -> None:
        """Give everything up: all guards end, and the keeper.  Only when nobody caches anything of this node any more;

        who ends without it leaves the guards to the keeper, for the next process or until their time is over.
        """
        self._keeper.close()
        for fd in self._by_fd:
            self._leases.release(fd)
            os.close(fd)
        self._guards.clear()
        self._by_fd.clear()
        self._leases.close()
        if self._watcher is not None:
            self._watcher.close()

    # ------------------------------------------------------------ which file systems

    def watch_mount(self, mount: Mount, fd: int) -> bool:
        """Watch the file system of *mount* from now on (*fd*: a descriptor on it, not O_PATH).  As `watches`.

        To be called before anything of it is granted; again costs next to nothing.
        """
        known = self._file_systems.get(mount.stable_id)
        if known is None or known[0] is not mount:  # or unmounted meanwhile: the mark went with it
            known = self._file_systems[mount.stable_id] = (mount, self._mark(mount, fd))
        return known[1] is not None

    def _mark(self, mount: Mount, fd: int) -> bytes | None:
        if self._watcher is None:
            return None
        try:
            self._watcher.mark(fd)
            return os.fstatvfs(fd).f_fsid.to_bytes(8, "little")
        except OSError as error:
            if mount.stable_id not in self._refused:
                self._refused.add(mount.stable_id)
                place, kind = os.fsdecode(mount.line.mountpoint), os.fsdecode(mount.line.fstype)
                log.warning("%s (%s) can't be watched, so it is not cached elsewhere: %s", place, kind, error.strerror)
            return None

    def ignore(self, path: Path) -> None:
        """Not to be told of this file of our own, which we write all the time: each event wakes us."""
        if self._watcher is not None:
            try:
                self._watcher.ignore(path)
            except OSError as error:
                log.debug("%s: its events can't be ignored: %s", path, error)

    def mounts_changed(self) -> None:
        """The table of mounts changed (Mounts.generation): what looks the same may have been mounted anew."""
        self._file_systems.clear()

    def watches(self, mount: Mount) -> bool:
        """Whether changes there are seen; if not, nothing may be cached elsewhere."""
        known = self._file_systems.get(mount.stable_id)
        return known is not None and known[0] is mount and known[1] is not None

    def key(self, mount: Mount, prepared: bytes) -> bytes:
        """The key of an object, from its handle (Place.prepared); its mount must be watched."""
        file_system_id = self._file_systems[mount.stable_id][1]
        assert file_system_id is not None
        return file_system_id + prepared

    # ------------------------------------------------------------ guards

    def guard_data(self, key: bytes, open_fd: Callable[[int], int]) -> bool:
        """Have a kernel lease on the regular file; *open_fd* opens it with the flags it is given, as root.

        False: a program has it open for writing, or wants to; or there is no more room, or it has no leases.  Guard
        first, read then: what was read before may be old.
        """
        guard = self._guards.get(key)
        if guard is not None:
            return not guard.is_exclusive and self._use(guard)
        guard = self._new_guard(key, fcntl.F_RDLCK, open_fd)
        if guard is None:
            return False
        guard.is_kept = self._keeper.hold(key, guard.fd)
        if not guard.is_kept:
            self._release(guard)
        return guard.is_kept

    def guard_exclusive(self, key: bytes, fd: int) -> bool:
        """Have a kernel lease through *fd*, which is open for writing, and which `unguard` leaves open.

        False: somebody else has the file open, or as `guard_data`.  To be unguarded before *fd* is closed.
        """
        guard = self._guards.get(key)
        if guard is not None:
            return guard.is_exclusive and self._use(guard)
        guard = self._new_guard(key, fcntl.F_WRLCK, lambda _: os.dup(fd))
        if guard is None:
            return False
        self._unkept.append(guard)
        self._unkept_wakes.set()
        return True

    def claim(self, key: bytes, flags: int) -> int:
        """A new descriptor, open as open(2) *flags* say, of what the former process had guarded so; -1: there is none.

        Whoever has this descriptor has the guard to himself: `unguard` releases it, also in the grace.
        """
        guard = self._guards.get(key)
        if guard is None or not guard.is_exclusive or not guard.is_unclaimed:
            return -1
        if (fcntl.fcntl(guard.fd, fcntl.F_GETFL) ^ flags) & os.O_ACCMODE:
            return -1
        fd = os.dup(guard.fd)
        guard.is_unclaimed = guard.is_recovered = False
        if not self._leases.is_whole(guard.fd):
            self._tell_broken_guard(guard)
        return fd

    def _new_guard(self, key: bytes, kind: int, open_fd: Callable[[int], int]) -> _Guard | None:
        if len(self._guards) >= self._guards_max and not self._make_room():
            return None
        if key[:8] in self._without_leases:
            return None
        fd = self._take(key, kind, open_fd)
        if fd < 0:
            return None
        guard = self._guards[key] = self._by_fd[fd] = _Guard(key, fd, kind == fcntl.F_WRLCK)
        return guard

    def _use(self, guard: _Guard) -> bool:
        if guard.is_told or (guard.is_unclaimed and not self._leases.is_whole(guard.fd)):
            return False
        guard.is_unclaimed = False
        self._deferred.discard(guard.key)
        self._guards[guard.key] = self._guards.pop(guard.key)
        return True

    def _take(self, key: bytes, kind: int, open_fd: Callable[[int], int]) -> int:
        """A descriptor with a lease, or -1."""
        try:
            fd = open_fd(_GUARD_FLAGS)
        except OSError as error:
            self._note_failure(error)
            return -1
        try:
            if self._leases.take(fd, kind):
                return fd
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._without_leases.add(key[:8])
            self._note_failure(error)
        os.close(fd)
        return -1

    def _note_failure(self, error: OSError) -> None:
        """In the log, each kind once: it may be the same for a million files."""
        if error.errno not in self._failures:
            self._failures.add(error.errno)
            log.warning("a file can't be guarded, so it is not cached elsewhere: %s", error.strerror)

    def _make_room(self) -> bool:
        """Ask for the guard back that was granted on longest ago; False when too many are overdue already."""
        if self._told > self._guards_max // OVERDUE_SHARE:
            return False
        for guard in self._guards.values():
            if not guard.is_told and not guard.is_unclaimed:
                self._tell_guard(ChangeKind.READ if guard.is_exclusive else ChangeKind.EVICTED, guard)
                return True
        return False

    def _tell_guard(self, kind: ChangeKind, guard: _Guard) -> None:
        """DATA or READ may follow what was wanted back: then somebody waits."""
        if not guard.is_told:
            guard.is_told = True
            self._told += 1
        self._on_change(Change(kind, guard.key))

    def is_guarded(self, key: bytes) -> bool:
        """Whether there is a guard that can be relied on."""
        guard = self._guards.get(key)
        return guard is not None and not guard.is_told and not guard.is_unclaimed and key not in self._deferred

    def look_at(self, key: bytes) -> GuardNow:
        """For omfs-admin check."""
        guard = self._guards.get(key)
        if guard is None:
            return GuardNow(None, False)
        return GuardNow(LeaseState.ACTIVE if self._leases.is_whole(guard.fd) else state_of(guard.fd), guard.is_told)

    def unguard(self, key: bytes) -> None:
        """Nobody caches the data any more: whoever waits in open(2) goes on.  Does nothing without a guard."""
        guard = self._guards.get(key)
        if guard is None:
            return
        if self._in_grace and guard.is_recovered:
            self._deferred.add(key)
            return
        self._release(guard)

    def give_way(self, key: bytes) -> bool:
        """As `unguard`, unless another guard than the one that was told is there by now: False."""
        guard = self._guards.get(key)
        if guard is not None and not guard.is_told:
            return False
        self.unguard(key)
        return True

    def _release(self, guard: _Guard) -> None:
        del self._guards[guard.key]
        del self._by_fd[guard.fd]
        self._told -= guard.is_told
        self._leases.release(guard.fd)
        if guard.is_kept and guard.is_exclusive:
            self._keeper.close_kept(guard.key)
        elif guard.is_kept:
            self._keeper.drop(guard.key)
        os.close(guard.fd)

    @property
    def in_grace(self) -> bool:
        """Whether guards of a former process are kept that `end_grace` will release."""
        return self._in_grace

    def end_grace(self) -> None:
        """All that the former process granted has been given back, or run out."""
        self._in_grace = False
        for guard in list(self._guards.values()):
            if guard.is_unclaimed or guard.key in self._deferred:
                self._release(guard)
        self._deferred.clear()

    # ------------------------------------------------------------ what happened

    async def run(self) -> None:
        """Tell what happens, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_leases)
            nursery.start_soon(self._keep)
            if self._watcher is not None:
                nursery.start_soon(self._follow_events, self._watcher)

    async def _keep(self) -> None:
        while True:
            await self._unkept_wakes.wait()
            await trio.sleep(KEEP_AFTER_S)
            self.keep()

    def keep(self) -> None:
        """Give the keeper the EXCLUSIVE guards that it does not have."""
        unkept, self._unkept = self._unkept, []
        self._unkept_wakes = trio.Event()
        for guard in unkept:
            if self._guards.get(guard.key) is guard:
                guard.is_kept = self._keeper.hold(guard.key, guard.fd)

    async def _follow_leases(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._leases.descriptor)
            self._tell_broken()

    async def _follow_events(self, watcher: fanotify.Watcher) -> None:
        while True:
            await trio.lowlevel.wait_readable(watcher.descriptor)
            self._tell_events(watcher)
            await trio.sleep(READ_PAUSE_S)

    def drain(self) -> None:
        """Tell what has happened until now; never waits."""
        for fd, _ in self._poll.poll(0):
            if fd == self._leases.descriptor:
                self._tell_broken()
            elif self._watcher is not None:
                self._tell_events(self._watcher)

    def _tell_broken(self) -> None:
        for fd in self._leases.broken():
            guard = self._by_fd.get(fd)  # None: released by who was told of another just now
            if guard is not None and not guard.is_unclaimed:
                self._tell_broken_guard(guard)

    def _tell_broken_guard(self, guard: _Guard) -> None:
        only_reads = guard.is_exclusive and self._leases.may_be_read(guard.fd)
        self._tell_guard(ChangeKind.READ if only_reads else ChangeKind.DATA, guard)

    def _tell_events(self, watcher: fanotify.Watcher) -> None:
        """Each object and each directory of a batch is told once."""
        attributes: dict[bytes, None] = {}
        names: dict[bytes, set[bytes]] = {}
        for event in watcher.read(self._own_pid):
            if event.mask & fanotify.OVERFLOW:
                log.warning("more happened here than fanotify could keep: all caches of this node are recalled")
                self._on_change(Change(ChangeKind.EVERYTHING, None))
                self._note_removals(self._guards)
                return
            if event.object is not None:
                attributes[event.object] = None
            if event.mask & _OF_NAMES:
                if event.directory is not None and event.name is not None:
                    names.setdefault(event.directory, set()).add(event.name)
                if event.new_directory is not None and event.new_name is not None:
                    names.setdefault(event.new_directory, set()).add(event.new_name)
        for key, changed in names.items():
            if self._is_of_interest(key):
                self._on_change(Change(ChangeKind.NAMES, key, frozenset(changed)))
        for key in attributes:
            if self._is_of_interest(key):
                self._on_change(Change(ChangeKind.ATTRIBUTES, key))
        self._note_removals(attributes)

    def _note_removals(self, keys: dict[bytes, None] | dict[bytes, _Guard]) -> None:
        """A guarded file without a name would keep its blocks for as long as the guard lives."""
        for key in list(keys):
            guard = self._guards.get(key)
            if guard is None or guard.is_told or guard.is_unclaimed or guard.is_exclusive:
                continue  # an EXCLUSIVE one ends with the file that is open
            if os.fstat(guard.fd).st_nlink:
                continue
            self._tell_guard(ChangeKind.EVICTED, guard)


_OF_NAMES: Final = fanotify.CREATE | fanotify.DELETE | fanotify.RENAME
