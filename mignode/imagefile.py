"""The file that a checkpoint is kept in: what stands in it, byte by byte (pure).

    "omfs image 1\\n"
    Head           whose it is, and of what
    ImagePiece ... the images of CRIU, each piece with its bytes and their CRC-32, as between two nodes (words.py)
    ImagesSent     all images with their sizes
    State          of the standard files
    Seal           the SHA-256 of all before it, signed by the node that made it (seal.py)

Each is a record: the lengths of its message and of the bytes behind it, then both.  A file ends with its seal, so one
that was cut short is known.  Sums are against accidents, the signature is against forgery; but the head can be shown to
its user without either.

Written by saving.py, read by restarting.py, and the head by mosrun.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple, TypeAlias, Union

import msgspec

from mignode.words import STATE_MAX_BYTES, Epoch, GuestName, ImagePiece, ImagesSent, NodeId, State
from omfs.config import BULK_MAX_BYTES, META_MAX_BYTES
from omfs.errors import ImagesDamaged
from omfs.wiretypes import Message

VERSION: Final = 1
MAGIC: Final = b"omfs image "
_FIRST: Final = MAGIC + b"%d\n" % VERSION
_LENGTHS: Final = struct.Struct("<II")

_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Text = Annotated[str, msgspec.Meta(max_length=256)]


class Head(Message, frozen=True, tag=True):
    """*guest*, *home*: as it was when the image was taken, on *node*; *root*: the pid of its root, inside.
    *processor*: of that node (processor.py).  *arguments*: of the root.  *taken_s*: since the epoch.  *every_s*: how
    often an image was taken.  *plan*: of its standard files.
    """

    guest: GuestName
    home: NodeId
    node: NodeId
    cluster: _Text
    software: _Text
    processor: Annotated[bytes, msgspec.Meta(max_length=8 << 10)]
    uid: _Id
    gid: _Id
    groups: tuple[_Id, ...]
    root: Annotated[int, msgspec.Meta(ge=2, lt=1 << 22)]
    arguments: tuple[bytes, ...]
    taken_s: Epoch
    every_s: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    processes: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    memory_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    plan: Annotated[bytes, msgspec.Meta(max_length=16 << 10)]

    @property
    def command(self) -> str:
        """What was run, for people: nothing in it moves their cursor."""
        text = b" ".join(self.arguments).decode(errors="replace")
        return "".join(each if each.isprintable() else "?" for each in text) or "a program without a name"


class Seal(Message, frozen=True, tag=True):
    """*signature* and *certificate* are empty where the cluster has none (sec=none)."""

    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, msgspec.Meta(max_length=1024)]
    certificate: Annotated[bytes, msgspec.Meta(max_length=16 << 10)]


Record: TypeAlias = Union[Head, ImagePiece, ImagesSent, State, Seal]
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Record)
_BULK_MAX: Final[dict[type[Message], int]] = {ImagePiece: BULK_MAX_BYTES, State: STATE_MAX_BYTES}


class Writer:
    """Makes the bytes of a file, from its beginning."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self._has_begun = False

    def head_of(self, record: Record, size_bytes: int = 0) -> bytes:
        """What goes before the *size_bytes* bytes of it, which are to be told to `passed`."""
        message = _encoder.encode(record)
        data = (b"" if self._has_begun else _FIRST) + _LENGTHS.pack(len(message), size_bytes) + message
        self._has_begun = True
        self._sum.update(data)
        return data

    def passed(self, data: bytes | bytearray | memoryview) -> None:
        """These have gone out."""
        self._sum.update(data)

    def digest(self) -> bytes:
        """Of all until now."""
        return self._sum.digest()


class Found(NamedTuple):
    """A record with its bytes; *digest*: of all before a Seal."""

    record: Record
    data: bytes
    digest: bytes = b""


class Reader:
    """Takes the bytes of a file apart, as they come.  Whoever says that they have ended calls `end`."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._sum = hashlib.sha256()
        self._has_begun = self._has_ended = False

    def arrived(self, data: bytes) -> Iterator[Found]:
        """The records that are whole now.  Raises ImagesDamaged."""
        self._kept += data
        if not self._has_begun and not self._begin():
            return
        while (found := self._next()) is not None:
            yield found
        if self._has_ended and self._kept:
            raise ImagesDamaged("there is something behind its end")

    def end(self) -> None:
        """Nothing more comes.  Raises ImagesDamaged where something is missing."""
        if not self._has_ended:
            raise ImagesDamaged("it was cut short")

    def _begin(self) -> bool:
        if not self._kept.startswith(_FIRST[: len(self._kept)]):
            if self._kept.startswith(MAGIC):
                raise ImagesDamaged("it was made by another version of omfs")
            raise ImagesDamaged("it is no image of a program")
        if len(self._kept) < len(_FIRST):
            return False
        self._take(len(_FIRST))
        self._has_begun = True
        return True

    def _next(self) -> Found | None:
        if self._has_ended or len(self._kept) < _LENGTHS.size:
            return None
        meta_bytes, size_bytes = _LENGTHS.unpack_from(self._kept)
        if meta_bytes > META_MAX_BYTES or size_bytes > BULK_MAX_BYTES:
            raise ImagesDamaged("it is damaged (a length that cannot be)")
        if len(self._kept) < _LENGTHS.size + meta_bytes + size_bytes:
            return None
        record = _decoded(bytes(self._kept[_LENGTHS.size : _LENGTHS.size + meta_bytes]))
        if size_bytes > _BULK_MAX.get(type(record), 0):
            raise ImagesDamaged(f"it is damaged ({type(record).__name__} with {size_bytes} bytes)")
        digest = b""
        if isinstance(record, Seal):
            digest, self._has_ended = self._sum.digest(), True
        self._take(_LENGTHS.size + meta_bytes)
        return Found(record, self._take(size_bytes), digest)

    def _take(self, size_bytes: int) -> bytes:
        data = bytes(self._kept[:size_bytes])
        del self._kept[:size_bytes]
        self._sum.update(data)
        return data


def _decoded(message: bytes) -> Record:
    try:
        record: Record = _decoder.decode(message)
    except (msgspec.MsgspecError, UnicodeError):
        raise ImagesDamaged("it is damaged (a record that cannot be read)") from None
    return record


HEAD_MAX_BYTES: Final = len(_FIRST) + _LENGTHS.size + META_MAX_BYTES


def head_in(beginning: bytes) -> Head:
    """*beginning*: the first HEAD_MAX_BYTES of a file, or all where it has less.  Raises ImagesDamaged."""
    for found in Reader().arrived(beginning):
        if isinstance(found.record, Head):
            return found.record
        raise ImagesDamaged("it is damaged (it does not begin with its head)")
    raise ImagesDamaged("it was cut short")


def told(head: Head) -> str:
    """Some lines for who asks what it is."""
    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(head.taken_s))
    every = f", every {head.every_s} s" if head.every_s else ""
    return "\n".join(
        (
            f"program    {head.command}",
            f"taken      {taken}{every}, on node {head.node}; its home was node {head.home}",
            f"user       {head.uid}, group {head.gid}",
            f"processes  {head.processes}, {head.memory_bytes >> 20} MiB",
            f"made by    {head.software}",
        )
    )
