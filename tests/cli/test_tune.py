"""tune, in a /mfs that is a directory: what it refuses, what it sets, and what is left when it is interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mignode.cli import tune, tunefiles, tuneguest
from mignode.cli.answers import Refused
from mignode.cli.tunefiles import FILES
from mignode.cli.tuneguest import Guest, Prober
from mignode.nodeinfo import CONFIGURED, UP
from mignode.tuning import MFSCOSTS, MIB, OVERHEADS

Main = Callable[..., int]
MEASURED = {name: (number + 1) / 1e6 for number, name in enumerate([*OVERHEADS, *MFSCOSTS])}
SET = {"overheads": " ".join(map(str, range(1, 15))), "mfscosts": " ".join(map(str, range(15, 21)))}
INSTEAD_OF_MOSRUN = "import os, sys; os.execvp(sys.argv[3], sys.argv[3:])"  # behind -h -L


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Node 1 of three; node 3 is down."""
    hpc = tmp_path / "mfs" / "proc" / "hpc"
    for folder in ("admin", "nodes/1", "nodes/2", "nodes/3"):
        (hpc / folder).mkdir(parents=True)
    (hpc / "admin" / "mospe").write_text("1\n")
    for node, status in ((1, CONFIGURED | UP), (2, CONFIGURED | UP), (3, CONFIGURED)):
        (hpc / "nodes" / str(node) / "status").write_text(f"{status}\n")
        (hpc / "nodes" / str(node) / "load").write_text("0\n")
    for name in SET:
        (hpc / "admin" / name).write_text("")
    config = tmp_path / "omfs.toml"
    config.write_text(f'run_dir = "{tmp_path}"\n')
    monkeypatch.setenv("OMFS_CONFIG", str(config))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path / "mfs"


@pytest.fixture
def run(mount: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    def measured(where: Path, node: int, begin: Callable[[str], None]) -> dict[str, float]:
        assert (where, node) == (mount, 2)
        for step in tune._STEPS:
            begin(step)
        return MEASURED

    monkeypatch.setattr(tune, "measured", measured)
    return lambda *words: tune.main([*words, "--mfs", str(mount)])


def values_set(mount: Path) -> dict[str, str]:
    return {name: (mount / "proc" / "hpc" / "admin" / name).read_text().rstrip("\n") for name in SET}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("tune: ")
    return captured.err


def test_what_was_measured_is_set_and_told(run: Main, mount: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("2") == 0
    assert values_set(mount) == SET
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.splitlines()[-2:] == [f"{name}: {values}" for name, values in SET.items()]
    assert sorted(path.name for path in mount.parent.iterdir()) == ["mfs", "omfs.toml"]


def test_json(run: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["node"], told["with"]) == (1, 2)
    assert (list(told["overheads"]), list(told["mfscosts"])) == (list(OVERHEADS), list(MFSCOSTS))
    assert " ".join(map(str, told["overheads"].values())) == SET["overheads"]


@pytest.mark.parametrize("words", [[], ["x"], ["0"], ["-1"], ["70000"], ["2", "3"]])
def test_a_wrong_command_line(words: list[str], run: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        run(*words)
    assert raised.value.code == 2
    assert "see tune --help" in one_line(capsys)


@pytest.mark.parametrize(
    ("node", "said"),
    [("1", "node 1 is this node; name another one"), ("3", "node 3 is down"), ("9", "node 9 is not in the map")],
)
def test_a_node_that_can_not_be_measured(
    node: str, said: str, run: Main, mount: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(node) == 1
    assert said in one_line(capsys)
    assert values_set(mount) == dict.fromkeys(SET, "")


def test_only_root_may(run: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run("2") == 1
    assert "only root may do that" in one_line(capsys)


def test_without_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["2", "--mfs", str(tmp_path)]) == 3
    assert "is not mounted" in one_line(capsys)


def test_one_at_a_time(run: Main, mount: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = mount.parent / tune.LOCK
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4242\n")
        file.flush()
        assert run("2") == 1
        assert "another tune runs on this node (process 4242)" in one_line(capsys)
    assert run("2") == 0, "who was killed holds nothing"
    assert not lock.exists()


def test_who_is_busy_is_said(run: Main, mount: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mount / "proc" / "hpc" / "nodes" / "2" / "load").write_text("180\n")
    assert run("2") == 0
    assert "node 2 is busy (load=180)" in capsys.readouterr().err


@pytest.mark.parametrize("failure", [Refused("no program could be moved"), OSError(5, "Input/output error")])
def test_where_it_fails_nothing_is_set(
    failure: Exception, run: Main, mount: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> dict[str, float]:
        raise failure

    monkeypatch.setattr(tune, "measured", fails)
    assert run("2") == 1
    one_line(capsys)
    assert values_set(mount) == dict.fromkeys(SET, "")
    assert not (mount.parent / tune.LOCK).exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_is_interrupted_tidies_up(
    number: signal.Signals, status: int, run: Main, mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = mount / "2" / "var" / "tmp"
    tree.mkdir(parents=True)

    def interrupted(where: Path, node: int, _: object) -> dict[str, float]:
        with tunefiles.scratch(where / str(node)) as folder:
            (folder / "file").touch()
            os.kill(os.getpid(), number)
            raise AssertionError("it goes on")

    monkeypatch.setattr(tune, "measured", interrupted)
    before = signal.getsignal(number)
    assert run("2") == status
    assert signal.getsignal(number) is before
    assert list(tree.iterdir()) == []
    assert not (mount.parent / tune.LOCK).exists()
    assert values_set(mount) == dict.fromkeys(SET, "")


def test_a_bar_is_shown_on_a_terminal(run: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        assert run("2") == 0
        terminal.flush()
        shown = ""
        while tune._STEPS[-1] not in shown:
            shown += os.read(master, 1 << 16).decode()
    os.close(master)


# ---------------------------------------------------------------- what it measures with


def test_calls_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunefiles, "LARGE_BYTES", 2 * MIB)
    (tmp_path / "var" / "tmp").mkdir(parents=True)
    with tunefiles.scratch(tmp_path) as folder:
        for name in ("small", "other"):
            (folder / name).mkdir()
            for number in range(FILES):
                (folder / name / str(number)).write_bytes(bytes(4096))
        (folder / "large").write_bytes(bytes(2 * MIB))
        found = tunefiles.measured(folder, folder / "small", folder / "other", folder / "large")
        assert (folder / "written").stat().st_size == 2 * MIB
    assert found.keys() == MFSCOSTS.keys() | {"round_trip"}
    assert min(found.values()) > 0
    assert list((tmp_path / "var" / "tmp").iterdir()) == []


def test_a_node_without_a_place_for_files(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"No such file or directory; it takes a directory there"):
        tunefiles.scratch(tmp_path / "2").__enter__()


@pytest.fixture
def prober(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prober]:
    """It never moves."""
    monkeypatch.setattr(tuneguest, "_MOSRUN", INSTEAD_OF_MOSRUN)
    with Prober(tmp_path) as started:
        yield started


def test_the_program_that_measures(prober: Prober, tmp_path: Path) -> None:
    for words in (("call", 3), ("fork", 3), ("open", "/etc/passwd", 3)):
        assert prober.ask(*words) > 0
    assert prober.ask("hold", 2 * MIB) == 0
    assert prober.ask("files", tmp_path, 2, 5000) == 0
    assert [(tmp_path / name).stat().st_size for name in ("0", "1")] == [5000, 5000]
    for done_s in (prober.give(MIB), prober.take(MIB), prober.answer_to_signal()):
        assert done_s > 0
    assert prober.ask("call", 1) > 0, "they still understand each other"


def test_a_move_is_a_write_and_its_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuneguest, "_MOSRUN", INSTEAD_OF_MOSRUN)
    with Guest(tmp_path, ["cat"]) as guest:
        folder = tmp_path / "proc" / str(guest._process.pid)
        folder.mkdir(parents=True)
        (folder / "goto").touch()
        (folder / "journey").write_text('{"origin": 1, "target": 2, "frozen_s": 0.05}\n')
        took_s, way = guest.move(2)
        assert took_s > 0
        assert way is not None
        assert way.frozen_s == 0.05
        assert (folder / "goto").read_text() == "2\n"
        (folder / "goto").unlink()
        with pytest.raises(Refused, match="no program could be moved there and back: there is no process"):
            guest.move(2)
        assert guest.echo() > 0
    assert guest._process.returncode == 0


def test_what_mosrun_says_is_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuneguest, "_MOSRUN", "import sys; sys.exit('mosrun: mignode says no')")
    with Guest(tmp_path, ["echo"]) as guest, pytest.raises(Refused, match=r"^mosrun: mignode says no$"):
        guest.receive(1)


def test_who_is_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuneguest, "_MOSRUN", INSTEAD_OF_MOSRUN)
    monkeypatch.setattr(tuneguest, "ANSWER_WITHIN_S", 0.1)
    monkeypatch.setattr(tuneguest, "END_WITHIN_S", 0.1)
    with pytest.raises(Refused, match="has said nothing"), Guest(tmp_path, ["sleep", "1000"]) as guest:
        guest.receive(1)
    assert guest._process.returncode == -signal.SIGKILL


def test_the_command_and_its_manual_name_it() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "mignode.cli.tune", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "/mfs/proc/hpc/admin/overheads" in told.stdout


@pytest.mark.parametrize("said", [b"", b"call 1", b"take 1000\n"])
def test_the_program_that_measures_ends_with_its_input(said: bytes) -> None:
    """So also when tune was killed, in the middle of whatever: it may be on another node by then."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", tuneguest.PROBE], input=said, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
