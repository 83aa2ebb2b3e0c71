"""omfs-admin where, against a mount made of canned answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from omfs.cli import admin
from omfs.cli.admin_where import led_below
from omfs.errors import ControlError
from omfs.net.control import Arguments, Handler
from tests.cli.test_admin_status import mount

NAMES = {"here": [1, "it runs here"], "selected": [3, "process 700, its parent, selected it"]}


async def identify(_: Arguments) -> object:
    return {"pid": 5, "mount_point": "/mfs"}


def answering(reply: object, asked: list[Arguments]) -> Handler:
    async def where(arguments: Arguments) -> object:
        asked.append(arguments)
        return reply

    return where


def test_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Arguments] = []
    reply = {"node": 3, "name": "selected", "why": NAMES["selected"][1], "path": "/mfs/3/a [b]"}
    with mount(tmp_path, identify=identify, where=answering(reply, asked)):
        for words in (["/mfs/selected/a [b]"], ["-p", "700", "/mfs//selected/./a [b]"], ["--json", "/mfs/selected/x"]):
            assert admin.main(["where", *words, "--run-dir", str(tmp_path)]) == 0
    heading, row, _, again, *told = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NODE", "NAME", "PATH", "WHY"]
    assert " ".join(row.split()) == "3 selected /mfs/3/a [b] process 700, its parent, selected it"
    assert row == again
    assert json.loads("".join(told)) == reply
    assert asked == [
        {"path": "/mfs/selected/a [b]", "pid": os.getpid()},
        {"path": "/mfs/selected/a [b]", "pid": 700},
        {"path": "/mfs/selected/x", "pid": os.getpid()},
    ]


def test_a_path_without_a_magic_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, identify=identify, where=answering({"node": 0, "path": "/mfs"}, [])):
        assert admin.main(["where", "/mfs", "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["-", "-", "/mfs", "-"]


def test_a_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Arguments] = []
    with mount(tmp_path, where=answering({"names": NAMES}, asked)):
        for words in (["701"], ["701", "--json"]):
            assert admin.main(["where", *words, "--run-dir", str(tmp_path)]) == 0
    heading, first, second, *told = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "NODE", "WHY"]
    assert " ".join(first.split()) == "here 1 it runs here"
    assert " ".join(second.split()) == "selected 3 process 700, its parent, selected it"
    assert json.loads("".join(told)) == {"names": NAMES}
    assert asked == [{"pid": 701}] * 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["/etc/motd"], "/etc/motd: not below /mfs, so it is on this node for every process"),
        (["./7"], "not below /mfs"),
        (["0"], '"0" is not a process id; a file of this name is ./0'),
        (["99999999"], "is not a process id"),
        (["9" * 5000], "is not a process id"),
        (["/mfs/" + os.fsdecode(b"\xff")], "/mfs/\\xff: only names in UTF-8 can be asked for"),
        (["/mfs/3"], "no such process"),
    ],
)
def test_refused(words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def where(_: Arguments) -> object:
        raise ControlError("no such process")

    with mount(tmp_path, identify=identify, where=where):
        assert admin.main(["where", *words, "--run-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [(["7", "-p", "8"], "--pid is for a PATH"), (["/mfs", "-p", "x"], '"x" is not a process id')],
)
def test_wrong_words(words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        admin.main(["where", *words, "--run-dir", str(tmp_path)])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("what", ["/mfs/3", "7"])
def test_no_mount_or_an_old_one(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["where", what, "--run-dir", str(tmp_path)]
    assert admin.main(words) == 3
    assert "no mount is running on this node" in capsys.readouterr().err
    with mount(tmp_path, identify=identify):
        assert admin.main(words) == 1
        assert 'unknown command "where"' in capsys.readouterr().err
    with mount(tmp_path, identify=identify, where=answering({"names": [1]}, [])):
        assert admin.main(words) == 1
        assert "speaks another version" in capsys.readouterr().err
    with mount(tmp_path, identify=answering({}, []), where=answering({}, [])):
        assert admin.main(words) == 1
        assert "speaks another version" in capsys.readouterr().err


def test_links_lead_to_the_mount_point_and_no_further(tmp_path: Path) -> None:
    there = tmp_path / "mfs"
    (there / "3").mkdir(parents=True)
    (there / "magic").symlink_to("3")  # which may be another node for another process
    (there / "3" / "link").symlink_to("/etc")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "tmp").symlink_to("../mfs/magic")
    (tmp_path / "absolute").symlink_to(tmp_path / "deep")
    (tmp_path / "loop").symlink_to("loop")
    for path, led in {
        "mfs": "",
        "mfs/": "",
        "deep/tmp/x/../y": "/magic/x/../y",
        "absolute/./tmp//x": "/magic/x",
        "missing/../mfs/3/link/x": "/3/link/x",
        "deep/../../" + tmp_path.name + "/mfs/magic": "/magic",
    }.items():
        assert led_below(f"{tmp_path}/{path}", str(there)) == f"{there}{led}"
    for path in ("deep", "deep/..", "mf", "mfsx/3", "missing/mfs"):
        with pytest.raises(ControlError, match="not below"):
            led_below(f"{tmp_path}/{path}", str(there))
    with pytest.raises(ControlError, match="too many symbolic links"):
        led_below(f"{tmp_path}/loop/x", str(there))
