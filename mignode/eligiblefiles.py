"""Which descriptors keep a group of processes where it is.  Pure; the rules of eligible.py for what is open.

A pipe or socket moves if both of its ends do.  One end alone moves if nobody holds the other any more, or if our deputy
does and takes it along.  What others could find by its name or number (a listening socket, a FIFO) does not: on the
other node nobody would.  A file moves if other nodes see it under the same name.  Called by eligible.py.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Set as AbstractSet
from typing import Final, NamedTuple

from mignode.facts import Facts, OpenFile, Process
from mignode.reasons import Kind, Reason, named, where
from omfs.kernel.mounttable import OMFS_TYPE, PROCVIEW_TYPE, MountLine, is_real_tree
from omfs.kernel.procobjects import Address, DescriptorInfo, Standing

DELETED: Final = " (deleted)"
TTY: Final = (5, 0)
OWN_TERMINAL: Final = "/dev/tty"  # as which it opens its controlling one
_PTS: Final = "/dev/pts/"
_PTMX: Final = (5, 2)
_PTY_MAJORS: Final = range(136, 144)  # Documentation/admin-guide/devices.txt
_MINORS: Final = 256
_HARMLESS: Final = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), TTY}  # null zero full random urandom
_FILE_LOCKS: Final = frozenset({"FLOCK", "POSIX", "OFDLCK"})
_MOVES: Final = frozenset({"[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]"})  # the dump knows them
_ANON: Final = "anon_inode:"
_KERNEL_OBJECTS: Final = {
    "[io_uring]": "uses io_uring", "[perf_event]": "counts performance events",
    "[fanotify]": "watches files by fanotify", "[userfaultfd]": "handles page faults itself (userfaultfd)",
    "bpf-map": "holds a BPF map", "bpf-prog": "holds a BPF program",
}  # fmt: skip
_NAMESPACE: Final = re.compile(r"([a-z_]+):\[\d+\]")
_CONTROL_FILE: Final = re.compile(rb"/proc/[0-9]+/")
_PRIVATE: Final = (b"/dev", b"/proc", b"/sys")  # each node and each guest has its own
_OWN_PROC: Final = frozenset({b"proc", PROCVIEW_TYPE})
PORTS: Final = {
    "TCP": "TCP",
    "TCPv6": "TCP",
    "UDP": "UDP",
    "UDPv6": "UDP",
    "UDP-Lite": "UDP-Lite",
    "UDPLITEv6": "UDP-Lite",
}


class Group(NamedTuple):
    """What is in the group, to tell what is outside."""

    numbers: frozenset[int]  # of processes and threads
    sockets: frozenset[int]  # inodes
    waiting: frozenset[int]  # inodes of sockets that wait for an accept in the group
    connections: frozenset[tuple[Address, Address | None]]
    read_ends: frozenset[str]  # targets of pipes and FIFOs
    write_ends: frozenset[str]
    masters: frozenset[int]  # numbers of the ptys whose masters are here
    watchable_devices: frozenset[str]  # "major:minor"

    @classmethod
    def of(cls, facts: Facts) -> Group:
        files = [one for process in facts.processes for one in process.files]
        sockets = frozenset(one.inode for one in files if one.protocol)
        infos = [(one.target, one.info) for one in files if one.info is not None]
        return cls(
            frozenset(thread.number for process in facts.processes for thread in process.threads),
            sockets,
            frozenset(inode for one in sockets if one in facts.unix for inode in facts.unix[one].waiting),
            frozenset((facts.inet[one].local, facts.inet[one].remote) for one in sockets if one in facts.inet),
            frozenset(target for target, info in infos if info.reads),
            frozenset(target for target, info in infos if info.writes),
            frozenset(info.tty_index for _, info in infos if info.tty_index is not None),
            _watchable_devices(facts.mounts.values()),
        )

    def one_ended(self) -> frozenset[str]:
        """Pipes of which only one end is here."""
        return frozenset(one for one in self.read_ends ^ self.write_ends if one.startswith("pipe:"))


def _watchable_devices(mounts: Collection[MountLine]) -> frozenset[str]:
    """Of files that every node has under the path by which CRIU finds a watched one: the mount's, and its bind's.

    Nothing tells by which mount of a device a file was found.  So what is mounted outside the mount as well does not
    count: that is all that the node shows where the guest is at home, and /run elsewhere.
    """
    tops = {line.mountpoint for line in mounts if line.fstype == OMFS_TYPE}
    below = {line for line in mounts if any(line.mountpoint.startswith(top + b"/") for top in tops)}
    elsewhere = {line.device for line in mounts if line not in below and line.fstype != OMFS_TYPE}
    return frozenset(line.device.decode("ascii") for line in mounts if line.device not in elsewhere)


def of_files(facts: Facts, group: Group, process: Process, number: int) -> Iterator[Reason]:
    """*number*: the pid for who reads it, 0 for the first process."""
    for one in process.files:
        if one.target not in facts.relayed:
            at = where(number, one.number)
            yield from (found._replace(about=one.target) for found in _of_one(facts, group, one, at))
        if one.device == TTY and one.is_device and is_another_terminal(facts.relayed, process.standing):
            yield Reason(Kind.OWN_TERMINAL, f"has {named(one.target)} open{where(number, one.number)}", one.target)


def _of_one(facts: Facts, group: Group, file: OpenFile, at: str) -> Iterator[Reason]:
    if file.info is None:
        yield from _of_socket(facts, group, file, at)
    elif file.target.startswith("pipe:["):
        if file.target in facts.fed_from_outside:
            yield Reason(Kind.PIPE, f"{Kind.PIPE.value}{at}")
    else:
        if "LEASE" in file.info.locks:
            yield Reason(Kind.LEASE, f"holds a lease on the file {named(file.target)}{at}")
        elif _FILE_LOCKS.intersection(file.info.locks) and not _can_follow(facts, file, file.info):
            yield Reason(Kind.LOCK, f"holds a lock on the file {named(file.target)}{at}")
        line = facts.mounts.get(file.info.mount_id)
        if line is not None:
            yield from _of_path(group, file, line, at)
        else:
            yield from _of_nameless(group, file, at)


def _can_follow(facts: Facts, file: OpenFile, info: DescriptorInfo) -> bool:
    """Whether its locks are such as the copy can take over (guestlocks.py): other nodes know those of files alone."""
    line = facts.mounts.get(info.mount_id)
    is_file = not file.is_directory and not file.is_device and not stat.S_ISFIFO(file.mode)
    return is_file and line is not None and is_everywhere(line) and not file.target.endswith(DELETED)


# ---------------------------------------------------------------- what has a path


def is_everywhere(line: MountLine) -> bool:
    """Whether other nodes see the files of this mount, in a guest under the same path."""
    below = any(line.mountpoint == top or line.mountpoint.startswith(top + b"/") for top in _PRIVATE)
    return (line.fstype == OMFS_TYPE or is_real_tree(line.fstype)) and not below


def is_out_of_place(line: MountLine, path: str) -> bool:
    """Whether the file is on this machine only.  Each guest has its /proc; what has no name any more is copied."""
    return not (is_everywhere(line) or line.fstype in _OWN_PROC or (path.endswith(DELETED) and line.fstype == b"tmpfs"))


def _of_path(group: Group, file: OpenFile, line: MountLine, at: str) -> Iterator[Reason]:
    if file.is_device:
        if stat.S_ISCHR(file.mode) and _is_tty(file.device):
            if not is_terminal_here(group, file.device):
                yield Reason(Kind.TERMINAL, f"has the terminal {named(file.target)} of others open{at}")
        elif stat.S_ISBLK(file.mode) or file.device not in _HARMLESS | {_PTMX}:
            yield Reason(Kind.DEVICE, f"has the device {named(file.target)} open{at}")
    elif stat.S_ISFIFO(file.mode):
        if not (file.target in group.read_ends and file.target in group.write_ends):
            yield Reason(Kind.FIFO, f"holds only one end of the FIFO {named(file.target)}{at}")
    elif line.fstype == b"mqueue":
        yield Reason(Kind.PLACE, f"has the message queue {named(file.target)} open{at}")
    elif is_out_of_place(line, file.target):
        yield Reason(Kind.PLACE, f"has {named(file.target)} open that only this machine has{at}")
    elif file.is_directory and is_removed(file.target):
        name = file.target.removesuffix(DELETED)
        yield Reason(Kind.REMOVED, f"has the directory {named(name)} open that was removed{at}")
    elif line.fstype == OMFS_TYPE and _is_control_file(line, file.target):
        yield Reason(Kind.CONTROL_FILE, f"has the control file {named(file.target)} open{at}")


def is_removed(path: str) -> bool:
    """A directory.  Through /mfs nobody can look at it any more, so neither could CRIU; nor, away, the program."""
    return path.endswith(DELETED)


def _is_control_file(line: MountLine, path: str) -> bool:
    """Of one process, which has another number on the next node."""
    below = os.fsencode(path).removeprefix(line.mountpoint)
    return _CONTROL_FILE.match(below) is not None


def terminal_of(standing: Standing) -> str:
    """The controlling one's name; "" where it has none."""
    major, minor = standing.terminal
    if major in _PTY_MAJORS:
        return f"{_PTS}{(major - _PTY_MAJORS[0]) * _MINORS + minor}"
    return f"{major}:{minor}" if major else ""


def is_another_terminal(relayed: AbstractSet[str], standing: Standing) -> bool:
    """Whether /dev/tty may be another terminal for it than that of the guest, which goes along.

    In a guest that has none CRIU sees to it, but it can't have both.
    """
    has_one = any(one.startswith(_PTS) for one in relayed)
    return has_one and terminal_of(standing) not in relayed


def _is_tty(device: tuple[int, int]) -> bool:
    return device[0] in (4, *_PTY_MAJORS) or device == (5, 1)


def is_terminal_here(group: Group, device: tuple[int, int]) -> bool:
    """A pty whose master is in the group."""
    major, minor = device
    return major in _PTY_MAJORS and (major - _PTY_MAJORS[0]) * _MINORS + minor in group.masters


# ---------------------------------------------------------------- what has none


def _of_nameless(group: Group, file: OpenFile, at: str) -> Iterator[Reason]:
    assert file.info is not None
    target = file.target
    kind = target.removeprefix(_ANON)
    if file.info.process is not None:
        if file.info.process not in (-1, *group.numbers):
            yield Reason(Kind.PIDFD, f"{Kind.PIDFD.value}{at}")
    elif kind == "inotify":
        if not group.watchable_devices.issuperset(file.info.watched):
            yield Reason(Kind.WATCH, f"watches files of this node by inotify{at}")
    elif target.startswith(_ANON):
        if kind not in _MOVES:
            yield Reason(
                Kind.KERNEL_OBJECT, f"{_KERNEL_OBJECTS.get(kind, f'holds the kernel object {named(kind)}')}{at}"
            )
    elif match := _NAMESPACE.fullmatch(target):
        yield Reason(Kind.NAMESPACE, f"holds a {match[1]} namespace open{at}")
    elif target.startswith("/secretmem"):
        yield Reason(Kind.KERNEL_OBJECT, f"has memory that nobody may read (memfd_secret){at}")
    elif not target.startswith("/memfd:"):
        yield Reason(Kind.PLACE, f"has {named(target)} open that is outside its tree of files{at}")


# ---------------------------------------------------------------- sockets


def _of_socket(facts: Facts, group: Group, file: OpenFile, at: str) -> Iterator[Reason]:
    if file.protocol.startswith("UNIX"):
        yield from _of_unix(facts, group, file, at)
    elif file.protocol not in PORTS:
        yield Reason(Kind.SOCKET, f"holds a socket of the kind {named(file.protocol)}{at}")
    elif (found := facts.inet.get(file.inode)) is not None:  # otherwise it has no port yet
        protocol = PORTS[file.protocol]
        if found.remote is None:
            yield Reason(Kind.PORT, f"listens at the {protocol} port {found.local}{at}")
        elif (found.remote, found.local) not in group.connections:
            yield Reason(Kind.CONNECTION, f"holds a {protocol} connection with {found.remote}{at}")


def _of_unix(facts: Facts, group: Group, file: OpenFile, at: str) -> Iterator[Reason]:
    found = facts.unix.get(file.inode)
    if found is None:
        yield Reason(Kind.UNIX_SOCKET, f"holds a unix socket of another network namespace{at}")
    elif found.peer in group.sockets or file.inode in group.waiting:
        return
    elif found.peer or (found.is_connected and not found.is_over):
        other = facts.unix.get(found.peer)
        name = found.name or (other.name if other is not None else "")
        to = f": {named(name)}" if name else ""
        yield Reason(Kind.UNIX_SOCKET, f"{Kind.UNIX_SOCKET.value}{at}{to}")
    elif found.name and not found.is_over:
        yield Reason(Kind.PORT, f"can be reached at the unix socket {named(found.name)}{at}")
