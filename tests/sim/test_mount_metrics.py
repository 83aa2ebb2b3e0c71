"""A mount's metrics without its mount: the daemon's own wiring, over a real socket of this machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from omfs.cache.holder import Lease
from omfs.config import Settings
from omfs.daemon import MountDaemon
from omfs.errors import ConfigError
from omfs.mount.options import MountOptions
from omfs.standing import Standing, errors_unwrapped
from omfs.wiretypes import Mode
from tests.freeports import free_port


def daemon_of(tmp_path: Path, metrics_port: int) -> MountDaemon:
    """Node 1's, in a cluster where node 2 is not there."""
    (tmp_path / "map").write_text("1 127.0.0.1 2\n")
    settings = Settings(
        map=str(tmp_path / "map"), address="127.0.0.1", port=9, sec="none", metrics_port_mount=metrics_port,
        config_dir=str(tmp_path), state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    return MountDaemon(MountOptions(mountpoint="/mfs"), settings, Standing(settings), lambda: None)


def held(mode: Mode) -> Lease:
    lease = Lease()
    lease.mode = mode
    return lease


async def test_a_mount_tells_its_metrics(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = free_port()
    daemon = daemon_of(tmp_path, port)
    await daemon._serve_metrics(nursery)
    daemon._follow_map(nursery)
    leases = [held(Mode.SHARED), held(Mode.NONE), held(Mode.SHARED)]
    daemon._nodes[2].leases.all_leases = lambda: leases
    daemon._counters.asked_look_ups = 5
    answer = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        async for chunk in stream:
            answer += chunk
    text = answer.partition(b"\r\n\r\n")[2].decode()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["omfs_mount_node_leases", "2"] == 2
    assert samples["omfs_mount_node_up", "2"] == 0
    assert samples["omfs_mount_asked_total", "look_ups"] == 5


async def test_a_mount_does_not_begin_where_the_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics on 127.0.0.1 port {port}"), errors_unwrapped():
            await daemon_of(tmp_path, port).run()
    assert not (tmp_path / "run").exists()  # no export was started
