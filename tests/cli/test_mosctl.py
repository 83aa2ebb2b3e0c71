"""mosctl, in a /mfs/proc that is a directory of plain files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mignode.cli import controlfile, mosctl

MAP = "1 192.0.2.1 2\n7 192.0.2.7 1\n"
Main = Callable[..., int]


@pytest.fixture
def hpc(tmp_path: Path) -> Path:
    """Of node 2, with the nodes 1, 2 and 7."""
    folder = tmp_path / "proc" / "hpc"
    (folder / "admin").mkdir(parents=True)
    (folder / "remote").mkdir()
    numbers = (("sspeed", "15000"), ("decayinterval", "2"), ("slowdecay", "975"), ("fastdecay", "926"))
    costs = (("overheads", " ".join(map(str, range(14)))), ("mfscosts", "1 2 3 4 5 6"))
    for name, text in (*numbers, *costs):
        (folder / "admin" / name).write_text(f"{text}\n")
    for name in ("stay", "lstay", "block", "quiet", "nomfs"):
        (folder / "admin" / name).write_text("0\n")
    for name, text in (("mospe", "2\n"), ("config", MAP), ("speed", "10000\n"), ("expel", ""), ("bring", "")):
        (folder / "admin" / name).write_text(text)
    for node, status in ((1, 1), (2, 0x53), (7, 3)):
        one = folder / "nodes" / str(node)
        one.mkdir(parents=True)
        for name, value in (
            ("status", status),
            ("load", 42),
            ("mem", 5),
            ("tmem", 9),
            ("rmem", 3),
            ("util", 17),
            ("speed", 9000),
        ):
            (one / name).write_text(f"{value}\n")
    return folder


@pytest.fixture
def run(tmp_path: Path, hpc: Path) -> Main:
    return lambda *words: mosctl.main([*words, "--mfs", str(tmp_path)])


def refuse_with(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes are what mignode answers."""

    def write(path: Path, value: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(controlfile, "write", write)


@pytest.mark.parametrize("name", ["stay", "lstay", "block", "quiet", "nomfs"])
def test_switches_say_what_holds_and_whether_it_did(
    run: Main, hpc: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opposite = "mfs" if name == "nomfs" else f"no{name}"
    said = []
    for word, value in ((name, "1"), (name, "1"), (opposite, "0"), (opposite, "0")):
        assert run(word) == 0
        assert (hpc / "admin" / name).read_text() == f"{value}\n"
        said.append(capsys.readouterr().out.partition(", "))
    assert [one[0] for one in said] == ["from now on", "as before"] * 2
    assert said[0][2] == said[1][2] != said[2][2] == said[3][2]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["whois"], "This is openMosix #2"),
        (["whois", "7"], "192.0.2.7"),
        (["whois", "192.0.2.2"], "192.0.2.2 is openMosix #2"),
        (["status"], "up,block,nomfs"),
        (["status", "1"], "down"),
        (["status", "192.0.2.7"], "up"),
        (["isup", "7"], "yes"),
        (["isup", "1"], "no"),
        (["isup"], "yes"),
        (["getload", "7"], "load=42"),
        (["getload"], "load=42"),
        (["getmem"], "free memory = 5 of 9"),
        (["getfree"], "raw free memory = 3 of 9"),
        (["getutil", "1"], "Utilizability = 17%"),
        (["setspeed", "12345"], "from now on, this node's speed is 12345"),
        (["getspeed", "7"], "speed=9000"),
        (["getyard"], "yardstick=15000"),
        (["setyard", "PIII/800"], "from now on, a load of 100 is a processor of speed 8000 kept busy"),
        (["setyard", "7"], "from now on, a load of 100 is a processor of speed 9000 kept busy"),
        (["setyard", "this"], "from now on, a load of 100 is a processor of speed 9000 kept busy"),
        (["getdecay"], "decay interval = 2 seconds, slow decay = 975/1000, fast decay = 926/1000"),
        (
            ["setdecay", "3", "900", "800"],
            "from now on, decay interval = 3 seconds, slow decay = 900/1000, fast decay = 800/1000",
        ),
        (["gettune"], "overheads: 0 1 2 3 4 5 6 7 8 9 10 11 12 13\nmfscosts: 1 2 3 4 5 6"),
        (
            ["status", "--json"],
            '{"up": true, "stay": false, "lstay": false, "block": true, "quiet": false, "nomfs": true}',
        ),
        (["isup", "1", "--json"], '{"up": false}'),
        (["getmem", "--json"], '{"mem": 5, "tmem": 9}'),
        (["whois", "--json"], '{"node": 2, "addresses": ["192.0.2.2"]}'),
        (
            ["gettune", "--json"],
            '{"overheads": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], "mfscosts": [1, 2, 3, 4, 5, 6]}',
        ),
        (["setspeed", "1", "--json"], '{"said": "from now on, this node\'s speed is 1"}'),
        (["expel"], "all guests have gone home, and none may come until noblock"),
        (["bring"], "all processes of this node are at home, and stay until nolstay"),
    ],
)
def test_what_it_says(run: Main, words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 0
    assert capsys.readouterr().out == f"{text}\n"


def test_this_node_is_not_up(run: Main, hpc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hpc / "nodes" / "2" / "status").write_text("1\n")
    assert run("isup") == 0
    assert capsys.readouterr().out == "no\n"


def test_a_load_that_is_not_told(
    run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(path: Path) -> str:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    monkeypatch.setattr(controlfile, "read", read)
    assert run("getload", "7") == 1
    said = "mosctl: the node does not tell its load: it is quiet, or has just started, or udp port 5428 is closed\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "words",
    [
        ["whois", "9"], ["status", "9"], ["getload", "192.0.2.9"], ["setyard", "9"], ["whois", "no such host"],
        ["whois", "x" * 64], ["whois", "9" * 5000], ["whois", "\u00b2"],
    ],
)  # fmt: skip
def test_who_is_not_there(run: Main, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 1
    assert capsys.readouterr().err == f"mosctl: {words[1]} is not in the map of this cluster\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["setspeed", "0"], '"0" is no number from 1 to 65535'),
        (["setspeed", "abc"], '"abc" is no number from 1 to 65535'),
        (["setspeed", "9" * 5000], f'"{"9" * 5000}" is no number from 1 to 65535'),
        (["setyard", "PIII/0"], '"0" is no number from 1 to 6553'),
        (["setdecay", "0", "900", "800"], '"0" is no number from 1 to 65535'),
        (["setdecay", "1", "800", "900"], '"900" is no number from 0 to 800'),
        (["setdecay", "1", "1001", "1"], '"1001" is no number from 0 to 1000'),
        (["why", "x"], '"x" is not a process id'),
    ],
    ids=lambda one: " ".join(one)[:20],
)
def test_a_value_that_means_nothing_is_wrong_usage(
    run: Main, hpc: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_text() for path in (hpc / "admin").iterdir()}
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"mosctl: {text} (see mosctl --help)\n"
    assert {path: path.read_text() for path in (hpc / "admin").iterdir()} == before


@pytest.mark.parametrize(
    ("number", "text", "status"),
    [
        (errno.EPERM, "only root may do that", 1),
        (errno.ENOTCONN, "mignode does not run on this node; start it: openmosix start", 3),
        (errno.EIO, os.strerror(errno.EIO), 1),
    ],
)
def test_refusals_are_one_line(
    run: Main, monkeypatch: pytest.MonkeyPatch, number: int, text: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_with(number, monkeypatch)
    for words in ("block", "expel", "bring"):
        assert run(words) == status
        assert capsys.readouterr().err == f"mosctl: {text}\n"


def test_who_can_not_leave_is_named(
    run: Main, hpc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for pid, reasons in ((300, "uses io_uring"), (31, "")):
        (hpc / "remote" / str(pid)).mkdir()
        (hpc.parent / str(pid)).mkdir()
        (hpc.parent / str(pid) / "cantmove").write_text(reasons and f"{reasons}\n")
    refuse_with(errno.EBUSY, monkeypatch)
    assert run("expel") == 1
    told = "mosctl: some guests can't leave, and none may come: 31, 300 (uses io_uring)\n"
    assert capsys.readouterr().err == told
    assert run("bring") == 1
    assert capsys.readouterr().err.startswith("mosctl: some processes can't come home")


def test_wrong_words_and_no_cluster(run: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["nonsense"], ["block", "2"], ["status", "1", "2"], ["setspeed"], ["setdecay", "1", "2"]):
        with pytest.raises(SystemExit) as ended:
            run(*words)
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert mosctl.main(["status", "--mfs", str(tmp_path / "nowhere")]) == 3
    assert capsys.readouterr().err.startswith("mosctl: the cluster's file system is not mounted at ")


@pytest.mark.parametrize(("slow", "fast"), [("500", "400"), ("1000", "990"), ("950", "930")])
def test_a_fast_decay_is_never_slower_on_the_way(
    run: Main, hpc: Path, monkeypatch: pytest.MonkeyPatch, slow: str, fast: str
) -> None:
    really = controlfile.write

    def write(path: Path, value: int) -> None:
        really(path, value)
        held = {name: int((hpc / "admin" / name).read_text()) for name in ("slowdecay", "fastdecay")}
        assert held["fastdecay"] <= held["slowdecay"]

    for name in ("slowdecay", "fastdecay"):
        (hpc / "admin" / name).write_text({"slowdecay": "0975\n", "fastdecay": "0926\n"}[name])
    monkeypatch.setattr(controlfile, "write", write)
    assert run("setdecay", "5", slow, fast) == 0


def test_a_node_that_is_not_heard(
    run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(path: Path) -> str:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(controlfile, "read", read)
    assert run("isup", "7") == 0
    assert capsys.readouterr().out == "no (it seems)\n"
