"""mignode/bodyfiles.py by itself: hops without CRIU, and what a deputy may not do.

What programs see of it is in test_mosrun.py, test_mosrun_terminal.py and tests/lab/test_standardfiles.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
from collections.abc import Iterator

import pytest

from mignode.bodyfiles import BodyFiles, restarted
from mignode.filewords import (
    Continued,
    Ended,
    FilesPlan,
    InputUnwanted,
    Kind,
    ReaderGone,
    Signalled,
    Stopped,
    pack,
    words_in,
)
from mignode.relay import FROM_BODY, TO_BODY, Relay, Stream
from omfs.errors import WireError

PIPES = FilesPlan((Kind.PIPE, Kind.PIPE, Kind.PIPE))


class Ends:
    """The two ends, and the program's descriptors, which we have ourselves."""

    def __init__(self, plan: FilesPlan, owner: tuple[int, int] | None = None) -> None:
        self.signals: list[tuple[int, bool]] = []
        self.deputy = Relay(TO_BODY, FROM_BODY)
        self.sent: list[bytes] = []
        self.body = BodyFiles(plan, self.sent.append, self, owner=owner)
        self.its: dict[int, int] = {}
        self.take()
        self.deputy.connected()
        self.body.connected()
        self.turn()

    def take(self) -> None:
        """Have what the program has; as a restore does, with the same keys."""
        self.give_up()
        self.its = {number: os.dup(end) for number, end in self.body.guest_ends.items()}
        self.body.given()

    def give_up(self) -> None:
        for end in self.its.values():
            os.close(end)
        self.its = {}

    def signal(self, number: int, group: bool) -> None:
        self.signals.append((number, group))

    def turn(self) -> None:
        """Until nothing moves any more."""
        moved = True
        while moved:
            frames, self.sent[:] = list(self.sent), []
            for frame in frames:
                self.deputy.received(frame)
            answers = list(self.deputy.frames())
            for frame in answers:
                self.body.received(frame)
            moved = bool(frames or answers)
            for fd, events in self.body.descriptors():
                poll = select.poll()
                poll.register(fd, (select.POLLIN if events & 1 else 0) | (select.POLLOUT if events & 2 else 0))
                for _, found in poll.poll(0):
                    moved = True
                    read = selectors.EVENT_READ if found & ~select.POLLOUT else 0
                    self.body.ready(fd, (read | (selectors.EVENT_WRITE if found & ~select.POLLIN else 0)) & events)

    def hop(self) -> None:
        state = self.body.freeze()
        self.body.close()
        self.sent.clear()  # of the old one, on its way
        self.body = BodyFiles(PIPES, self.sent.append, self, state)
        assert len(self.body.inherited()) == len(self.body.guest_ends)
        self.take()
        self.body.connected()
        self.turn()

    def reads(self, stream: Stream) -> bytes:
        data = self.deputy.peek(stream, 1 << 20)
        self.deputy.took(stream, len(data))
        return data

    def hears(self) -> list[object]:
        data = self.reads(Stream.CONTROL)
        return [word for word, _ in words_in(data)]

    def close(self) -> None:
        self.give_up()
        self.body.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends(PIPES)
    yield made
    made.close()


def test_what_was_on_its_way_goes_along(ends: Ends) -> None:
    ends.deputy.put(Stream.INPUT, b"one two")
    ends.turn()
    assert os.read(ends.its[0], 3) == b"one"
    os.write(ends.its[1], b"said")
    ends.hop()
    assert ends.reads(Stream.OUTPUT) == b"said"
    ends.deputy.put(Stream.INPUT, b" three")
    ends.deputy.end(Stream.INPUT)
    ends.turn()
    ends.hop()
    assert os.read(ends.its[0], 100) == b" two three"
    assert os.read(ends.its[0], 100) == b""


def restart(ends: Ends, *, has_input: bool = True) -> None:
    """From an image, with a deputy that knows nothing."""
    state, goes_on = restarted(ends.body.freeze())
    assert goes_on == has_input
    ends.body.close()
    ends.sent.clear()
    ends.deputy = Relay(TO_BODY, FROM_BODY)
    if not has_input:
        ends.deputy.end(Stream.INPUT)
    ends.body = BodyFiles(PIPES, ends.sent.append, ends, state)
    ends.take()
    ends.deputy.connected()
    ends.body.connected()
    ends.turn()


def test_another_deputy_goes_on_with_an_image(ends: Ends) -> None:
    ends.deputy.put(Stream.INPUT, b"one two")
    ends.turn()
    assert os.read(ends.its[0], 3) == b"one"
    os.write(ends.its[1], b"said")
    restart(ends)
    assert ends.reads(Stream.OUTPUT) == b"said"
    ends.deputy.put(Stream.INPUT, b" three")
    ends.turn()
    assert os.read(ends.its[0], 100) == b" two three"
    ends.body.ended(0)
    ends.turn()
    (ended,) = [word for word, _ in words_in(ends.deputy.peek(Stream.CONTROL)) if isinstance(word, Ended)]
    assert ended.input_taken == 6  # of the new one's


def test_an_input_that_had_ended_stays_so(ends: Ends) -> None:
    ends.deputy.put(Stream.INPUT, b"one")
    ends.deputy.end(Stream.INPUT)
    ends.turn()
    restart(ends, has_input=False)
    assert (os.read(ends.its[0], 100), os.read(ends.its[0], 100)) == (b"one", b"")


def test_another_deputy_hears_that_nobody_reads(ends: Ends) -> None:
    os.close(ends.its.pop(0))
    ends.deputy.put(Stream.INPUT, b"in vain")
    ends.turn()
    restart(ends)
    assert [type(word) for word, _ in words_in(ends.deputy.peek(Stream.CONTROL))] == [InputUnwanted]


def test_a_failed_hop_changes_nothing(ends: Ends) -> None:
    ends.deputy.put(Stream.INPUT, b"one")
    ends.deputy.end(Stream.INPUT)
    ends.turn()
    ends.body.freeze()
    assert ends.body.descriptors() == []
    ends.deputy.put(Stream.CONTROL, pack(Signalled(15, False)))
    ends.turn()
    assert ends.signals == []
    ends.body.thaw()
    ends.turn()
    assert ends.signals == [(15, False)]
    assert (os.read(ends.its[0], 100), os.read(ends.its[0], 100)) == (b"one", b"")


def test_it_is_stopped_with_its_deputy(ends: Ends) -> None:
    """Whoever was first; the other's stop is no news, also on the next node."""
    ends.body.deputy_stopped()
    assert ends.signals == [(signal.SIGSTOP, False)]
    for _ in range(2):
        ends.body.stopped(signal.SIGSTOP)
        ends.turn()
        assert ends.hears() == []
        ends.hop()
    ends.deputy.put(Stream.CONTROL, pack(Signalled(signal.SIGCONT, False)))
    ends.turn()
    ends.body.continued()
    ends.body.stopped(signal.SIGTSTP)
    ends.hop()
    ends.body.deputy_stopped()
    ends.body.stopped(signal.SIGSTOP)
    ends.turn()
    assert ends.hears() == [Continued(), Stopped(signal.SIGTSTP, 0)]
    assert ends.signals[1:] == [(signal.SIGCONT, False)]


def test_its_deputy_is_stopped_while_it_is_frozen(ends: Ends) -> None:
    ends.body.freeze()
    ends.body.deputy_stopped()
    assert ends.signals == []
    ends.body.thaw()
    assert ends.signals == [(signal.SIGSTOP, False)]


def test_a_full_pipe_stops_the_program_only(ends: Ends) -> None:
    os.set_blocking(ends.its[1], False)
    written = 0
    with contextlib.suppress(BlockingIOError):
        while written < 1 << 20:
            written += os.write(ends.its[1], bytes(65536))
            ends.turn()
    assert written < 1 << 20
    ends.hop()
    os.set_blocking(ends.its[1], False)
    seen = b""
    while data := ends.reads(Stream.OUTPUT):
        seen += data
        ends.turn()
    assert len(seen) == written
    assert os.write(ends.its[1], b"x") == 1


def test_ends_are_told(ends: Ends) -> None:
    os.close(ends.its.pop(0))
    ends.deputy.put(Stream.INPUT, b"nobody reads this")
    ends.deputy.put(Stream.CONTROL, pack(ReaderGone(Stream.ERRORS)))
    ends.turn()
    assert ends.hears() == [InputUnwanted()]
    with pytest.raises(BrokenPipeError):
        os.write(ends.its[2], b"x")
    ends.hop()
    assert 0 not in ends.its
    with pytest.raises(BrokenPipeError):
        os.write(ends.its[2], b"x")
    os.write(ends.its[1], b"last")
    ends.body.stopped(20)
    ends.body.ended(256)
    assert not ends.body.is_finished
    ends.give_up()
    ends.turn()
    assert ends.hears() == [Stopped(20, 0), Ended(256, {2: 4, 3: 0, 4: 0}, 0)]
    assert ends.reads(Stream.OUTPUT) == b"last"
    assert ends.deputy.is_at_end(Stream.OUTPUT)
    assert ends.body.is_finished


def test_what_is_left_of_the_input_is_counted(ends: Ends) -> None:
    ends.deputy.put(Stream.INPUT, b"one two")
    ends.turn()
    os.read(ends.its[0], 3)
    ends.give_up()
    ends.body.ended(0)
    ends.turn()
    assert ends.hears() == [Ended(0, {2: 0, 3: 0, 4: 0}, 3)]


def test_a_child_may_still_read_what_is_left(ends: Ends) -> None:
    ends.deputy.put(Stream.INPUT, b"one two")
    ends.turn()
    ends.body.ended(0)
    ends.turn()
    assert ends.hears() == [Ended(0, {2: 0, 3: 0, 4: 0}, 7)]
    assert os.read(ends.its[0], 100) == b"one two"


def test_a_deputy_that_breaks_the_rules_is_not_heard_until_it_connects(ends: Ends) -> None:
    for bad in (b"garbage", b"\x01\x00" + bytes(8) + b"\xff\xff"):
        ends.body.received(bad)
        ends.deputy.put(Stream.CONTROL, pack(Signalled(1, False)))
        ends.turn()
        assert ends.signals == []
    ends.body.connected()
    ends.turn()
    assert ends.signals == [(1, False), (1, False)]


def test_only_what_a_terminal_sends_goes_to_the_group(ends: Ends) -> None:
    ends.deputy.put(Stream.CONTROL, pack(Signalled(2, True)) + pack(Signalled(9, True)))
    ends.turn()
    assert ends.signals == [(2, True), (9, False)]


def test_a_state_that_is_none_is_refused() -> None:
    with pytest.raises(WireError, match="bad state"):
        BodyFiles(PIPES, lambda frame: None, Ends, b"\x80")  # type: ignore[arg-type]


def test_the_program_owns_its_files() -> None:
    made = Ends(FilesPlan((Kind.PIPE, Kind.TERMINAL, Kind.PIPE)), (1234, 1235))
    assert [os.fstat(made.its[number]).st_uid for number in range(3)] == [1234] * 3
    assert os.fstat(made.its[0]).st_gid == 1235
    made.close()


def test_null_and_nothing() -> None:
    made = Ends(FilesPlan((Kind.NULL, Kind.CLOSED, Kind.NULL)))
    assert set(made.its) == {0, 2}
    assert os.fstat(made.its[0]).st_rdev == os.makedev(1, 3)
    assert made.deputy.is_at_end(Stream.OUTPUT)
    made.close()


def test_nothing_is_left_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    made = Ends(FilesPlan((Kind.PIPE, Kind.TERMINAL, Kind.PIPE)))
    made.deputy.put(Stream.INPUT, b"x")
    made.turn()
    made.hop()
    made.close()
    assert set(os.listdir("/proc/self/fd")) == before
