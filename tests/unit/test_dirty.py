"""What waits to be sent, against a plain bytearray: whatever is joined and in whatever order it arrives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from omfs.mount import dirty
from omfs.mount.dirty import PIECE_BYTES, Dirty, Piece


def put(file: bytearray, offset: int | None, data: bytes | bytearray) -> None:
    start = len(file) if offset is None else offset
    file.extend(bytes(max(0, start - len(file))))
    file[start : start + len(data)] = data


def taken(waiting: Dirty) -> Piece:
    piece = waiting.take()
    assert piece is not None
    return piece


WRITES = st.tuples(
    st.just("write"), st.one_of(st.none(), st.integers(0, 40)), st.integers(1, 12), st.booleans()
)  # fmt: skip
STEPS = st.lists(
    st.one_of(
        WRITES,
        st.tuples(st.just("take")),
        st.tuples(st.just("sent"), st.integers(0, 7)),
        st.tuples(st.just("put back"), st.integers(0, 7), st.booleans()),
    ),
    max_size=60,
)


@given(steps=STEPS)
def test_the_owner_ends_up_with_what_was_written(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirty, "PIECE_BYTES", 16)
        waiting, wanted, owner = Dirty(), bytearray(), bytearray()
        flying: list[Piece] = []
        fill = 0

        def arrive(piece: Piece) -> None:
            put(owner, piece.offset, piece.data)

        for step in steps:
            match step:
                case ("write", offset, size_bytes, kill):
                    fill += 1
                    data = bytes([fill % 255 + 1]) * size_bytes
                    put(wanted, offset, data)
                    waiting.write(offset, data, kill)
                case ("take",):
                    if (piece := waiting.take()) is not None:
                        assert len(piece.data) <= 16
                        assert not any(one.meets(piece.offset, len(piece.data)) for one in flying)
                        flying.append(piece)
                case ("sent", which) if flying:
                    piece = flying.pop(which % len(flying))
                    arrive(piece)
                    waiting.sent(piece)
                case ("put back", which, did_arrive) if flying:
                    piece = flying[which % len(flying)]
                    if piece.offset is not None:
                        flying.remove(piece)
                        if did_arrive:  # the reply was lost: it is written a second time
                            arrive(piece)
                        waiting.put_back(piece)
            assert waiting.sending == len(flying)
        while waiting.size_bytes:
            if (next_ := waiting.take()) is not None:
                flying.append(next_)
            else:
                piece = flying.pop()
                arrive(piece)
                waiting.sent(piece)
        assert owner == wanted
        assert (waiting.waiting, waiting.sending, waiting.oldest) == (0, 0, math.inf)


def test_small_writes_in_a_row_are_one_request() -> None:
    waiting = Dirty()
    for number in range(256):
        waiting.write(number * 4096, bytes([number]) * 4096, False)
        assert waiting.is_ready is (number == 255)
    assert waiting.waiting == 1
    waiting.write(PIECE_BYTES, b"x", False)
    piece = taken(waiting)
    assert (piece.offset, len(piece.data)) == (0, PIECE_BYTES)
    assert taken(waiting).data == b"x", "beside it: they do not overlap"
    assert waiting.size_bytes == PIECE_BYTES + 1


def test_appends_are_joined_with_appends_only_and_sent_alone() -> None:
    waiting = Dirty()
    waiting.write(None, b"one ", False)
    waiting.write(None, b"two", False)
    waiting.write(0, b"O", False)
    waiting.write(None, b"!", False)
    assert waiting.waiting == 3
    first = taken(waiting)
    assert (first.offset, first.data) == (None, b"one two")
    assert waiting.take() is None, "where an append ends up depends on what is before it"
    waiting.sent(first)
    assert taken(waiting).data == b"O"
    assert waiting.take() is None


def test_what_keeps_the_set_id_bits_is_not_joined_with_what_drops_them() -> None:
    waiting = Dirty()
    waiting.write(0, b"a", False)
    waiting.write(1, b"b", True)
    waiting.write(2, b"c", True)
    assert [(taken(waiting).data, taken(waiting).data)] == [(b"a", b"bc")]


def test_the_same_block_written_again_and_again_is_sent_once() -> None:
    waiting = Dirty()
    for number in range(100):
        waiting.write(512, bytes([number]) * 512, False)
        waiting.write(8192 + number, b"x", False)
    assert waiting.size_bytes == 512 + 100
    assert taken(waiting).data == bytes([99]) * 512


def test_a_newer_write_in_between_is_not_passed_by() -> None:
    waiting = Dirty()
    waiting.write(0, b"aa", False)
    waiting.write(1, b"bb", True)  # overlaps, and can't be joined
    waiting.write(0, b"cc", False)  # would fit the first, which is older than the second
    assert [bytes(one.data) for one in waiting._waiting] == [b"aa", b"bb", b"cc"]


def test_numbers_tell_what_is_still_on_its_way() -> None:
    waiting = Dirty()
    assert waiting.oldest == math.inf
    assert not waiting.is_ready
    waiting.write(0, b"a", False)
    waiting.write(10, b"b", False)
    first, second = taken(waiting), taken(waiting)
    waiting.write(20, b"c", False)
    assert (waiting.oldest, waiting.newest) == (first.number, 3)
    waiting.sent(first)
    assert waiting.oldest == second.number
    waiting.put_back(second)
    assert waiting.oldest == second.number
    assert taken(waiting) is second, "the oldest first"


def test_what_is_lost_is_counted_and_marked() -> None:
    waiting = Dirty()
    waiting.write(0, b"aaa", False)
    flying = taken(waiting)
    waiting.write(10, b"bb", False)
    assert waiting.lose() == 5
    assert (flying.is_lost, waiting.waiting, waiting.size_bytes) == (True, 0, 3)
    waiting.sent(flying)
    assert waiting.size_bytes == 0
