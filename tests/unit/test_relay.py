"""mignode/relay.py: each stream arrives once and in order, whatever the way between the two ends does."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mignode.relay import FRAME_MAX_BYTES, PIECE_BYTES, WINDOW_BYTES, Relay, Stream, begun_anew
from omfs.errors import WireError

A_TO_B = (Stream.CONTROL, Stream.INPUT)
B_TO_A = (Stream.CONTROL, Stream.OUTPUT, Stream.ERRORS)
WAYS = (("a", A_TO_B), ("b", B_TO_A))


def made(end: str, state: bytes = b"") -> Relay:
    return Relay(A_TO_B, B_TO_A, state) if end == "a" else Relay(B_TO_A, A_TO_B, state)


def other(end: str) -> str:
    return "b" if end == "a" else "a"


class Lines(RuleBasedStateMachine):
    """Two ends with a way that is cut and changed at will; one end may be moved, or a move fail."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = {"a": made("a"), "b": made("b")}
        self.frozen: set[str] = set()
        self.under_way: dict[str, list[bytes]] = {"a": [], "b": []}  # to whom
        self.put = {(end, stream): bytearray() for end, streams in WAYS for stream in streams}
        self.taken = {key: bytearray() for key in self.put}
        self.ended: set[tuple[str, Stream]] = set()
        self.is_connected = False

    def send(self) -> None:
        for end in ("a", "b"):
            if end not in self.frozen:
                frames = list(self.ends[end].frames())
                assert all(len(frame) <= FRAME_MAX_BYTES for frame in frames)
                if self.is_connected:
                    self.under_way[other(end)] += frames

    @rule(side=st.sampled_from(WAYS), which=st.integers(0, 2), size=st.integers(1, 3 * PIECE_BYTES))
    def writes(self, side: tuple[str, tuple[Stream, ...]], which: int, size: int) -> None:
        end, streams = side
        stream = streams[which % len(streams)]
        if (end, stream) in self.ended or end in self.frozen:
            return
        before = len(self.put[end, stream])
        data = bytes((before + index) * 7 % 251 for index in range(min(size, self.ends[end].room(stream))))
        self.ends[end].put(stream, data)
        self.put[end, stream] += data

    @rule(side=st.sampled_from(WAYS), which=st.integers(0, 2))
    def ends_it(self, side: tuple[str, tuple[Stream, ...]], which: int) -> None:
        end, streams = side
        stream = streams[which % len(streams)]
        if stream is not Stream.CONTROL and end not in self.frozen:
            self.ends[end].end(stream)
            self.ended.add((end, stream))

    @rule(side=st.sampled_from(WAYS), which=st.integers(0, 2), size=st.integers(1, 2 * PIECE_BYTES), back=st.booleans())
    def reads(self, side: tuple[str, tuple[Stream, ...]], which: int, size: int, back: bool) -> None:
        end, streams = side
        stream = streams[which % len(streams)]
        if other(end) in self.frozen:
            return
        reader = self.ends[other(end)]
        data = reader.peek(stream, size)
        reader.took(stream, len(data))
        if back:
            kept = data[: len(data) // 2]
            reader.put_back(stream, data[len(kept) :])
            data = kept
        self.taken[end, stream] += data
        assert self.put[end, stream].startswith(self.taken[end, stream])
        assert reader.taken(stream) == len(self.taken[end, stream])

    @rule(end=st.sampled_from("ab"), count=st.integers(1, 20))
    def arrives(self, end: str, count: int) -> None:
        self.send()
        frames, self.under_way[end] = self.under_way[end][:count], self.under_way[end][count:]
        for frame in frames:
            if end not in self.frozen:
                self.ends[end].received(frame)

    @rule(first=st.sampled_from("ab"), lost=st.sets(st.sampled_from("ab")))
    def is_cut_and_connected(self, first: str, lost: set[str]) -> None:
        """Both ends know; or one only, because the other's part of the way is still there."""
        self.send()
        self.is_connected = True
        for end in ("a", "b"):
            self.under_way[end] = []
        for end in (first, other(first)):
            if end == first or end in lost:
                self.ends[end].disconnected()
                if end not in self.frozen:
                    self.ends[end].connected()
        if not self.has_connected_once:
            self.ends[other(first)].connected()
            self.has_connected_once = True

    has_connected_once = False

    @precondition(lambda self: not self.frozen)
    @rule(end=st.sampled_from("ab"))
    def freezes(self, end: str) -> None:
        self.send()
        self.frozen.add(end)
        self.state = self.ends[end].state()

    @precondition(lambda self: self.frozen)
    @rule(moves=st.booleans())
    def thaws_or_moves(self, moves: bool) -> None:
        (end,) = self.frozen
        self.frozen.clear()
        if moves:
            self.ends[end] = made(end, self.state)
            self.under_way[other(end)] = []  # what the old one sent last may be lost
        if self.is_connected:
            self.ends[end].connected()

    @invariant()
    def memory_is_bounded(self) -> None:
        for end, streams in WAYS:
            for stream in streams:
                assert self.ends[end].room(stream) <= WINDOW_BYTES
                assert len(self.put[end, stream]) - len(self.taken[end, stream]) <= 2 * WINDOW_BYTES

    def teardown(self) -> None:
        """In the end everything arrives."""
        if self.frozen:
            self.thaws_or_moves(True)
        self.is_connected = True
        for end in ("a", "b"):
            self.under_way[end] = []
            self.ends[end].connected()
        for _ in range(400):
            for end in ("a", "b"):
                self.arrives(end, 1000)
            for side in WAYS:
                for which in range(len(side[1])):
                    self.reads(side, which, 1 << 20, False)
        assert self.taken == self.put
        for end, stream in self.put:
            assert self.ends[other(end)].is_at_end(stream) == ((end, stream) in self.ended)
            assert self.ends[end].is_ended(stream) == ((end, stream) in self.ended)


Lines.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLines = Lines.TestCase


def pair() -> tuple[Relay, Relay]:
    a, b = made("a"), made("b")
    a.connected()
    b.connected()
    exchange(a, b)
    return a, b


def exchange(a: Relay, b: Relay) -> int:
    """Until nothing more is said; how many frames."""
    count = 0
    while frames := [(b, frame) for frame in a.frames()] + [(a, frame) for frame in b.frames()]:
        count += len(frames)
        for to, frame in frames:
            to.received(frame)
    return count


def test_who_does_not_read_stops_the_writer_and_nobody_else() -> None:
    a, b = pair()
    a.put(Stream.INPUT, bytes(a.room(Stream.INPUT)))
    exchange(a, b)
    assert a.room(Stream.INPUT) == 0
    a.put(Stream.INPUT, b"drained")  # what must go out of a program goes
    a.put(Stream.CONTROL, b"a signal")
    exchange(a, b)
    assert b.peek(Stream.CONTROL) == b"a signal"
    b.took(Stream.INPUT, WINDOW_BYTES)
    exchange(a, b)
    assert b.peek(Stream.INPUT) == b"drained"
    assert a.room(Stream.INPUT) == WINDOW_BYTES - len(b"drained")


def test_all_is_settled_when_the_other_end_has_it() -> None:
    a, b = pair()
    assert a.is_settled()
    a.put(Stream.CONTROL, b"x")
    a.end(Stream.INPUT)
    a.end(Stream.INPUT)
    assert not a.is_settled()
    exchange(a, b)
    assert a.is_settled()
    assert a.room(Stream.INPUT) == 0
    assert a.offset(Stream.CONTROL) == 1
    a.connected()
    exchange(a, b)
    assert a.is_settled()


def test_much_data_needs_few_other_frames() -> None:
    a, b = pair()
    count = 0
    for _ in range(64):
        a.put(Stream.INPUT, bytes(PIECE_BYTES))
        b.took(Stream.INPUT, len(b.peek(Stream.INPUT)))
        count += exchange(a, b)
    assert count <= 64 * 1.75


def test_what_nobody_granted_is_refused() -> None:
    a, b = pair()
    for frame in (
        b"", b"\x09", b"\x01", b"\x02\x01", b"\x03\x01", b"\x04", b"\x04\x01\x00",
        b"\x01\x07" + bytes(8) + b"x",  # no such stream
        b"\x01\x02" + bytes(8) + b"x",  # not one that it receives
        b"\x01\x01" + bytes(8) + bytes(WINDOW_BYTES + 1),
        b"\x02\x01" + bytes(8) + b"x",  # an end with data
        b"\x03\x02" + (5).to_bytes(8, "big") + bytes(8),  # more than was sent
    ):  # fmt: skip
        with pytest.raises(WireError):
            b.received(frame)
    a.end(Stream.INPUT)
    exchange(a, b)
    with pytest.raises(WireError):
        b.received(b"\x01\x01" + bytes(8) + b"xx")  # after the end


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    _, b = pair()
    for frame in (data, b"\x01\x01" + data, b"\x04\x01" + data):
        with contextlib.suppress(WireError):
            b.received(frame)


@pytest.mark.parametrize("state", [b"x", made("a").state(), b"\x80"])
def test_a_state_of_something_else_is_refused(state: bytes) -> None:
    with pytest.raises(WireError, match="bad state"):
        made("b", state)


def test_without_a_way_nothing_is_said_or_heard() -> None:
    a, b = pair()
    a.put(Stream.CONTROL, b"x")
    (frame,) = a.frames()
    b.disconnected()
    b.received(frame)
    assert b.peek(Stream.CONTROL) == b""
    assert not list(b.frames())


@given(st.binary(max_size=2000), st.binary(max_size=2000), st.integers(0, 2000), st.booleans(), st.booleans())
def test_an_end_may_begin_anew_with_another(
    said: bytes, heard: bytes, read: int, in_ends: bool, out_ends: bool
) -> None:
    """An image is taken while the first end has heard some of it; the second, made anew, hears what was not heard."""
    first, body = made("a"), made("b")
    first.connected(), body.connected()
    first.put(Stream.INPUT, heard)
    exchange(first, body)
    took = min(read, len(heard))
    body.took(Stream.INPUT, took)
    first.put(Stream.CONTROL, b"not for anybody else")
    if in_ends:
        first.end(Stream.INPUT)
    exchange(first, body)
    body.put(Stream.OUTPUT, said)
    if out_ends:
        body.end(Stream.OUTPUT)
    state, has_input = begun_anew(body.state(), b"told")
    assert has_input == (not in_ends)

    again, second = made("b", state), made("a")
    again.connected(), second.connected()
    second.put(Stream.INPUT, b"new") if has_input else second.end(Stream.INPUT)
    exchange(again, second)
    assert again.peek(Stream.INPUT) == heard[took:] + (b"new" if has_input else b"")
    assert again.peek(Stream.CONTROL) == b""
    again.took(Stream.INPUT, len(again.peek(Stream.INPUT)))
    assert again.is_at_end(Stream.INPUT) == in_ends
    assert (second.peek(Stream.OUTPUT), second.peek(Stream.CONTROL)) == (said, b"told")
    second.took(Stream.OUTPUT, len(said))
    assert second.is_at_end(Stream.OUTPUT) == out_ends
    assert again.taken(Stream.INPUT) == (3 if has_input else 0)


def test_a_state_that_is_none_begins_nothing() -> None:
    with pytest.raises(WireError):
        begun_anew(b"nothing")
