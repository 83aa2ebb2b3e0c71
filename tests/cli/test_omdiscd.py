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
PROGRAM = (sys.executable, "-m", "mignode.cli.omdiscd", "--foreground")
NEW_NETWORK = ("unshare", "--net", "sh", "-c", NETWORK, "sh")
COMMAND = (*NEW_NETWORK, *PROGRAM)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """omfs.toml of a node that has no map."""
    return config_in(tmp_path)


def config_in(place: Path) -> Path:
    path = place / "omfs.toml"
    path.write_text(
        f'map = "{place}/map"\nsec = "none"\nstate_dir = "{place}/state"\nrun_dir = "{place}/run"\n'
        f'config_dir = "{place}/etc"\n'
    )
    return path


@contextlib.contextmanager
def serving(
    config: Path, node: int, *words: str, network: tuple[str, ...] = NEW_NETWORK
) -> Iterator[subprocess.Popen[str]]:
    """Ready; ended by SIGTERM.  *network*: the command that runs another one there."""
    path = config.parent / "notify"
    manager = ListeningSystemd(str(path))
    command = [*network, *PROGRAM, "--config", str(config), *words]
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


@contextlib.contextmanager
def networks(count: int) -> Iterator[list[int]]:
    """Each known by a process in it."""
    holders = [
        subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; read line"], stdin=-1, stdout=-1) for _ in range(count)
    ]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"\n"
        yield [holder.pid for holder in holders]
    finally:
        for holder in holders:
            holder.communicate()


def connect(one: int, name: str, address: str, other: int, address_there: str) -> None:
    """Two networks by a wire, that is called the same at both ends."""
    wire = f"ip link add {name} netns {one} type veth peer name {name} netns {other}"
    subprocess.run(wire.split(), check=True)
    for network, here in ((one, address), (other, address_there)):
        script = f"ip addr add {here} dev {name} && ip link set {name} up"
        subprocess.run([*inside(network), "sh", "-c", script], check=True)


def inside(network: int) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{network}/ns/net")


LISTENS = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ether:
    ether.bind(("", 5429))
    group = socket.inet_aton("239.192.0.1") + socket.inet_aton(sys.argv[1])
    ether.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    print(ether.recvfrom(2048)[1][0])
"""


@pytest.mark.lab
def test_to_and_from_the_group_by_two_interfaces(config: Path) -> None:
    """Looked at one by one: nodes that hear each other one way ask, and are answered, without the group."""
    with networks(3) as (between, left, right):
        connect(between, "d0", "10.9.0.1/16", left, "10.9.0.20/16")
        connect(between, "d1", "10.8.0.1/16", right, "10.8.0.30/16")
        with serving(config, 1, "-p", "1", "-i", "d0,d1", network=inside(between)):
            for network, there, here, name in (
                (left, "10.9.0.20", "10.9.0.1", "d0"),
                (right, "10.8.0.30", "10.8.0.1", "d1"),
            ):
                listens = [*inside(network), sys.executable, "-c", LISTENS, there]
                heard = subprocess.run(listens, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
                assert heard.stdout.split() == [here]
                shows = [*inside(between), "ip", "maddress", "show", "dev", name]
                joined = subprocess.run(shows, stdout=subprocess.PIPE, text=True, check=True)
                assert "239.192.0.1" in joined.stdout


@pytest.mark.lab
def test_two_interfaces(tmp_path: Path) -> None:
    """One between two networks hears who is in either, and is heard there; so these two hear of each other by it."""
    places = [tmp_path / name for name in ("between", "left", "right")]
    for place in places:
        place.mkdir()
    configs = [config_in(place) for place in places]
    with networks(3) as (between, left, right), contextlib.ExitStack() as stack:
        connect(between, "d0", "10.9.0.1/16", left, "10.9.0.20/16")
        connect(between, "d1", "10.8.0.1/16", right, "10.8.0.30/16")
        for config, node, network, names in zip(
            configs, (1, 2, 3), (between, left, right), ("d0,d1", "d0", "d1"), strict=True
        ):
            stack.enter_context(serving(config, node, "-p", str(node), "-i", names, network=inside(network)))
        everybody = {"1 10.9.0.1 1", "1 10.8.0.1 ALIAS", "2 10.9.0.20 1", "3 10.8.0.30 1"}
        for place in places:
            wait_until(lambda place=place: lines(place) == everybody, f"all are in the map of {place.name}")


def lines(place: Path) -> set[str]:
    return set((place / "map").read_text().splitlines()[1:])


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
