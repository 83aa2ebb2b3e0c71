"""omdiscd as a process, in a network of its own: its words, its map, what it tells systemd, its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mignode.cli import omdiscd
from omfs.net.authority import install_credentials, make_authority
from tests.cli.listeningsystemd import ListeningSystemd
from tests.lab.cluster import wait_until

NETWORK = """
ip link set lo up && ip link add d0 type veth peer name d1 && ip addr add 10.9.10.220/16 dev d0 &&
ip link set d0 up && ip link set d1 up && exec "$@"
"""
COMMAND = (
    "unshare", "--net", "sh", "-c", NETWORK, "sh", sys.executable, "-m", "mignode.cli.omdiscd", "--foreground",
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """omfs.toml of a node that has no map."""
    path = tmp_path / "omfs.toml"
    path.write_text(
        f'map = "{tmp_path}/map"\nsec = "none"\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n'
        f'config_dir = "{tmp_path}/etc"\n'
    )
    return path


@contextlib.contextmanager
def serving(config: Path, node: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Ready; ended by SIGTERM."""
    path = config.parent / "notify"
    manager = ListeningSystemd(str(path))
    command = [*COMMAND, "--config", str(config), *words]
    environment = os.environ | {"NOTIFY_SOCKET": str(path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert manager.hear() == ["READY=1", f"STATUS=node {node}"]
        yield process
        process.send_signal(signal.SIGHUP)
        assert manager.hear()[0] == "RELOADING=1"
        assert manager.hear() == ["READY=1"]
        process.terminate()
        assert manager.hear() == ["STOPPING=1"]
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        manager.close()
        path.unlink()
        assert process.stderr is not None
        process.stderr.close()


def refusal(config: Path, *words: str) -> str:
    """The last line, of one that ends with 1."""
    done = subprocess.run(
        [*COMMAND, "--config", str(config), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.lab
def test_from_an_address_to_a_map(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10.9.10.220 is node 2780, as in openMosix; the second time with another address, and told who it is."""
    with serving(config, 2780, "-i", "d0"):
        assert (config.parent / "map").read_text().splitlines()[1:] == ["2780 10.9.10.220 1"]
        assert omdiscd.main(["--status", "--json", "--config", str(config)]) == 0
        status = json.loads(capsys.readouterr().out)
        assert (status["node_id"], status["addresses"], status["here"]) == (2780, ["10.9.10.220"], True)
        assert omdiscd.main(["--status", "--config", str(config)]) == 0
        assert capsys.readouterr().out.startswith("This is node 2780 at 10.9.10.220\nDatagrams: ")
        for absent in ("9", "2780"):
            assert omdiscd.main(["--forget", absent, "--config", str(config)]) == 1
            assert f"node {absent} is not among the others" in capsys.readouterr().err
    wait_until(lambda: omdiscd.main(["--status", "--config", str(config)]) == 3, "nobody answers any more")
    with serving(config, 7, "-i", "d0", "-p", "7", "-m", "4"):
        assert (config.parent / "map").read_text().splitlines()[1:] == ["7 10.9.10.220 1"]


@pytest.mark.lab
def test_with_a_certificate(config: Path, tmp_path: Path) -> None:
    install_credentials(tmp_path / "etc", make_authority(tmp_path / "ca").issue(5))
    config.write_text(config.read_text().replace('"none"', '"tls"'))
    assert "the certificate of node 5, not of node 6" in refusal(config, "-i", "d0", "-p", "6")
    config.write_text(config.read_text() + 'discovery_interfaces = ["d0"]\naddress = "10.9.10.220"\n')
    with serving(config, 5):
        assert (tmp_path / "map").read_text().splitlines()[1:] == ["5 10.9.10.220 1"]


@pytest.mark.lab
def test_what_it_refuses(config: Path) -> None:
    assert "there is no default route" in refusal(config)
    assert "there is no such interface" in refusal(config, "-i", "d7")
    assert "d1 has no IPv4 address yet" in refusal(config, "-i", "d0,d1")
    assert "127.0.0.1 is no address at which others could find" in refusal(config, "-i", "lo")
    config.write_text(config.read_text() + 'address = "10.9.0.1"\n')
    assert "address = 10.9.0.1 (omfs.toml) is on none of d0" in refusal(config, "-i", "d0")
    (config.parent / "map").write_text("1 10.9.0.1 3\n")
    assert "was not written by omdiscd" in refusal(config, "-i", "d0")
    assert (config.parent / "map").read_text() == "1 10.9.0.1 3\n"


@pytest.mark.parametrize(
    "words",
    [["-i", "eth0,"], ["-m", "0"], ["-m", "256"], ["-p", "65536"], ["--forget", "x"], ["--json"],
     ["--status", "--forget", "1"]],
    ids=["empty name", "no life", "long life", "no id", "no number", "json of what", "both"],
)  # fmt: skip
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        omdiscd.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nobody_runs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--status"], ["--forget", "3"]):
        assert omdiscd.main([*words, "--config", str(config)]) == 3
        assert capsys.readouterr().err == "omdiscd: it does not run on this node; start it: systemctl start omdiscd\n"
