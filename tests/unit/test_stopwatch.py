"""What is told of a journey while it goes on."""

from __future__ import annotations

import time

import pytest

from mignode.journey import Journey, State
from mignode.stopwatch import TELL_EVERY_BYTES, Stopwatch


class Clock:
    """Goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_journey_that_arrives(clock: Clock) -> None:
    told: list[Journey] = []
    watch = Stopwatch(1, 2, told.append)
    with watch:
        with watch.stage("looked"):
            clock.now_s += 1
        with watch.stage("sent"):
            watch.expect(3 * TELL_EVERY_BYTES)
            watch.freeze()
            clock.now_s += 2
            for size in (10, TELL_EVERY_BYTES, TELL_EVERY_BYTES + 1, 3 * TELL_EVERY_BYTES):
                watch.sent(size)
        clock.now_s += 4
        watch.ran()
        clock.now_s += 8
    last = told[-1]
    assert (last.origin, last.target, last.state, last.frozen_s) == (1, 2, State.ARRIVED, 6)
    assert [(stage.name, stage.seconds, stage.bytes) for stage in last.stages] == [
        ("looked", 1, 0), ("sent", 2, 3 * TELL_EVERY_BYTES),
    ]  # fmt: skip
    assert (last.sent_bytes, last.expected_bytes) == (3 * TELL_EVERY_BYTES, 3 * TELL_EVERY_BYTES)
    sending = next(one for one in told if one.sent_bytes == TELL_EVERY_BYTES)
    assert [stage.name for stage in sending.stages] == ["looked", "sent"], "what it is at, not what it was at"
    under_way = [one.sent_bytes for one in told if one.state is State.UNDER_WAY]
    assert under_way == sorted(under_way)
    assert under_way.count(TELL_EVERY_BYTES) == 1, "not at every piece"


def test_one_that_stays_says_why_and_how_long_it_was_frozen(clock: Clock) -> None:
    told: list[Journey] = []
    watch = Stopwatch(1, 2, told.append)

    def go() -> None:
        with watch, watch.stage("restored there"):
            watch.freeze()
            clock.now_s += 3
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        go()
    assert (told[0].state, told[0].stages) == (State.UNDER_WAY, ())
    last = told[-1]
    assert (last.state, last.reason, last.frozen_s) == (State.STAYED, "no room", 3)
    assert [stage.name for stage in last.stages] == ["restored there"]
