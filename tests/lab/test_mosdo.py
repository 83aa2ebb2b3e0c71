"""mosdo by a real ssh, and openmosix with guests that must not be lost by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.cli.terminal import Screen
from tests.lab.cluster import Cluster, wait_until
from tests.lab.livelab import COMMAND

LAB_NODES = 2
SSHD: Final = "/usr/sbin/sshd"
RECIPE: Final = Path(__file__).resolve().parents[2] / "docs" / "recipes" / "server-pool.sh"
PORT: Final = 22022
HOME: Final = "/run/ssh-of-test"
BY_SSH: Final = f'--ssh "ssh -F {HOME}/config"'

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

KEYS: Final = f"""
mkdir -p {HOME}; cd {HOME}; umask 077
ssh-keygen -q -t ed25519 -N '' -f user; ssh-keygen -q -t ed25519 -N '' -f host
"""
CONFIG: Final = f"""
Port {PORT}
User root
IdentityFile {HOME}/user
UserKnownHostsFile {HOME}/known
GlobalKnownHostsFile none
BatchMode yes
ConnectTimeout 20
"""
SERVER: Final = f"""
Port {PORT}
HostKey {HOME}/host
AuthorizedKeysFile {HOME}/user.pub
PidFile {HOME}/pid
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
"""


@contextmanager
def sshd_on(cluster: Cluster, node: int) -> Iterator[None]:
    """Node 1's root may log in there."""
    address = cluster.address(node)
    cluster.run(1, f"{KEYS}echo \"[{address}]:{PORT} $(cat host.pub)\" > known; cat > config <<'END'{CONFIG}END")
    there = f"/mfs/{node}{HOME}"
    cluster.run(1, f"mkdir -p {there}; cd {HOME}; cp host user.pub {there}; cat > {there}/server <<'END'{SERVER}END")
    cluster.run(node, f"chmod 600 {HOME}/host; mkdir -p /run/sshd; {SSHD} -f {HOME}/server -E {HOME}/log")
    try:
        wait_until(lambda: cluster.try_run(node, f"test -s {HOME}/pid").returncode == 0, "sshd listens")
        yield
    finally:
        cluster.try_run(node, f"kill $(cat {HOME}/pid)")
        cluster.try_run(1, f"rm -r {HOME} {there}")


@pytest.mark.skipif(not Path(SSHD).exists(), reason="no sshd on this machine (openssh-server)")
def test_a_command_on_all_nodes_by_ssh(cluster: Cluster) -> None:
    with sshd_on(cluster, 2):
        told = cluster.run(1, f"mosdo {BY_SSH} 'hostname; cat /mfs/here/etc/hostname'")
        assert sorted(told.splitlines()) == ["1: node1", "1: node1", "2: node2", "2: node2"]
        failed = cluster.try_run(1, f"mosdo {BY_SSH} 'test $(hostname) = node1 || exit 7'")
        assert (failed.returncode, failed.stderr) == (7, "mosdo: node 2: exit status 7\n")
        late = cluster.try_run(1, f"mosdo {BY_SSH} -n 2 -t 1 sleep 1000")
        assert late.returncode == 124
        wait_until(lambda: cluster.try_run(2, "pgrep -x sleep").returncode == 1, "the command has ended there, too")
        cluster.run(1, f"mosdo {BY_SSH} {RECIPE} 1")
        assert [cluster.run(node, "mosctl status") for node in (1, 2)] == ["up,stay\n", "up,stay,block\n"]
        cluster.run(1, f"mosdo {BY_SSH} mosctl noblock")
        assert cluster.run(2, "mosctl status") == "up,stay\n"
        cluster.run(2, f"kill $(cat {HOME}/pid)")
        wait_until(lambda: cluster.try_run(1, f"mosdo {BY_SSH} -n 2 true").returncode == 255, "nobody listens there")


@pytest.mark.skipif(not Path(SSHD).exists(), reason="no sshd on this machine (openssh-server)")
def test_mosmon_by_ssh(cluster: Cluster) -> None:
    with sshd_on(cluster, 2):
        # setsid: only who has a terminal of its own is told of its size
        ssh = ["setsid", "--ctty", "--wait", "ssh", "-F", f"{HOME}/config", "-tt", cluster.address(2), "mosmon"]
        screen = Screen([*COMMAND, "exec", "--name", cluster.lab.name, "1", "--", *ssh])
        try:
            screen.wait_for("h help, q quit")
            screen.press("t")
            screen.wait_for("[Total 2]")
            screen.resize(50, 160, "[Total 2]")
            screen.press("q")
            assert screen.wait_end() == 0
        finally:
            screen.close()


def where(cluster: Cluster, pid: str) -> str:
    return cluster.run(1, f"cat /mfs/proc/{pid}/where").strip()


@pytest.mark.parametrize("order", ["stop", "restart"])
def test_a_node_that_leaves_sends_its_guests_home(cluster: Cluster, order: str) -> None:
    process = cluster.lab.popen(1, "mosrun sh -c 'while :; do sleep 0.1; done' < /dev/null & echo $!; wait")
    assert process.stdout is not None
    pid = process.stdout.readline().strip()
    try:
        cluster.run(1, f"migrate {pid} 2")
        assert where(cluster, pid) == "2"
        cluster.run(2, f"openmosix {order}")
        assert where(cluster, pid) == "0"
        cluster.run(1, f"kill -0 {pid}")  # it goes on
        cluster.run(2, "openmosix start")
        assert cluster.run(2, "mosctl status") == "up,stay\n", "it takes guests again"
        cluster.run(
            1, f"until migrate {pid} 2 2> said; do sleep 0.2; done", timeout_s=60
        )  # until node 1 has heard of it
        assert where(cluster, pid) == "2"
    finally:
        cluster.try_run(1, f"kill -9 {pid}")
        cluster.lab.end(process)
