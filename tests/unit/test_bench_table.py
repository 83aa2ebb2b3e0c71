"""The benchmark's arithmetic: medians, and a speed that means the same for times and rates."""

from __future__ import annotations

import pytest

from bench import table
from bench.workloads import WORKLOADS


def test_twice_as_fast_is_two_whatever_the_unit() -> None:
    assert table.speed("rename", 50.0, against=100.0) == 2.0
    assert table.speed("read_sequential", 200.0, against=100.0) == 2.0


def test_speeds_need_both_contenders() -> None:
    figures = table.medians({
        "oMFS": {name: [1.0, 9.0, 2.0] for name in WORKLOADS},
        "sshfs": {name: [4.0] for name in WORKLOADS},
    })  # fmt: skip
    assert figures["oMFS"]["rename"] == 2.0
    assert table.speeds(figures, "oMFS", "sshfs")["rename"] == 2.0
    assert table.speeds(figures, "oMFS", "sshfs")["write_sequential"] == 0.5
    assert table.speeds(figures, "oMFS", "native") == {}


def test_the_table_shows_every_workload_and_note(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {contender: dict.fromkeys(WORKLOADS, 1234.5) for contender in ("native", "sshfs", "oMFS", "MooseFS")}
    table.show(figures, {"sshfs": "caches for 20 s"}, "title")
    shown = capsys.readouterr().out
    assert all(text in shown for text, _ in WORKLOADS.values())
    assert "sshfs: caches for 20 s" in shown
    assert "…" not in shown
