"""Which process is which: told apart by pid and start time; parents, children, ends, and what program they run.

All pids are those of the PID namespace that /proc was mounted in, which is the daemons' own; who is not shown there
does not exist here.  Nothing is kept: each answer is read from /proc anew, as root.

Invariants:

* A process that ended and another that got its pid later are never taken for each other, as long as they did not start
  within the same clock tick (10 ms).  The kernel hands pids out in a circle, so that takes a pid space as small as the
  number of forks in that time, or somebody privileged who asks for that very pid (clone3 with set_tid, CRIU).
* Where an answer is put together from several reads, one of the last confirms who it is about.

**Whatever reads /proc/<pid>/stat, auxv, mem or syscall may wait** for that process: past the point of no return of an
execve nobody may look into it, and there it closes its close-on-exec descriptors; the close of a file on a FUSE mount
waits for the mount (begin_new_exec in fs/exec.c, exec_update_lock; stat takes that lock in newer kernels only, 6.18.44
does; status, children, and the owner of /proc/<pid> are free of it).  A script on /mfs that does `exec` is enough: its
shell has it open close-on-exec, and for a child of that shell that asks for a magic name we look at the shell.  So all
functions here but `processes` are for worker threads, never for the thread that answers the requests of a mount.

Called by mount/ (who asks) and by mignode (the registry of processes).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from omfs.kernel.mounttable import MountLine, parse_mountinfo
from omfs.kernel.procfs import AT_RANDOM, ProcessStat, auxiliary, parse_stat, parse_status

_READ_BYTES: Final = 4096  # a stat or an auxv has some 400 bytes; of a status we want what is at its beginning
_RANDOM_BYTES: Final = 16  # at AT_RANDOM
_TRIES: Final = 16  # while processes come and go faster than we read


class Identity(NamedTuple):
    """A process, as long as it is remembered: a pid may be given to another one later.  A key of omfs/magic/places."""

    pid: int
    start_ticks: int


def identify(thread: int) -> Identity | None:
    """The process of this thread; None: it is gone, or not shown here (which FUSE tells as number 0)."""
    stat = _stat(thread)
    if stat is None:
        return None
    if stat.leads:
        return Identity(stat.pid, stat.start_ticks)
    try:
        group = parse_status(read_file(f"/proc/{thread}/status")).thread_group
    except OSError:
        return None
    stat = _stat(group)
    if stat is None or not os.path.exists(f"/proc/{group}/task/{thread}"):
        return None  # it ended meanwhile; the group's number may be another process's by now
    return Identity(stat.pid, stat.start_ticks)


def age_s(identity: Identity) -> float:
    """How long ago it began; to a clock tick."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - identity.start_ticks / os.sysconf("SC_CLK_TCK")


def parent_of(identity: Identity) -> Identity | None:
    """The process that would be told of its end: who forked it, or where that one has ended, who took it over.

    None: it is gone, or its parent is not shown here (the first process of a PID namespace has none).
    """
    for _ in range(_TRIES):
        child = _stat_of(identity)
        if child is None:
            return None
        parent = _stat(child.parent)
        if parent is None:
            if child.parent == 0:
                return None
            continue  # it has just ended, so the child has another
        # A parent is older.  Who is not may be a newcomer with its pid: then the child has another parent now.
        if parent.start_ticks < child.start_ticks or (
            (again := _stat_of(identity)) is not None and again.parent == parent.pid
        ):
            return Identity(parent.pid, parent.start_ticks)
    return None


def image_of(identity: Identity) -> str:
    """What it executes: another string after each successful execve, the same in its children until they do one.

    The 16 bytes at AT_RANDOM, which the kernel draws anew at each execve, also where addresses are not random; they are
    in memory that fork copies and CRIU restores.  A program may overwrite them: the runtime of Go does, once, before
    main.  "" for a kernel thread, a process that is gone, and where nobody may look into it.

    About three times as dear as `identify`.
    """
    found = _random_of(str(identity.pid))
    if not found:  # the first thread may have ended before the others; only they have memory then
        threads = (f"{identity.pid}/task/{thread}" for thread in _threads(identity.pid))
        found = next(filter(None, map(_random_of, threads)), b"")
    return found.hex() if _stat_of(identity) else ""


def children_of(identity: Identity) -> list[Identity]:
    """Its child processes, threads' children included, ended ones that it has not waited for as well.

    Whoever is its child all the time is among them.
    """
    found = []
    for pid in _children(identity.pid):
        stat = _stat(pid)
        if stat is not None and stat.parent == identity.pid and stat.leads:
            found.append(Identity(pid, stat.start_ticks))
    return found if _stat_of(identity) else []


def descendants_of(identity: Identity) -> list[Identity]:
    """Its children, theirs and so on; parents before their children.

    A child whose parent ends meanwhile is somebody else's child then, and not found.
    """
    found = children_of(identity)
    known = set(found)
    for one in found:  # it grows
        new = [child for child in children_of(one) if child not in known]
        known.update(new)
        found += new
    return found


def open_pidfd(identity: Identity) -> int:
    """A descriptor that becomes readable when the process ends; the caller closes it.

    Raises ProcessLookupError where it is gone, also if its pid is another's now.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # the pid is now the number of a mere thread (pidfd_open(2))
            raise _gone(identity) from None
        raise
    if _stat_of(identity) is None:
        os.close(descriptor)
        raise _gone(identity)
    return descriptor


def owner_of(identity: Identity) -> tuple[int, int]:
    """Its effective uid and gid.  Raises ProcessLookupError."""
    try:
        found = os.stat(f"/proc/{identity.pid}")
    except FileNotFoundError:
        raise _gone(identity) from None
    if _stat_of(identity) is None:
        raise _gone(identity)
    return found.st_uid, found.st_gid


def processes() -> list[int]:
    """The pids shown, ascending."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read_file(path: str) -> bytes:
    """A file of /proc that is shorter than 4 KiB; of a longer one its beginning.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)


def read_all(path: str) -> bytes:
    """All of a file of /proc, however long.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = b""
        while part := os.read(descriptor, _READ_BYTES):
            found += part
        return found
    finally:
        os.close(descriptor)


def mounts_of(pid: int) -> dict[int, MountLine]:
    """What a process sees, by mount id; nothing where it has ended.  Raises OSError."""
    try:
        return {line.mount_id: line for line in parse_mountinfo(read_all(f"/proc/{pid}/mountinfo"))}
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL):  # EINVAL: nobody has waited for it
            return {}
        raise


def read_memory(of: str, address: int, size_bytes: int) -> bytes:
    """From the memory of *of*: "<pid>", or "<pid>/task/<tid>".

    Shorter, or empty, where it has no memory any more.  Raises OSError: EIO where nothing is mapped there.
    """
    with _memory(of) as memory:
        return os.pread(memory, size_bytes, address)


@contextmanager
def _memory(of: str) -> Iterator[int]:
    descriptor = os.open(f"/proc/{of}/mem", os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends between open and getdents
        return []


def _gone(identity: Identity) -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, f"process {identity.pid} has ended")


def _stat(thread: int) -> ProcessStat | None:
    try:
        return parse_stat(read_file(f"/proc/{thread}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _stat_of(identity: Identity) -> ProcessStat | None:
    """None where the process is gone, also if its pid is another's now."""
    stat = _stat(identity.pid)
    return stat if stat is not None and stat.leads and stat.start_ticks == identity.start_ticks else None


def _random_of(of: str) -> bytes:
    """The bytes at AT_RANDOM; empty where there are none: it is gone, or its execve is not over yet."""
    try:
        before = read_file(f"/proc/{of}/auxv")
        for _ in range(_TRIES):
            with _memory(of) as memory:
                # The address is of this very memory if it was the same before and after the opening, and the kernel
                # tells it when the bytes are in place.  From memory that an execve has left since nothing can be read.
                vector = read_file(f"/proc/{of}/auxv")
                address = auxiliary(vector).get(AT_RANDOM)
                if address is None:
                    return b""
                if vector == before and len(found := os.pread(memory, _RANDOM_BYTES, address)) == _RANDOM_BYTES:
                    return found
            before = vector
    except OSError:
        pass
    return b""


def _children(pid: int) -> Iterable[int]:
    """Pids of its children, and perhaps of what were its children a moment ago."""
    before = None
    for _ in range(_TRIES):
        now = _children_of_threads(pid)
        # While a child or a thread ends, the list may lack others: the kernel finds its place again by counting, and a
        # thread's children go to another thread.  Then the next time it looks different.
        if now is not None and now == before:
            return (int(child) for children in now.values() for child in children.split())
        before = now
    return (other for other in processes() if (stat := _stat(other)) is not None and stat.parent == pid)


def _children_of_threads(pid: int) -> dict[str, bytes] | None:
    """By thread; None: one has ended, or the kernel has no such file.  Source: proc(5); fs/proc/array.c."""
    found = {}
    for thread in _threads(pid):
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found[thread] = file.read()
        except (FileNotFoundError, ProcessLookupError):
            return None
    return found
