"""A guest's filter is taken out of the images, whatever else is in them, and nothing else is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from dfsa.guestfilter import MARK, filter_for
from mignode.ownfilter import core_without, ours_in
from omfs.errors import WireError

MAGIC = b"\x54\x56\x43\x44magi"
OURS = filter_for("x86_64")


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def image(message: bytes) -> bytes:
    return MAGIC + struct.pack("=I", len(message)) + message


def seccomp_image(filters: list[tuple[bytes, int | None]]) -> bytes:
    """Of (code, place of the next newer one)."""
    entries = [
        text(1, code) + (b"" if newer is None else number(2, newer)) + number(3, 1) for code, newer in filters
    ]  # fmt: skip
    return image(b"".join(text(1, entry) for entry in entries))


def core_image(filter_: int | None, more: bytes = b"") -> bytes:
    """Of a thread; around the filter all kinds of fields that are nobody's business here."""
    seccomp = b"" if filter_ is None else number(11, 2) + number(12, filter_)
    thread = number(1, 2**64 - 1) + text(7, b"stack" * 40) + seccomp + b"\x69" + bytes(8) + b"\x6d" + bytes(4)
    return image(number(1, 1) + text(2, b"registers" * 100) + text(3, b"\x0b\x0c") + text(5, thread) + more)


def test_a_thread_below_ours_alone_is_below_none() -> None:
    assert (ours := ours_in(seccomp_image([(OURS, None)]))) == {0: None}
    assert core_without(core_image(0), ours) == core_image(None)
    assert core_without(core_image(None), ours) == core_image(None)


def test_filters_of_the_program_stay() -> None:
    """As CRIU writes them: the newest first."""
    ours = ours_in(seccomp_image([(b"newer", None), (b"older", 0), (OURS, 1), (b"another thread's", None)]))
    assert ours == {2: 1}
    assert core_without(core_image(2), ours) == core_image(1)
    for first in (0, 1, 3):
        assert core_without(core_image(first), ours) == core_image(first)


def test_a_program_can_not_get_rid_of_a_filter_by_marking_a_later_one() -> None:
    ours = ours_in(seccomp_image([(b"its own" + MARK, None), (b"a sandbox", 0), (OURS, 1)]))
    assert core_without(core_image(1), ours) == core_image(1)
    assert core_without(core_image(2), ours) == core_image(1)


def chain(filters: list[tuple[bytes, int | None]], place: int | None) -> list[bytes]:
    """From the oldest on."""
    found = []
    while place is not None:
        code, place = filters[place]
        found.append(code)
    return found


@given(st.data())
def test_every_thread_is_below_what_it_was_but_ours(data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.sampled_from([OURS, OURS + MARK, b"", b"a" * 8, b"b" * 200]), max_size=6))
    filters = [
        (code, data.draw(st.none() | st.integers(0, place - 1)) if place else None) for place, code in enumerate(codes)
    ]
    ours = ours_in(seccomp_image(filters))
    for place in [None, *range(len(filters))]:
        was = chain(filters, place)
        is_ours = place is not None and was[0].endswith(MARK)
        left = filters[place][1] if place is not None and is_ours else place
        assert core_without(core_image(place), ours) == core_image(left)
        assert chain(filters, left) == was[1 if is_ours else 0 :]


@given(st.binary(max_size=60))
def test_what_is_no_image_is_refused_or_left_alone(garbage: bytes) -> None:
    for whole in (garbage, image(garbage), image(text(1, garbage)), image(text(5, garbage))):
        for read in (ours_in, lambda one: core_without(one, {0: None, 1: 0})):
            try:
                result = read(whole)
            except WireError:
                continue
            assert isinstance(result, dict) or len(result) <= len(whole)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (MAGIC, "an image of 8 bytes"),
        (image(b"")[:-1] + b"\1", "0 bytes instead of one message of"),
        (image(text(1, b"abc")[:-1]), "ends within a field"),
        (image(b"\x08\x80"), "ends within a number"),
        (image(b"\x08" + b"\xff" * 10), "more than 64 bits"),
        (image(b"\x0b"), "a field of type 3"),
        (image(number(1, 1)), "a number where a message should be"),
        (image(text(1, text(1, MARK) + text(2, b""))), "a message where a number should be"),
    ],
)
def test_what_is_wrong_is_said(broken: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        ours_in(broken)
