"""omfs-export: what it says when it can't serve, and that it serves, reports, and ends when told."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from omfs import wire
from omfs.config import SOFTWARE, Settings
from omfs.net import control
from omfs.net.nodemap import read_map
from tests.cli.listeningsystemd import ListeningSystemd
from tests.freeports import free_port

pytestmark = pytest.mark.lab

COMMAND = (sys.executable, "-m", "omfs.cli.export")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """omfs.toml of a one-node cluster on a free port of this machine."""
    port = free_port()
    (tmp_path / "map").write_text("1 127.0.0.1 1\n")
    path = tmp_path / "omfs.toml"
    path.write_text(
        f'map = "{tmp_path}/map"\naddress = "127.0.0.1"\nport = {port}\nsec = "none"\n'
        f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\nconfig_dir = "{tmp_path}/etc"\n'
    )
    return path


def ask_status(config: Path) -> dict[str, object]:
    return trio.run(control.ask, config.parent / "run" / "export.sock", "status")


def describe(config: Path, **arguments: object) -> wire.NodeDescribed:
    reply = trio.run(partial(control.ask, config.parent / "run" / "export.sock", "describe", **arguments))
    return msgspec.convert(reply["described"], wire.NodeDescribed)


def end(pid: int) -> None:
    """SIGTERM, and wait until it is gone."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(60_000), "omfs-export does not end"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("port = 1x", "omfs.toml:"),
        ("nonsense = 1", "nonsense"),
        ("metrics_port_export = 65536", "metrics_port_export"),
        ('metrics_port_export = 9\nmetrics_address = "no..host"', "metrics on no..host port 9"),
        ('sec = "none"\nsec = "none"', "omfs.toml:"),
        ('[[trees]]\npath = "relative"', "absolute path"),
        ('[[trees]]\npath = "/"\nhidden = true', "can not be hidden"),
    ],
)
@pytest.mark.parametrize("words", [("--foreground",), ()])
def test_a_wrong_setting_is_one_line(config: Path, change: str, complaint: str, words: tuple[str, ...]) -> None:
    config.write_text(config.read_text() + change + "\n")
    ended = run("--config", str(config), *words)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("omfs-export: ")]
    assert complaint in line


def test_a_missing_config_file_is_one_line(tmp_path: Path) -> None:
    ended = run("--config", str(tmp_path / "nowhere.toml"))
    assert ended.returncode == 1
    assert (
        ended.stderr
        == f"omfs-export: {tmp_path}/nowhere.toml: no such file; give an existing omfs.toml or leave the option out\n"
    )


def test_unknown_words_are_refused() -> None:
    assert run("--nonsense").returncode == 2
    assert "--foreground" in run("--help").stdout
    assert run("--foreground", "--settings-json", '{"port": "x"}').returncode == 1


def test_it_serves_behind_until_told_to_end(config: Path) -> None:
    ended = run("--config", str(config))
    assert (ended.returncode, ended.stderr) == (0, "")
    status = ask_status(config)
    assert status["node_id"] == 1
    again = run("--config", str(config))
    assert again.returncode == 1
    assert "another omfs-export" in again.stderr
    assert isinstance(status["pid"], int)
    end(status["pid"])
    with pytest.raises(control.NotRunning):
        ask_status(config)


def test_it_describes_its_node(config: Path) -> None:
    assert run("--config", str(config)).returncode == 0
    try:
        short, long = describe(config), describe(config, accounts=True)
    finally:
        pid = ask_status(config)["pid"]
        assert isinstance(pid, int)
        end(pid)
    assert (short.node_id, short.version) == (1, wire.PROTOCOL_VERSION)
    assert short.standing.map_digest == read_map(config.parent / "map").digest
    assert (short.standing.dfsa, short.standing.certificate_expires_s) == (True, 0)
    assert short.standing.users == ()
    assert (b"root", 0) in long.standing.users
    assert long.standing.users_digest == short.standing.users_digest


def test_it_refuses_others_until_told_otherwise_also_when_started_again(config: Path) -> None:
    def switch(**arguments: bool) -> object:
        return trio.run(partial(control.ask, config.parent / "run" / "export.sock", "nomfs", **arguments))

    for before, then in ((False, True), (True, False), (False, False)):
        assert run("--config", str(config)).returncode == 0
        try:
            assert switch() == {"on": before}
            assert switch(on=then) == {"on": then}
        finally:
            status = ask_status(config)
            assert isinstance(status["pid"], int)
            end(status["pid"])
        assert status["nomfs"] is then


def test_it_tells_its_metrics_where_it_was_told_to(config: Path) -> None:
    port = free_port()
    config.write_text(config.read_text() + f"metrics_port_export = {port}\n")
    assert run("--config", str(config)).returncode == 0
    pid = ask_status(config)["pid"]
    assert isinstance(pid, int)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            families = {one.name: one for one in text_string_to_metric_families(answer.read().decode())}
    finally:
        end(pid)
    (info,) = families["omfs_info"].samples
    assert info.labels == {"role": "export", "node": "1", "software": SOFTWARE}
    assert families["omfs_export_lease_table_bytes"].samples[0].value > 0
    assert families["omfs_export_leases"].samples[0].value == 0
    assert {sample.value for sample in families["omfs_export_recall_duration_seconds"].samples} == {0}


def test_a_taken_metrics_port_is_one_line(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config.write_text(config.read_text() + f"metrics_port_export = {port}\n")
        ended = run("--config", str(config))
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"omfs-export: metrics on 127.0.0.1 port {port}: Address already in use; change ")
    with pytest.raises(control.NotRunning):
        ask_status(config)


def test_it_reports_to_the_mount(config: Path) -> None:
    settings = tomllib.loads(config.read_text())
    assert Settings(**settings)
    receiving, sending = os.pipe()
    words = ("--foreground", f"--report-fd={sending}", "--settings-json", json.dumps(settings))
    process = subprocess.Popen([*COMMAND, *words], pass_fds=(sending,), stderr=subprocess.DEVNULL)
    os.close(sending)
    with open(receiving, "rb") as pipe:
        assert pipe.read() == b"ready\n"
    assert ask_status(config)["pid"] == process.pid
    end(process.pid)
    assert process.wait(60) == 0


@pytest.mark.parametrize("by_mount", [False, True])
def test_it_tells_systemd_unless_a_mount_started_it(config: Path, by_mount: bool) -> None:
    """A mount's export would speak in the name of the service that the mount runs in."""
    manager = ListeningSystemd(str(config.parent / "notify"))
    ready, told = os.pipe()
    settings = msgspec.convert(tomllib.loads(config.read_text()), Settings)
    words = ["--settings-json", msgspec.json.encode(settings).decode()] if by_mount else ["--config", str(config)]
    process = subprocess.Popen(
        [*COMMAND, "--foreground", f"--report-fd={told}", *words],
        pass_fds=(told,), stderr=subprocess.DEVNULL, env=os.environ | {"NOTIFY_SOCKET": str(config.parent / "notify")},
    )  # fmt: skip
    os.close(told)
    try:
        with open(ready, "rb") as report:
            assert report.readline() == b"ready\n"
        if not by_mount:
            assert manager.hear() == ["READY=1", "STATUS=node 1"]
            process.send_signal(signal.SIGHUP)
            assert manager.hear()[0] == "RELOADING=1"
            assert manager.hear() == ["READY=1"]
        process.terminate()
        if not by_mount:
            assert manager.hear() == ["STOPPING=1"]
        assert process.wait(60) == 0
        assert manager.has_heard_all()
    finally:
        process.kill()
        process.wait()
        manager.close()
