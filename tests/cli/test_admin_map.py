"""omfs-admin map."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omfs.cli import admin

GOOD = "1 127.0.0.9 1\n2 240.0.0.2 3  # reserved addresses: nobody's\n1 240.0.1.1 ALIAS\n9 node9 1\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "openmosix.map"
    path.write_text(GOOD)
    return path


def test_a_good_map(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin.main(["map", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "127.0.0.9", "1", "1"] in lines
    assert ["1", "240.0.1.1", "alias", "3"] in lines
    assert ["2-4", "240.0.0.2", "-", "240.0.0.4", "3", "2"] in lines
    assert lines[-2][:4] == [f"{path}:", "good,", "5", "nodes,"]
    assert lines[-1] == ["this", "is", "node", "1"]


def test_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin.main(["map", "--json", str(path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["self"] == 1
    assert len(printed["digest"]) == 64
    assert printed["nodes"][0] == {"node_id": 1, "addresses": ["127.0.0.9", "240.0.1.1"]}
    assert [node["node_id"] for node in printed["nodes"]] == [1, 2, 3, 4, 9]


def test_the_map_and_address_of_the_settings(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "omfs.toml"
    config.write_text(f'map = "{path}"\naddress = "240.0.0.3"\n')
    assert admin.main(["map", "--config", str(config)]) == 0
    assert "this is node 3" in capsys.readouterr().out


def test_refusals(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(GOOD + "4 240.0.9.1 1\n")
    assert admin.main(["map", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"omfs-admin: {path}:5: conflicting ids: node 4 is already in line 2")


def test_a_map_without_this_machine(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text("1 240.0.0.1 1\n")
    assert admin.main(["map", str(path)]) == 1
    assert f"{path}: my own address is missing" in capsys.readouterr().err
    assert admin.main(["map", "--elsewhere", str(path)]) == 0
    assert "1 node," in capsys.readouterr().out
