"""Why a group of processes can't move, found before anything is frozen, in words for its user.

`reasons(facts)` is pure; cantmove.py gathers the facts, eligiblefiles.py judges descriptors.  A reason is anything
that the group would lose or see change on the other node: what lives in this kernel only (devices, io_uring, perf
events, namespaces), what somebody outside the group holds the other end of or could find by its name (sockets, pipes,
terminals, FIFOs), and what the dump refuses (a debugger, threads that don't share their descriptors).  Where in doubt
it stays: a process that can't move still runs.

What no file of /proc tells is left to the dump, which fails and lets the process run: docs/migration.md lists it.
No reason is no promise: the group may change before it is frozen.  Called by cantmove.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mignode.eligiblefiles import (
    DELETED,
    Group,
    is_out_of_place,
    is_removed,
    is_terminal_here,
    of_files,
    terminal_of,
)
from mignode.facts import Facts, Process
from mignode.reasons import Kind, Reason, named, where
from omfs.kernel.mounttable import MountLine

ENDED: Final = "ZX"  # states
_IPC_LOCK: Final = 1 << 14  # CAP_IPC_LOCK
_OF_THE_NODE: Final = ("user", "net", "cgroup")  # a guest has those of the node where it runs
_OF_A_GUEST: Final = ("pid", "mnt")  # what mosrun makes
_SHARED: Final = ("pid", "mnt", "uts", "ipc", "time")  # CRIU gives a restored tree one in which its clocks go on
_LATER: Final = {"pid_for_children": "pid", "time_for_children": "time"}  # of children that are not there yet
_MAPPINGS: Final = {
    "anon_inode:[io_uring]": "uses io_uring", "anon_inode:[perf_event]": "counts performance events",
    "/anon_hugepage": "uses huge pages", "/secretmem": "has memory that nobody may read (memfd_secret)",
    "/[aio]": "uses the kernel's asynchronous I/O", "[uprobes]": "has uprobes set",
    "socket:[": "has the buffers of a socket mapped",
}  # fmt: skip
_WITHOUT_A_FILE: Final = ("/dev/zero", "/memfd:")


def reasons(facts: Facts) -> list[Reason]:
    """In the order of the processes, each once; empty: it can move."""
    alone = at_once(facts)
    if alone is not None:
        return [alone]
    group = Group.of(facts)
    mounts = sorted(facts.mounts.values(), key=lambda line: len(line.mountpoint))
    found: dict[Reason, None] = {}
    for process in facts.processes:
        number = 0 if process is facts.processes[0] else process.pid
        at = where(number)
        for rule in (
            _of_threads(facts, process, at),
            _of_namespaces(facts, process, at),
            _of_session(facts, group, process, at),
            _of_memory(facts, mounts, process, at),
            of_files(facts, group, process, number),
        ):
            found.update(dict.fromkeys(rule))
    return list(found)


def at_once(facts: Facts) -> Reason | None:
    """What makes the rest meaningless; it needs the first process only, of that the threads, and *ours*."""
    if not facts.processes or _has_ended(first := facts.processes[0]):
        return Reason(Kind.ENDED, Kind.ENDED.value)
    if first.state in ENDED:  # nothing of what it has is shown
        return Reason(Kind.HALF_ENDED, Kind.HALF_ENDED.value)
    if first.standing.is_kernel_thread:
        return Reason(Kind.KERNEL_THREAD, Kind.KERNEL_THREAD.value)
    if any(first.threads[0].namespaces.get(kind) == facts.ours.get(kind) for kind in _OF_A_GUEST):
        return Reason(Kind.NO_GUEST, Kind.NO_GUEST.value)
    return None


def _has_ended(process: Process) -> bool:
    return process.state in ENDED and len(process.threads) < 2


# ---------------------------------------------------------------- threads


def _of_threads(facts: Facts, process: Process, at: str) -> Iterator[Reason]:
    if _has_ended(process):
        return  # it moves as it is: somebody may still wait for it
    if process.state in ENDED:
        yield Reason(Kind.HALF_ENDED, f"{Kind.HALF_ENDED.value}{at}")
    for thread in process.threads:
        rights = thread.rights
        if rights.tracer:
            yield Reason(Kind.TRACED, f"is traced by process {rights.tracer}{at}")
        if len(set(rights.uids)) > 1:
            users = " and ".join(map(str, sorted(set(rights.uids))))
            yield Reason(Kind.RIGHTS, f"has the rights of several users: {users}{at}")
        if rights.filters > facts.own_filters:
            yield Reason(Kind.FILTER, f"filters its system calls (seccomp){at}")
        if not thread.shares:
            yield Reason(Kind.THREADS, f"{Kind.THREADS.value}{at}")


def _of_namespaces(facts: Facts, process: Process, at: str) -> Iterator[Reason]:
    living = (one for process in facts.processes for thread in process.threads if "mnt" in (one := thread.namespaces))
    first = next(living, {})
    for thread in process.threads:
        own = thread.namespaces
        if "mnt" not in own:  # it has ended
            continue
        told = "has threads in different namespaces" if thread is not process.threads[0] else "is in another namespace"
        wanted = {kind: facts.ours.get(kind) for kind in _OF_THE_NODE} | {kind: first.get(kind) for kind in _SHARED}
        wanted |= {later: own.get(kind) for later, kind in _LATER.items()}
        strange = sorted(kind for kind, one in wanted.items() if own.get(kind) != one)
        if strange:
            yield Reason(Kind.NAMESPACE, f"{told}: {' '.join(strange)}{at}")


def _of_session(facts: Facts, group: Group, process: Process, at: str) -> Iterator[Reason]:
    if _has_ended(process):
        return
    standing = process.standing
    if not standing.session:  # as the kernel tells whom another PID namespace does not see
        yield Reason(Kind.SESSION, f"belongs to a session of outside this PID namespace{at}")
    elif standing.session in facts.leaders_outside:
        yield Reason(Kind.SESSION, f"belongs to the session of process {standing.session}, which stays{at}")
    name = terminal_of(standing)
    if name and name not in facts.relayed and not is_terminal_here(group, standing.terminal):
        yield Reason(Kind.TERMINAL, f"has the controlling terminal {name} of others{at}")


# ---------------------------------------------------------------- memory


def _of_memory(facts: Facts, mounts: list[MountLine], process: Process, at: str) -> Iterator[Reason]:
    rights = process.threads[0].rights
    if rights.locked_bytes > process.lockable_bytes and not rights.capabilities & _IPC_LOCK:
        yield Reason(
            Kind.LOCKED_MEMORY,
            f"has {rights.locked_bytes >> 10} KiB of memory locked, and may have {process.lockable_bytes >> 10}{at}",
        )
    for name in process.mapped:
        told = next((told for begin, told in _MAPPINGS.items() if name.startswith(begin)), None)
        if told is not None:
            yield Reason(Kind.MAPPING, f"{told}{at}")
        elif name.startswith("/SYSV"):
            if process.threads[0].namespaces.get("ipc") == facts.ours.get("ipc"):
                yield Reason(Kind.SYSV_MEMORY, f"{Kind.SYSV_MEMORY.value}{at}")
        elif not name.startswith("/"):
            if not name.startswith("["):
                yield Reason(Kind.MAPPING, f"has {named(name)} mapped{at}")
        elif not name.startswith(_WITHOUT_A_FILE) and _is_lost(mounts, name):
            yield Reason(Kind.PLACE, f"has {named(name)} mapped that only this machine has{at}")
    if _is_lost(mounts, process.directory):
        yield Reason(Kind.PLACE, f"works in {named(process.directory)} that only this machine has{at}")
    elif is_removed(process.directory):
        name = process.directory.removesuffix(DELETED)
        yield Reason(Kind.REMOVED, f"works in the directory {named(name)} that was removed{at}")


def _is_lost(mounts: Iterable[MountLine], path: str) -> bool:
    """By the mount with the longest name that the path begins with, of equal ones the last."""
    encoded = path.encode("utf-8", "surrogateescape")
    on = None
    for line in mounts:  # ascending
        if encoded == line.mountpoint or encoded.startswith(line.mountpoint.rstrip(b"/") + b"/"):
            on = line
    return on is None or is_out_of_place(on, path)
