"""What a process holds, as /proc shows it: descriptors, mappings, sockets and limits as text in, values out (proc(5)).

Pure: nothing is opened here.  procfs.py has what a process *is*.  Names are what the kernel shows of them: a file's may
contain anything but NUL and are as they were when they were opened, with " (deleted)" behind those that are gone.
Whatever does not look as the kernel writes it is a ValueError.  Called by mignode/cantmove.py.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

# fs/proc/fd.c: these always (ino since Linux 5.14), the rest as the kind of file has it.
_DESCRIPTOR: Final = re.compile(rb"pos:\t(-?\d+)\nflags:\t([0-7]+)\nmnt_id:\t(-?\d+)\n(?:ino:\t(\d+)\n)?")
_TTY: Final = re.compile(rb"^tty-index:\t(\d+)$", re.MULTILINE)
_PROCESS: Final = re.compile(rb"^Pid:\t(-?\d+)$", re.MULTILINE)
_LOCKED: Final = re.compile(rb"^lock:\t\d+: (\w+)", re.MULTILINE)
_RANGE_LOCK: Final = re.compile(
    rb"^(?:lock:\t)?\d+: +(->)? *(?:POSIX|OFDLCK) +\S+ +(READ|WRITE) +(-?\d+) (\S+) (\d+) (\d+|EOF)$", re.MULTILINE
)
_FLOCK: Final = re.compile(rb"^(?:lock:\t)?\d+: +FLOCK +\S+ +\w+ +(-?\d+) (\S+) ", re.MULTILINE)
_LOCK_END: Final = (1 << 63) - 1
_WATCHED: Final = re.compile(rb"^inotify wd:\S+ ino:\S+ sdev:([0-9a-f]+) ", re.MULTILINE)
_MAPPED: Final = re.compile(
    r"^[0-9a-f]+-[0-9a-f]+ [r-][w-][x-][ps] [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ \d+ *([^\n]*)$", re.ASCII
)
_UNLIMITED: Final = 1 << 64
_EXITING: Final = 0x00000004  # PF_EXITING, include/linux/sched.h
_KTHREAD: Final = 0x00200000  # PF_KTHREAD
_MAPPED_V4: Final = bytes(10) + b"\xff\xff"
_PORT_DIGITS: Final = 4
_ADDRESS_DIGITS: Final = (8, 32)
_DEVICE_MINOR_BITS: Final = 20  # of a dev_t inside the kernel, which fdinfo shows


class DescriptorInfo(NamedTuple):
    """Of /proc/<pid>/fdinfo/<number>.

    *flags*: of open(2).  *mount_id*: as in mountinfo.  *locks*: FLOCK, POSIX, OFDLCK,
    LEASE, DELEG.  *watched*: the devices ("major:minor", as in mountinfo) of what an inotify descriptor watches.
    *tty_index*: of a pty's master.  *process*: of a pidfd, -1 where it has ended, 0 where it is not shown here.
    *inode*: its number; 0 where this kernel does not say it.  *position*: where it reads and writes next.
    """

    flags: int
    mount_id: int = -1
    locks: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    tty_index: int | None = None
    process: int | None = None
    inode: int = 0
    position: int = 0

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)


def parse_fdinfo(text: bytes) -> DescriptorInfo:
    """/proc/<pid>/fdinfo/<number>."""
    begin = _DESCRIPTOR.match(text)
    if begin is None:
        raise ValueError(f"not of /proc/<pid>/fdinfo: {text!r}")
    more = text[begin.end() :]
    if not more:  # as of most
        return DescriptorInfo(int(begin[2], 8), int(begin[3]), inode=int(begin[4] or 0), position=int(begin[1]))
    return DescriptorInfo(
        int(begin[2], 8),
        int(begin[3]),
        tuple(kind.decode("ascii") for kind in _LOCKED.findall(more)),
        tuple(_shown_device(int(device, 16)) for device in _WATCHED.findall(more)),
        int(match[1]) if (match := _TTY.search(more)) else None,
        int(match[1]) if (match := _PROCESS.search(more)) else None,
        int(begin[4] or 0),
        int(begin[1]),
    )


class ShownLock(NamedTuple):
    """A POSIX or OFD lock of [start, end], both inclusive (2**63-1: to the end).

    *is_waiting*: it is only wanted.  *kind*: F_RDLCK 0, F_WRLCK 1.  *pid*: -1 of an OFD lock.  *file*: as the kernel
    names it, "major:minor:inode", which not every file system's stat(2) does.
    """

    is_waiting: bool
    kind: int
    pid: int
    file: bytes
    start: int
    end: int


def shown_locks(text: bytes) -> Iterator[ShownLock]:
    """/proc/locks, or the locks in /proc/<pid>/fdinfo/<number>: those that its process, or its open file, has."""
    for waits, kind, pid, file, start, end in _RANGE_LOCK.findall(text):
        last = _LOCK_END if end == b"EOF" else int(end)
        yield ShownLock(bool(waits), int(kind == b"WRITE"), int(pid), file, int(start), last)


def shown_flocks(text: bytes) -> list[tuple[int, bytes]]:
    """The same of locks by flock(2): who has taken it, who may have passed it on, and the file, as ShownLock has it."""
    return [(int(pid), file) for pid, file in _FLOCK.findall(text)]


def _shown_device(number: int) -> str:
    return f"{number >> _DEVICE_MINOR_BITS}:{number & (1 << _DEVICE_MINOR_BITS) - 1}"


def mapped_names(text: str) -> list[str]:
    """/proc/<pid>/maps: what is mapped, each name once: files, and what the kernel names like [heap].

    Newlines in file names are shown as \\012.
    """
    found: dict[str, None] = {}
    for line in text.split("\n"):
        if line:
            match = _MAPPED.match(line)
            if match is None:
                raise ValueError(f"not a line of /proc/<pid>/maps: {line!r}")
            found[match[1]] = None
    found.pop("", None)
    return list(found)


# ---------------------------------------------------------------- rights and limits


class Rights(NamedTuple):
    """Of a thread, from its `status`.

    *tracer*: the pid of who traces it, or 0.  *uids*: real, effective, saved, of file accesses.  *capabilities*: the
    effective ones as bits.  *locked_bytes*: of memory.  *filters*: of seccomp, its strict mode counts as one.
    """

    tracer: int
    uids: tuple[int, ...]
    capabilities: int
    locked_bytes: int
    filters: int


def parse_rights(text: bytes) -> Rights:
    """/proc/<pid>/status."""
    lines = dict(line.split(b":\t", 1) for line in text.split(b"\n") if b":\t" in line)
    try:
        return Rights(
            int(lines[b"TracerPid"]),
            tuple(map(int, lines[b"Uid"].split())),
            int(lines[b"CapEff"], 16),
            int(lines.get(b"VmLck", b"0 kB").split()[0]) * 1024,
            max(int(lines.get(b"Seccomp_filters", b"0")), int(lines.get(b"Seccomp", b"0")) > 0),  # Linux 5.9 counts
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"/proc/<pid>/status without its {error}") from None


class Standing(NamedTuple):
    """*session*: its leader's pid.  *terminal*: the device of the controlling one, (0, 0) for none.

    *is_ending*: it has made its last call; what it held is being closed, or has been.
    """

    session: int
    terminal: tuple[int, int]
    is_kernel_thread: bool = False
    is_ending: bool = False


def parse_standing(text: bytes) -> Standing:
    """/proc/<pid>/stat."""
    fields = text[text.rfind(b") ") + 2 :].split(None, 7)  # state, ppid, pgrp, session, tty_nr, tpgid, flags
    if len(fields) < 7:
        raise ValueError(f"not a line of /proc/<pid>/stat: {text!r}")
    terminal, flags = int(fields[4]), int(fields[6])
    return Standing(
        int(fields[3]), (os.major(terminal), os.minor(terminal)) if terminal > 0 else (0, 0),
        bool(flags & _KTHREAD), bool(flags & _EXITING),
    )  # fmt: skip


def lockable_bytes(text: bytes) -> int:
    """/proc/<pid>/limits: how much memory it may lock."""
    for line in text.split(b"\n"):
        if line.startswith(b"Max locked memory"):
            soft = line.split()[3]
            return _UNLIMITED if soft == b"unlimited" else int(soft)
    raise ValueError(f"/proc/<pid>/limits without locked memory: {text!r}")


# ---------------------------------------------------------------- sockets


class Address(NamedTuple):
    """*host* as people write it; an IPv4 address in an IPv6 socket is an IPv4 address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class InetSocket(NamedTuple):
    """A socket that has a port.  *remote*: None where it is not connected."""

    local: Address
    remote: Address | None


def inet_table(text: str) -> dict[int, InetSocket]:
    """/proc/<pid>/net/tcp, tcp6, udp, udp6, udplite, udplite6: by inode; what no process holds any more is left out."""
    found = {}
    for line in text.split("\n")[1:]:
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 10:
            raise ValueError(f"not a line of /proc/net/tcp: {line!r}")
        remote = _address(fields[2])
        if inode := int(fields[9]):
            found[inode] = InetSocket(_address(fields[1]), remote if remote.port else None)
    return found


def _address(field: str) -> Address:
    """The address in words of 32 bits as the machine has them in memory, the port as a number (net/ipv4/tcp_ipv4.c)."""
    host, _, port = field.partition(":")
    if len(host) not in _ADDRESS_DIGITS or len(port) != _PORT_DIGITS:
        raise ValueError(f"not an address of /proc/net: {field!r}")
    packed = b"".join(struct.pack("=I", int(host[at : at + 8], 16)) for at in range(0, len(host), 8))
    packed = packed.removeprefix(_MAPPED_V4)
    return Address(socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), int(port, 16))
