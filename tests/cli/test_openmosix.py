"""openmosix and setpe -off without a cluster around: what is called, what is kept, what is refused.

mount, umount and systemctl are programs that note how they were called.  A whole node: tests/lab/test_node_tools.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mignode.adminvalues import AdminStore
from mignode.cli import controlfile, nodeservice, openmosix, setpe
from mignode.handover import Record
from mignode.record import guest_name, records
from omfs.config import load_settings
from omfs.kernel.processes import identify
from tests.cli.inforce import make_hpc
from tests.cli.test_mignode import ask, config
from tests.cli.test_setpe import SENTENCES, mignode_of

__all__ = ["config"]
Main = Callable[..., int]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was called in place of the system's programs; there is a line in fstab, and no systemd."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("mount", "umount", "systemctl"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (tmp_path / "fstab").write_text(f"# /dev/sda1 / ext4\nmfs_mnt {tmp_path}/mfs fuse.omfs dfsa=1 0 0\n")
    monkeypatch.setattr(nodeservice, "FSTAB", tmp_path / "fstab")
    monkeypatch.setattr(nodeservice, "SYSTEMD", tmp_path / "no-systemd")
    (tmp_path / "calls").touch()
    return lambda: (tmp_path / "calls").read_text().splitlines()


@pytest.fixture
def run(config: Path) -> Main:
    return lambda *words: openmosix.main([*words, "--config", str(config), "--mfs", str(config.parent / "nowhere")])


@pytest.mark.lab
def test_on_and_off(
    run: Main, config: Path, calls: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(config)
    try:
        assert run("start") == 0
        assert capsys.readouterr().out == "this node takes part in the cluster\n"
        assert ask(config, "status")["node_id"] == 1
        nodeservice.write_flag(settings, "stay", True)
    finally:
        assert run("stop") == 0
    assert capsys.readouterr().out == "this node has left the cluster\n"
    assert nodeservice.running(settings) == {}
    values = AdminStore(Path(settings.state_dir)).values
    assert (values.block, values.stay) == (False, True), "as the administrator had it"
    assert run("stop") == 0
    assert capsys.readouterr().out == "this node was in no cluster\n"
    assert calls() == [f"mount {config.parent}/mfs"]


def test_a_mount_that_is_dead_is_taken_off(
    config: Path, tmp_path: Path, calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, dead = load_settings(config), tmp_path / "dead"
    monkeypatch.setattr(controlfile, "mounted", lambda: [dead])
    assert nodeservice.turn_off(settings, dead)
    assert not nodeservice.turn_off(settings, tmp_path / "another")
    assert calls() == [f"umount {dead}"]


def test_systemd_starts_what_it_knows(
    run: Main, config: Path, calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodeservice, "SYSTEMD", config.parent)
    assert run("start") == 0
    assert calls() == [f"mount {config.parent}/mfs", "systemctl cat mignode.service", "systemctl start mignode"]


@pytest.mark.lab
def test_programs_are_not_lost(run: Main, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    me = identify(os.getpid())
    assert me is not None
    settings = load_settings(config)
    with mignode_of(config):
        kept = records(Path(settings.run_dir))
        kept.write(guest_name(1, *me), Record(1))
        kept.write(guest_name(1, me.pid, me.start_ticks + 1), Record(1))
        refusal = f"programs that mosrun started here would be lost: end {me.pid} first\n"
        assert run("stop") == 1
        assert capsys.readouterr().err == f"openmosix: {refusal}"
        assert setpe.main(["-off", "--config", str(config), "--mfs", "/nowhere"]) == 1
        assert capsys.readouterr().err == f"setpe: {refusal}"
        assert "mignode" in nodeservice.running(settings)
        assert run("stop", "--force") == 0
        assert nodeservice.running(settings) == {}


def test_no_line_in_fstab(
    run: Main, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodeservice, "FSTAB", config.parent / "fstab")
    assert run("start") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("write there: mfs_mnt /mfs fuse.omfs dfsa=1,_netdev 0 0")


def test_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hpc(tmp_path)
    assert openmosix.main(["status", "--mfs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == SENTENCES
    assert openmosix.main(["status", "--json", "--mfs", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["node"], told["total"], told["entries"][1]) == (
        2, 4, {"node": 7, "address": "192.0.2.7", "count": 1},
    )  # fmt: skip
    assert openmosix.main(["status", "--mfs", str(tmp_path / "nowhere")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
