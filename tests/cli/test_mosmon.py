"""mosmon: its keys under textual's Pilot, and once in a real terminal."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from mignode.cli import monitor, mosmon
from mignode.cli.monitor import SILENT, Monitor, Told
from mignode.loadbars import parse
from tests.cli.inforce import make_hpc
from tests.cli.terminal import Screen

INFO = "".join(f"node={node} status=3 cpus=2 speed=9000 load={10 * node}\n" for node in range(1, 31)) + (
    "node=99 status=1\n"
)
Scenario = Callable[[Pilot[None]], Awaitable[None]]


@pytest.fixture(autouse=True)
def nothing_is_read_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a second passes between two keys."""
    monkeypatch.setattr(monitor, "EVERY_S", 3600.0)


def play(scenario: Scenario, size: tuple[int, int] = (80, 24)) -> None:
    async def run() -> None:
        monitor = Monitor(lambda name: INFO if name == "info" else "15000", parse(INFO), "l", mosmon.KEYS)
        async with monitor.run_test(size=size) as pilot:
            await pilot.pause()
            await scenario(pilot)

    asyncio.run(run())


def shown(pilot: Pilot[None], part: str) -> str:
    return str(pilot.app.query_one(part, Static).render())


def last_line(pilot: Pilot[None]) -> str:
    return shown(pilot, "#bars").splitlines()[-1]


def test_keys_choose_what_is_shown() -> None:
    async def scenario(pilot: Pilot[None]) -> None:
        for key, title in (("s", "Speed"), ("m", "Memory used"), ("r", "Raw memory"), ("u", "Utiliz"), ("L", "frozen")):
            await pilot.press(key)
            assert title in shown(pilot, "#foot")
        await pilot.press("l", "t")
        assert "[Total 30] [CPUs 60]" in shown(pilot, "#foot")
        await pilot.press("t", "h")
        assert "Total" not in shown(pilot, "#foot")
        assert "arrows, n, p" in shown(pilot, "#bars")
        await pilot.press("h")
        assert "┤" in shown(pilot, "#bars")

    play(scenario)


def test_layouts_and_the_dead() -> None:
    async def scenario(pilot: Pilot[None]) -> None:
        assert last_line(pilot).split() == list("1234567890" * 3), "numbers downwards"
        await pilot.press("V")
        assert last_line(pilot).split() == ["1234567890" * 3]
        await pilot.press("d")
        assert last_line(pilot).split() == ["1234567890" * 3 + "9"]
        await pilot.press("d", "w")
        assert last_line(pilot).split() == [str(node) for node in range(1, 19)]
        assert "[12 more: arrows]" in shown(pilot, "#foot")

    play(scenario)


def test_scrolling_ends_at_the_ends() -> None:
    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("w", "p")
        assert last_line(pilot).split()[0] == "1"
        await pilot.press("n", "right")
        assert last_line(pilot).split()[0] == "3"
        await pilot.press("left")
        assert last_line(pilot).split()[0] == "2"
        await pilot.press("down", "down")
        assert last_line(pilot).split()[-1] == "30"

    play(scenario)


def test_it_follows_the_size_of_the_terminal() -> None:
    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.resize_terminal(160, 50)
        await pilot.pause()
        lines = shown(pilot, "#bars").splitlines()
        assert lines[-1].split() == [str(node) for node in range(1, 31)]
        assert len(lines) == 49
        await pilot.resize_terminal(20, 6)
        await pilot.pause()
        assert all(len(line) <= 20 for line in shown(pilot, "#bars").splitlines())

    play(scenario)


def test_what_is_read_is_shown_and_silence_is_said() -> None:
    async def scenario(pilot: Pilot[None]) -> None:
        pilot.app.post_message(Told(parse("node=5 status=3 load=1"), "12345"))
        await pilot.press("y")
        assert last_line(pilot).split() == ["5"]
        assert "[Yardstick 12345]" in shown(pilot, "#foot")
        pilot.app.post_message(Told(None, ""))
        await pilot.pause()
        assert SILENT in shown(pilot, "#foot")
        assert last_line(pilot).split() == ["5"]

    play(scenario)


def test_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_hpc(tmp_path) / "info").write_text("node=2 status=3 load=7\n")
    assert mosmon.main(["--mfs", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "mosmon: it needs a terminal; --json prints once\n"
    assert mosmon.main(["--json", "--mfs", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["load"] == 7
    assert mosmon.main(["--mfs", str(tmp_path / "nowhere")]) == 3


def test_on_a_terminal(tmp_path: Path) -> None:
    hpc = make_hpc(tmp_path)
    (hpc / "info").write_text("node=2 status=3 load=7\n")
    (hpc / "admin" / "sspeed").write_text("15000\n")
    screen = Screen([sys.executable, "-m", "mignode.cli.mosmon", "--mfs", str(tmp_path)])
    try:
        screen.wait_for("h help, q quit")
        (hpc / "info").write_text("node=2 status=3 load=4321\n")
        screen.wait_for("5000")
        (hpc / "info").write_text(INFO)
        screen.press("w")
        screen.wait_for("[12 more: arrows]")
        screen.resize(50, 160, "28  29  30")
        screen.resize(10, 40, "[22 more: arrows]")
        screen.press("q")
        assert screen.wait_end() == 0
    finally:
        screen.close()
