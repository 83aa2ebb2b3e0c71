"""omfs-admin init, join and cert: from nothing to two nodes that trust each other."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from omfs.cli import admin
from omfs.kernel import interfaces
from omfs.net import authority, tls
from omfs.net.nodemap import DISCOVERED


class Node:
    """A machine of the tests: its own directory and its own idea of its address."""

    def __init__(self, directory: Path, number: int) -> None:
        self.directory = directory / f"node{number}"
        self.directory.mkdir()
        self.etc = self.directory / "etc"
        self.map = directory / "map"
        self.map.write_text("1 127.0.0.1 3\n")
        self.config = self.directory / "omfs.toml"
        self.config.write_text(f'map = "{self.map}"\naddress = "127.0.0.{number}"\nconfig_dir = "{self.etc}"\n')

    def admin(self, *arguments: str | Path) -> int:
        return admin.main(["--config", str(self.config), *map(str, arguments)])

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.etc.iterdir()} if self.etc.exists() else {}


@pytest.fixture
def first(tmp_path: Path) -> Node:
    return Node(tmp_path, 1)


@pytest.fixture
def second(tmp_path: Path) -> Node:
    return Node(tmp_path, 2)


def test_init_makes_ca_and_first_node(first: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert first.admin("init") == 0
    out = capsys.readouterr().out
    assert "node 1: certificate valid until" in out
    assert "(2, 3): omfs-admin join N" in out
    assert set(first.contents()) == {tls.CA_FILE, tls.CA_KEY_FILE, tls.NODE_FILE, tls.KEY_FILE}
    assert tls.load_identity(first.etc, "tls", 1).node_id == 1


def test_init_does_not_replace_a_ca(first: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert first.admin("init") == 0
    before = first.contents()
    assert first.admin("init") == 1
    assert "there is a CA already" in capsys.readouterr().err
    assert first.contents() == before
    assert first.admin("init", "--force") == 0
    assert first.contents()[tls.CA_FILE] != before[tls.CA_FILE]
    assert tls.load_identity(first.etc, "tls", 1).node_id == 1


def test_init_for_a_chosen_node(first: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert first.admin("init", "--node", "9") == 1
    assert "node 9 is not in the map" in capsys.readouterr().err
    assert first.contents() == {}
    other = tmp_path / "other.map"
    other.write_text("9 240.0.0.9 1\n")
    arguments = ("--node", "9", "--map", str(other), "--config-dir", str(tmp_path / "x"), "--days", "2")
    assert first.admin("init", *arguments) == 0
    identity = tls.load_identity(tmp_path / "x", "tls", 9)
    assert identity.expires is not None


def test_join_by_bundle(first: Node, second: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "two.tar"
    assert first.admin("init") == 0
    assert first.admin("join", "2", "-o", bundle) == 0
    assert "omfs-admin join --bundle two.tar" in capsys.readouterr().out
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    assert second.admin("join", "--bundle", bundle) == 0
    assert "this is node 2 of cluster" in capsys.readouterr().out
    assert set(second.contents()) == {tls.CA_FILE, tls.NODE_FILE, tls.KEY_FILE}
    theirs, ours = tls.load_identity(second.etc, "tls", 2), tls.load_identity(first.etc, "tls", 1)
    assert theirs.cluster == ours.cluster


def test_join_names_the_bundle_by_itself(first: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert first.admin("init") == 0
    assert first.admin("join", "3") == 0
    assert (tmp_path / "omfs-node-3.tar").exists()


def test_join_through_a_pipe(first: Node, second: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first.admin("init") == 0
    command = [sys.executable, "-m", "omfs.cli.admin", "--config", str(first.config), "join", "2", "-o", "-"]
    made = subprocess.run(command, capture_output=True, timeout=60, check=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(made.stdout)))
    assert second.admin("join", "--bundle", "-") == 0
    assert tls.load_identity(second.etc, "tls", 2).node_id == 2


def test_join_from_a_host(first: Node, second: Node, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """ssh is replaced by a script that runs the command here and writes down for whom."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\nshift\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    remote = f"{sys.executable} -m omfs.cli.admin --config {first.config}"
    arguments = ("join", "--from", "root@node1", "--ssh", str(ssh), "--remote", remote)
    assert second.admin(*arguments) == 1
    captured = capfd.readouterr()
    assert "only the node where omfs-admin init ran can make certificates" in captured.err
    assert "root@node1 gave no bundle" in captured.err
    assert second.contents() == {}
    assert first.admin("init") == 0
    assert second.admin(*arguments) == 0
    assert (tmp_path / "asked").read_text() == "root@node1\n" * 2
    assert tls.load_identity(second.etc, "tls", 2).node_id == 2
    assert second.admin("join", "--from", "node1", "--ssh", f"{tmp_path}/no-such-ssh") == 1
    assert "no-such-ssh: No such file" in capfd.readouterr().err


def test_joining_again_renews(first: Node, second: Node, tmp_path: Path) -> None:
    assert first.admin("init") == 0
    for name in ("one.tar", "two.tar"):
        assert first.admin("join", "2", "-o", tmp_path / name) == 0
    assert second.admin("join", "--bundle", tmp_path / "one.tar") == 0
    before = second.contents()
    assert second.admin("join", "--bundle", tmp_path / "two.tar") == 0
    assert second.contents()[tls.NODE_FILE] != before[tls.NODE_FILE]
    assert tls.load_identity(second.etc, "tls", 2).node_id == 2


def test_joins_that_are_refused(first: Node, second: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fault(node: Node, *arguments: str | Path) -> str:
        before = node.contents()
        assert node.admin("join", *arguments) == 1
        assert node.contents() == before
        return capsys.readouterr().err

    bundle = tmp_path / "three.tar"
    assert "only the node where omfs-admin init ran" in fault(first, "2")
    assert first.admin("init") == 0
    assert "node 7 is not in the map" in fault(first, "7")
    assert first.admin("join", "3", "-o", bundle) == 0
    assert "is for node 3, but by the map this is node 2" in fault(second, "--bundle", bundle)
    assert "none.tar: No such file" in fault(second, "--bundle", tmp_path / "none.tar")
    assert "not a bundle" in fault(second, "--bundle", second.map)
    made = authority.make_authority(tmp_path / "strange")
    authority.install_credentials(second.etc, made.issue(2))
    assert "belongs to another cluster" in fault(second, "--bundle", bundle)
    assert second.admin("join", "--bundle", bundle, "--force") == 0
    assert tls.load_identity(second.etc, "tls", 3).node_id == 3


def test_join_without_a_map_says_what_it_could_not_check(
    first: Node, second: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert first.admin("init") == 0
    assert first.admin("join", "2", "-o", tmp_path / "b") == 0
    arguments = ("join", "--bundle", tmp_path / "b", "--map", tmp_path / "none")
    assert second.admin(*arguments) == 0
    assert "note: can't check that this is node 2" in capsys.readouterr().err


def test_cert_shows_and_renews(first: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert first.admin("init", "--days", "5") == 0
    capsys.readouterr()
    assert first.admin("cert", "--json") == 0
    ca, node = json.loads(capsys.readouterr().out)
    assert (node["subject"], node["days_left"]) == ("omfs node 1", 4)
    assert ca["days_left"] == authority.CA_DAYS - 1
    key = first.contents()[tls.KEY_FILE]
    assert first.admin("cert", "--renew", "--days", "100") == 0
    assert "99" in capsys.readouterr().out
    assert first.contents()[tls.KEY_FILE] == key
    assert tls.load_identity(first.etc, "tls", 1).node_id == 1


def test_cert_where_the_ca_is_not(
    first: Node, second: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert second.admin("cert") == 1
    assert "ca.pem: missing" in capsys.readouterr().err
    assert first.admin("init") == 0
    assert first.admin("join", "2", "-o", tmp_path / "b") == 0
    assert second.admin("join", "--bundle", tmp_path / "b") == 0
    assert second.admin("cert") == 0
    assert second.admin("cert", "--renew") == 1
    assert "renew by joining again" in capsys.readouterr().err


def test_cert_shows_what_is_expired_and_fails(first: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert first.admin("init") == 0
    made = authority.load_authority(first.etc)
    old = made.certificate.not_valid_before_utc
    authority.install_credentials(first.etc, made.issue(1, 1, old - authority.SKEW))
    capsys.readouterr()
    assert first.admin("cert") == 1
    captured = capsys.readouterr()
    assert "omfs node 1" in captured.out
    assert "expired on" in captured.err


# ---------------------------------------------------------------- without a map


def without_map(node: Node, *, address: str = "") -> Node:
    node.map.unlink(missing_ok=True)
    node.config.write_text(f'map = "{node.map}"\naddress = "{address}"\nconfig_dir = "{node.etc}"\n')
    return node


def test_without_a_map_the_address_is_the_id(first: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """openMosix's example; what omdiscd has found so far says nothing of who is to come."""
    without_map(first, address="192.168.10.220")
    assert first.admin("init") == 0
    out = capsys.readouterr().out
    assert "node 2780: certificate valid until" in out
    assert "there is no cluster map: omfs-admin join on the other nodes, then omdiscd" in out
    assert tls.load_identity(first.etc, "tls", 2780).node_id == 2780
    first.map.write_text(f"{DISCOVERED}\n2780 192.168.10.220 1\n")
    assert first.admin("join", "7", "-o", str(first.directory / "seven.tar")) == 0


def test_without_a_map_an_id_may_be_given(
    first: Node, second: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for node in (first, second):
        without_map(node)
    assert first.admin("init", "--node", "1") == 0
    assert first.admin("join", "2", "-o", str(tmp_path / "two.tar")) == 0
    capsys.readouterr()
    assert second.admin("join", "--bundle", str(tmp_path / "two.tar")) == 0
    told = capsys.readouterr()
    assert "this is node 2 of cluster" in told.out
    assert told.err == ""


def test_without_a_map_and_without_an_address(
    first: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interfaces, "ROUTES", tmp_path / "route")
    (tmp_path / "route").write_text("Iface\n")
    without_map(first)
    for words in (["init"], ["join", "--from", "nowhere"]):
        assert first.admin(*words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "there is no cluster map, and no id without one (give the id, or write a map)" in line
    assert first.contents() == {}
