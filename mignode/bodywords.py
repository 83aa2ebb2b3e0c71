"""What mignode and a guest's init say to each other over body.sock; nothing else.

A request with an *id* has one answer with the same id: Done, Started, FilesNamed, FilesFrozen, Fetched or Failed.
The rest is said once and answered by nobody.  Descriptors come beside a message (bodysocket.py); which, is said here.

Messages are never kept and never leave the machine, and both ends come from one program, but a restarted mignode may be
a newer one: unknown fields are refused, which costs the connection.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from mignode.birthright import Birthright
from omfs.errors import WireError


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What mosrun was asked to run: *file* as execvp(3) gets it.  *environment*: b"NAME=value".  *pid*: 0 for any."""

    file: bytes
    argv: tuple[bytes, ...]
    environment: tuple[bytes, ...]
    directory: bytes
    pid: int
    birthright: Birthright

    @property
    def owner(self) -> tuple[int, int]:
        """Its effective uid and gid."""
        return self.birthright.uids[1], self.birthright.gids[1]


class _Word(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


# ---------------------------------------------------------------- mignode asks


class Run(_Word, frozen=True, tag="run"):
    """Start the program, the guest's root; *plan*: of its standard files.  Started, or as execvp(3) fails.

    *filter*: as StartCommand has it.
    """

    id: int
    program: Program
    plan: bytes
    filter: bytes = b""


class StartCommand(_Word, frozen=True, tag="start"):
    """Run a command (CRIU) as the init's child.

    *numbers*: of the descriptors that come along, there.  *real_uid*, *real_gid*: its effective ones are root's.
    *filter*: of system calls that it and its children are to be below, or empty; the listener comes with Started.
    """

    id: int
    command: tuple[str, ...]
    numbers: tuple[int, ...]
    real_uid: int
    real_gid: int
    filter: bytes


class KillCommand(_Word, frozen=True, tag="killcommand"):
    """With all that it started in its process group; nothing where it has ended."""

    pid: int


class PrepareFiles(_Word, frozen=True, tag="preparefiles"):
    """Standard files for a tree that will be restored, from their *state* on another node."""

    id: int
    plan: bytes
    state: bytes


class NameFiles(_Word, frozen=True, tag="namefiles"):
    """How CRIU is to call those that the tree has and does not take along by itself; FilesNamed without keys."""

    id: int


class FilesGiven(_Word, frozen=True, tag="given"):
    """The restored tree has them."""

    id: int


class FreezeFiles(_Word, frozen=True, tag="freeze"):
    """The tree is frozen; the root's end is not told from now on: it goes on elsewhere, or ThawFiles comes."""

    id: int


class ThawFiles(_Word, frozen=True, tag="thaw"):
    id: int


class Adopt(_Word, frozen=True, tag="adopt"):
    """This child, which CRIU made, is the guest's root."""

    id: int
    pid: int


class Signal(_Word, frozen=True, tag="signal"):
    """kill(2) as the namespace numbers processes; below zero: groups, -1 all but the init."""

    id: int
    pid: int
    number: int


class SetLastPid(_Word, frozen=True, tag="lastpid"):
    """The next process inside gets a number above this."""

    id: int
    number: int


class Keep(_Word, frozen=True, tag="keep"):
    """Have the descriptors that come along, under this name, for the next mignode; none: forget them."""

    id: int
    name: str


class Fetch(_Word, frozen=True, tag="fetch"):
    """Fetched, with the descriptors under this name."""

    id: int
    name: str


class Way(_Word, frozen=True, tag="way"):
    """Whether frames reach the deputy."""

    open: bool


class StopRoot(_Word, frozen=True, tag="stoproot"):
    """The deputy was stopped; nothing where that is because the root was."""


class End(_Word, frozen=True, tag="end"):
    """Kill what is left and end."""


class Frame(_Word, frozen=True, tag="frame"):
    """Of the standard files, between the init and the deputy; both ways."""

    data: bytes


# ---------------------------------------------------------------- the init answers, and tells


class Ready(_Word, frozen=True, tag="ready"):
    """The first word on each connection; with a descriptor of the guest's /proc.

    *pid*: the init's, as mignode's PID namespace has it.  *root*: as the guest's has it; 0: none yet.  *root_status*:
    how it ended, as waitpid(2) has it, or None.  *has_run*: it runs or has run, and was not only made by a CRIU that
    then failed; to be asked when no command runs.  *commands*: pids of those that run, inside.  *kept*: names of Keep.
    """

    pid: int
    root: int = 0
    root_status: int | None = None
    has_run: bool = False
    is_gone: bool = False
    is_told: bool = False
    is_frozen: bool = False
    commands: tuple[int, ...] = ()
    kept: tuple[str, ...] = ()


class Done(_Word, frozen=True, tag="done"):
    id: int


class Started(_Word, frozen=True, tag="started"):
    """Its pid inside; with the filter's listener, where it has one."""

    id: int
    pid: int


class FilesNamed(_Word, frozen=True, tag="filesnamed"):
    """With a descriptor for each of *keys*, which are CRIU's names for what they replace."""

    id: int
    external: tuple[str, ...]
    keys: tuple[str, ...] = ()


class FilesFrozen(_Word, frozen=True, tag="filesfrozen"):
    id: int
    state: bytes


class Fetched(_Word, frozen=True, tag="fetched"):
    id: int


class Failed(_Word, frozen=True, tag="failed"):
    """*errno* as the call that failed has it.  *id* 0: the init could not begin, and has ended."""

    id: int
    errno: int
    text: str


class CommandEnded(_Word, frozen=True, tag="commandended"):
    pid: int
    status: int


class RootEnded(_Word, frozen=True, tag="rootended"):
    status: int


class Gone(_Word, frozen=True, tag="gone"):
    """No process of the guest is left."""


class Told(_Word, frozen=True, tag="told"):
    """And the deputy has all that they said."""


Request: TypeAlias = (
    Run
    | StartCommand
    | PrepareFiles
    | NameFiles
    | FilesGiven
    | FreezeFiles
    | ThawFiles
    | Adopt
    | Signal
    | SetLastPid
    | Keep
    | Fetch
)
Order: TypeAlias = KillCommand | Way | StopRoot | End | Frame
Answer: TypeAlias = Done | Started | FilesNamed | FilesFrozen | Fetched | Failed
News: TypeAlias = Ready | CommandEnded | RootEnded | Gone | Told | Frame
Word: TypeAlias = Request | Order | Answer | News

_ALL: Final = msgspec.msgpack.Decoder(Word)
_encoder: Final = msgspec.msgpack.Encoder()


def encoded(word: Word) -> bytes:
    """As it is sent."""
    return _encoder.encode(word)


def decoded(packet: bytes) -> Word:
    """Raises WireError."""
    try:
        word: Word = _ALL.decode(packet)
    except msgspec.MsgspecError as error:
        raise WireError(f"not a word of a guest's init: {error}") from None
    return word
