"""What `make install` puts on a node, started by a real systemd from its units and /etc/fstab."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, Program, wait_until
from tests.lab.livelab import Lab
from tests.lab.systemd import LOG, Systemd, systemd_on

pytestmark = pytest.mark.lab

LAB_NODES = 2
INSTALL = f"{sys.executable} {Path(__file__).parents[2] / 'tools/install.py'}"


@pytest.fixture(scope="module")
def services(module_lab: Lab) -> Iterator[Systemd]:
    """Node 1 with everything installed, and nothing running but systemd and what it starts."""
    cluster = Cluster(module_lab)
    for daemon in ("mignode", "mount"):
        pid = int(cluster.ask(1, daemon)["pid"])
        cluster.run(1, f"kill {pid}; while [ -d /proc/{pid} ]; do sleep 0.1; done")
    cluster.run(1, f"{INSTALL}; echo 'mfs_mnt /mfs fuse.omfs dfsa=1,_netdev,nofail 0 0' > /etc/fstab", timeout_s=120)
    with systemd_on(cluster, 1) as manager:
        yield manager


def in_group(services: Systemd, unit: str) -> str:
    """What the processes of a unit have mapped; "" where there are none."""
    group = services.show(unit, "ControlGroup")
    looked = f"cd /sys/fs/cgroup{group} || exit 0; for pid in $(cat cgroup.procs); do cat /proc/$pid/maps || true; done"
    return services.run(looked) if group else ""


def wait_served(cluster: Cluster) -> None:
    """Until node 2 reads node 1's files, whatever was cached of them."""
    wait_until(lambda: cluster.try_run(2, "cat /mfs/1/etc/hostname").stdout == "node1\n", "node 2 reads node 1's files")


def test_fstab_mounts_with_what_is_installed(services: Systemd, cluster: Cluster) -> None:
    services.wait_state("mfs.mount", "active")
    assert services.show("mfs.mount", "FragmentPath") == "/run/systemd/generator/mfs.mount"
    assert services.run("cat /mfs/2/etc/hostname") == "node2\n"
    wait_served(cluster)
    assert cluster.ask(1, "export")["by_mount"] is True
    mapped = in_group(services, "mfs.mount")
    assert "/usr/local/lib/omfs/lib/" in mapped
    assert "/.venv/" not in mapped


def test_the_unit_mounts_where_fstab_says_nothing(services: Systemd, cluster: Cluster) -> None:
    """A line in fstab comes before it: what systemd's generator makes of that has the same name."""
    services.run("systemctl stop mfs.mount; mv /etc/fstab /etc/fstab.old; touch /etc/fstab; systemctl daemon-reload")
    try:
        services.run("systemctl start mfs.mount")
        assert services.show("mfs.mount", "FragmentPath") == "/usr/local/lib/systemd/system/mfs.mount"
        assert services.run("cat /mfs/2/etc/hostname") == "node2\n"
        wait_served(cluster)
        assert "/usr/local/lib/omfs/lib/" in in_group(services, "mfs.mount")
    finally:
        services.run("systemctl stop mfs.mount; mv /etc/fstab.old /etc/fstab; systemctl daemon-reload")
    services.run("systemctl start mfs.mount")
    assert services.show("mfs.mount", "FragmentPath") == "/run/systemd/generator/mfs.mount"


def test_a_unit_beside_a_mounts_own_export_gives_up_and_harms_nothing(services: Systemd, cluster: Cluster) -> None:
    pid = cluster.ask(1, "export")["pid"]
    assert services.try_run("systemctl start omfs-export").returncode == 1
    services.wait_state("omfs-export", "failed")
    assert "is another omfs-export running?" in cluster.run(1, f"cat {LOG}")
    assert cluster.ask(1, "export")["pid"] == pid
    services.run("systemctl reset-failed omfs-export")


def test_the_export_as_a_service_of_its_own(services: Systemd, cluster: Cluster) -> None:
    """Ready when active, hardened, started again after a kill, used by a mount that comes later and outliving it."""
    services.run("systemctl stop mfs.mount")
    wait_until(lambda: in_group(services, "mfs.mount") == "", "nothing of the mount runs on")
    services.run("systemctl start omfs-export")
    assert services.show("omfs-export", "StatusText") == "node 1"
    assert cluster.ask(1, "export")["by_mount"] is False
    status = services.run("cat /proc/$(systemctl show --value -p MainPID omfs-export)/status")
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status
    wait_served(cluster)
    cluster.run(2, "echo hers > /mfs/1/tmp/hers; stat -c %u:%a /mfs/1/tmp/hers", user="1000")
    assert cluster.run(1, "stat -c %u /tmp/hers; cat /tmp/hers") == "1000\nhers\n"

    services.run("systemctl start mfs.mount")
    assert services.run("cat /mfs/2/etc/hostname") == "node2\n"
    before = cluster.export_pid(1)
    services.run("systemctl kill --kill-whom=main -s KILL omfs-export")
    cluster.wait_new_export(1, before)
    wait_until(lambda: services.show("omfs-export", "NRestarts") == "1", "systemd started it again")
    services.wait_state("omfs-export", "active")
    services.run("systemctl reload omfs-export")  # a signal, which is not waited for
    wait_until(lambda: cluster.ask(1, "export")["reloads"] == 1, "it has read its settings again")
    wait_served(cluster)

    services.run("systemctl stop mfs.mount")
    assert services.show("omfs-export", "ActiveState") == "active"
    services.run("systemctl stop omfs-export")
    assert services.show("omfs-export", "Result") == "success"
    services.run("systemctl start mfs.mount")
    assert cluster.ask(1, "export")["by_mount"] is True


def test_guests_come_and_outlive_a_restart_of_mignode(services: Systemd, cluster: Cluster) -> None:
    """Nothing that a guest needs is denied to the service, and its end is not theirs."""
    services.run("systemctl enable --now mignode")
    assert services.show("mignode", "StatusText") == "node 1"
    wait_served(cluster)
    guest = "echo begun; read -r word; echo $word $(id -u); exit 3"
    program = Program(
        cluster.lab, cluster.lab.popen(2, f"mosrun sh -c '{guest}' <&0 & echo $!; wait $!; echo status $?")
    )
    pid = program.next_line()
    program.wait_line("begun")
    cluster.run(2, f"migrate {pid} 1", timeout_s=120)
    before = services.show("mignode", "MainPID")
    services.run("systemctl restart mignode")
    assert services.show("mignode", "MainPID") != before
    assert cluster.run(2, f"cat /mfs/proc/{pid}/where") == "1\n"
    program.send_line("word")
    program.wait_line("word 0")
    program.wait_line("status 3")
    program.finish()


def test_the_map_is_found_by_a_service(services: Systemd, cluster: Cluster) -> None:
    """Its unit leaves it all that it needs."""
    begun = """
        cp /etc/omfs/omfs.toml /tmp/omfs.toml; echo 'discovery_interfaces = ["eth0"]' >> /etc/omfs/omfs.toml
        mv /etc/openmosix.map /tmp/openmosix.map
    """
    back = "mv /tmp/openmosix.map /etc/openmosix.map; mv /tmp/omfs.toml /etc/omfs/omfs.toml"
    for node in (1, 2):
        cluster.run(node, begun)
    try:
        cluster.run(2, "omdiscd")
        services.run("systemctl start omdiscd", timeout_s=120)
        assert services.show("omdiscd", "StatusText") == "node 1"
        status = services.run("cat /proc/$(systemctl show --value -p MainPID omdiscd)/status")
        assert "NoNewPrivs:\t1\n" in status
        assert "Seccomp:\t2\n" in status
        for node in (1, 2):
            wait_until(lambda n=node: cluster.run(n, "tail -1 /etc/openmosix.map").endswith(" 2\n"), "both are in it")  # type: ignore[misc]
        services.run("systemctl restart omdiscd", timeout_s=120)
        services.run("systemctl reload omdiscd")
        services.run("systemctl stop omdiscd")
        assert services.show("omdiscd", "Result") == "success"
        wait_until(lambda: cluster.run(2, "tail -1 /etc/openmosix.map").startswith("2 "), "node 1 has left")
    finally:
        services.try_run("systemctl stop omdiscd")
        cluster.try_run(2, "kill $(omdiscd --status --json | grep -o '\"pid\": [0-9]*' | grep -o '[0-9]*')")
        wait_until(lambda: cluster.try_run(2, "omdiscd --status").returncode == 3, "node 2 looks no more")
        put = f"{back}; setpe -w"
        cluster.run(2, put)
        services.run(put)
    wait_served(cluster)


def test_uninstall_leaves_nothing(services: Systemd, cluster: Cluster) -> None:
    services.run("systemctl disable --now mignode; systemctl stop mfs.mount")
    cluster.run(1, f"{INSTALL} --remove")
    left = cluster.run(1, "find /usr /sbin/ -xdev -name '*omfs*' -newer /etc/fstab; ls -d /usr/local/lib/omfs || true")
    assert left == ""
