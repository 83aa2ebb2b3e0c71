"""The map that omdiscd has found: written whole, never over a person's, and refused like any other."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mignode.cli.discoveredmap import map_text, put_in_force, refuse_written_map
from omfs.config import Settings
from omfs.errors import ConfigError
from omfs.net.nodemap import read_map, read_written_map

NODES = {2: ("10.0.0.2", "10.9.0.2"), 1: ("10.0.0.1",), 7: ("10.0.0.70",)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a node where nothing runs."""
    return Settings(map=str(tmp_path / "map"), run_dir=str(tmp_path / "run"))


def test_what_is_written(settings: Settings) -> None:
    put_in_force(settings, NODES)
    place = Path(settings.map)
    assert place.read_text().splitlines()[1:] == ["1 10.0.0.1 2", "7 10.0.0.70 1", "2 10.9.0.2 ALIAS"]
    assert dict(read_map(place).nodes) == NODES
    assert read_written_map(place) is None, "nobody has written it"
    assert place.stat().st_mode & 0o777 == 0o644
    before = place.stat()
    put_in_force(settings, NODES)
    assert place.stat() == before, "the same again"


def test_a_persons_map_stays(settings: Settings) -> None:
    refuse_written_map(settings)
    Path(settings.map).write_text("1 10.0.0.1 1\n")
    for refused in (refuse_written_map, lambda settings: put_in_force(settings, NODES)):
        with pytest.raises(ConfigError, match="was not written by omdiscd, which would replace it"):
            refused(settings)
    assert Path(settings.map).read_text() == "1 10.0.0.1 1\n"


def test_too_many_for_a_map(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Far apart, so that each is a line."""
    caplog.set_level(logging.INFO)
    scattered = {node: (f"10.0.{node % 250}.{node // 250 + 1}",) for node in range(1, 600, 2)}
    put_in_force(settings, NODES)
    with pytest.raises(ConfigError, match="too many entries"):
        put_in_force(settings, scattered)
    assert dict(read_map(Path(settings.map)).nodes) == NODES
    put_in_force(settings, {node: (f"10.0.{node >> 8}.{node & 255}",) for node in range(1, 60_000)})
    assert "the map has 59999 nodes now; nobody runs" in caplog.messages


def test_a_map_that_is_spoilt_is_written_anew(settings: Settings) -> None:
    Path(settings.map).write_text(map_text(NODES) + "7 what\n")
    put_in_force(settings, NODES)
    assert Path(settings.map).read_text() == map_text(NODES)
