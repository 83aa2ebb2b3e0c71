"""The numbers of this node: the parsers of /proc, openMosix's units, and that this machine's own make sense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mignode import nodefacts
from mignode.nodefacts import (
    Allowed,
    Memory,
    Ticks,
    Utilisation,
    load_of,
    parse_clock_rate,
    parse_memory,
    speed_of,
    whole_processors,
    within,
)
from omfs.kernel.controlgroups import Room

STAT = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5 0\n"
MEMINFO = (
    "MemTotal:       1000 kB\nMemFree:         300 kB\nMemAvailable:    600 kB\nBuffers: 5 kB\nHugePages_Total:  0\n"
)


def test_texts_as_the_kernel_writes_them() -> None:
    assert parse_memory(MEMINFO) == (1024_000, 307_200, 614_400)
    assert nodefacts.parse_ticks(STAT) == Ticks(36, 13)
    assert parse_clock_rate("processor\t: 0\ncpu MHz\t\t: 2249.998\ncpu MHz\t\t: 800.0\n") == 2250
    assert parse_clock_rate("processor\t: 0\nBogoMIPS\t: 243.75\n") == 0


@given(st.text(max_size=60))
def test_what_is_no_such_file_is_refused(text: str) -> None:
    for parse in (parse_memory, nodefacts.parse_ticks):
        with pytest.raises(ValueError, match=r"/proc/\w+ is not as proc\(5\) says"):
            parse(text)


def test_speed_is_ten_times_the_clock() -> None:
    assert [speed_of(mhz) for mhz in (1000, 2250, 9000, 0)] == [10000, 22500, 65535, nodefacts.SPEED_OF_UNKNOWN]


@given(st.floats(0, 1000), st.integers(1, 65535), st.integers(1, 65535))
def test_a_faster_node_shows_less_for_the_same_work(running: float, speed: int, standard: int) -> None:
    assert load_of(running, speed, standard) >= load_of(running, min(65535, 2 * speed), standard) >= 0
    assert load_of(1.0, standard, standard) == 100


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=8))
def test_utilisation_is_a_percentage(steps: list[tuple[int, int]]) -> None:
    utilisation = Utilisation()
    total, lost = utilisation._then
    for more, more_lost in steps:
        before = utilisation._percent
        total, lost = total + more, lost + min(more, more_lost)
        percent = utilisation.advance(Ticks(total, lost))
        assert percent == (100 - round(100 * min(more, more_lost) / more) if more else before)


def test_it_may_go_backwards() -> None:
    utilisation = Utilisation()
    assert utilisation.advance(Ticks(utilisation._then.total + 10, utilisation._then.lost - 5)) == 100


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Allowed().memory()
    assert 0 < memory.free <= memory.total
    assert 0 < memory.available <= memory.total
    count, part = Allowed().processors()
    assert count >= 1
    assert 0 < part <= 1
    assert 1 <= nodefacts.measured_speed() <= 65535
    assert 0 <= Utilisation().percent() <= 100
    monkeypatch.setattr(nodefacts, "CLOCK_RATE", Path("/proc/sys/kernel/pid_max"))  # a number, as kHz
    assert nodefacts.measured_speed() == speed_of(int(nodefacts.CLOCK_RATE.read_text()) // 1000)


def test_half_a_processor_is_one_of_half_the_speed() -> None:
    assert whole_processors(0.5) == (1, 0.5)
    assert whole_processors(1.5) == (2, 0.75)
    assert whole_processors(2) == (2, 1.0)


def test_what_a_group_may_not_use_is_not_there() -> None:
    machine = Memory(1000, 300, 600)
    assert within(machine, None) == machine
    assert within(machine, Room(400, 100)) == (400, 100, 100)
    assert within(machine, Room(5000, 4000)) == machine
