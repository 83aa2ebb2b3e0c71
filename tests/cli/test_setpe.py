"""setpe and showmap: what they print, what they refuse, and a map that a real mignode reads."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mignode.cli import controlfile, nodeservice, setpe, showmap
from omfs.config import load_settings
from tests.cli.inforce import make_hpc
from tests.cli.test_mignode import COMMAND, ask, config
from tests.lab.cluster import wait_until

__all__ = ["config"]

SENTENCES = """\
This is OpenMosix node #2
Network protocol: 2 (AF_INET)
OpenMosix range 1-2 begins at 127.0.0.1
OpenMosix range 7-7 begins at 192.0.2.7
OpenMosix alias of 7 is 192.0.2.70
OpenMosix range 2780-2780 begins at 192.168.10.220
Total configured: 4
"""


@contextlib.contextmanager
def mignode_of(config: Path) -> Iterator[None]:
    """A real one, that answers."""
    process = subprocess.Popen([*COMMAND, "--config", str(config), "--foreground"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: "mignode" in nodeservice.running(load_settings(config)), "mignode answers")
        yield
    finally:
        process.terminate()
        process.wait(60)


def in_map(config: Path, *words: str) -> int:
    """In the one-node cluster of *config*."""
    return setpe.main([*words, "--config", str(config), "--mfs", str(config.parent / "nowhere")])


def test_what_is_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hpc(tmp_path)
    assert setpe.main(["-r", "--mfs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == SENTENCES
    assert setpe.main(["-r", "--json", "--mfs", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["node"], told["total"], told["entries"][0]) == (2, 4, {"node": 1, "address": "127.0.0.1", "count": 2})


def test_what_is_written_out_can_be_read_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hpc(tmp_path)
    assert setpe.main(["-r", "-f", str(tmp_path / "map"), "--mfs", str(tmp_path)]) == 0
    assert setpe.main(["-c", "-f", str(tmp_path / "map")]) == 1, "127.0.0.1 and 127.0.0.2 are both this machine"
    assert "addresses of several nodes" in capsys.readouterr().err
    assert setpe.main(["-r", "-f", "-", "--mfs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "map").read_text()


@pytest.mark.parametrize("tool", [setpe, showmap])
def test_no_mignode(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_hpc(tmp_path)

    def read(_: Path) -> str:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(controlfile, "read", read)
    assert tool.main([*(["-r"] if tool is setpe else []), "--mfs", str(tmp_path)]) == 3
    assert capsys.readouterr().err.endswith("mignode does not run on this node; start it: openmosix start\n")


def test_showmap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hpc(tmp_path)
    assert showmap.main(["--mfs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "My Node-Id: 0x0002",
        "",
        "Base Node-Id Address          Count",
        "------------ ---------------- -----",
        "0x0001       127.0.0.1        2",
        "0x0007       192.0.2.7        1",
        "0x0007       192.0.2.70       0",
        "0x0adc       192.168.10.220   1",
    ]
    assert showmap.main(["--json", "--mfs", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "node": 2,
        "total": 4,
        "entries": [
            {"node": 1, "address": "127.0.0.1", "count": 2},
            {"node": 7, "address": "192.0.2.7", "count": 1},
            {"node": 7, "address": "192.0.2.70", "count": 0},
            {"node": 2780, "address": "192.168.10.220", "count": 1},
        ],
    }
    assert showmap.main(["--mfs", str(tmp_path / "nowhere")]) == 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [], ["-c"], ["-W"], ["-w", "-c"], ["-off", "-f", "x"], ["-g", "3"], ["-p", "0", "-w"], ["-w", "--json"],
        ["-r", "-p", "1"], ["-c", "-f", "x", "-g", "1"],
    ],
)  # fmt: skip
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        setpe.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1 127.0.0.1 1\n1 192.0.2.1 1\n", "conflicting ids"),
        ("1 192.0.2.1 -1\n", "fresh:1: negative range"),
        ("1 192.0.2.1 1\n", "my own address is missing"),
        ("", "the map has no entries"),
    ],
)
def test_a_bad_map_changes_nothing(config: Path, text: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = config.parent / "fresh"
    fresh.write_text(text)
    for word in ("-c", "-w", "-W"):
        assert in_map(config, word, "-f", str(fresh)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert complaint in line
    assert (config.parent / "map").read_text() == "1 127.0.0.1 1\n"


def test_who_i_am_must_be_true(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_map(config, "-c", "-p", "1", "-f", str(config.parent / "map")) == 0
    assert capsys.readouterr().out == "the map is good: 1 node, and this is node 1\n"
    assert in_map(config, "-c", "-p", "2", "-f", str(config.parent / "map")) == 1
    assert "this machine is node 1 there, not 2" in capsys.readouterr().err


def test_only_W_gives_a_node_another_address(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "map").write_text("1 127.0.0.1 1\n2 192.0.2.2 1\n")
    fresh = config.parent / "fresh"
    fresh.write_text("# moved\n1 127.0.0.1 1\n2 192.0.2.9 1\n")
    assert in_map(config, "-w", "-f", str(fresh)) == 1
    assert ":3: node 2 would be 192.0.2.9 instead of 192.0.2.2; setpe -W allows that" in capsys.readouterr().err
    assert in_map(config, "-W", "-f", str(fresh)) == 0
    assert "will be in force when this node starts" in capsys.readouterr().out
    assert (config.parent / "map").read_text() == fresh.read_text(), "comments stay"
    assert (config.parent / "map").stat().st_mode & 0o777 == 0o644


@pytest.mark.lab
def test_a_running_mignode_reads_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = config.parent / "fresh"
    fresh.write_text("1 127.0.0.1 1\n2 192.0.2.2 3\n")
    with mignode_of(config):
        assert in_map(config, "-w", "-f", str(fresh)) == 0
        assert "4 nodes, is in force" in capsys.readouterr().out
        told = ask(config, "read_control", scope="hpc", file="admin/config", uid=0)
        assert told["text"] == "1 127.0.0.1 1\n2 192.0.2.2 3\n"
