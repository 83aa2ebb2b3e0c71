"""What is in a guest's /proc, for procview.py: names found in procfs, whose they are, where links lead, what is listed.

Reads procfs and keeps nothing but where exe, cwd and root led when they were last looked up.  It knows nothing of FUSE
but node ids and for how long an answer may be believed.  Raises OSError as a look at procfs would.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from dfsa import proctree as tree
from dfsa.fusewords import Entry
from dfsa.proctree import Kind, Spot
from omfs.kernel.procfs import parse_status

FOR_EVER_S: Final = 1 << 30
WHEREABOUTS_KEPT_MAX: Final = 4096  # a forgotten one is looked up anew
_STATUS_BYTES: Final = 4096


class Attributes(NamedTuple):
    """Of stat(2)."""

    mode: int
    uid: int
    gid: int
    links: int
    at_s: int


class ProcNames:
    """Of one guest."""

    def __init__(self, real: int, mfs: bytes, known_as: Callable[[int], int]) -> None:
        """*real*: procfs, its directory open for reading; *mfs*, *known_as*: as in procview.lay_over."""
        self._real = real
        self._control = mfs + b"/proc/"
        self._known_as = known_as
        self._names = tree.Names()
        self._ours = {name: self._names.number(name) for name in tree.OURS}
        self._serial = tree.TARGETLESS
        self._whereabouts: dict[tuple[int, bytes], tuple[int, bytes]] = {}  # serial and target of those last looked up
        self._began_s = int(time.time())

    # ------------------------------------------------------------ names

    def find(self, parent: Spot, name: bytes, uid: int, thread: int) -> tuple[Spot, int]:
        """What *name* is for this user and thread, and for how many seconds it is that for all."""
        if parent.kind == Kind.TOP:
            return self._find_in_top(name, thread)
        return self._find_in_process(parent.pid, name, uid)

    def _find_in_top(self, name: bytes, thread: int) -> tuple[Spot, int]:
        """And for how long the kernel may believe it, in seconds.  OSError."""
        if name == tree.SELF:
            return Spot(Kind.SELF, self._leader_of(thread)), 0
        if name == tree.THREAD_SELF:
            return Spot(Kind.THREAD_SELF, self._leader_of(thread), thread), 0
        if pid := tree.pid_of(name):
            return Spot(Kind.PROCESS, pid), 0  # whether there is one, its attributes tell
        if name in tree.MOUNTED:
            return Spot(Kind.MOUNTED, 0, self._names.number(name)), FOR_EVER_S
        if name == tree.HPC:
            return Spot(Kind.HPC), FOR_EVER_S
        self._check_real(name)
        return Spot(Kind.TOP_LINK, 0, self._names.number(name)), FOR_EVER_S

    def _find_in_process(self, pid: int, name: bytes, uid: int) -> tuple[Spot, int]:
        if name in self._ours:
            return Spot(Kind.OURS, self._known_as(self._leader_of(pid)), self._ours[name]), 0
        self._check_real(b"%d/%s" % (pid, name))
        if name in tree.WHEREABOUTS:
            return self._find_whereabouts(pid, name, uid), 0
        return Spot(Kind.LINK, pid, self._names.number(name)), FOR_EVER_S

    def _check_real(self, path: bytes) -> None:
        os.stat(path, dir_fd=self._real, follow_symlinks=False)

    def _leader_of(self, thread: int) -> int:
        """The process of a thread.  OSError: it is not in the guest's PID namespace."""
        if thread == 0:
            raise OSError(errno.ENOENT, "")
        try:
            os.close(os.pidfd_open(thread))
            return thread
        except OSError:  # not the first one of its process: dearer
            status = os.open(b"%d/status" % thread, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._real)
            try:
                return parse_status(os.read(status, _STATUS_BYTES)).thread_group
            finally:
                os.close(status)

    # ------------------------------------------------------------ attributes, targets, listings

    def attributes(self, spot: Spot) -> Attributes:
        """OSError: the process has ended."""
        if spot.kind != Kind.PROCESS:
            return Attributes(spot.mode, 0, 0, 1 + spot.is_directory, self._began_s)
        real = os.stat(b"%d" % spot.pid, dir_fd=self._real)
        return Attributes(real.st_mode, real.st_uid, real.st_gid, real.st_nlink, int(real.st_mtime))

    def target(self, spot: Spot, uid: int) -> bytes:
        """Of a link; *uid*: who wants to know.  The same for everybody who gets one."""
        match spot.kind:
            case Kind.SELF:
                return b"%d" % spot.pid
            case Kind.THREAD_SELF:
                return b"%d/task/%d" % (spot.pid, spot.low)
            case Kind.HPC:
                return self._control + tree.HPC
            case Kind.OURS:
                return b"%s%d/%s" % (self._control, spot.pid, self._names[spot.low])
            case Kind.WHEREABOUTS:
                return self._whereabouts_of(spot, uid)
            case Kind.TOP_LINK:
                try:
                    return os.readlink(self._names[spot.low], dir_fd=self._real)  # mounts, net
                except OSError:
                    return tree.into_real(spot, self._names)
        return tree.into_real(spot, self._names)

    def listing(self, directory: Spot) -> list[Entry]:
        """As it is now; the position of an entry is its number, from 1."""
        names, own = self._names_in(directory)
        link = Spot(Kind.TOP_LINK if directory.kind == Kind.TOP else Kind.LINK, directory.pid)
        first, mode = link.node, link.mode
        entries = [Entry(1, b".", directory.node, directory.mode), Entry(2, b"..", tree.TOP.node, tree.TOP.mode)]
        for position, name in enumerate((*own, *names), 3):
            if pid := tree.pid_of(name):
                process = Spot(Kind.PROCESS, pid)
                entries.append(Entry(position, name, process.node, process.mode))
            else:
                entries.append(Entry(position, name, first | self._names.number(name), mode))
        return entries

    def _names_in(self, directory: Spot) -> tuple[list[bytes], tuple[bytes, ...]]:
        """The real ones, and ours."""
        if directory.kind == Kind.TOP:
            return [os.fsencode(name) for name in os.listdir(self._real)], (tree.HPC,)
        if directory.kind == Kind.MOUNTED:
            return [], ()  # what is below the mount
        found = os.open(b"%d" % directory.pid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._real)
        try:
            return [os.fsencode(name) for name in os.listdir(found)], tree.OURS
        finally:
            os.close(found)

    # ------------------------------------------------------------ exe, cwd, root

    def _find_whereabouts(self, pid: int, name: bytes, uid: int) -> Spot:
        """exe, cwd or root: the same node as long as it leads to the same place."""
        key = (pid, name)
        target = self._target_for(pid, name, uid)
        if not target:
            return Spot(Kind.WHEREABOUTS, pid, self._names.number(name), tree.TARGETLESS)
        serial, before = self._whereabouts.pop(key, (0, b""))
        if before != target:
            self._serial = tree.next_serial(self._serial)
            serial = self._serial
        self._whereabouts[key] = (serial, target)  # the last one in order
        if len(self._whereabouts) > WHEREABOUTS_KEPT_MAX:
            del self._whereabouts[next(iter(self._whereabouts))]
        return Spot(Kind.WHEREABOUTS, pid, self._names.number(name), serial)

    def _target_for(self, pid: int, name: bytes, uid: int) -> bytes:
        """Nothing where it leads nowhere (a zombie), and for who may not know.

        A user may see those of his own processes; where not even those, the kernel makes root the owner of /proc/<pid>.
        """
        if uid not in (0, os.stat(b"%d" % pid, dir_fd=self._real).st_uid):
            return b""
        try:
            target = os.readlink(b"%d/%s" % (pid, name), dir_fd=self._real)
        except OSError:
            return b""
        return target if tree.is_followable(target) else tree.real_path(pid, name)

    def _whereabouts_of(self, spot: Spot, uid: int) -> bytes:
        name = self._names[spot.low]
        if spot.serial == tree.TARGETLESS:  # an answer other than an error would be cached for all
            raise OSError(errno.ENOENT if uid == 0 else errno.EACCES, "")
        serial, target = self._whereabouts.get((spot.pid, name), (0, b""))
        return target if serial == spot.serial else self._target_for(spot.pid, name, uid)
