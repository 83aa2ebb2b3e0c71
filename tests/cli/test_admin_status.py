"""omfs-admin status and ping against a daemon made of canned answers, over the real control socket."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from omfs.cli import admin
from omfs.errors import NodeDown
from omfs.net.control import Arguments, ExportStatus, Handler, LeasesStatus, NodeStatus, PingReply, StatusReply, serve

SELF = NodeStatus(node_id=1, addresses=("10.0.0.1",), state="self", software="omfs 0.1.0")
UP = NodeStatus(
    node_id=2,
    addresses=("10.0.0.2", "front2"),
    state="up",
    software="omfs 0.1.0",
    round_trip_s=0.000123,
    silent_s=0.4,
    exports=(ExportStatus("/"), ExportStatus("/srv[bold]", read_only=True, root_squash=True)),
    requests=1234,
    bytes_in=3 << 20,
    bytes_out=1023,
    leases=57,
)
DOWN = NodeStatus(node_id=3, addresses=("10.0.0.3",), state="down", reason="silent for 20 s")


@contextlib.contextmanager
def mount(run_dir: Path, *, socket: str = "mount.sock", **handlers: Handler) -> Iterator[None]:
    """A daemon in a thread of its own, since omfs-admin runs its own trio loop."""
    ready = threading.Event()
    scope = trio.CancelScope()
    token: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        token.append(trio.lowlevel.current_trio_token())
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, run_dir / socket, handlers)
                ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        token[0].run_sync_soon(scope.cancel)
        thread.join(60)
        assert not thread.is_alive()


def status_of(*nodes: NodeStatus) -> Handler:
    async def status(_: Arguments) -> object:
        return StatusReply(node_id=1, nodes=nodes)

    return status


async def ping(arguments: Arguments) -> object:
    node_id = arguments["node"]
    if node_id == 2:
        return PingReply(node_id=2, address="10.0.0.2", round_trip_s=0.000125)
    if node_id == 3:
        return PingReply(node_id=3, address="10.0.0.3", reason="the node is down")
    raise NodeDown(f"node {node_id} is not in the map")


def test_status_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, status=status_of(SELF, UP)):
        assert admin.main(["status", "--run-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "NODE ADDRESS STATE VERSION ROUND TRIP REQUESTS IN OUT LEASES EXPORTS",
        "1 10.0.0.1 self omfs 0.1.0 - 0 0 B 0 B - -",
        "2 10.0.0.2, front2 up omfs 0.1.0 0.123 ms 1234 3.0 MiB 1023 B 57 /, /srv[bold] (ro,root_squash)",
    ]


LEASES = LeasesStatus(
    held=12, grants=340, recalls=25, recalls_under_way=1, recall_bounds_s=(0.001, 1.0), recall_buckets=(23, 1, 0),
    recall_sum_s=0.012,
)  # fmt: skip


def leases_of(leases: LeasesStatus) -> Handler:
    async def status(_: Arguments) -> object:
        counters = {"recalls": 7, "asked_reads": 3, "asked_opens": 2, "answered_opens": 90, "answered_xattrs": 1}
        behind = {"behind_bytes": 3 << 20, "behind_files": 2, "behind_requests": 8}
        return StatusReply(node_id=1, nodes=(SELF,), leases=leases, counters=counters | behind)

    return status


def test_status_of_the_leases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, status=leases_of(LEASES)):
        assert admin.main(["status", "--run-dir", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert admin.main(["status", "--json", "--run-dir", str(tmp_path)]) == 0
    assert lines[2:] == [
        "",
        "leases held here by others: 12 (340 granted)",
        "recalls sent: 25, 0.500 ms on average, 1 under way",
        "recalls received: 7",
        "answered by this mount: 91; asked of the owners: 5",
        "written and not yet at the owners: 3.0 MiB of 2 files",
    ]
    printed = json.loads(capsys.readouterr().out)
    assert printed["leases"]["recall_buckets"] == [23, 1, 0]
    assert printed["counters"]["asked_reads"] == 3


def test_status_before_the_first_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, status=leases_of(LeasesStatus(held=0))):
        assert admin.main(["status", "--run-dir", str(tmp_path)]) == 0
    assert "recalls sent: 0\n" in capsys.readouterr().out


def test_status_of_a_node_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, status=status_of(SELF, UP, DOWN)):
        assert admin.main(["status", "--run-dir", str(tmp_path)]) == 1
        assert "down: silent for 20 s" in capsys.readouterr().out
        assert admin.main(["status", "--json", "--run-dir", str(tmp_path)]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["node_id"] == 1
    assert [node["state"] for node in printed["nodes"]] == ["self", "up", "down"]
    assert printed["nodes"][1]["exports"][1] == {"path": "/srv[bold]", "read_only": True, "root_squash": True}


def test_status_of_a_node_that_lets_nobody_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it sees itself, and as the others see it."""
    here = msgspec.structs.replace(SELF, nomfs=True)
    reason = "10.0.0.3: node 3 serves no files at the moment (nomfs)"
    there = NodeStatus(node_id=3, addresses=("10.0.0.3",), state="refused", reason=reason)
    with mount(tmp_path, status=status_of(here, there)):
        assert admin.main(["status", "--run-dir", str(tmp_path)]) == 1
        _, first, second = capsys.readouterr().out.splitlines()
        assert admin.main(["status", "--json", "--run-dir", str(tmp_path)]) == 1
    assert "self (nomfs: refuses others)" in first
    assert f"refused: {reason}" in second
    assert [node["nomfs"] for node in json.loads(capsys.readouterr().out)["nodes"]] == [True, False]


def test_no_mount(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["status", "--json"], ["ping", "2"], ["ping"]):
        assert admin.main([*command, "--run-dir", str(tmp_path)]) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("omfs-admin: no mount is running on this node (")
        assert captured.err.count("\n") == 1


def test_a_mount_of_another_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def status(_: Arguments) -> object:
        return {"nodes": "many"}

    with mount(tmp_path, status=status):
        assert admin.main(["status", "--run-dir", str(tmp_path)]) == 1
        assert "speaks another version" in capsys.readouterr().err
        assert admin.main(["ping", "--run-dir", str(tmp_path)]) == 1
        assert "speaks another version" in capsys.readouterr().err


def test_ping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, ping=ping):
        assert admin.main(["ping", "2", "-c", "2", "-i", "0", "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "answer from node 2 (10.0.0.2): seq=1 time=0.125 ms",
        "answer from node 2 (10.0.0.2): seq=2 time=0.125 ms",
        "",
        "--- node 2 ---",
        "2 requests, 2 answers, 0% lost",
        "round trip min/avg/max = 0.125/0.125/0.125 ms",
    ]


def test_ping_of_nodes_that_do_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, ping=ping):
        assert admin.main(["ping", "2", "3", "4", "-c", "1", "--run-dir", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "no answer from node 3 (10.0.0.3): seq=1 the node is down" in out
    assert "no answer from node 4: seq=1 node 4 is not in the map" in out
    assert out.count("1 requests, 0 answers, 100% lost") == 2


def test_ping_without_names_means_every_other_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, ping=ping, status=status_of(SELF, UP, DOWN)):
        assert admin.main(["ping", "-c", "1", "--run-dir", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "node 1" not in out
    assert "--- node 2 ---" in out
    assert "--- node 3 ---" in out


def test_a_mount_that_goes_away_between_pings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def last_ping(_: Arguments) -> object:
        (tmp_path / "mount.sock").unlink()
        return PingReply(node_id=2, round_trip_s=0.001)

    with mount(tmp_path, ping=last_ping):
        assert admin.main(["ping", "2", "-i", "0", "--run-dir", str(tmp_path)]) == 3
    assert "no mount is running" in capsys.readouterr().err


def test_interrupted_ping_still_shows_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "omfs.cli.admin", "ping", "2", "-c", "9", "-i", "60", "--run-dir", str(tmp_path)]
    with (
        mount(tmp_path, ping=ping),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline().startswith("answer from node 2")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "1 requests, 1 answers, 0% lost" in out
    assert err == ""
