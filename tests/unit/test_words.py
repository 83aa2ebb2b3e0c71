"""Every word between mignodes: golden bytes, round trips, and what a line makes of anything else."""

from __future__ import annotations

import random
import typing
import zlib

import msgspec
import pytest
from hypothesis import given, strategies as st

from mignode import words
from mignode.line import decode_word
from mignode.words import Word
from omfs.errors import WireError
from omfs.net.frames import HEADER, HEADER_BYTES, Frame, FrameReader, encode
from tests.unit.goldenwords import GOLDEN, GUEST

WORDS = typing.get_args(Word)


def read_all(data: bytes) -> list[Frame]:
    reader = FrameReader(decode=decode_word)
    frames: list[Frame] = []
    while data:
        buffer = reader.buffer()
        size_bytes = min(len(buffer), len(data))
        buffer[:size_bytes] = data[:size_bytes]
        data = data[size_bytes:]
        frames += reader.received(size_bytes)
    return frames


def test_every_word_has_golden_bytes() -> None:
    assert {type(word) for word, _ in GOLDEN} == set(WORDS)


@pytest.mark.parametrize(("word", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_bytes(word: Word, golden: str) -> None:
    assert bytes(encode(0, word)).hex() == golden
    assert read_all(bytes.fromhex(golden)) == [(0, word, b"")]


def test_what_begins_a_line_is_a_word() -> None:
    assert set(typing.get_args(words.FirstWord)) < set(WORDS)
    assert set(words.BULK_MAX) < set(WORDS)


def outcome(data: bytes) -> list[Frame] | None:
    """The frames, or None for a WireError; anything else that is raised fails the test."""
    try:
        return read_all(data)
    except WireError:
        return None


@given(st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_wire_errors(data: bytes) -> None:
    outcome(data)
    outcome(HEADER.pack(len(data), 0, 0) + data)


@given(st.sampled_from([golden for _, golden in GOLDEN]), st.randoms(use_true_random=False))
def test_damaged_frames_raise_nothing_but_wire_errors(golden: str, chance: random.Random) -> None:
    frame = bytearray.fromhex(golden)
    for _ in range(chance.randint(1, 4)):
        frame[chance.randrange(len(frame))] = chance.randrange(256)
    outcome(bytes(frame))


@given(st.sampled_from([golden for _, golden in GOLDEN]), st.data())
def test_truncated_words_are_refused(golden: str, data: st.DataObject) -> None:
    frame = bytes.fromhex(golden)
    meta = frame[HEADER_BYTES : data.draw(st.integers(HEADER_BYTES + 1, len(frame) - 1))]
    assert outcome(HEADER.pack(len(meta), 0, 0) + meta) is None


@pytest.mark.parametrize(
    "word",
    [
        ["Shout"],
        ["Restored", 1],
        ["Commit", GUEST],
        ["Commit", GUEST, 0],
        ["Commit", GUEST, -1],
        ["Commit", "../../etc", 1],
        ["Commit", "1.2.3/../4", 1],
        ["Commit", GUEST + "\n", 1],
        ["Begin", GUEST, 1, 0],
        ["Begin", GUEST, 1, 65536],
        ["ImagePiece", "../passwd", 0, 0],
        ["ImagePiece", "a/b", 0, 0],
        ["ImagePiece", ".", 0, 0],
        ["ImagePiece", "", 0, 0],
        ["ImagePiece", "a" * 101, 0, 0],
        ["ImagePiece", "a", -1, 0],
        ["ImagePiece", "a", 0, 1 << 32],
        ["ImagesSent", [["a", 1], ["..", 1]]],
        ["Ended", 1, 1 << 16],
        ["HomeCall", 1, 1, "kill", [1, 2, 3, 4, 5, 6, 7]],
        ["Refused", 0, ""],
        ["Refused", 1, "x" * 501],
        {"type": "Restored"},
        None,
        [],
    ],
)
def test_unknown_types_fields_and_values_are_refused(word: object) -> None:
    meta = msgspec.msgpack.encode(word)
    with pytest.raises(WireError, match="refused a request that is not one of ours"):
        read_all(HEADER.pack(len(meta), 0, 0) + meta)


def test_the_checksum_is_that_of_zlib() -> None:
    """Both ends must mean the same: 0xCBF43926 is CRC-32's check value."""
    assert zlib.crc32(b"123456789") == 0xCBF43926
