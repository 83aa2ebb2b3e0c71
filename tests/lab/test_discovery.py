"""A cluster that nobody has written a map for: nodes find each other, leave, come back and move, while files are open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mignode import discoverywords
from mignode.discoverywords import VERSION, Kind, Said
from mignode.gossipseal import Seal
from tests.lab.cluster import Cluster, wait_until
from tests.lab.livelab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
NODES = (1, 2, 3)

STOP = """
pid=$(omdiscd --status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])')
kill $pid
while [ -d /proc/$pid ]; do sleep 0.1; done
"""
APPENDS = """
import sys
with open("{path}", "a+", buffering=1) as file:
    print("open", flush=True)
    for line in sys.stdin:
        file.write(line)
        file.seek(0)
        print(len(file.readlines()), flush=True)
"""
SAYS = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("{own}"))
for to in ("239.192.0.1", "{other}"):
    s.sendto(bytes.fromhex("{data}"), (to, 5429))
"""


@pytest.fixture(scope="module")
def found(module_lab: Lab) -> Iterator[Cluster]:
    """All three without a map, then with omdiscd, /mfs and mignode."""
    cluster = Cluster(module_lab)
    with ThreadPoolExecutor(len(NODES)) as pool:
        for script in ("openmosix stop; rm /etc/openmosix.map", "omdiscd -i eth0", "openmosix start"):
            for done in [pool.submit(cluster.run, node, script) for node in NODES]:
                done.result()
    return cluster


def addresses(cluster: Cluster, node: int) -> dict[int, str]:
    """Of the map in force on *node*."""
    shown: dict[str, Any] = json.loads(cluster.run(node, "showmap --json"))
    members: dict[int, str] = {}
    for entry in shown["entries"]:
        network, _, last = entry["address"].rpartition(".")
        members |= {entry["node"] + k: f"{network}.{int(last) + k}" for k in range(entry["count"])}
    return members


def wait_members(cluster: Cluster, node: int, *members: int) -> None:
    wait_until(lambda: sorted(addresses(cluster, node)) == sorted(members), f"node {node} knows {members}")


def can_read(cluster: Cluster, node: int, owner: int) -> bool:
    return cluster.try_run(node, f"cat /mfs/{owner}/etc/hostname").stdout == f"node{owner}\n"


def wait_all_read_all(cluster: Cluster) -> None:
    for node in NODES:
        for owner in NODES:
            wait_until(lambda n=node, o=owner: can_read(cluster, n, o), f"{node} reads files of {owner}")  # type: ignore[misc]


def test_nodes_find_each_other(found: Cluster, cluster: Cluster) -> None:
    for node in NODES:
        wait_members(cluster, node, *NODES)
        assert cluster.run(node, "head -1 /etc/openmosix.map").startswith("# written by omdiscd")
    wait_all_read_all(cluster)
    assert cluster.run(1, "showmap").startswith("My Node-Id: 0x0001\n")


def test_what_is_said_on_a_node_without_a_route(found: Cluster, cluster: Cluster) -> None:
    refused = cluster.try_run(1, "omdiscd")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "there is no default route" in refused.stderr
    assert "-i eth0" in refused.stderr
    second = cluster.try_run(1, "omdiscd -i eth0")
    assert (second.returncode, "is another omdiscd running?" in second.stderr) == (1, True)
    kept = cluster.try_run(1, "cp /etc/openmosix.map /tmp/map; setpe -w -f /tmp/map")
    assert (kept.returncode, "omdiscd looks after this node's map" in kept.stderr) == (1, True)


def test_who_has_no_certificate_changes_nothing(found: Cluster, cluster: Cluster) -> None:
    """Files of node 3 do not come from node 2, whatever is sent from there."""
    before = addresses(cluster, 1)
    lie = Said(VERSION, Kind.HERE, 3, 3, 2**40, addresses=(before[2],))
    data = Seal(None).close(discoverywords.encode(lie)).hex()

    def forged() -> int:
        counts = json.loads(cluster.run(1, "omdiscd --status --json"))["counts"]
        return int(counts.get("forged", 0))

    cluster.python(2, SAYS.format(own=before[2], other=before[1], data=data))
    wait_until(lambda: forged() >= 2, "node 1 has heard it, from the group and by itself")
    assert addresses(cluster, 1) == before
    assert can_read(cluster, 1, 3)


def test_a_node_leaves_and_comes_back(found: Cluster, cluster: Cluster, lab: Lab) -> None:
    """Those that stay keep what they have open.  Another machine with their certificate stays out."""
    path = cluster.fresh_dir(2).remote + "/file"
    program = cluster.start_python(1, APPENDS.format(path=path))
    program.wait_line("open")
    cluster.run(3, STOP)
    program.send_line("while it leaves")
    program.wait_line("1")
    for node in (1, 2):
        wait_members(cluster, node, 1, 2)
    wait_until(lambda: cluster.try_run(1, "ls -d /mfs/3").returncode != 0, "its files have gone, too")
    program.send_line("when it is gone")
    program.wait_line("2")

    clone = "/tmp/clone"
    cluster.run(
        3,
        f"mkdir -m 700 {clone}; sed 's/^sec.*/&\\nconfig_dir = \"\\/tmp\\/clone\"/' /etc/omfs/omfs.toml > {clone}/toml",
    )
    for file in ("ca.pem", "node.pem", "node.key"):
        text = cluster.run(1, f"cat /etc/omfs/{file}")
        lab.exec(3, f"umask 077; cat > {clone}/{file}", input=text, check=True)
    refused = cluster.try_run(3, f"omdiscd -i eth0 --config {clone}/toml; rm -r {clone}")
    assert refused.returncode == 1
    assert f"{addresses(cluster, 2)[1]} is node 1 already" in refused.stderr

    cluster.run(3, "omdiscd -i eth0")
    for node in NODES:
        wait_members(cluster, node, *NODES)
    wait_all_read_all(cluster)
    program.send_line("when it is back")
    program.wait_line("3")
    program.finish()


def test_another_address(found: Cluster, cluster: Cluster) -> None:
    before = addresses(cluster, 1)
    other = before[3].rpartition(".")[0] + ".233"
    path = cluster.fresh_dir(2).remote + "/file"
    program = cluster.start_python(1, APPENDS.format(path=path))
    program.wait_line("open")
    cluster.run(3, f"ip addr del {before[3]}/24 dev eth0; ip addr add {other}/24 dev eth0")
    for node in NODES:
        wait_until(lambda n=node: addresses(cluster, n) == {**before, 3: other}, f"node {node} knows it")  # type: ignore[misc]
    wait_all_read_all(cluster)
    program.send_line("nothing has happened to who stays where he is")
    program.wait_line("1")
    program.finish()
