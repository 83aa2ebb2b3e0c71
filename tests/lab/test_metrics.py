"""Metrics of real daemons, as Prometheus would scrape them: misses, grants and recalls are where they happened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab.cluster import Cluster, wait_until
from tests.lab.livelab import Lab

LAB_NODES = 2
MOUNT, EXPORT = 9723, 9724
SETTINGS = f"metrics_port_mount = {MOUNT}\nmetrics_port_export = {EXPORT}"
SCRAPE = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"

Samples = dict[tuple[str, ...], float]


def scrape(lab: Lab, node: int, port: int) -> Samples:
    """Values by the sample's name and its labels' values."""
    done = lab.exec(node, ["python3", "-c", SCRAPE, f"http://127.0.0.1:{port}/metrics"])
    assert done.returncode == 0, done.stderr
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
    }


@pytest.fixture
def told(cluster: Cluster) -> Iterator[Cluster]:
    """Both nodes tell their metrics."""
    with cluster.export_configured(1, SETTINGS), cluster.export_configured(2, SETTINGS):
        for node in (1, 2):
            cluster.wait_up(node, 3 - node)
        yield cluster


def test_what_a_recall_leaves_in_the_metrics(told: Cluster) -> None:
    lab, place = told.lab, told.fresh_dir(2)
    theirs = place.remote
    told.run(2, f"echo one > {place.native}/file")

    def looks() -> Samples:
        told.run(1, f"cat {theirs}/file; stat {theirs}/file")
        return scrape(lab, 1, MOUNT)

    def is_cached() -> bool:
        """Whether looking again asked the owner nothing."""
        return looks()["omfs_mount_asked_total", "look_ups"] == looks()["omfs_mount_asked_total", "look_ups"]

    wait_until(is_cached, "the file is cached")
    holder, owner = looks(), scrape(lab, 2, EXPORT)

    def agree() -> bool:
        """What one has just been granted or given back is told to the other a moment later."""
        holder.update(looks())
        owner.update(scrape(lab, 2, EXPORT))
        return holder["omfs_mount_node_leases", "2"] == owner["omfs_export_node_leases", "1"] > 0

    wait_until(agree, "both count the same leases")
    assert holder["omfs_mount_node_up", "2"] == 1
    assert owner["omfs_export_lease_grants_total",] >= owner["omfs_export_leases",] > 0
    told.run(2, f"echo two >> {place.native}/file")
    wait_until(lambda: "two" in told.run(1, f"cat {theirs}/file"), "the change is seen")
    later, owner_later = scrape(lab, 1, MOUNT), scrape(lab, 2, EXPORT)
    took, taken = "omfs_export_recall_duration_seconds", "omfs_mount_recall_duration_seconds_count"

    def are_over() -> bool:
        """Begun they are counted at once, how long they took at their end."""
        later.update(scrape(lab, 1, MOUNT))
        owner_later.update(scrape(lab, 2, EXPORT))
        return (
            later[taken,] == later["omfs_mount_recalls_total",]
            and owner_later[f"{took}_count",] > owner[f"{took}_count",]
        )

    wait_until(are_over, "the recalls are over")
    assert later["omfs_mount_recalls_total",] > holder["omfs_mount_recalls_total",]
    assert owner_later["omfs_export_recalls_total",] > owner["omfs_export_recalls_total",]
    assert owner_later[f"{took}_sum",] > owner[f"{took}_sum",]
    assert told.status(2)["leases"]["recalls"] >= owner_later["omfs_export_recalls_total",]
    assert "recalls received: " in told.try_run(1, "omfs-admin status").stdout


def test_a_taken_port(told: Cluster) -> None:
    told.run(1, "umount /mfs")
    taken = told.start_python(
        1,
        f"import socket\ns = socket.create_server(('127.0.0.1', {MOUNT}))\nprint('taken', flush=True)\ninput()",
    )
    taken.wait_line("taken")
    refused = told.try_run(1, "mount /mfs")
    assert refused.returncode == 32
    assert f"metrics on 127.0.0.1 port {MOUNT}: Address already in use" in refused.stderr
    taken.send_line("")
    taken.finish()
    told.run(1, "mount /mfs")
    assert scrape(told.lab, 1, MOUNT)["omfs_mount_node_state", "2", "up"] in (0, 1)
