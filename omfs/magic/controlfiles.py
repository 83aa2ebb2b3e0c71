"""The control files of /mfs/proc as data: which there are, who may read and write them, and how a value is spelled.

    /mfs/proc/hpc/admin/, decay/, nodes/<node>/, remote/<pid>/, info      scope "hpc": a path below hpc
    /mfs/proc/<pid>/                                                      scope "process": a name

Names, ranges and units are openMosix's (its HOWTO's /proc/hpc and /proc/<pid>, and what the real system had); where the
two disagree, the HOWTO's spelling is an alias that leads to the same file and is not listed.  A value is read with a
newline and written with or without one; spaces, signs and bases other than shown are malformed, for "1 " must not be
taken for what the writer did not mean.  What a value is and does is mignode's (mignode/controls.py); `find` is for it.
The mount (mount/virtual.py) shows the names and refuses what is malformed before anybody is asked.

Pure: no I/O.  Invariants: `kind.parse(kind.format(value)) == value` for each value that `format` takes; no file that
can be written takes more than 16 KiB and a bit, so what the kernel cuts into several requests is refused with the
first, and what is well-formed fits a request of the control socket.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol, TypeAlias

PROCESS: Final = "process"
HPC: Final = "hpc"

NODE_MAX: Final = 65535
TEXT_MAX_CHARACTERS: Final = 4095

Value: TypeAlias = int | str | tuple[int, ...]

_INT: Final = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_HEX: Final = re.compile(r"(0[xX])?[0-9a-fA-F]{1,16384}", re.ASCII)


# ---------------------------------------------------------------- kinds of values


class Kind(Protocol):
    """How the values of a file are spelled."""

    def parse(self, text: str) -> Value:
        """The value that was written.  Raises ValueError for malformed text and for what is out of range."""

    def format(self, value: Value) -> str:
        """What a reader gets.  Raises ValueError for a value that this file can't have."""


class Number(NamedTuple):
    """One decimal integer."""

    low: int
    high: int

    def parse(self, text: str) -> int:
        return _within(_decimal(_line(text)), self.low, self.high)

    def format(self, value: Value) -> str:
        return f"{_within(value, self.low, self.high)}\n"


class Trigger(NamedTuple):
    """Something happens when 1 is written; it reads as whether that is in force."""

    def parse(self, text: str) -> int:
        return _within(_decimal(_line(text)), 1, 1)

    def format(self, value: Value) -> str:
        return f"{_within(value, 0, 1)}\n"


class Numbers(NamedTuple):
    """So many integers in one line."""

    amount: int
    high: int

    def parse(self, text: str) -> tuple[int, ...]:
        return self._checked(tuple(map(_decimal, _line(text).split(" "))))

    def format(self, value: Value) -> str:
        if not isinstance(value, tuple):
            raise ValueError(f"{value!r} are not {self.amount} numbers")
        return " ".join(map(str, self._checked(value))) + "\n"

    def _checked(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if len(numbers) != self.amount:
            raise ValueError(f"{len(numbers)} numbers are not {self.amount}")
        return tuple(_within(number, 0, self.high) for number in numbers)


class Mask(NamedTuple):
    """A set of nodes in hexadecimal: bit 2**(node - 1); 32 bits in the original, more where they are needed."""

    bits: int

    def parse(self, text: str) -> int:
        line = _line(text)
        if not _HEX.fullmatch(line):
            raise ValueError(f"{line[:40]!r} is not a mask in hexadecimal")
        return _within(int(line, 16), 0, (1 << self.bits) - 1)

    def format(self, value: Value) -> str:
        return f"{_within(value, 0, (1 << self.bits) - 1):08x}\n"


class Text(NamedTuple):
    """Lines, the last one ended; nothing at all for the empty text."""

    max_characters: int = TEXT_MAX_CHARACTERS

    def parse(self, text: str) -> str:
        return self._checked(text.removesuffix("\n"))

    def format(self, value: Value) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a text")
        return f"{self._checked(value)}\n" if value else ""

    def _checked(self, text: str) -> str:
        if "\0" in text or len(text) > self.max_characters:
            raise ValueError(f"a text of more than {self.max_characters} characters, or with a NUL in it")
        return text


def _line(text: str) -> str:
    return text.removesuffix("\n")


def _decimal(text: str) -> int:
    if not _INT.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a decimal integer")
    return int(text)


def _within(value: Value, low: int, high: int) -> int:
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{value!r} is not an integer from {low} to {high}"[:100])
    return value


# ---------------------------------------------------------------- the files


class ControlFile(NamedTuple):
    """One file.  *mode*: its permission bits, for its owner (root in hpc, else the process's); *blocks*: a write may

    wait until the processes that it sends away have gone.
    """

    name: str
    kind: Kind
    mode: int = 0o444
    alias: str = ""
    blocks: bool = False

    @property
    def is_readable(self) -> bool:
        return bool(self.mode & 0o444)

    @property
    def is_writable(self) -> bool:
        return bool(self.mode & 0o222)


FLAG: Final = Number(0, 1)
_NODE: Final = Number(0, NODE_MAX)
_GOTO: Final = Number(-1, NODE_MAX)  # 0: home; -1: balancing chooses
_SPEED: Final = Number(1, 65535)  # a Pentium III of 1 GHz: 10000
_COUNT: Final = Number(0, 2**63 - 1)
_TEXT: Final = Text()
_WRITTEN: Final = 0o644
_BY_ANYBODY: Final = 0o666  # a process acts on itself

OF_PROCESS: Final = (
    ControlFile("goto", _GOTO, _WRITTEN, blocks=True),
    ControlFile("migrate", _GOTO, _WRITTEN, blocks=True),
    ControlFile("where", _NODE),  # 0: at home
    ControlFile("lock", FLAG, _WRITTEN),
    ControlFile("nmigs", _COUNT),
    ControlFile("cantmove", _TEXT),  # the reasons, joined by ", "; empty when it can move
    ControlFile("selected", _NODE, _WRITTEN),
    ControlFile("migfilter", FLAG, _WRITTEN),
    ControlFile("migpolicy", FLAG, _WRITTEN),  # 0: DENY, 1: ALLOW
    ControlFile("mignodes", Mask(NODE_MAX), _WRITTEN),
    ControlFile("decay", Text(200), _WRITTEN),  # (beyond) its class, in words (mignode/decay.py)
    ControlFile("decision", _TEXT),  # (beyond) why it runs where it does: a line of JSON (mignode/policy.py)
    ControlFile("journey", _TEXT),  # (beyond) its last move: a line of JSON (mignode/journey.py); empty before
)
OF_ADMIN: Final = (
    ControlFile("block", FLAG, _WRITTEN),
    ControlFile("bring", FLAG, 0o200, blocks=True),
    ControlFile("expel", FLAG, 0o200, blocks=True),
    ControlFile("lstay", FLAG, _WRITTEN),
    ControlFile("stay", FLAG, _WRITTEN),
    ControlFile("quiet", FLAG, _WRITTEN),
    ControlFile("nomfs", FLAG, _WRITTEN),
    ControlFile("mospe", _NODE, _WRITTEN),  # this node's id; 0: disabled
    ControlFile("speed", _SPEED, _WRITTEN),
    ControlFile("sspeed", _SPEED, _WRITTEN),  # the yardstick
    ControlFile("decayinterval", Number(1, 65535), _WRITTEN, "decay-interval"),  # seconds
    ControlFile("slowdecay", Number(0, 1000), _WRITTEN, "slow-decay"),  # thousandths
    ControlFile("fastdecay", Number(0, 1000), _WRITTEN, "fast-decay"),  # thousandths, slowdecay at most
    ControlFile("overheads", Numbers(14, 2**31 - 1), _WRITTEN),  # microseconds, as measured by `tune`
    ControlFile("mfscosts", Numbers(6, 2**31 - 1), _WRITTEN),  # microseconds
    ControlFile("gateways", Number(0, 2), _WRITTEN),
    ControlFile("dfsalinks", _TEXT, _WRITTEN),
    ControlFile("config", Text(1 << 20)),
    ControlFile("version", _TEXT),
)
OF_DECAY: Final = tuple(
    ControlFile(name, Trigger(), _BY_ANYBODY)
    for name in ("clear", "cpujob", "iojob", "slow", "fast", "own", "inherit", "exec", "execonce")
)
OF_NODE: Final = (
    ControlFile("cpus", Number(-101, NODE_MAX), alias="CPUs"),  # -101: in the map, but dead
    ControlFile("load", _COUNT),  # 100: one standard CPU fully busy
    ControlFile("mem", _COUNT),  # bytes available to the cluster
    ControlFile("rmem", _COUNT),  # bytes free as Linux sees it
    ControlFile("tmem", _COUNT),  # bytes in all
    ControlFile("speed", _SPEED),
    ControlFile("status", Number(0, 0x7F)),  # 1 configured, 2 up, 4 stay, 8 lstay, 0x10 block, 0x20 quiet, 0x40 nomfs
    ControlFile("util", Number(0, 100)),  # percent
)
OF_GUEST: Final = (
    ControlFile("from", _TEXT),  # home's id and address
    ControlFile("goto", _GOTO, _WRITTEN),
    ControlFile("statm", _TEXT),
    ControlFile("stats", _TEXT),  # utime= cutime= nice= state= vsize= rss= nswap= cnswap=, one a line
    ControlFile("identity", _TEXT),  # uid= gid= pid= pgrp= session= nmigs= command=, one a line
)
INFO: Final = ControlFile("info", Text(1 << 20))  # what is known of all nodes: a line each
DECAY: Final = "decay"
"""The folder of scope "hpc" whose files are about the process that reads or writes them."""
GUESTS: Final = "remote"
"""No file but a directory: reading this path of scope "hpc" tells the pids of the guests here, one a line."""

_FOLDERS: Final = {"admin": OF_ADMIN, DECAY: OF_DECAY}
_NUMBERED: Final = {"nodes": (OF_NODE, NODE_MAX), GUESTS: (OF_GUEST, 2**22)}


class Found(NamedTuple):
    """*number*: of the node or guest, for nodes/<node>/... and remote/<pid>/...; else 0."""

    file: ControlFile
    number: int


def find(scope: str, path: str) -> Found:
    """The file at *path*, by any of its spellings.  Raises KeyError."""
    if scope == PROCESS:
        return Found(_named(OF_PROCESS, path), 0)
    if scope != HPC:
        raise KeyError(scope)
    match path.split("/"):
        case ["info"]:
            return Found(INFO, 0)
        case [folder, name] if folder in _FOLDERS:
            return Found(_named(_FOLDERS[folder], name), 0)
        case [folder, number, name] if folder in _NUMBERED:
            files, most = _NUMBERED[folder]
            return Found(_named(files, name), canonical_number(number, most))
    raise KeyError(path)


def _named(files: tuple[ControlFile, ...], name: str) -> ControlFile:
    for file in files:
        if name in spellings(file):
            return file
    raise KeyError(name)


def spellings(file: ControlFile) -> Iterator[str]:
    """Its name first."""
    yield file.name
    if file.alias:
        yield file.alias


def canonical_number(name: str, most: int) -> int:
    """The number that a directory is named by: 1 to *most*, as it would be listed.  Raises KeyError."""
    if not re.fullmatch("[1-9][0-9]{0,6}", name, re.ASCII) or int(name) > most:
        raise KeyError(name)
    return int(name)
