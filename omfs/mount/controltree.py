"""The shape of /mfs/proc: what its FUSE node ids stand for, and which names a directory has.

    proc/  hpc/  admin/ decay/ nodes/<node>/ remote/<pid>/ info
           <pid>/  self -> <pid>

A node id says all that there is to know of an object, so nothing is remembered of what the kernel was told and nothing
needs to be forgotten: what it is (an index into the tables here), the number that a directory above it is named by, and
for processes when that one began.  A process that got the number of another one later is another object.

    bit 63: set   62..30: start time, in clock ticks since boot   29..8: pid or node   7..0: what it is

Pure.  Called by virtual.py; the files themselves are in omfs/magic/controlfiles.py.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from omfs.magic import controlfiles
from omfs.magic.controlfiles import HPC as HPC_SCOPE, PROCESS as PROCESS_SCOPE, ControlFile

VIRTUAL_FROM: Final = 1 << 63  # the ids of remote objects have 63 bits (inodes.py)
_TICK_BITS, _TICK_AT, _NUMBER_BITS, _NUMBER_AT = 33, 30, 22, 8
PID_MAX: Final = (1 << _NUMBER_BITS) - 1  # PID_MAX_LIMIT of the kernel is 2**22

TOP, SELF, PROCESS, HPC, ADMIN, DECAY, NODES, GUESTS, NODE, GUEST = range(10)
_FIRST_FILE: Final = 16
_IN: Final = {
    PROCESS: controlfiles.OF_PROCESS,
    ADMIN: controlfiles.OF_ADMIN,
    DECAY: controlfiles.OF_DECAY,
    NODE: controlfiles.OF_NODE,
    GUEST: controlfiles.OF_GUEST,
    HPC: (controlfiles.INFO,),
}
_FILES: Final = tuple((directory, file) for directory, files in _IN.items() for file in files)
_BELOW_HPC: Final = {ADMIN: "admin/", DECAY: "decay/", NODE: "nodes/{}/", GUEST: controlfiles.GUESTS + "/{}/", HPC: ""}
_FOLDERS: Final = {
    TOP: {b"hpc": HPC, b"self": SELF},
    HPC: {b"admin": ADMIN, b"decay": DECAY, b"nodes": NODES, controlfiles.GUESTS.encode(): GUESTS},
}
NUMBERED: Final = {TOP: PROCESS, NODES: NODE, GUESTS: GUEST}
"""Directories that have one for each process, node or guest."""
UNCHANGING: Final = frozenset({TOP, HPC, ADMIN, DECAY, NODES, GUESTS})
"""Directories whose name and attributes are always the same."""
LISTED_ALIKE: Final = frozenset({HPC, ADMIN, DECAY, NODE})
"""Directories whose listing is always the same."""
_POSITION_OF_NUMBERS: Final = 256  # in a listing: behind all names


class Spot(NamedTuple):
    """An object of the tree.  *number*: pid or node, or 0; *ticks*: a process's, as `ticks_of` has it."""

    kind: int
    number: int = 0
    ticks: int = 0

    @property
    def node_id(self) -> int:
        return VIRTUAL_FROM | self.ticks << _TICK_AT | self.number << _NUMBER_AT | self.kind

    @property
    def inode(self) -> int:
        """st_ino and d_ino: a listing looks at no process."""
        return Spot(self.kind, 0 if self.kind == SELF else self.number).node_id

    @property
    def file(self) -> ControlFile | None:
        return _FILES[self.kind - _FIRST_FILE][1] if self.kind >= _FIRST_FILE else None

    @property
    def of_process(self) -> bool:
        """It ends with a process of this node."""
        return self.kind == PROCESS or (self.kind >= _FIRST_FILE and _FILES[self.kind - _FIRST_FILE][0] == PROCESS)

    @property
    def mode(self) -> int:
        """st_mode."""
        if self.file is not None:
            return stat.S_IFREG | self.file.mode
        return stat.S_IFLNK | 0o777 if self.kind == SELF else stat.S_IFDIR | 0o555


def spot_of(node_id: int) -> Spot:
    number, ticks = node_id >> _NUMBER_AT & PID_MAX, node_id >> _TICK_AT & (1 << _TICK_BITS) - 1
    return Spot(node_id & 0xFF, number, ticks)


def ticks_of(start_ticks: int) -> int:
    """As much of a start time as a node id holds: it is the same again after 2.7 years."""
    return start_ticks & (1 << _TICK_BITS) - 1


def address_of(spot: Spot) -> tuple[str, str]:
    """Scope and path of a control file, as mignode knows them."""
    directory, file = _FILES[spot.kind - _FIRST_FILE]
    if directory == PROCESS:
        return PROCESS_SCOPE, file.name
    return HPC_SCOPE, _BELOW_HPC[directory].format(spot.number) + file.name


def _named(directory: int, with_aliases: bool) -> dict[bytes, int]:
    names = dict(_FOLDERS.get(directory, {}))
    for index, (place, file) in enumerate(_FILES, _FIRST_FILE):
        if place == directory:
            spellings = list(controlfiles.spellings(file))
            names |= {spelling.encode(): index for spelling in spellings[: len(spellings) if with_aliases else 1]}
    return names


_DIRECTORIES: Final = (TOP, PROCESS, HPC, ADMIN, DECAY, NODES, GUESTS, NODE, GUEST)
_NAMES: Final = {directory: _named(directory, True) for directory in _DIRECTORIES}
_LISTED: Final = {directory: tuple(_named(directory, False).items()) for directory in _DIRECTORIES}


def named(directory: Spot, name: bytes) -> Spot | None:
    """What is always there under this name; None for what has a number."""
    kind = _NAMES[directory.kind].get(name)
    return None if kind is None else directory._replace(kind=kind)


def number_of(name: bytes) -> int:
    """The number that a directory is named by, 0 for no number."""
    try:
        return controlfiles.canonical_number(name.decode(), PID_MAX)
    except (KeyError, UnicodeDecodeError):
        return 0


class Name(NamedTuple):
    """One entry of a listing; a READDIR continues behind *position*, whatever came and went meanwhile."""

    position: int
    name: bytes
    inode: int
    mode: int


def listing(directory: Spot, numbers: Iterable[int], above: int) -> list[Name]:
    """The entries behind position *above*, in order; *numbers*: what has one there."""
    names = [(b".", directory), (b"..", Spot(TOP))]  # the kernel looks only at the type of these
    names += [(name, directory._replace(kind=kind)) for name, kind in _LISTED[directory.kind]]
    found = [Name(position, name, spot.inode, spot.mode) for position, (name, spot) in enumerate(names, 1)][above:]
    if directory.kind in NUMBERED:
        for number in sorted(number for number in numbers if _POSITION_OF_NUMBERS + number > above):
            spot = Spot(NUMBERED[directory.kind], number)
            found.append(Name(_POSITION_OF_NUMBERS + number, b"%d" % number, spot.inode, spot.mode))
    return found
