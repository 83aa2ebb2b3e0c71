"""mount, umount, fstab, remount, SIGHUP: what an administrator types and what comes back."""

from __future__ import annotations

import json

import pytest

from omfs.config import Settings
from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab


@pytest.mark.parametrize(
    ("options", "preparation", "word"),
    [
        ("nonsense=1", "true", "nonsense"),
        ("dfsa=2", "true", "dfsa"),
        ("timeo=soon", "true", "timeo"),
        ("map=/etc/nowhere.map", "true", "/etc/nowhere.map"),
        ("map=/tmp/bad.map", "printf '1 10.0.0.1 1\\n1 10.0.0.2 1\\n' > /tmp/bad.map", "/tmp/bad.map:2"),
        ("map=/tmp/alien.map", "printf '1 10.0.0.1 1\\n' > /tmp/alien.map", "my own address"),
        ("config=/tmp/omfs.toml", "echo 'prot = 1' > /tmp/omfs.toml", "/tmp/omfs.toml"),
        ("config=/tmp/c.toml", "echo 'config_dir = \"/tmp/none\"' > /tmp/c.toml", "/tmp/none/"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(cluster: Cluster, options: str, preparation: str, word: str) -> None:
    cluster.run(1, "umount /mfs")
    try:
        cluster.run(1, preparation)
        result = cluster.try_run(1, f"mount -t fuse.omfs mfs_mnt /mfs -o {options}", timeout_s=60)
        assert result.returncode == 32, result
        ours = [line for line in result.stderr.splitlines() if line.startswith("omfs:")]
        assert len(ours) == 1
        assert word in ours[0]
        assert cluster.run(1, "grep -c ' /mfs' /proc/self/mountinfo || true") == "0\n"
    finally:
        cluster.run(1, "mount /mfs", timeout_s=60)


def test_umount_is_whole_and_mounting_twice_is_refused(cluster: Cluster) -> None:
    assert cluster.try_run(1, "mount -t fuse.omfs mfs_mnt /mfs -o dfsa=1").returncode == 32
    holder = cluster.start_python(
        1, "import os, sys; os.chdir('/mfs/2/etc'); print('in', flush=True); sys.stdin.readline()"
    )
    holder.wait_line("in")
    assert cluster.try_run(1, "umount /mfs").returncode == 32
    assert cluster.run(1, "cat /mfs/1/etc/hostname /mfs/2/etc/hostname") != ""
    holder.finish()
    cluster.run(1, "umount /mfs")
    assert cluster.run(1, "grep -c ' /mfs' /proc/self/mountinfo || true") == "0\n"
    cluster.run(1, "mount /mfs", timeout_s=60)
    assert cluster.run(3, "cat /mfs/1/etc/hostname") == cluster.run(1, "cat /etc/hostname")


@pytest.mark.parametrize(
    "how", ["umount /mfs", "kill -TERM {pid}; while grep -q ' /mfs ' /proc/self/mountinfo; do sleep 0.1; done"]
)
def test_who_ends_in_order_holds_nobody_up(cluster: Cluster, how: str) -> None:
    """The owner knows at once that nothing is cached any more, and not only when the lease term is over."""

    def held() -> int:
        listed = json.loads(cluster.run(2, "omfs-admin leases --json"))
        return sum(lease["node_id"] == 1 for lease in listed["leases"])

    here = cluster.fresh_dir(2)
    cluster.run(1, f"stat {here.remote}")
    wait_until(lambda: held() > 0, "node 1 holds something")
    cluster.run(1, how.format(pid=cluster.mount_pid(1)))
    try:
        wait_until(lambda: held() == 0, "everything was given back", timeout_s=Settings().lease_term_s / 2)
    finally:
        cluster.run(1, "mount /mfs", timeout_s=60)


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_in_the_foreground(cluster: Cluster, signal: str) -> None:
    """omfs -f says when it is mounted, and ends in order when it is told to."""
    here = cluster.fresh_dir(2)
    cluster.run(1, "umount /mfs")
    try:
        started = cluster.start_python(
            1, "import os; os.dup2(1, 2); os.execlp('omfs', 'omfs', '-f', 'mfs_mnt', '/mfs', '-o', 'dfsa=1')"
        )
        while not started.next_line().endswith("/mfs is mounted"):
            pass
        assert cluster.run(1, f"echo here > {here.remote}/x; cat {here.remote}/x") == "here\n"
        cluster.run(1, f"kill -{signal} {cluster.mount_pid(1)}")
        assert started.wait() == 0
        assert cluster.run(1, "grep -c ' /mfs' /proc/self/mountinfo || true") == "0\n"
    finally:
        cluster.run(1, "mount /mfs", timeout_s=60)


def test_remount(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(1, "mount -o remount,ro /mfs")
    assert "Read-only" in cluster.try_run(1, f"touch {here.remote}/x").stderr
    cluster.run(1, f"mount -o remount,rw /mfs && touch {here.remote}/x")
    refused = cluster.try_run(1, "mount -o remount,timeo=3 /mfs")
    assert refused.returncode == 32
    assert "timeo" in refused.stderr
    assert cluster.run(1, f"ls {here.remote}") == "x\n"


def test_the_local_node_is_a_bind_and_dfsa_0_goes_through_fuse(cluster: Cluster) -> None:
    kinds = cluster.run(1, "stat -f -c %T /mfs/1 /mfs/2").split()
    assert "fuse" not in kinds[0]
    assert kinds[1].startswith("fuse")
    assert cluster.try_run(1, "ls /mfs/1/mfs/2").returncode != 0


def test_a_changed_map_is_picked_up_without_unmounting(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    program = cluster.start_python(
        1,
        f"import os, sys\nfd = os.open('{here.remote}/f', os.O_RDWR | os.O_CREAT)\nprint('open', flush=True)\n"
        "sys.stdin.readline()\nos.write(fd, b'still open')\nprint('written', flush=True)\n",
    )
    program.wait_line("open")
    nodes = (1, 2, 3)
    for node in nodes:
        cluster.run(node, "cp /etc/openmosix.map /tmp/map.old; echo '9 198.18.250.9 1' >> /etc/openmosix.map")
    try:
        for node in nodes:
            cluster.hang_up(node)
        assert "9" in cluster.run(1, "ls /mfs").split()
        program.send_line("")
        program.wait_line("written")
        program.finish()
        assert cluster.run(2, f"cat {here.native}/f") == "still open"
        cluster.run(1, "echo 'nonsense' >> /etc/openmosix.map")
        cluster.hang_up(1)
        assert "9" in cluster.run(1, "ls /mfs").split(), "a refused map changes nothing"
    finally:
        for node in nodes:
            cluster.run(node, "cp /tmp/map.old /etc/openmosix.map")
            cluster.hang_up(node)
    assert "9" not in cluster.run(1, "ls /mfs").split()


def test_status_and_ping(cluster: Cluster) -> None:
    for node in (2, 3):
        cluster.wait_up(1, node)
    status = cluster.status(1)
    assert {node["node_id"]: node["state"] for node in status["nodes"]} == {1: "self", 2: "up", 3: "up"}
    table = cluster.run(1, "omfs-admin status")
    assert cluster.address(2) in table
    assert "node" in cluster.run(1, "omfs-admin ping -c 2 2 3").lower()
    assert cluster.try_run(1, "omfs-admin ping -c 1 77").returncode != 0
