"""What the command lines of mosrun and its wrappers say, as openMosix had them; pure: arguments in, Options out.

    mosrun [-h | -b | -ID | -jA-B[,C-D]... [-F]] [-l | -L | -k] [-c | -i] [-n | -s | -f | -d DEC [-t TT]] [-e | -E]
           [-r | -R] [-z] program [arguments]
    mosrun ID[,ID]... program [arguments]
    mosrun [...] --checkpoint TIME [--image FILE] program [arguments]
    mosrun [...] --restart FILE [--checkpoint TIME] [--image FILE]
    mosrun --show FILE

-b and the last three are ours.  TIME is in seconds, or minutes or hours with an m or h behind it, as sleep(1) has it.
Options end with the first word that is none.  Letters may be joined (-Lc), a value may stand by itself (-d 900).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from omfs.errors import ConfigError

USAGE: Final = (
    "usage: mosrun [-h | -b | -ID | -jA-B[,C-D]... [-F]] [-l | -L | -k] [-c | -i] [-n | -s | -f | -d DEC [-t TT]]\n"
    "              [-e | -E] [-r | -R] [-z] [--checkpoint TIME [--image FILE]] program [arguments]\n"
    "       mosrun --restart FILE [...] [--checkpoint TIME] [--image FILE]\n"
    "       mosrun --show FILE"
)
NODE_MAX: Final = 65535
DECAY_MAX: Final = 1000
SECONDS_MAX: Final = 65535


class Lock(enum.IntEnum):
    """Whether it may be moved by others than its user."""

    KEEP = 0  # as who starts it
    UNLOCK = 1
    LOCK = 2


class Job(enum.IntEnum):
    """What it will mostly do."""

    UNKNOWN = 0
    CPU = 1
    IO = 2


class Decay(enum.IntEnum):
    """How fast what it did before is forgotten."""

    DEFAULT = 0
    NONE = 1
    SLOW = 2
    FAST = 3
    OWN = 4  # Options.decay and interval_s


class Options(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """*nodes*: where it may start, the cheapest first; 0 is home; () is home, or elsewhere as the decisions say.

    *at_best* (-b): on the best node, however little that is better.

    *may_fall_back* (-F): if it can't start there, anywhere.  *decay* in thousandths kept per *interval_s*.
    *keeps_on_exec*: its decay holds after an execve, too; *children_inherit*: and for its children.  *is_named* (-z):
    the first of the arguments is argv[0], not the program's name.
    """

    nodes: tuple[tuple[int, int], ...] = ()  # ranges, both ends included
    may_fall_back: bool = False
    lock: Lock = Lock.KEEP
    job: Job = Job.UNKNOWN
    decay_kind: Decay = Decay.DEFAULT
    decay: int = 0
    interval_s: int = 0
    keeps_on_exec: bool = False
    children_inherit: bool = True
    is_named: bool = False
    at_best: bool = False


class Checkpoints(msgspec.Struct, frozen=True):
    """*every_s*: 0 is never; None: not said, so never, or for a restart as before.  *image*, *restart*, *show*: files,
    "" where not said: the image to be kept, the one to go on with, the one to be told about.
    """

    every_s: int | None = None
    image: str = ""
    restart: str = ""
    show: str = ""


class Parsed(msgspec.Struct, frozen=True):
    """*program* is what to execute, *arguments* its argv; empty where an image says it."""

    options: Options
    program: str
    arguments: tuple[str, ...]
    checkpoints: Checkpoints = Checkpoints()


_LETTERS: Final[dict[str, dict[str, object]]] = {
    "F": {"may_fall_back": True},
    "l": {"lock": Lock.UNLOCK},
    "L": {"lock": Lock.LOCK},
    "k": {"lock": Lock.KEEP},
    "c": {"job": Job.CPU},
    "i": {"job": Job.IO},
    "n": {"decay_kind": Decay.NONE},
    "s": {"decay_kind": Decay.SLOW},
    "f": {"decay_kind": Decay.FAST},
    "e": {"keeps_on_exec": True},
    "E": {"keeps_on_exec": False},
    "r": {"children_inherit": True},
    "R": {"children_inherit": False},
    "z": {"is_named": True},
    "h": {"nodes": ((0, 0),)},
    "b": {"at_best": True},
}
_EXCLUSIVE: Final = ("lLk", "ci", "nsfd", "eE", "rR", "hb")
_LONG: Final = {"--checkpoint": "every_s", "--image": "image", "--restart": "restart", "--show": "show"}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
_EVERY_MAX: Final = 1 << 31


def parse(words: Sequence[str]) -> Parsed:
    """mosrun's own.  Raises ConfigError, in one line."""
    chosen: dict[str, object] = {}
    long: dict[str, int | str] = {}
    said: list[str] = []
    rest = list(words)
    while rest and len(rest[0]) > 1 and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            long.update(_long(word, rest))
            continue
        if word[1:].isdigit():
            said.append("h")
            chosen["nodes"] = nodes_of(word[1:])
            continue
        for letter, value in _letters(word[1:], rest):
            said.append("h" if letter == "j" else letter)
            chosen.update(_meaning(letter, value))
    if rest and "h" not in said and rest[0].replace(",", "").isdigit():
        said.append("h")
        chosen["nodes"] = nodes_of(rest.pop(0))
    _refuse_contradictions(said)
    if "nodes" in chosen and not set(said) & set("lLk"):
        chosen["lock"] = Lock.LOCK  # who names a node means it
    checkpoints = msgspec.convert(long, Checkpoints)
    _refuse_half_sentences(checkpoints, rest)
    return _parsed(replace(Options(), **chosen), checkpoints, rest)


def _parsed(options: Options, checkpoints: Checkpoints, rest: list[str]) -> Parsed:
    if checkpoints.restart or checkpoints.show:
        return Parsed(options, "", (), checkpoints)
    if not rest:
        raise ConfigError("no program given")
    program = rest[0]
    arguments = rest[1:] if options.is_named else rest
    return Parsed(options, program, tuple(arguments or [program]), checkpoints)


def _long(word: str, rest: list[str]) -> dict[str, int | str]:
    """One with its value, which may stand behind a "="."""
    name, _, value = word.partition("=")
    if name not in _LONG:
        raise ConfigError(f"unknown option {name}")
    value = value or (rest.pop(0) if rest else "")
    if not value:
        raise ConfigError(f"{name} needs a value")
    return {_LONG[name]: _seconds(value) if name == "--checkpoint" else value}


def _seconds(text: str) -> int:
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    if not (number.isascii() and number.isdigit()) or len(number) > 10 or int(number) * unit > _EVERY_MAX:
        raise ConfigError(f'--checkpoint: "{text}" is no time like 90, 90s, 5m or 2h')
    return int(number) * unit


def _refuse_half_sentences(checkpoints: Checkpoints, rest: list[str]) -> None:
    if checkpoints.show and (rest or checkpoints != Checkpoints(show=checkpoints.show)):
        raise ConfigError("--show goes alone")
    if checkpoints.restart and rest:
        raise ConfigError(f"--restart goes on with the program of its image; {rest[0]} is too much")
    if checkpoints.image and not checkpoints.restart and not checkpoints.every_s:
        raise ConfigError("--image goes with --checkpoint")


def _letters(letters: str, rest: list[str]) -> Iterator[tuple[str, str]]:
    """Each with its value, if it has one."""
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in "jdt":
            yield letter, ""
            continue
        value = letters or (rest.pop(0) if rest else "")
        if not value:
            raise ConfigError(f"-{letter} needs a value")
        yield letter, value
        return


def _meaning(letter: str, value: str) -> dict[str, object]:
    if letter == "j":
        return {"nodes": nodes_of(value)}
    if letter == "d":
        return {"decay": _number(value, DECAY_MAX, "-d"), "decay_kind": Decay.OWN}
    if letter == "t":
        return {"interval_s": _number(value, SECONDS_MAX, "-t")}
    if letter not in _LETTERS:
        raise ConfigError(f"unknown option -{letter}")
    return _LETTERS[letter]


def _refuse_contradictions(said: list[str]) -> None:
    if said.count("h") > 1:
        raise ConfigError("several places to start at; give one, or a list with -j")
    for group in _EXCLUSIVE:
        if len(found := [letter for letter in dict.fromkeys(said) if letter in group]) > 1:
            raise ConfigError(f"-{found[0]} and -{found[1]} contradict each other")
    if "t" in said and "d" not in said:
        raise ConfigError("-t goes with -d")
    if "F" in said and "h" not in said:
        raise ConfigError("-F goes with a node")


def nodes_of(text: str) -> tuple[tuple[int, int], ...]:
    """Of "3", "1-4,7": ranges, both ends included.  Raises ConfigError."""
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = _number(first, NODE_MAX, "a node")
        high = _number(last, NODE_MAX, "a node") if dash else low
        if high < low or (low == 0 and dash):
            raise ConfigError(f"{part} is no range of nodes")
        found.append((low, high))
    return tuple(found)


def _number(text: str, largest: int, of_what: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > largest:
        raise ConfigError(f'{of_what}: "{text}" is no number from 0 to {largest}')
    return int(text)


# ---------------------------------------------------------------- the wrappers

_WRAPPERS: Final[dict[str, tuple[str, ...]]] = {
    "nomig": ("-h", "-L"),
    "runhome": ("-h",),
    "cpujob": ("-c",),
    "iojob": ("-i",),
    "nodecay": ("-n",),
    "slowdecay": ("-s",),
    "fastdecay": ("-f",),
}
WRAPPERS: Final = (*_WRAPPERS, "runon")


def words_of(wrapper: str, words: Sequence[str]) -> list[str]:
    """mosrun's words for those of a wrapper.  Raises ConfigError."""
    if wrapper != "runon":
        return [*_WRAPPERS[wrapper], *words]
    if not words or not words[0].replace(",", "").replace("-", "").isdigit():
        raise ConfigError("say on which node: runon NODE program [arguments]")
    return ["-j", *words]
