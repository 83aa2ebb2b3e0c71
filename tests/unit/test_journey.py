"""What is told of a move."""

from __future__ import annotations

from mignode.journey import KEPT_MAX, Journey, Journeys, Stage, State, told, understood
from omfs.kernel.processes import Identity
from omfs.magic import controlfiles

WAY = Journey(
    1, 2, State.ARRIVED, (Stage("frozen", 0.05), Stage("sent", 0.1, 1 << 20)), 1 << 20, 1 << 20, 0.2, age_s=4.5
)


def test_the_text_of_the_control_file() -> None:
    assert told(WAY) == (
        '{"origin":1,"target":2,"state":"arrived","stages":[{"name":"frozen","seconds":0.05,"bytes":0},'
        '{"name":"sent","seconds":0.1,"bytes":1048576}],"sent_bytes":1048576,"expected_bytes":1048576,"frozen_s":0.2,'
        '"reason":"","age_s":4.5}'
    )
    assert understood(told(WAY)) == WAY
    assert told(None) == ""
    for text in ("", "{", '{"origin":1}', '{"origin":1,"target":2,"state":"flying"}', "\udcff"):
        assert understood(text) is None


def test_a_long_reason_fits_the_file() -> None:
    file = controlfiles.find(controlfiles.PROCESS, "journey").file
    text = told(Journey(1, 2, State.STAYED, (Stage("a stage" * 4, 1 / 3, 1 << 40),) * 16, reason='"' * 100_000))
    assert file.kind.format(text) == text + "\n"
    assert understood(text) is not None


def test_the_last_ones_are_remembered() -> None:
    journeys = Journeys()
    first = Identity(1, 1)
    assert journeys.of(first) is None
    journeys.note(first, WAY)
    for pid in range(2, KEPT_MAX + 1):
        journeys.note(Identity(pid, 1), WAY)
    again = Journey(2, 1)
    journeys.note(first, again)  # now the second is the oldest
    journeys.note(Identity(1, 2), WAY)
    assert journeys.of(first) == again
    assert journeys.of(Identity(2, 1)) is None
    assert journeys.of(Identity(3, 1)) == journeys.of(Identity(1, 2)) == WAY
