"""Facts of groups of processes, put together from things that move and things that stay (test_eligible.py)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from mignode.facts import Facts, OpenFile, Process, Thread
from mignode.reasons import Kind
from omfs.kernel.mounttable import MountLine
from omfs.kernel.procobjects import Address, DescriptorInfo, InetSocket, Rights, Standing
from omfs.kernel.socketpeers import UnixSocket

OURS = {kind: f"{kind}:[1]" for kind in ("user", "net", "time", "cgroup", "pid", "mnt", "uts", "ipc")}
GUEST = OURS | {kind: f"{kind}:[2]" for kind in ("pid", "mnt", "uts", "ipc")}
GUEST |= {"pid_for_children": GUEST["pid"], "time_for_children": GUEST["time"]}
FIRST, STAYS = 1000, 77
MOUNTS = {
    line.mount_id: line
    for line in (
        MountLine(1, 0, b"254:0", b"/", b"/", b"ext4"),
        MountLine(2, 1, b"0:40", b"/", b"/mfs", b"fuse.omfs"),
        MountLine(3, 1, b"0:41", b"/", b"/proc", b"proc"),
        MountLine(4, 1, b"0:42", b"/", b"/dev", b"tmpfs"),
        MountLine(5, 4, b"0:43", b"/", b"/dev/pts", b"devpts"),
        MountLine(6, 4, b"0:44", b"/", b"/dev/shm", b"tmpfs"),
        MountLine(7, 1, b"0:45", b"/", b"/sys", b"sysfs"),
        MountLine(8, 1, b"0:46", b"/", b"/nfs", b"nfs4"),
        MountLine(9, 4, b"0:47", b"/", b"/dev/mqueue", b"mqueue"),
        MountLine(10, 1, b"0:48", b"/", b"/tmp", b"tmpfs"),
        MountLine(11, 3, b"0:49", b"/", b"/proc", b"fuse.procview"),
        MountLine(12, 11, b"0:41", b"/", b"/proc/.real", b"proc"),
        MountLine(13, 2, b"254:1", b"/", b"/mfs/2", b"ext4"),
        MountLine(14, 13, b"254:0", b"/", b"/mfs/2/disk", b"ext4"),
    )
}
NONE = Rights(0, (5, 5, 5, 5), 0, 0, 0)
LOOPBACK = "127.0.0.1"


@dataclass
class Room:
    """A group that is being put together."""

    pids: list[int]
    files: dict[int, list[OpenFile]] = field(default_factory=dict)
    mapped: dict[int, list[str]] = field(default_factory=dict)
    changes: dict[int, Callable[[Process], Process]] = field(default_factory=dict)
    unix: dict[int, UnixSocket] = field(default_factory=dict)
    inet: dict[int, InetSocket] = field(default_factory=dict)
    relayed: set[str] = field(default_factory=set)
    fed: set[str] = field(default_factory=set)
    made: int = 0

    def number(self) -> int:
        self.made += 1
        return 5000 + self.made

    def open(self, pid: int, target: str, **more: object) -> int:
        """Its number, which is the inode of a socket as well."""
        number = self.number()
        info = more.pop("info", DescriptorInfo(os.O_RDWR))
        if target == "socket":
            target, info, more["inode"] = f"socket:[{number}]", None, number
        made = OpenFile(number, target, info)  # type: ignore[arg-type]
        self.files.setdefault(pid, []).append(made._replace(**more))
        return number

    def path(self, pid: int, target: str, mount: int, mode: int = stat.S_IFREG, **more: object) -> None:
        flags = more.pop("flags", os.O_RDWR)
        self.open(pid, target, info=DescriptorInfo(flags, mount, **more), mode=mode)  # type: ignore[arg-type]

    def device(self, pid: int, major: int, minor: int, kind: int = stat.S_IFCHR, index: int | None = None) -> None:
        info = DescriptorInfo(os.O_RDWR, 4, tty_index=index)
        self.open(pid, f"/dev/{major}.{minor}", info=info, mode=kind, device=(major, minor))

    def facts(self) -> Facts:
        found = []
        for pid in self.pids:
            one = Process(
                pid, "S", Standing(FIRST, (0, 0)), (Thread(pid, NONE, GUEST), Thread(pid + 1, NONE, GUEST)),
                files=tuple(self.files.get(pid, ())), mapped=tuple(self.mapped.get(pid, ())),
            )  # fmt: skip
            found.append(self.changes.get(pid, lambda same: same)(one))
        return Facts(
            tuple(found), OURS, MOUNTS, self.unix, self.inet, frozenset(self.relayed), frozenset(self.fed),
            frozenset({STAYS}),
        )  # fmt: skip


# ---------------------------------------------------------------- things

Thing = Callable[[Room, int, int], None]
"""Put into a room: for the first process given, and where a thing has two ends, the second."""


def nameless(target: str, **info: object) -> Thing:
    def put(room: Room, one: int, other: int) -> None:
        room.open(one, target, info=DescriptorInfo(os.O_RDWR, 99, **info))  # type: ignore[arg-type]

    return put


def of_path(target: str, mount: int, mode: int = stat.S_IFREG, **more: object) -> Thing:
    return lambda room, one, other: room.path(one, target, mount, mode, **more)


def mapping(name: str) -> Thing:
    return lambda room, one, other: room.mapped.setdefault(one, []).append(name)


def device(major: int, minor: int, kind: int = stat.S_IFCHR) -> Thing:
    return lambda room, one, other: room.device(one, major, minor, kind)


def changed(change: Callable[[Process], Process]) -> Thing:
    def put(room: Room, one: int, other: int) -> None:
        before = room.changes.get(one, lambda same: same)
        room.changes[one] = lambda process: change(before(process))

    return put


def rights(thread: int = 0, **more: object) -> Thing:
    def change(process: Process) -> Process:
        threads = list(process.threads)
        threads[thread] = threads[thread]._replace(rights=threads[thread].rights._replace(**more))
        return process._replace(threads=tuple(threads))

    return changed(change)


def namespaces(thread: int, **other: str) -> Thing:
    def change(process: Process) -> Process:
        threads = list(process.threads)
        threads[thread] = threads[thread]._replace(namespaces={**threads[thread].namespaces, **other})
        return process._replace(threads=tuple(threads))

    return changed(change)


def unshared(process: Process) -> Process:
    return process._replace(threads=(process.threads[0], process.threads[1]._replace(shares=False)))


def pipe(ends: int, fed: bool = False, relayed: bool = False) -> Thing:
    def put(room: Room, one: int, other: int) -> None:
        target = f"pipe:[{room.number()}]"
        room.open(one, target, info=DescriptorInfo(os.O_RDONLY))
        if ends == 2:
            room.open(other, target, info=DescriptorInfo(os.O_WRONLY))
        room.fed |= {target} if fed else set()
        room.relayed |= {target} if relayed else set()

    return put


def fifo(*flags: int) -> Thing:
    def put(room: Room, one: int, other: int) -> None:
        name = f"/tmp/fifo{room.number()}"
        for pid, flag in zip((one, other), flags, strict=False):
            room.path(pid, name, 10, stat.S_IFIFO, flags=flag)

    return put


def pty(index_of_master: int) -> Thing:
    def put(room: Room, one: int, other: int) -> None:
        room.device(one, 136, 3)
        room.device(other, 5, 2, index=index_of_master)

    return put


def unix(**what: object) -> Thing:
    def put(room: Room, one: int, other: int) -> None:
        inode = room.open(one, "socket", protocol="UNIX-STREAM")
        room.unix[inode] = UnixSocket(**what)  # type: ignore[arg-type]

    return put


def unix_pair(room: Room, one: int, other: int) -> None:
    a, b = (room.open(pid, "socket", protocol="UNIX") for pid in (one, other))
    room.unix[a], room.unix[b] = UnixSocket(peer=b, is_connected=True), UnixSocket("/here", peer=a, is_connected=True)


def unix_waiting(room: Room, one: int, other: int) -> None:
    a, b = (room.open(pid, "socket", protocol="UNIX") for pid in (one, other))
    room.unix[a], room.unix[b] = UnixSocket(is_connected=True), UnixSocket(listens=True, waiting=(a,))


def unix_service(room: Room, one: int, other: int) -> None:
    inode = room.open(one, "socket", protocol="UNIX")
    room.unix[inode], room.unix[4] = UnixSocket(peer=4, is_connected=True), UnixSocket("/run/bus", peer=inode)


def unknown_unix(room: Room, one: int, other: int) -> None:
    room.open(one, "socket", protocol="UNIX")


def inet(protocol: str, remote: Address | None) -> Thing:
    def put(room: Room, one: int, other: int) -> None:
        inode = room.open(one, "socket", protocol=protocol)
        room.inet[inode] = InetSocket(Address(LOOPBACK, 20000 + room.number()), remote)

    return put


def inet_pair(room: Room, one: int, other: int) -> None:
    a, b = (room.open(pid, "socket", protocol="TCP") for pid in (one, other))
    here, there = Address(LOOPBACK, a), Address(LOOPBACK, b)
    room.inet[a], room.inet[b] = InetSocket(here, there), InetSocket(there, here)


def loose(protocol: str) -> Thing:
    return lambda room, one, other: void(room.open(one, "socket", protocol=protocol))


def void(_: object) -> None:
    return None


def locked(may: bool, limit_bytes: int) -> Thing:
    def change(process: Process) -> Process:
        (first, *more) = process.threads
        held = first.rights._replace(locked_bytes=1 << 20, capabilities=1 << 14 if may else ~(1 << 14))
        return process._replace(threads=(first._replace(rights=held), *more), lockable_bytes=limit_bytes)

    return changed(change)


def standing(**more: object) -> Thing:
    return changed(lambda process: process._replace(standing=process.standing._replace(**more)))


def relayed_terminal(room: Room, one: int, other: int) -> None:
    room.relayed.add("/dev/pts/258")
    standing(terminal=(137, 2))(room, one, other)


MOVES: dict[str, Thing] = {
    "a POSIX lock": of_path("/home/file", 1, locks=("POSIX",)),
    "locks of an open file": of_path("/home/file", 1, locks=("FLOCK", "OFDLCK", "POSIX")),
    "eventfd": nameless("anon_inode:[eventfd]"),
    "epoll": nameless("anon_inode:[eventpoll]"),
    "signalfd": nameless("anon_inode:[signalfd]"),
    "timerfd": nameless("anon_inode:[timerfd]"),
    "memfd": nameless("/memfd:name (deleted)"),
    "inotify of nothing": nameless("anon_inode:inotify"),
    "inotify of the cluster": nameless("anon_inode:inotify", watched=("0:40",)),
    "inotify of the cluster's files that are here": nameless("anon_inode:inotify", watched=("0:40", "254:1")),
    "a pidfd of the group": lambda room, one, other: nameless("anon_inode:[pidfd]", process=other)(room, one, other),
    "a pidfd of a thread": lambda room, one, other: nameless("anon_inode:[pidfd]", process=one + 1)(room, one, other),
    "a pidfd of who has ended": nameless("anon_inode:[pidfd]", process=-1),
    "a file": of_path("/home/file", 1, inode=5),
    "an unlinked file": of_path("/tmp/file (deleted)", 10),
    "a removed file of the cluster": of_path("/mfs/2/file (deleted)", 2, 0),
    "a control file of the node": of_path("/mfs/proc/hpc/admin/block", 2, 0),
    "a directory of the cluster": of_path("/mfs/2/home", 2, stat.S_IFDIR),
    "a file of the cluster": of_path("/mfs/2/file", 2, 0),
    "a file of its /proc": of_path("/proc/.real/1000/maps", 12),
    "a directory of its /proc": of_path("/proc/1000", 11, 0),
    "unlinked POSIX memory": of_path("/dev/shm/name (deleted)", 6),
    **{f"1:{minor}": device(1, minor) for minor in (3, 5, 7, 8, 9)},
    "a pty": pty(3),
    "a pipe": pipe(2),
    "a pipe that nobody else has": pipe(1),
    "a relayed pipe": pipe(1, fed=True, relayed=True),
    "a FIFO": fifo(os.O_RDONLY, os.O_WRONLY),
    "a FIFO both ways": fifo(os.O_RDWR),
    "a unix pair": unix_pair,
    "a unix connection that waits": unix_waiting,
    "a unix socket": unix(),
    "a unix socket at its end": unix(is_connected=True, is_over=True),
    "a named unix socket at its end": unix(name="/x", is_over=True),
    "a connection": inet_pair,
    **{f"a socket without a port, {one}": loose(one) for one in ("TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite")},
    **{
        f"mapped {name}": mapping(name)
        for name in (
            "[heap]", "[stack]", "[vdso]", "[vvar_vclock]", "[anon:x]", "/dev/zero", "/dev/zero (deleted)",
            "/usr/bin/x",
            "/memfd:x (deleted)", "/SYSV00000000 (deleted)", "/mfs/2/x", "/dev/shm/x (deleted)", "/tmp/\udc80",
        )
    },
    "locked memory of who may": locked(may=True, limit_bytes=0),
    "locked memory within the limit": locked(may=False, limit_bytes=1 << 20),
    "a session whose leader is gone": standing(session=78),
    "a relayed terminal": relayed_terminal,
    "a stopped one": changed(lambda process: process._replace(state="T")),
    "a thread that has ended": changed(
        lambda process: process._replace(threads=(process.threads[0], Thread(process.pid + 1, NONE, {})))
    ),
    "a directory of the cluster to work in": changed(lambda process: process._replace(directory="/mfs/2")),
}  # fmt: skip
STAYS_BEHIND: dict[str, tuple[Thing, Kind]] = {
    **{
        f"{kind} of the kernel": (nameless(f"anon_inode:{kind}"), Kind.KERNEL_OBJECT)
        for kind in ("[io_uring]", "[perf_event]", "[fanotify]", "[userfaultfd]", "bpf-map", "bpf-prog", "[new]", "")
    },
    "secret memory": (nameless("/secretmem (deleted)"), Kind.KERNEL_OBJECT),
    "inotify of both": (nameless("anon_inode:inotify", watched=("0:40", "254:0")), Kind.WATCH),
    "inotify of its terminals": (nameless("anon_inode:inotify", watched=("0:43",)), Kind.WATCH),
    "inotify of a file system that is gone": (nameless("anon_inode:inotify", watched=("0:99",)), Kind.WATCH),
    "a pidfd of outside": (nameless("anon_inode:[pidfd]", process=STAYS), Kind.PIDFD),
    "a pidfd of who is not shown": (nameless("anon_inode:[pidfd]", process=0), Kind.PIDFD),
    "a namespace": (nameless("mnt:[4026531841]"), Kind.NAMESPACE),
    "a file of no mount": (nameless("/file"), Kind.PLACE),
    "a POSIX lock without a file": (of_path("/home/file (deleted)", 1, locks=("POSIX",)), Kind.LOCK),
    "a flock without a file": (of_path("/home/file (deleted)", 1, locks=("FLOCK",)), Kind.LOCK),
    "a flock of a directory": (of_path("/home", 1, stat.S_IFDIR, locks=("FLOCK",)), Kind.LOCK),
    "a lease": (of_path("/home/file", 1, locks=("FLOCK", "LEASE")), Kind.LEASE),
    "a file of /sys": (of_path("/sys/file", 7), Kind.PLACE),
    "a file of a server": (of_path("/nfs/file", 8, 0), Kind.PLACE),
    "a file of /dev": (of_path("/dev/file", 4), Kind.PLACE),
    "POSIX memory": (of_path("/dev/shm/name", 6), Kind.PLACE),
    "a file with a name as if it were gone": (of_path("/sys/x (deleted)", 7), Kind.PLACE),
    "a removed directory": (of_path("/home/gone (deleted)", 1, stat.S_IFDIR), Kind.REMOVED),
    "a removed directory of the cluster": (
        of_path("/mfs/2/gone (deleted)", 2, 0, flags=os.O_DIRECTORY), Kind.REMOVED,
    ),
    "a control file": (of_path("/mfs/proc/77/goto", 2, 0), Kind.CONTROL_FILE),
    "a message queue": (of_path("/dev/mqueue/x", 9), Kind.PLACE),
    "a disk": (device(1, 3, stat.S_IFBLK), Kind.DEVICE),
    "/dev/mem": (device(1, 1), Kind.DEVICE),
    "/dev/kvm": (device(10, 232), Kind.DEVICE),
    "a console": (device(5, 1), Kind.TERMINAL),
    "a virtual terminal": (device(4, 1), Kind.TERMINAL),
    "a pty of others": (device(136, 200), Kind.TERMINAL),
    "a pipe": (pipe(1, fed=True), Kind.PIPE),
    "one end of a FIFO": (fifo(os.O_RDONLY), Kind.FIFO),
    "the same end twice": (fifo(os.O_WRONLY, os.O_WRONLY), Kind.FIFO),
    "a netlink socket": (loose("NETLINK"), Kind.SOCKET),
    "a raw socket": (loose("RAW"), Kind.SOCKET),
    "a unix socket that is not shown": (unknown_unix, Kind.UNIX_SOCKET),
    "a unix socket to outside": (unix(peer=4), Kind.UNIX_SOCKET),
    "a unix socket that nobody has accepted": (unix(is_connected=True), Kind.UNIX_SOCKET),
    "a service": (unix_service, Kind.UNIX_SOCKET),
    "a unix socket with a name": (unix(name="@x"), Kind.PORT),
    "a unix socket that listens": (unix(name="/x", listens=True), Kind.PORT),
    "a TCP port": (inet("TCPv6", None), Kind.PORT),
    "a UDP port": (inet("UDP", None), Kind.PORT),
    "a connection": (inet("TCP", Address("::1", 80)), Kind.CONNECTION),
    **{
        f"mapped {name}": (mapping(name), Kind.MAPPING)
        for name in (
            "anon_inode:[io_uring]", "anon_inode:[perf_event]", "/anon_hugepage (deleted)", "/secretmem (deleted)",
            "/[aio] (deleted)", "[uprobes]", "socket:[4]", "anon_inode:[new]",
        )
    },
    **{f"mapped {name}": (mapping(name), Kind.PLACE) for name in ("/sys/x", "/nfs/lib.so", "/dev/shm/x", "/dev/fb0")},
    "locked memory": (locked(may=False, limit_bytes=(1 << 20) - 1), Kind.LOCKED_MEMORY),
    "a debugger": (rights(tracer=9), Kind.TRACED),
    "a debugger of a thread": (rights(1, tracer=9), Kind.TRACED),
    "a setuid program": (rights(uids=(5, 0, 0, 0)), Kind.RIGHTS),
    "a saved uid": (rights(uids=(5, 5, 0, 5)), Kind.RIGHTS),
    "a filter": (rights(1, filters=1), Kind.FILTER),
    "threads apart": (changed(unshared), Kind.THREADS),
    **{
        f"another {kind} of a thread": (namespaces(1, **{kind: "x:[3]"}), Kind.NAMESPACE)
        for kind in ("user", "net", "time", "cgroup", "uts", "ipc", "pid_for_children", "time_for_children")
    },
    "another net": (namespaces(0, net="net:[3]"), Kind.NAMESPACE),
    "a session of others": (standing(session=STAYS), Kind.SESSION),
    "a session of another PID namespace": (standing(session=0), Kind.SESSION),
    "a controlling terminal of others": (standing(terminal=(136, 200)), Kind.TERMINAL),
    "a controlling console": (standing(terminal=(5, 1)), Kind.TERMINAL),
    "a directory": (changed(lambda process: process._replace(directory="/sys/kernel")), Kind.PLACE),
}  # fmt: skip
