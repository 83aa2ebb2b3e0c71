"""The shape of a guest's /proc: openMosix's names, and links into the real procfs for all else.  Pure.

    /proc/  .real/             the procfs of the guest's PID namespace, mounted here; not listed
            sys/               its sys, mounted here too: sysctl(8) looks where a path of it really leads
            hpc                -> /mfs/proc/hpc
            self, thread-self  -> <pid>, <pid>/task/<thread> of who asks
            <pid>/             goto where lock ...  -> /mfs/proc/<the pid that the node knows it by>/goto ...
                               exe cwd root         -> where procfs says that they are
                               all else             -> ../.real/<pid>/...
            all else           -> .real/... , or where procfs itself has a link

A node id says all that there is to know, so nothing is remembered of what the kernel was told.  The target of a link
is cached for ever, by node id: what can lead elsewhere for another process or later has another node id then.

    bits 63..60 the kind   59..44 serial   43..22 a pid   21..0 another pid, or which name

Called by procview.py.
"""

from __future__ import annotations

import stat
from typing import Final, NamedTuple

from omfs.magic import controlfiles

REAL: Final = b".real"
MOUNTED: Final = {REAL: ".", b"sys": "sys"}
"""Directories that something is mounted on, and what: a path in procfs."""
HPC: Final = controlfiles.HPC.encode()
SELF: Final = b"self"
THREAD_SELF: Final = b"thread-self"
OURS: Final = tuple(file.name.encode() for file in controlfiles.OF_PROCESS)
WHEREABOUTS: Final = frozenset({b"exe", b"cwd", b"root"})
"""Links that programs read as often as they follow them."""
TARGETLESS: Final = 0
"""Serial of one that cannot be read now, or not by who asks."""

_KIND_AT, _SERIAL_AT, _PID_AT, _LOW_BITS = 60, 44, 22, 22
_SERIAL_BITS, _PID_BITS, _PID_DIGITS = 16, 22, 7  # PID_MAX_LIMIT of the kernel is 2**22


class Kind:
    """What a node id stands for; plain numbers, as an Enum's would take half the time of a lookup."""

    TOP: Final = 0
    MOUNTED: Final = 1
    PROCESS: Final = 2
    TOP_LINK: Final = 3
    LINK: Final = 4
    OURS: Final = 5
    HPC: Final = 6
    SELF: Final = 7
    THREAD_SELF: Final = 8
    WHEREABOUTS: Final = 9


class Spot(NamedTuple):
    """An object.  *low*: which name, or of THREAD_SELF the thread; *serial*: another one at each look."""

    kind: int
    pid: int = 0
    low: int = 0
    serial: int = 0

    @property
    def node(self) -> int:
        if self.kind == Kind.TOP:
            return 1  # FUSE_ROOT_ID
        serial = self.serial & (1 << _SERIAL_BITS) - 1
        return self.kind << _KIND_AT | serial << _SERIAL_AT | self.pid << _PID_AT | self.low

    @property
    def is_directory(self) -> bool:
        return self.kind <= Kind.PROCESS

    @property
    def mode(self) -> int:
        """st_mode."""
        return stat.S_IFDIR | 0o555 if self.kind <= Kind.PROCESS else stat.S_IFLNK | 0o777


TOP: Final = Spot(Kind.TOP)


def spot_of(node: int) -> Spot:
    if node == TOP.node:
        return TOP
    return Spot(
        node >> _KIND_AT,
        node >> _PID_AT & (1 << _PID_BITS) - 1,
        node & (1 << _LOW_BITS) - 1,
        node >> _SERIAL_AT & (1 << _SERIAL_BITS) - 1,
    )


class Names:
    """Numbers for names.  They are never given up: only names that procfs has get one, and it has few."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, name: bytes) -> int:
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
        return number

    def __getitem__(self, number: int) -> bytes:
        return self._names[number]


def pid_of(name: bytes) -> int:
    """The number that a directory is named by; 0 for all other names, as procfs tells them apart."""
    if len(name) > _PID_DIGITS or not name.isdigit() or name.startswith(b"0"):
        return 0
    pid = int(name)
    return pid if pid < 1 << _PID_BITS else 0


def into_real(spot: Spot, names: Names) -> bytes:
    """Target of a LINK or TOP_LINK."""
    if spot.kind == Kind.TOP_LINK:
        return REAL + b"/" + names[spot.low]
    return real_path(spot.pid, names[spot.low])


def real_path(pid: int, name: bytes) -> bytes:
    """From within /proc/<pid>."""
    return b"../%s/%d/%s" % (REAL, pid, name)


def next_serial(serial: int) -> int:
    """Another one than TARGETLESS, and than the last 65534."""
    return serial % ((1 << _SERIAL_BITS) - 1) + 1


def is_followable(target: bytes) -> bool:
    """Whether the text of a link in procfs leads to what procfs leads to: not where that has lost its name."""
    return target.startswith(b"/") and not target.endswith(b" (deleted)")
