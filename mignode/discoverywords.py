"""What nodes say to find each other, as bytes: one statement in a datagram, every field within its bounds.

    ask    a node that is starting: who is there?  It is not there itself yet.
    here   a node of itself: I am node N, at these addresses.
    left   of a node that is gone, by itself or by another one (omdiscd --forget).

openMosix had join, ack and leave.  What it does not do: sign (gossipseal.py), or judge (discovery.py).  Pure.
Called by discoveryport.py, and by discovery.py for the words.
"""

from __future__ import annotations

import enum
import ipaddress
from typing import Annotated, Final

import msgspec

from omfs.errors import WireError

VERSION: Final = 1
ADDRESSES_MAX: Final = 16
DIGEST_BYTES: Final = 32
SERIAL_MAX: Final = 2**48


class Kind(enum.IntEnum):
    ASK = 1
    HERE = 2
    LEFT = 3


_Node = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Serial = Annotated[int, msgspec.Meta(ge=0, le=SERIAL_MAX)]
_Word = Annotated[str, msgspec.Meta(max_length=64)]
_Address = Annotated[str, msgspec.Meta(max_length=15)]
_Addresses = Annotated[tuple[_Address, ...], msgspec.Meta(max_length=ADDRESSES_MAX)]
_Digest = Annotated[bytes, msgspec.Meta(max_length=DIGEST_BYTES)]


class Said(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """*sender* says it of *node*.  Of two, the one with the higher *serial* is the later.

    *word*: of which cluster, where certificates don't say that.  *addresses*: the first is the primary one.
    *settled*: it has been here for a while.  *digest*: of the map that the sender makes of all it has heard.
    """

    version: int
    kind: Kind
    sender: _Node
    node: _Node
    serial: _Serial
    word: _Word = ""
    addresses: _Addresses = ()
    settled: bool = False
    digest: _Digest = b""


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """What a statement of any version begins with."""

    version: int


encode: Final = msgspec.msgpack.Encoder().encode
_heads: Final = msgspec.msgpack.Decoder(_Head)
_statements: Final = msgspec.msgpack.Decoder(Said)


def decode(data: bytes) -> Said:
    """Raises WireError, which says what is wrong."""
    try:
        version = _heads.decode(data).version
        if version != VERSION:
            raise WireError(f"discovery of version {version}, we speak {VERSION}: install the same version everywhere")
        said = _statements.decode(data)
    except msgspec.DecodeError as error:
        raise WireError(f"nothing of discovery: {error}") from None
    if said.kind is not Kind.LEFT and said.sender != said.node:
        raise WireError(f"node {said.sender} says where node {said.node} is")
    if bool(said.addresses) != (said.kind is not Kind.LEFT):
        raise WireError(f"{said.kind.name} with {len(said.addresses)} addresses")
    if len(set(said.addresses)) < len(said.addresses) or not all(map(may_be_announced, said.addresses)):
        raise WireError(f"node {said.node} can't be at {', '.join(map(ascii, said.addresses))}")
    return said


def may_be_announced(address: str) -> bool:
    """Whether others could find a node there."""
    try:
        number = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return not (number.is_multicast or number.is_unspecified or number.is_loopback or number.is_reserved)
