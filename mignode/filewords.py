"""What the two ends of a guest's standard files say to each other, besides the bytes: names and types only (pure).

A FilesPlan says once, at the start, what mosrun found as its own standard files.  After that DeputyFiles and BodyFiles
speak over Stream.CONTROL of a Relay, in both directions: these messages, each with its length before it.

Terminal attributes are those of termios.tcgetattr, as a list; `pack_attributes` makes them bytes for a FilesPlan.  All
that comes from mosrun comes from the user, so it is checked: it may hurt nobody but him.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec

from omfs.errors import WireError

CONTROL_MAX_BYTES: Final = 4 << 10  # of one message
_LENGTH: Final = struct.Struct(">H")
_TERMIOS_FIELDS: Final = 7
_CONTROL_CHARACTERS: Final = 32  # NCCS

Short = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Offset = Annotated[int, msgspec.Meta(ge=0)]
SignalNumber = Annotated[int, msgspec.Meta(ge=1, le=64)]


class Kind(enum.IntEnum):
    """What one of the files 0, 1, 2 is."""

    PIPE = 0  # pipes, and all that is used like one: files, sockets
    TERMINAL = 1
    NULL = 2
    CLOSED = 3


class Size(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of a terminal's window."""

    rows: Short
    columns: Short
    x_pixels: Short = 0
    y_pixels: Short = 0


class FilesPlan(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """*is_joined*: 1 and 2 are one file, so what is written to both has an order.

    *window* and *termios* (pack_attributes): of the first terminal among them, for the guest's.
    """

    kinds: tuple[Kind, Kind, Kind]
    window: Size | None = None
    termios: bytes = b""
    is_joined: bool = False

    @property
    def has_terminal(self) -> bool:
        return Kind.TERMINAL in self.kinds


def without_input(plan: FilesPlan) -> FilesPlan:
    """What mosrun has for a program whose input has ended, if that was a pipe."""
    if plan.kinds[0] is not Kind.PIPE:
        return plan
    return msgspec.structs.replace(plan, kinds=(Kind.NULL, *plan.kinds[1:]))


# ---------------------------------------------------------------- from the deputy


class Word(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages."""


class Signalled(Word, frozen=True):
    """mosrun got this signal.  *is_for_group*: the terminal sent it to everybody in the foreground."""

    number: SignalNumber
    is_for_group: bool


class Resized(Word, frozen=True):
    """The user's window has this size now."""

    size: Size


class ReaderGone(Word, frozen=True):
    """Nobody will read this stream's output any more: the program is to get SIGPIPE, or EPIPE."""

    stream: Short


# ---------------------------------------------------------------- from the body


class InputUnwanted(Word, frozen=True):
    """Nobody there can read the input any more."""


class Stopped(Word, frozen=True):
    """The program was stopped by this signal; *shown*: how much it had written to its terminal."""

    number: SignalNumber
    shown: Offset


class Continued(Word, frozen=True):
    """The program runs again."""


class Ended(Word, frozen=True):
    """The program has ended with this wait status.

    *written*: by stream, how much of it was written before that.  *input_taken*: how much of the input was read by the
    program, or lies where its children may still read it.
    """

    status: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
    written: dict[Short, Offset]
    input_taken: Offset


Control = Signalled | Resized | ReaderGone | InputUnwanted | Stopped | Continued | Ended

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Control)
_attributes: Final = msgspec.msgpack.Decoder(list[int | list[int | bytes]])


def pack(word: Control) -> bytes:
    """As it goes into Stream.CONTROL."""
    body = _encoder.encode(word)
    return _LENGTH.pack(len(body)) + body


def words_in(data: bytes) -> Iterator[tuple[Control, int]]:
    """The messages that are there wholly, each with its length.  Raises WireError."""
    at = 0
    while len(data) - at >= _LENGTH.size:
        (size,) = _LENGTH.unpack_from(data, at)
        if size > CONTROL_MAX_BYTES:
            raise WireError(f"a message of {size} bytes about a guest's standard files")
        body = data[at + _LENGTH.size : at + _LENGTH.size + size]
        if len(body) < size:
            return
        try:
            word: Control = _decoder.decode(body)
        except msgspec.DecodeError as error:
            raise WireError(f"bad message about a guest's standard files: {error}") from None
        yield word, _LENGTH.size + size
        at += _LENGTH.size + size


def pack_attributes(attributes: list[Any]) -> bytes:
    """Of termios.tcgetattr."""
    return _encoder.encode(attributes)


def unpack_attributes(data: bytes) -> list[Any]:
    """For termios.tcsetattr.  Raises WireError."""
    try:
        found: list[Any] = _attributes.decode(data)
        _check_attributes(found)
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"bad attributes of a terminal: {error}") from None
    return found


def _check_attributes(found: list[Any]) -> None:
    """tcsetattr(3) of Python raises OverflowError and TypeError for what is none."""
    if len(found) != _TERMIOS_FIELDS:
        raise ValueError(f"{len(found)} fields")
    *numbers, characters = found
    if not all(isinstance(number, int) and 0 <= number < 1 << 32 for number in numbers):
        raise ValueError("a mode that is no number")
    if not isinstance(characters, list) or len(characters) != _CONTROL_CHARACTERS:
        raise ValueError("bad control characters")
    for character in characters:
        if isinstance(character, bytes) and len(character) == 1:
            continue
        if not isinstance(character, int) or not 0 <= character < 256:
            raise ValueError("a control character that is none")
