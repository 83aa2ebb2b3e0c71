"""CRIU's images, taken apart and put together again: what ownfilter.py, mending.py and others change in them.

An image is eight bytes of magic, then messages of protobuf with a length before each (CRIU 4.2, criu/protobuf.c).  What
nobody changes is handed on byte by byte.  Pure: bytes in, bytes out; WireError for what is no image.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from omfs.errors import WireError

MAGIC_BYTES: Final = 8
_LENGTH: Final = struct.Struct("=I")

# Wire types (protobuf.dev, "Encoding").
_NUMBER: Final = 0
_BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}  # bytes


Change = Callable[[int | bytes], int | bytes]


class Field(NamedTuple):
    """*raw*: key and value as they stand in the message."""

    number: int
    value: int | bytes
    raw: bytes


def messages_of(image: bytes) -> Iterator[bytes]:
    """All that an image has."""
    at = MAGIC_BYTES
    while at < len(image):
        if len(image) < at + _LENGTH.size:
            raise WireError("an image that ends within a length")
        (length,) = _LENGTH.unpack_from(image, at)
        at += _LENGTH.size + length
        if len(image) < at:
            raise WireError("an image that ends within a message")
        yield image[at - length : at]


def image_of(magic: bytes, messages: Iterable[bytes]) -> bytes:
    """The other way round."""
    return magic + b"".join(map(message_of, messages))


def only_message(image: bytes) -> bytes:
    if len(image) < MAGIC_BYTES + _LENGTH.size:
        raise WireError(f"an image of {len(image)} bytes")
    (length,) = _LENGTH.unpack_from(image, MAGIC_BYTES)
    message = image[MAGIC_BYTES + _LENGTH.size :]
    if len(message) != length:
        raise WireError(f"an image with {len(message)} bytes instead of one message of {length}")
    return message


def message_of(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


def number_of(number: int, value: int) -> bytes:
    """A field with a number, as it stands in a message."""
    return varint_of(number << 3) + varint_of(value)


def field_of(number: int, value: bytes) -> bytes:
    """A field with bytes."""
    return varint_of(number << 3 | _BYTES) + varint_of(len(value)) + value


def changed(message: bytes, changes: Mapping[int, Change]) -> bytes:
    """With new values of some fields, where it has them; the others stay as they are, byte by byte."""
    return b"".join(
        _field(field.number, changes[field.number](field.value)) if field.number in changes else field.raw
        for field in fields_of(message)
    )


def _field(number: int, value: int | bytes) -> bytes:
    return number_of(number, value) if isinstance(value, int) else field_of(number, value)


def fields_of(message: bytes) -> Iterator[Field]:
    end = 0
    while end < len(message):
        begin = end
        key, at = _varint(message, begin)
        kind = key & 7
        number, after = _varint(message, at) if kind in (_NUMBER, _BYTES) else (0, at)
        if kind == _NUMBER:
            end = after
        elif kind == _BYTES:
            at, end = after, after + number
        elif kind in _FIXED:
            end = at + _FIXED[kind]
        else:
            raise WireError(f"a field of type {kind}")
        if end > len(message):
            raise WireError("a message ends within a field")
        yield Field(key >> 3, number if kind == _NUMBER else message[at:end], message[begin:end])


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at *at*, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at + shift // 7 >= len(message):
            raise WireError("a message ends within a number")
        byte = message[at + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise WireError("a number of more than 64 bits")


def varint_of(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise WireError("a number where a message should be")
    return value


def as_number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise WireError("a message where a number should be")
    return value
