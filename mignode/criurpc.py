"""The words of `criu swrk`: requests, answers and notifications as bytes, and back.

CRIU speaks protocol buffers (proto2), one message per packet.  What it needs of them is little: numbered fields that
are integers or bytes, nested a level or two.  So there is no protobuf package here, only their wire rules
(protobuf.dev, "Encoding"): a field is a key, number << 3 | wire type, and a varint or a length with that many bytes;
unknown fields are skipped, of a field that comes twice the last one counts.  The field numbers are those of CRIU's
images/rpc.proto, version 4.2, and never change.

Pure: bytes in, bytes out.  What is asked in which order, and of whom, is known to checkpoint.py, the caller.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from omfs.errors import WireError

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5
_VARINT_MAX_BYTES: Final = 10
_MASK64: Final = (1 << 64) - 1
_NUMBER_MAX: Final = (1 << 29) - 1

Value = int | bytes
Fields = dict[int, list[Value]]
"""By field number, in the order of arrival."""


class Kind(enum.IntEnum):
    """criu_req_type."""

    EMPTY = 0  # in the answer to what CRIU did not understand
    DUMP = 1
    RESTORE = 2
    CHECK = 3
    NOTIFY = 6
    FEATURE_CHECK = 9
    VERSION = 10
    PRE_DUMP = 13  # "SINGLE_PRE_DUMP": plain PRE_DUMP keeps the connection for the next one


class CgroupMode(enum.IntEnum):
    """criu_cg_mode; the others change cgroups, which are the node's."""

    IGNORE = 0


class NetworkLock(enum.IntEnum):
    """criu_network_lock_method: how packets for the connections of a dumped process are held back."""

    NFTABLES = 2
    SKIP = 3


class InheritedFile(NamedTuple):
    """On restore: what was *key* in the dump ("pipe:[123]", "tty[8803:1e]") is now the worker's descriptor *fd*."""

    key: str
    fd: int


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """criu_opts, as far as they are used; None and () are not sent, and CRIU has its own default then."""

    images_dir_fd: int = -1  # CRIU would look into the /proc of whoever made the socket, perhaps in another namespace
    images_dir: str | None = None
    pid: int | None = None
    leave_running: bool | None = None
    ext_unix_sk: bool | None = None
    tcp_established: bool | None = None
    shell_job: bool | None = None
    file_locks: bool | None = None
    log_level: int | None = None
    notify_scripts: bool | None = None
    parent_img: str | None = None
    track_mem: bool | None = None
    link_remap: bool | None = None
    rst_sibling: bool | None = None
    inherit_fd: tuple[InheritedFile, ...] = ()
    manage_cgroups_mode: CgroupMode | None = None
    ghost_limit: int | None = None  # bytes
    external: tuple[str, ...] = ()
    timeout: int | None = None  # seconds
    orphan_pts_master: bool | None = None
    network_lock: NetworkLock | None = None
    leave_stopped: bool | None = None
    log_to_stderr: bool | None = None


_OPTION_NUMBERS: Final = {
    "images_dir_fd": 1, "pid": 2, "leave_running": 3, "ext_unix_sk": 4, "tcp_established": 5, "shell_job": 7,
    "file_locks": 8, "log_level": 9, "notify_scripts": 12, "parent_img": 14, "track_mem": 15, "link_remap": 18,
    "rst_sibling": 26, "inherit_fd": 27, "manage_cgroups_mode": 34, "ghost_limit": 35, "external": 37, "timeout": 45,
    "orphan_pts_master": 50, "network_lock": 64, "images_dir": 68, "leave_stopped": 69, "log_to_stderr": 71,
}  # fmt: skip


class Features(NamedTuple):
    """criu_features: what this CRIU can do on this kernel."""

    memory_tracking: bool  # dumps of only what has changed (soft-dirty)
    lazy_pages: bool  # memory fetched when it is touched (userfaultfd)
    pidfd_store: bool


class Notice(NamedTuple):
    """criu_notify: CRIU has come to a point where it asks whether to go on."""

    name: str  # "post-dump"
    pid: int


class Answer(NamedTuple):
    """criu_resp."""

    kind: int
    success: bool
    pid: int = 0  # of the restored root, in CRIU's PID namespace
    notice: Notice | None = None
    errno: int = 0
    message: str = ""  # the first error
    features: Features | None = None
    version: tuple[int, ...] = ()


# ---------------------------------------------------------------- requests


def request(kind: Kind, options: Options | None = None) -> bytes:
    """A criu_req; what FEATURE_CHECK asks for is everything."""
    fields: list[tuple[int, Value | str]] = [(1, kind)]
    if options is not None:
        fields.append((2, _options(options)))
    if kind == Kind.FEATURE_CHECK:
        fields.append((5, encode([(1, True), (2, True), (3, True)])))
    return encode(fields)


def notice_answer(goes_on: bool) -> bytes:
    """Whether CRIU is to go on after a Notice; if not, it undoes what it has done, and fails."""
    return encode([(1, Kind.NOTIFY), (3, goes_on)])


def _options(options: Options) -> bytes:
    fields: list[tuple[int, Value | str]] = []
    for name, number in _OPTION_NUMBERS.items():
        value = getattr(options, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, InheritedFile):
                one = encode([(1, one.key), (2, one.fd)])
            if one is not None:
                fields.append((number, one))
    return encode(fields)


# ---------------------------------------------------------------- answers


def parse_answer(packet: bytes) -> Answer:
    """Raises WireError where it is not a criu_resp."""
    fields = decode(packet)
    if 1 not in fields or 2 not in fields:
        raise WireError("an answer of criu without type or result")
    return Answer(
        kind=_number(fields, 1),
        success=bool(_number(fields, 2)),
        pid=_number(decode(_bytes(fields, 4)), 1),
        notice=_notice(decode(_bytes(fields, 5))) if 5 in fields else None,
        errno=_number(fields, 7),
        message=_bytes(fields, 9).decode(errors="replace"),
        features=_features(decode(_bytes(fields, 8))) if 8 in fields else None,
        version=_version(decode(_bytes(fields, 10))) if 10 in fields else (),
    )


def _notice(fields: Fields) -> Notice:
    return Notice(_bytes(fields, 1).decode(errors="replace"), _number(fields, 2))


def _features(fields: Fields) -> Features:
    return Features(*(bool(_number(fields, number)) for number in (1, 2, 3)))


def _version(fields: Fields) -> tuple[int, ...]:
    """(4, 2, 1); the third is 0 in an x.y."""
    return tuple(_number(fields, number) for number in (1, 2, 4))


def _number(fields: Fields, number: int) -> int:
    """An int32 field; 0 where there is none."""
    value = fields[number][-1] if number in fields else 0
    if not isinstance(value, int):
        raise WireError(f"field {number} of a message of criu is not a number")
    value &= 0xFFFFFFFF  # what a decoder of int32 does with more bits
    return value - (1 << 32) if value >> 31 else value


def _bytes(fields: Fields, number: int) -> bytes:
    """A string or message; empty where there is none."""
    value = fields[number][-1] if number in fields else b""
    if not isinstance(value, bytes):
        raise WireError(f"field {number} of a message of criu is not a string or message")
    return value


# ---------------------------------------------------------------- the wire rules


def encode(fields: Iterable[tuple[int, Value | str]]) -> bytes:
    """Fields by number, in this order; an int (bool, enum) becomes a varint, negative ones in 64 bits."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3 | _VARINT) + _varint(value & _MASK64)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | _LENGTH) + _varint(len(data)) + data
    return bytes(out)


def decode(data: bytes) -> Fields:
    """Raises WireError for what no encoder makes; groups, which proto2 has given up, are refused."""
    fields: Fields = {}
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire_type = key >> 3, key & 7
        if not 1 <= number <= _NUMBER_MAX:
            raise WireError(f"field number {number} in a message of criu")
        value: Value
        if wire_type == _VARINT:
            value, at = _read_varint(data, at)
        else:
            size, at = _size(data, at, wire_type)
            value = data[at : at + size]
            at += size
            if len(value) != size:
                raise WireError("a message of criu is cut off")
        fields.setdefault(number, []).append(value)
    return fields


def _size(data: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Of the value that follows, and where it begins."""
    if wire_type == _LENGTH:
        return _read_varint(data, at)
    if wire_type in (_FIXED32, _FIXED64):
        return (4 if wire_type == _FIXED32 else 8), at
    raise WireError(f"wire type {wire_type} in a message of criu")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number and where the next thing begins."""
    number = 0
    for index, byte in enumerate(data[at : at + _VARINT_MAX_BYTES]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number & _MASK64, at + index + 1
    raise WireError("a number in a message of criu does not end")
