"""A gossip message as bytes: msgpack, so many records as fit, every number within its bounds.

The limits are the reason for the units here: an age in milliseconds, memory in MiB, a version as one number.  What it
does not do: sign (gossipseal.py), or judge what is said (gossip.py).  Pure.  Called by gossipport.py.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

import msgspec

from mignode.gossip import WINDOW, Message, Said
from mignode.nodeinfo import NodeInfo
from omfs.errors import WireError

VERSION: Final = 2
DATAGRAM_MAX_BYTES: Final = 1400  # an Ethernet frame, and a tunnel around it
_MIB: Final = 1 << 20
_AGE_MAX_MS: Final = 2**31 - 1
_LOAD_MAX: Final = 2**31 - 1

_Node: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_Load: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_LOAD_MAX)]
_Memory: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32)]
_Age: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_AGE_MAX_MS)]
_Since: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=_AGE_MAX_MS)]
_Percent: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=100)]
_Status: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0x7F)]
_Release: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**24 - 1)]


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Of one node; the memory in MiB."""

    node: _Node
    incarnation: _Count
    seq: _Count
    age_ms: _Age
    load: _Load
    frozen: _Load
    speed: _Node
    cpus: _Node
    free: _Memory
    raw_free: _Memory
    total: _Memory
    util: _Percent
    status: _Status
    release: _Release
    suspected_ms: _Since


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """What a message of any version begins with."""

    version: int


class _Datagram(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    sender: _Node
    incarnation: _Count
    number: _Count
    to: _Node
    to_incarnation: _Count
    asks: bool
    records: Annotated[list[_Record], msgspec.Meta(min_length=1, max_length=4 * WINDOW)]


_encode: Final = msgspec.msgpack.Encoder().encode
_heads: Final = msgspec.msgpack.Decoder(_Head)
_datagrams: Final = msgspec.msgpack.Decoder(_Datagram)


def encode(message: Message, room_bytes: int) -> bytes:
    """The message with as many records as fit into *room_bytes*, the first ones; the sender's own always does."""
    fields = (VERSION, *message[:6])
    left = room_bytes - len(_encode((*fields, ()))) - 2  # the array of records may need a longer head
    records: list[msgspec.Raw] = []
    for said in message.records:
        packed = _encode(_packed(said))
        left -= len(packed)
        if left < 0 and records:
            break
        records.append(msgspec.Raw(packed))
    return _encode((*fields, records))


def decode(data: bytes) -> Message:
    """Raises WireError, which says what is wrong."""
    try:
        version = _heads.decode(data).version
        if version != VERSION:
            raise WireError(f"gossip of version {version}, we speak {VERSION}: install the same version on all nodes")
        one = _datagrams.decode(data)
    except msgspec.DecodeError as error:
        raise WireError(f"not a message of gossip: {error}") from None
    if one.records[0].node != one.sender:
        raise WireError(f"node {one.sender} begins with a record of node {one.records[0].node}")
    records = tuple(_unpacked(record) for record in one.records)
    return Message(one.sender, one.incarnation, one.number, one.to, one.to_incarnation, one.asks, records)


def _packed(said: Said) -> _Record:
    info = said.info
    return _Record(
        info.node, info.incarnation, info.seq, _milliseconds(said.age_s), min(info.load, _LOAD_MAX),
        min(info.frozen, _LOAD_MAX), info.speed, info.cpus, info.mem_free // _MIB, info.mem_raw_free // _MIB,
        info.mem_total // _MIB, info.util, info.status, _release_of(info.version),
        _milliseconds(said.suspected_s) if said.suspected_s >= 0 else -1,
    )  # fmt: skip


def _unpacked(record: _Record) -> Said:
    info = NodeInfo(
        node=record.node, incarnation=record.incarnation, seq=record.seq, load=record.load, frozen=record.frozen,
        speed=record.speed, cpus=record.cpus, mem_free=record.free * _MIB, mem_raw_free=record.raw_free * _MIB,
        mem_total=record.total * _MIB, util=record.util, status=record.status, version=_version_of(record.release),
    )  # fmt: skip
    return Said(info, record.age_ms / 1000, record.suspected_ms / 1000 if record.suspected_ms >= 0 else -1.0)


def _milliseconds(seconds: float) -> int:
    return max(0, min(_AGE_MAX_MS, round(seconds * 1000)))


def _release_of(version: str) -> int:
    """Three numbers below 256 as one; 0 for what is none."""
    parts = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})", version, re.ASCII)
    numbers = [int(part) for part in parts.groups()] if parts else [0]
    return int.from_bytes(bytes(numbers), "big") if max(numbers) < 256 else 0


def _version_of(release: int) -> str:
    return ".".join(map(str, release.to_bytes(3, "big"))) if release else ""
