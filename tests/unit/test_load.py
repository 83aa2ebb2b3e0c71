"""What a node says of itself: how many threads want to run, smoothed, and its switches as bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from mignode import load
from mignode.adminvalues import AdminStore
from mignode.incarnation import FILE, keep_incarnation, next_incarnation
from mignode.load import OwnState, Smoothed, count_running, parse_runnable, parse_running
from mignode.nodeinfo import running, shown_load

BUSY_THREADS = """
import sys, threading
def spin():
    while True:
        pass
for _ in range(2):
    threading.Thread(target=spin, daemon=True).start()
print("busy", flush=True)
sys.stdin.read()
"""


def test_texts_as_the_kernel_writes_them() -> None:
    assert parse_running("0.20 0.18 0.12 3/80 11206\n") == 3
    assert parse_runnable(b"7 (a) R (b) S 1 7 7 0 -1 0 0 0 0 0 5 6 0 0 20 0 4 0 99 0\n") == (False, 4)
    assert parse_runnable(b"7 (a) R 1 7 7 0 -1 0 0 0 0 0 5 6 0 0 20 0 1 0 99 0\n") == (True, 1)
    for text in ("", "0.1 0.1 0.1", "one two three 1/2 3"):
        with pytest.raises(ValueError, match="not as proc"):
            parse_running(text)
        with pytest.raises(ValueError, match="not as proc"):
            parse_runnable(text.encode())


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)), min_size=1, max_size=30))
def test_what_is_smoothed_stays_among_what_was_seen(looks: list[tuple[float, float]]) -> None:
    smoothed, now_s = Smoothed(), 0.0
    for seen, after_s in looks:
        now_s += after_s
        smoothed.look(seen, now_s)
    assert min(seen for seen, _ in looks) - 1e-9 <= smoothed.value <= max(seen for seen, _ in looks) + 1e-9


def test_after_four_seconds_two_thirds_are_seen() -> None:
    smoothed = Smoothed()
    smoothed.look(0.0, 0.0)
    for second in range(1, 5):
        smoothed.look(1.0, float(second))
    assert smoothed.value == pytest.approx(1 - 1 / 2.718281828)


@pytest.mark.parametrize("is_whole_machine", [True, False])
def test_every_thread_that_wants_to_run_counts(is_whole_machine: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY_THREADS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            # One of the two has the interpreter; the other wants it only now and then.
            assert any(count_running(is_whole_machine) >= 1 for _ in range(100))
            assert count_running() >= 0
        finally:
            busy.kill()


def test_a_process_that_ends_meanwhile_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.processes, "processes", lambda: [2**22 + 1])
    assert count_running(False) == 0


def test_what_the_administrator_set_is_said(tmp_path: Path) -> None:
    store = AdminStore(tmp_path)
    own = OwnState(4, store)
    own.look(0.0)
    plain = own.info(refuses_files=False)
    assert (plain.node, plain.status, plain.cpus) == (4, 3, os.cpu_count())
    assert plain.version.count(".") == 2
    assert 0 < plain.mem_free <= plain.mem_total
    store.change(stay=True, lstay=True, block=True, quiet=True, speed=777)
    full = own.info(refuses_files=True)
    assert (full.status, full.speed) == (0x7F, 777)


def test_who_stands_still_is_told_apart_and_the_yardstick_is_for_showing(tmp_path: Path) -> None:
    store = AdminStore(tmp_path)
    store.change(speed=30000, sspeed=60000)
    own = OwnState(4, store)
    own.look(0.0, frozen=3.0)
    found = own.info(refuses_files=False)
    assert found.frozen == 150
    assert shown_load(found.frozen, 60000) == 600
    assert running(msgspec.structs.replace(found, load=found.frozen)) == 3.0
    own.look(load.SMOOTHED_OVER_S, frozen=0.0)
    assert 0 < own.info(refuses_files=False).frozen < 75  # as the load comes back, so it goes


def test_lives_are_counted_upwards_whatever_the_clock_does(tmp_path: Path) -> None:
    assert next_incarnation(tmp_path, 1000.5) == 1000
    assert next_incarnation(tmp_path, 1000.9) == 1001
    assert next_incarnation(tmp_path, 5.0) == 1002
    assert next_incarnation(tmp_path, 2000.0) == 2000
    keep_incarnation(tmp_path, 3000)
    assert next_incarnation(tmp_path, 2000.0) == 3001
    for damaged in ("", "many", "-5", "9" * 40):
        (tmp_path / FILE).write_text(damaged)
        assert next_incarnation(tmp_path, 2000.0) == 2000


def test_a_life_that_can_not_be_kept_is_lived_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("a file, where a directory ought to be")
    assert next_incarnation(tmp_path / "state", 1000.0) == 1000
    assert "if the clock is set back" in caplog.text
