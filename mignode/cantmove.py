"""Why a process can't move: reads all that /proc tells of it and its descendants, once, and asks eligible.py.

**Only for worker threads**: a look at a process waits while it is in execve and closes a file of a silent node
(kernel/processes.py), so whoever calls puts a deadline on the thread and leaves it behind.  Root's rights are needed.
Nothing is changed and nobody is stopped: the group runs on, what has ended meanwhile is left out, and what it opens
meanwhile may be missed; the dump has the last word.  No file is opened, and stat(2) is asked only where this kernel
answers it alone, so no other node can make us wait.

What it does not do: the rules (eligible.py, eligiblefiles.py).  Called by processfiles.py.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from typing import Final

from mignode.eligible import ENDED, at_once, reasons
from mignode.eligiblefiles import OWN_TERMINAL, PORTS, Group, is_another_terminal
from mignode.facts import Facts, OpenFile, Process, Thread
from mignode.reasons import Kind, Reason
from omfs.kernel.kcmp import share_files
from omfs.kernel.mounttable import MountLine, is_answered_here
from omfs.kernel.pipeends import is_other_end_held
from omfs.kernel.processes import Identity, descendants_of, identify, image_of, mounts_of, read_all
from omfs.kernel.procfs import parse_stat, parse_status
from omfs.kernel.procobjects import (
    InetSocket,
    inet_table,
    lockable_bytes,
    mapped_names,
    parse_fdinfo,
    parse_rights,
    parse_standing,
)
from omfs.kernel.socketpeers import SocketPeers, UnixSocket, protocol_of

_SOCKET: Final = "socket:["
_PIPE: Final = "pipe:["
_TABLES: Final = {"TCP": ("tcp", "tcp6"), "UDP": ("udp", "udp6"), "UDP-Lite": ("udplite", "udplite6")}
_GONE: Final = (FileNotFoundError, ProcessLookupError)
_UNLINKED: Final = (*_GONE, PermissionError)  # what a link of who has just ended answers, to root (fs/proc/base.c)
_PAUSES_S: Final = (0.0, *(0.001 * 2**count for count in range(9)))  # between looks; half a second in all
_READ_BYTES: Final = 1 << 16
_OTHER_ENDS: Final = frozenset({Kind.PIPE, Kind.UNIX_SOCKET, Kind.CONNECTION})


def why(root: Identity, relayed: Iterable[str] = (), own_filters: int = 0) -> list[Reason]:
    """Why *root* and all its descendants can't move; empty: they can.

    *relayed*: what their deputy takes along, as /proc/<pid>/fd shows it: "pipe:[1234]", "/dev/pts/3".  *own_filters*:
    how many seccomp filters they have from us.  Raises OSError where we are not root.

    Of processes that go on opening and closing, one look may show one end of a pipe before the other was there; what
    keeps them is still there at a second look.  What a process does not show any more may not be closed yet: one that
    is ending has lost it first, and the kernel closes it on the way back to the program, late where that is an execve,
    or where others have the processor meanwhile (fs/file_table.c: fput).  Then there are more looks.
    """
    taken = frozenset(relayed)
    found = reasons(read_facts(root, taken, own_filters))
    for pause_s in _PAUSES_S:
        if not found:
            break
        time.sleep(pause_s)
        facts = read_facts(root, taken, own_filters)
        again = set(reasons(facts))
        found = [one for one in found if one in again]
        if not _may_be_closing(facts, found):
            break
    return found


def read_facts(root: Identity, relayed: frozenset[str] = frozenset(), own_filters: int = 0) -> Facts:
    """As `why`.  Of a process that can't move in any case only what shows that."""
    facts = _read_facts(root, relayed, own_filters)
    if identify(root.pid) != root:  # the last to be asked: all of it was about this process
        return facts._replace(processes=())
    return facts


def _read_facts(root: Identity, relayed: frozenset[str], own_filters: int) -> Facts:
    ours = _namespaces("self")
    first = _process(root, {}, with_objects=False)
    facts = Facts((first,) if first is not None else (), ours, {}, relayed=relayed, own_filters=own_filters)
    if at_once(facts) is not None:
        return facts
    mounts = mounts_of(root.pid)
    if not mounts:  # it has ended
        return facts._replace(processes=())
    found = (_process(one, mounts) for one in (root, *descendants_of(root)))
    facts = facts._replace(processes=tuple(one for one in found if one is not None), mounts=mounts)
    return _with_outside(facts) if facts.processes else facts


def _with_outside(facts: Facts) -> Facts:
    """What there is at the other ends."""
    files = [(process.pid, one) for process in facts.processes for one in process.files]
    sockets = [one for _, one in files if one.protocol]
    facts = facts._replace(
        unix=_unix({one.inode for one in sockets if one.protocol.startswith("UNIX")}),
        inet=_inet(facts.processes[0].pid, {PORTS[one.protocol] for one in sockets if one.protocol in PORTS}),
        leaders_outside=frozenset(
            {one.standing.session for one in facts.processes if _leads(one.standing.session)}
            - {one.pid for one in facts.processes}
        ),
    )
    one_ended = Group.of(facts).one_ended() - facts.relayed
    ends = {
        one.target: (pid, one.number, int(one.target[len(_PIPE) : -1])) for pid, one in files if one.target in one_ended
    }
    return facts._replace(fed_from_outside=frozenset(one for one, end in ends.items() if _is_held(*end)))


def has_another_terminal(pids: Iterable[int], relayed: Iterable[str]) -> bool:
    """As they are frozen: whether one has opened /dev/tty since, in a session of its own (eligiblefiles.py)."""
    taken = frozenset(relayed)
    for pid in pids:
        with contextlib.suppress(*_GONE):
            if is_another_terminal(taken, parse_standing(read_all(f"/proc/{pid}/stat"))):
                folder = f"/proc/{pid}/fd"
                if any(os.readlink(f"{folder}/{name}") == OWN_TERMINAL for name in os.listdir(folder)):
                    return True
    return False


# ---------------------------------------------------------------- processes and threads


def _process(one: Identity, mounts: Mapping[int, MountLine], with_objects: bool = True) -> Process | None:
    """None: it has ended, and somebody has waited for it."""
    pid = one.pid
    try:
        stat = read_all(f"/proc/{pid}/stat")
        state = parse_stat(stat).state
        threads = _threads(pid, state)
        limits = read_all(f"/proc/{pid}/limits")
    except _GONE:
        return None
    if not threads or not limits:  # it has none any more when somebody has waited for it
        return None
    found = Process(pid, state, parse_standing(stat), threads, lockable_bytes(limits))
    if not with_objects:
        return found
    with contextlib.suppress(*_GONE):  # it is ending: it loses its memory first, its descriptors, its directory
        found = found._replace(files=tuple(_files(pid, mounts)))
        found = found._replace(is_executing=state not in ENDED and not image_of(one))
        stat = read_all(f"/proc/{pid}/stat")
        found = found._replace(standing=parse_standing(stat), is_running=parse_stat(stat).state == "R")
        found = found._replace(mapped=tuple(mapped_names(os.fsdecode(read_all(f"/proc/{pid}/maps")))))
        with contextlib.suppress(PermissionError):
            found = found._replace(directory=os.readlink(f"/proc/{pid}/cwd"))
    return found


def _may_be_closing(facts: Facts, found: Iterable[Reason]) -> bool:
    """Whether somebody of the group may have to do with what was *found*, who does not show that any more."""
    living = [one for one in facts.processes if one.state not in ENDED]
    if any(one.standing.is_ending or one.is_executing for one in living):
        return True
    return any(one.kind in _OTHER_ENDS for one in found) and any(one.is_running for one in living)


def _threads(pid: int, state: str) -> tuple[Thread, ...]:
    """The first thread first."""
    numbers = sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda number: (number != pid, number))
    living = numbers[state in ENDED :]
    return tuple(one for number in numbers if (one := _thread(pid, number, living)) is not None)


def _thread(pid: int, number: int, living: list[int]) -> Thread | None:
    try:
        rights = parse_rights(read_all(f"/proc/{pid}/task/{number}/status"))
    except _GONE:
        return None
    shares = number not in living[1:] or share_files(living[0], number)
    return Thread(number, rights, _namespaces(f"{pid}/task/{number}"), shares)


def _namespaces(of: str) -> dict[str, str]:
    """By kind; empty for who has ended.  A PID namespace for children is not shown before there is one."""
    try:
        folder = os.open(f"/proc/{of}/ns", os.O_RDONLY | os.O_DIRECTORY)
    except _GONE:
        return {}
    found = {}
    try:
        for kind in os.listdir(folder):
            with contextlib.suppress(*_UNLINKED):
                found[kind] = os.readlink(kind, dir_fd=folder)
    finally:
        os.close(folder)
    return found


def _leads(session: int) -> bool:
    """Whether a living process leads it, and is no init of a PID namespace, as each guest has one wherever it goes."""
    try:
        stat = read_all(f"/proc/{session}/stat")
        inside = parse_status(read_all(f"/proc/{session}/status")).namespace_pids
    except OSError:
        return False
    if len(inside) > 1 and inside[-1] == 1:
        return False
    return parse_standing(stat).session == session and parse_stat(stat).state not in ENDED


# ---------------------------------------------------------------- descriptors


def _files(pid: int, mounts: Mapping[int, MountLine]) -> Iterable[OpenFile]:
    folder = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        infos = os.open(f"/proc/{pid}/fdinfo", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in os.listdir(folder):
                try:
                    yield _file(pid, name, folder, infos, mounts)
                except _UNLINKED:  # closed meanwhile
                    continue
        finally:
            os.close(infos)
    finally:
        os.close(folder)


def _file(pid: int, name: str, folder: int, infos: int, mounts: Mapping[int, MountLine]) -> OpenFile:
    target = os.readlink(name, dir_fd=folder)
    if target.startswith(_SOCKET):
        inode = int(target[len(_SOCKET) : -1])
        return OpenFile(int(name), target, protocol=protocol_of(f"/proc/{pid}/fd/{name}"), inode=inode)
    info = parse_fdinfo(_read_info(name, infos))
    line = mounts.get(info.mount_id)
    if line is None or not is_answered_here(line.fstype):
        return OpenFile(int(name), target, info)
    found = os.stat(name, dir_fd=folder)
    return OpenFile(int(name), target, info, found.st_mode, (os.major(found.st_rdev), os.minor(found.st_rdev)))


def _is_held(pid: int, number: int, inode: int) -> bool:
    try:
        return is_other_end_held(pid, number, inode)
    except OSError:  # it was closed meanwhile
        return False


# ---------------------------------------------------------------- sockets


def _unix(inodes: set[int]) -> dict[int, UnixSocket]:
    """And those at their other ends, for their names."""
    if not inodes:
        return {}
    with SocketPeers() as peers:
        found = {inode: one for inode in inodes if (one := peers.find(inode)) is not None}
        others = {one.peer for one in found.values()} - inodes - {0}
        return found | {inode: one for inode in others if (one := peers.find(inode)) is not None}


def _inet(pid: int, protocols: set[str]) -> dict[int, InetSocket]:
    """Of the process's network namespace; only what has a port is there."""
    found: dict[int, InetSocket] = {}
    for table in (table for protocol in protocols for table in _TABLES[protocol]):
        try:
            found |= inet_table(read_all(f"/proc/{pid}/net/{table}").decode("ascii"))
        except OSError:  # no IPv6, or no UDP-Lite here
            continue
    return found


def _read_info(name: str, folder: int) -> bytes:
    """Of a descriptor; the kernel tells it in one read, as long as there is room."""
    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    try:
        found = os.read(descriptor, _READ_BYTES)
        while len(found) % _READ_BYTES == 0 and (part := os.read(descriptor, _READ_BYTES)):
            found += part
        return found
    finally:
        os.close(descriptor)
