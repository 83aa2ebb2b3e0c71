"""Every message of the wire: golden bytes, round trips, and what a reader makes of anything else."""

from __future__ import annotations

import random
import typing

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from omfs import wire
from omfs.config import BULK_MAX_BYTES, META_MAX_BYTES
from omfs.errors import WireError
from omfs.net.frames import HEADER, HEADER_BYTES, REPLY_BIT, Frame, FrameReader, encode
from omfs.net.repeats import ONCE_ONLY, REPEATABLE_AFTER_RESTART
from tests.unit.goldenframes import GOLDEN

REQUESTS = typing.get_args(wire.Request)
RECALLS = typing.get_args(wire.Recall)
REPLIES = typing.get_args(wire.Reply)


def frame_id_of(message: wire.Message, number: int) -> int:
    return number | REPLY_BIT if type(message) in REPLIES else number


def reader_for(message: wire.Message) -> FrameReader:
    """The reader of the side that may receive it."""
    return FrameReader(at_holder=type(message) in RECALLS)


def read_all(data: bytes, pieces: typing.Iterable[int] = (), reader: FrameReader | None = None) -> list[Frame]:
    """Feed *data* to a reader in *pieces* of these sizes, the rest as it fits."""
    reader = reader or FrameReader()
    sizes = iter(pieces)
    frames: list[Frame] = []
    while data:
        buffer = reader.buffer()
        size_bytes = min(len(buffer), len(data), max(1, next(sizes, len(data))))
        buffer[:size_bytes] = data[:size_bytes]
        data = data[size_bytes:]
        frames += reader.received(size_bytes)
    return frames


def test_every_message_has_golden_bytes() -> None:
    assert {type(message) for message, _ in GOLDEN} == {*REQUESTS, *RECALLS, *REPLIES}


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_bytes(message: wire.Message, golden: str) -> None:
    frame_id = frame_id_of(message, 0x0102)
    assert bytes(encode(frame_id, message)).hex() == golden
    assert read_all(bytes.fromhex(golden), reader=reader_for(message)) == [(frame_id, message, b"")]


def test_a_reply_is_no_request_and_a_request_no_reply() -> None:
    for message, _ in GOLDEN:
        wrong_id = frame_id_of(message, 5) ^ REPLY_BIT
        for at_holder in (False, True):
            with pytest.raises(WireError, match="not one of ours"):
                read_all(bytes(encode(wrong_id, message)), reader=FrameReader(at_holder=at_holder))


def test_only_owners_recall_and_they_ask_for_nothing_else() -> None:
    for message, _ in GOLDEN:
        if type(message) not in REPLIES:
            reader = FrameReader(at_holder=type(message) not in RECALLS)
            with pytest.raises(WireError, match="refused a request that is not one of ours"):
                read_all(bytes(encode(5, message)), reader=reader)


def test_the_lists_of_once_only_requests_hold_requests() -> None:
    assert set(REQUESTS) >= ONCE_ONLY >= REPEATABLE_AFTER_RESTART


def values_of(kind: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Any value that a field of this type may have on the wire (msgpack integers are 64 bits)."""
    if kind is int:
        return st.integers(-(2**63), 2**64 - 1)
    if kind is float:
        return st.floats(allow_nan=False)
    if isinstance(kind, type) and issubclass(kind, wire.Message):
        return st.builds(kind, **{field.name: values_of(field.type) for field in msgspec.structs.fields(kind)})
    if typing.get_origin(kind) is tuple:
        *members, last = typing.get_args(kind)
        if last is Ellipsis:
            return st.lists(values_of(members[0]), max_size=5).map(tuple)
        return st.tuples(*map(values_of, (*members, last)))
    if typing.get_args(kind):
        return st.one_of(*map(values_of, typing.get_args(kind)))
    return st.from_type(kind)


TO_OWNER = st.one_of(*map(values_of, (*REQUESTS, *REPLIES)))
TO_HOLDER = st.one_of(*map(values_of, (*RECALLS, *REPLIES)))


def sent(messages: st.SearchStrategy[wire.Message]) -> st.SearchStrategy[list[tuple[wire.Message, int, bytes]]]:
    return st.lists(st.tuples(messages, st.integers(0, 2**63 - 1), st.binary(max_size=300)), max_size=5)


@given(st.booleans(), st.data())
def test_round_trip(at_holder: bool, data: st.DataObject) -> None:
    frames = [
        (frame_id_of(message, number), message, bulk)
        for message, number, bulk in data.draw(sent(TO_HOLDER if at_holder else TO_OWNER))
    ]
    stream = b"".join(bytes(encode(frame_id, message, len(bulk))) + bulk for frame_id, message, bulk in frames)
    pieces = data.draw(st.lists(st.integers(1, 200), max_size=20))
    assert read_all(stream, pieces, FrameReader(at_holder=at_holder)) == frames


# ---------------------------------------------------------------- what is not ours


def outcome(data: bytes, at_holder: bool = False) -> list[Frame] | None:
    """The frames, or None for a WireError; anything else that is raised fails the test."""
    try:
        return read_all(data, reader=FrameReader(at_holder=at_holder))
    except WireError:
        return None


@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_raise_nothing_but_wire_errors(data: bytes, at_holder: bool) -> None:
    outcome(data, at_holder)


@given(st.binary(min_size=1, max_size=400), st.booleans())
@example(b"\x91" * 400, False)  # arrays in arrays
@example(b"\x92\xa4Ping\x91" + b"\x91" * 300, False)
@example(b"\x93\xa6Failed\x05\xa2\xff\xfe", True)  # text that is not UTF-8
@example(b"\xdd\xff\xff\xff\xff", False)  # an array of 4 thousand million
@example(b"\xc6\xff\xff\xff\xff", True)
def test_random_messages_raise_nothing_but_wire_errors(meta: bytes, is_reply: bool) -> None:
    for at_holder in (False, True):
        outcome(HEADER.pack(len(meta), 0, REPLY_BIT if is_reply else 0) + meta, at_holder)


def test_nesting_deeper_than_the_stack_is_refused() -> None:
    meta = b"\x91" * 200_000
    assert outcome(HEADER.pack(len(meta), 0, 1) + meta) is None


@given(st.sampled_from([golden for _, golden in GOLDEN]), st.data())
def test_truncated_frames_are_not_there_yet(golden: str, data: st.DataObject) -> None:
    frame = bytes.fromhex(golden)
    assert read_all(frame[: data.draw(st.integers(0, len(frame) - 1))]) == []


@given(st.sampled_from(GOLDEN), st.data())
def test_truncated_messages_are_refused(sample: tuple[wire.Message, str], data: st.DataObject) -> None:
    message, golden = sample
    frame = bytes.fromhex(golden)
    _, _, frame_id = HEADER.unpack_from(frame)
    meta = frame[HEADER_BYTES : data.draw(st.integers(HEADER_BYTES + 1, len(frame) - 1))]
    assert outcome(HEADER.pack(len(meta), 0, frame_id) + meta, type(message) in RECALLS) is None


@given(st.sampled_from([golden for _, golden in GOLDEN]), st.randoms(use_true_random=False))
def test_damaged_frames_raise_nothing_but_wire_errors(golden: str, chance: random.Random) -> None:
    frame = bytearray.fromhex(golden)
    for _ in range(chance.randint(1, 4)):
        frame[chance.randrange(len(frame))] = chance.randrange(256)
    for at_holder in (False, True):
        outcome(bytes(frame), at_holder)


@pytest.mark.parametrize(
    ("meta_bytes", "bulk_bytes"),
    [(0, 0), (META_MAX_BYTES + 1, 0), (5, BULK_MAX_BYTES + 1), (2**32 - 1, 2**32 - 1)],
)
def test_frames_over_the_limits_are_refused_by_their_header(meta_bytes: int, bulk_bytes: int) -> None:
    with pytest.raises(WireError, match=f"refused a frame of {meta_bytes} bytes with {bulk_bytes}"):
        read_all(HEADER.pack(meta_bytes, bulk_bytes, 1))


@pytest.mark.parametrize(
    "message",
    [
        ["Shout"],
        ["Ping", 1],
        ["CancelRequest"],
        ["CancelRequest", "1"],
        ["CancelRequest", 1, None],
        ["GetAttributes", "text"],
        ["LookUp", b"p", b"n", [0]],
        ["Hello", 1, "x", 1, 2, True, b"", b"", 7],
        {"type": "Ping"},
        "Ping",
        None,
        [],
    ],
)
def test_unknown_types_fields_and_values_are_refused(message: object) -> None:
    meta = msgspec.msgpack.encode(message)
    with pytest.raises(WireError, match="refused a request that is not one of ours"):
        read_all(HEADER.pack(len(meta), 0, 1) + meta)
