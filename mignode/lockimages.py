"""CRIU's image of file locks: which process takes which again, through which descriptor, when it is restored.

Images: CRIU's file-lock.proto (4.2; seen in real images).  What CRIU does not see, locks on files of other nodes, is
added by guestlocks.py; those of open files are kept from CRIU, in an image of the same kind.  Pure: bytes in, bytes
out; WireError for what is no image.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from mignode.criuimages import as_number, fields_of, image_of, messages_of, number_of
from omfs.errors import WireError
from omfs.kernel.filelocks import RANGE_END

LOCKS: Final = "filelocks.img"  # there if CRIU has seen a lock
OPEN_LOCKS: Final = "omfs-openlocks.img"  # ours: those of open files
POSIX: Final = 1
FLOCK: Final = 2
OFD: Final = 4
_MAGIC: Final = struct.pack("<II", 0x54564319, 0x54323616)  # criu/include/magic.h
_FLAG, _KIND, _PROCESS, _DESCRIPTOR, _START, _LENGTH = range(1, 7)  # of file_lock_entry


class Held(NamedTuple):
    """A lock of [start, end] (as kernel/filelocks.py has it); *process*: by its number in the guest."""

    process: int
    descriptor: int
    kind: int
    start: int
    end: int
    flag: int = POSIX


def held_in(image: bytes) -> list[Held]:
    """filelocks.img; CRIU has a lock once for each descriptor of its file."""
    found = (_held(message) for message in messages_of(image))
    seen: dict[tuple[int, ...], Held] = {}
    for one in found:
        seen.setdefault((one.process, one.descriptor, one.kind, one.start, one.end, one.flag), one)
    return list(seen.values())


def image_with(image: bytes, more: Iterable[Held]) -> bytes:
    """The same with more of them; *image* may be empty.  What was in it stays at its beginning."""
    return (image or _MAGIC) + image_of(b"", map(_message, more))


def _held(message: bytes) -> Held:
    has = {field.number: as_number(field.value) for field in fields_of(message)}
    try:
        start, length = has[_START], has[_LENGTH]
        end = start + length - 1 if length else RANGE_END
        return Held(has[_PROCESS], has[_DESCRIPTOR], has[_KIND], start, end, has[_FLAG])
    except KeyError as error:
        raise WireError(f"a lock without its field {error}") from None


def _message(held: Held) -> bytes:
    length = 0 if held.end >= RANGE_END else held.end - held.start + 1
    values = (held.flag, held.kind, held.process, held.descriptor, held.start, length)
    return b"".join(number_of(number, value) for number, value in enumerate(values, _FLAG))
