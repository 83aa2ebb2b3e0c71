"""Whether a machine is too busy for what is measured on it to count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omfs.lab import pressure
from omfs.lab.pressure import are_processors_short


@pytest.mark.parametrize(("percent", "is_short"), [("0.00", False), ("89.99", False), ("90.00", True), ("99.17", True)])
def test_as_the_kernel_counts_it(percent: str, is_short: bool) -> None:
    some, full = f"some avg10={percent} avg60=98.03 avg300=63.06 total=1183633474", "full avg10=0.00 avg60=0.00 total=0"
    assert are_processors_short(f"{some}\n{full}\n") is is_short


@pytest.mark.parametrize(("running", "is_short"), [(2.0, False), (2.1, True)])
def test_where_the_kernel_does_not(
    running: float, is_short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "_FILE", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (running, 9.0, 0.0))
    assert are_processors_short() is is_short
