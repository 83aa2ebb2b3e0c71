"""omfs-admin check and drop on a real cluster: nothing is found in a good one, and what is planted is."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.cluster import Cluster

Finding = dict[str, Any]


def check(cluster: Cluster, node: int) -> list[Finding]:
    """What omfs-admin check finds, and whether its exit status says the same."""
    result = cluster.try_run(node, "omfs-admin check --json")
    wrong = [one for one in json.loads(result.stdout)["findings"] if one["result"] != "ok"]
    assert result.returncode == (1 if wrong else 0), result
    return wrong


def test_a_good_cluster(cluster: Cluster) -> None:
    for node in (1, 2, 3):
        for other in {1, 2, 3} - {node}:
            cluster.wait_up(node, other)
        assert check(cluster, node) == []


def test_names_with_other_numbers(cluster: Cluster) -> None:
    for node, number in ((1, 4242), (2, 4242), (3, 4243)):
        cluster.run(node, f"echo 'zoe:x:{number}:{number}:::' >> /etc/passwd")
    try:
        (found,) = check(cluster, 1)
        assert (found["check"], found["node_id"], found["text"]) == ("users", 3, "zoe is 4243, here 4242")
        assert {one["node_id"] for one in check(cluster, 3)} == {1, 2}
    finally:
        for node in (1, 2, 3):
            cluster.run(node, "sed -i /^zoe:/d /etc/passwd")
    assert check(cluster, 1) == []


def test_another_map(cluster: Cluster) -> None:
    cluster.run(3, "cp /etc/openmosix.map /tmp/map; echo '99 192.0.2.99 1' >> /etc/openmosix.map")
    cluster.hang_up(3)
    try:
        (found,) = [one for one in check(cluster, 1) if one["check"] == "map"]
        assert (found["node_id"], found["result"]) == (3, "FAULT")
    finally:
        cluster.run(3, "cp /tmp/map /etc/openmosix.map")
        cluster.hang_up(3)
    assert check(cluster, 1) == []


def test_without_a_mount(cluster: Cluster) -> None:
    cluster.run(1, "umount /mfs")
    try:
        result = cluster.try_run(1, "omfs-admin check")
        assert (result.returncode, result.stdout) == (2, "")
        assert "must run on this node" in result.stderr
    finally:
        cluster.run(1, "mount /mfs", timeout_s=60)


def test_drop_of_what_is_not_there(cluster: Cluster) -> None:
    result = cluster.try_run(1, "omfs-admin drop /no/such/path")
    assert result.returncode == 1, result
    assert result.stderr == "omfs-admin: /no/such/path: No such file or directory\n"
