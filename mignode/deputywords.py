"""What mosrun and mignode say to each other over guests.sock; nothing else (pure).

A connection begins with Run, Restart or Attend by mosrun, which mignode answers once; then Relayed goes both ways,
opaque to mignode, and Lost may end it.  Behind Restart mosrun first gives the image, in ImageBytes.  A connection that
begins with TakeImage is for one checkpoint: ImageBytes and ImageTaken come, or Refused; mosrun may say NotKept.

Each message has its length before it.  Who mosrun is, mignode knows from the kernel (SO_PEERCRED), and what it may from
/proc: nothing here gives a right.

The connection stands for the deputy: it is open as long as mosrun lives, or a child of it that still writes what the
program's children say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from mignode.filewords import FilesPlan
from mignode.mosrunoptions import Options
from omfs.errors import WireError

SOCKET: Final = "guests.sock"
"""In the run directory."""
REQUEST_MAX_BYTES: Final = 8 << 20  # arguments and environment together are at most 6 MiB (execve(2))
RELAYED_MAX_BYTES: Final = 128 << 10
_LENGTH: Final = struct.Struct(">I")


class Word(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages."""


class Run(Word, frozen=True):
    """mosrun: run this for me.

    *program*: as execvp(3) gets it; *environment*: b"NAME=value".  *ignored*, *blocked*: the signals that were so when
    mosrun began; it changes its own, so /proc does not tell.
    """

    program: bytes
    arguments: tuple[bytes, ...]
    environment: tuple[bytes, ...]
    directory: bytes
    plan: FilesPlan
    options: Options
    ignored: tuple[int, ...] = ()
    blocked: tuple[int, ...] = ()


class Restart(Word, frozen=True):
    """mosrun: go on with what this image was taken of; it follows in ImageBytes, of which the last is empty."""

    options: Options


class TakeImage(Word, frozen=True):
    """mosrun: make a checkpoint of this guest; *every_s* is written into it."""

    guest: str
    every_s: int


class ImageBytes(Word, frozen=True):
    """The next bytes of an image's file (imagefile.py)."""

    data: bytes


class ImageTaken(Word, frozen=True):
    """mignode: the image is whole; the program stood still so long."""

    frozen_s: float


class NotKept(Word, frozen=True):
    """mosrun: the image that came could not be written down."""

    reason: str


class Attend(Word, frozen=True):
    """mosrun, whose connection was lost: the deputy of *guest* is still there.  *pid*: its own when it began."""

    guest: str
    pid: int


class Started(Word, frozen=True):
    """mignode: it runs, under this name.  For Restart: its input has not ended; *warning*: for the user."""

    guest: str
    has_input: bool = True
    warning: str = ""


class Attended(Word, frozen=True):
    """mignode: this guest is still there."""


class Refused(Word, frozen=True):
    """mignode: not so.  *errno* as execvp(3) has it where *is_of_program*: then mosrun ends as a shell would."""

    errno: int
    reason: str
    is_of_program: bool = False


class Lost(Word, frozen=True):
    """mignode: the guest is no more, and nobody can tell how it ended; the reason is for the user, in one line."""

    reason: str


class Relayed(Word, frozen=True):
    """A frame of the standard files (relay.py)."""

    frame: bytes


class Call(Word, frozen=True):
    """mignode: do this system call of the guest as its deputy (dfsa/outside.py), and say what came of it.

    kill of 0, -1 or a group reaches the processes at home.
    """

    number: int
    call: str
    arguments: tuple[int, ...]


class Called(Word, frozen=True):
    """mosrun: it returned *value*; an *errno* other than 0 is its error."""

    number: int
    value: int
    errno: int = 0


DeputyWord = (
    Run
    | Restart
    | TakeImage
    | ImageBytes
    | ImageTaken
    | NotKept
    | Attend
    | Started
    | Attended
    | Refused
    | Lost
    | Relayed
    | Call
    | Called
)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(DeputyWord)


def pack(word: DeputyWord) -> bytes:
    """As it is sent."""
    body = _encoder.encode(word)
    return _LENGTH.pack(len(body)) + body


class Words:
    """Takes the bytes of a connection apart."""

    def __init__(self, largest_bytes: int = RELAYED_MAX_BYTES) -> None:
        """*largest_bytes*: of a message; mignode takes REQUEST_MAX_BYTES for the first, mosrun never that much."""
        self.largest_bytes = largest_bytes
        self._kept = bytearray()

    def arrived(self, data: bytes) -> Iterator[DeputyWord]:
        """The messages that are whole now.  Raises WireError."""
        self._kept += data
        while len(self._kept) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._kept)
            if size > self.largest_bytes:
                raise WireError(f"a message of {size} bytes between mosrun and mignode")
            until = _LENGTH.size + size
            if len(self._kept) < until:
                return
            body = bytes(self._kept[_LENGTH.size : until])
            del self._kept[:until]
            try:
                word: DeputyWord = _decoder.decode(body)
            except msgspec.DecodeError as error:
                raise WireError(f"bad message between mosrun and mignode: {error}") from None
            yield word
