"""Commands whose daemon goes behind: who may, what --version says, and Ctrl-C before it is ready, one line."""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mignode.cli import mignode
from omfs.cli import export, mount
from omfs.cli.behind import Report
from omfs.config import SOFTWARE
from tests.lab.cluster import wait_until

NEVER_READY = """
import os, signal
from omfs.cli.behind import Report, serve_behind
def serve(report):
    print(os.getpid(), flush=True)
    signal.pause()
raise SystemExit(serve_behind("nobody", serve, Report(-1)))
"""


def _export(config: Path, report: Report) -> int:
    return export._serve(argparse.Namespace(config=config, settings_json=None), report)


@pytest.mark.parametrize("serve", [mignode._serve, _export], ids=["mignode", "omfs-export"])
def test_who_is_not_root_is_told_so(
    serve: Callable[[Path, Report], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not which directory is forbidden to him."""
    config = tmp_path / "omfs.toml"
    config.write_text('run_dir = "/dev/null/run"\n')
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    receiving, sending = os.pipe()
    with open(receiving) as told:
        assert serve(config, Report(sending)) == 1
        assert told.readline().startswith("must run as root: ")


@pytest.mark.parametrize("daemon", ["mignode.cli.mignode", "mignode.cli.omdiscd", "omfs.cli.export"])
def test_why_it_can_not_is_said_once(daemon: str) -> None:
    command = [sys.executable, "-m", daemon, "--config", "/nowhere/omfs.toml"]
    for words in ([], ["--foreground"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert [line.partition(": ")[2] for line in done.stderr.splitlines()] == [
            "/nowhere/omfs.toml: no such file; give an existing omfs.toml or leave the option out"
        ]


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--version", "-V"):
        monkeypatch.setattr(sys, "argv", ["omfs", word])
        assert mount.main() == 0
        assert capsys.readouterr().out == f"{SOFTWARE}\n"


def test_who_waits_no_longer_ends_the_daemon() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", NEVER_READY], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as waiting:
        assert waiting.stdout is not None
        daemon = os.pidfd_open(int(waiting.stdout.readline()))
        try:
            state = Path(f"/proc/{waiting.pid}/stat")
            wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "S", "the command waits")
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(60) == 1
            assert select.select([daemon], [], [], 60)[0], "the daemon has ended"
        finally:
            if not select.select([daemon], [], [], 0)[0]:
                signal.pidfd_send_signal(daemon, signal.SIGKILL)
            os.close(daemon)
        assert waiting.stderr is not None
        assert waiting.stderr.read() == b""
