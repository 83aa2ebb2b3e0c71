"""setpe, showmap, openmosix, mosctl and mosdo on real nodes."""

from __future__ import annotations

import json

import pytest

from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab
LAB_NODES = 2

SSH = """#!/bin/sh
# in ssh's place, for nodes have no sshd: which address was meant, and the command
echo for $1
exec sh -c "$2"
"""


def test_a_node_leaves_and_comes_back(cluster: Cluster) -> None:
    before = cluster.run(1, "openmosix status")
    assert before.startswith("This is OpenMosix node #1\n")
    assert before.endswith("Total configured: 2\n")
    assert cluster.run(1, "setpe -r") == before
    cluster.run(1, "mosctl quiet")
    quiet = cluster.run(1, "mosctl status")
    try:
        assert cluster.run(1, "openmosix stop") == "this node has left the cluster\n"
        assert cluster.try_run(1, "openmosix status").returncode == 3
        for daemon in ("mount", "export", "mignode"):
            assert cluster.ask(1, daemon) == {}, "nobody listens"
    finally:
        started = cluster.run(1, "openmosix start")
    assert started == "this node takes part in the cluster\n"
    assert cluster.run(1, "openmosix status; mosctl status; mosctl noquiet >/dev/null") == before + quiet
    assert "quiet" in quiet
    assert "block" not in quiet
    wait_until(lambda: cluster.try_run(2, "ls /mfs/1/etc/hostname").returncode == 0, "node 2 sees its files again")


def test_setpe_takes_a_node_out(cluster: Cluster) -> None:
    try:
        assert cluster.run(1, "setpe -off") == "this node has left the cluster\n"
        for daemon in ("mount", "export", "mignode"):
            assert cluster.ask(1, daemon) == {}, "nobody listens"
        assert cluster.try_run(1, "setpe -r").returncode == 3
        assert cluster.run(1, "setpe -off") == "this node was in no cluster\n"
    finally:
        cluster.run(1, "openmosix start")
    wait_until(lambda: cluster.try_run(2, "ls /mfs/1/etc/hostname").returncode == 0, "node 2 sees its files again")


def test_how_many_gateways_lie_between_nodes(cluster: Cluster) -> None:
    try:
        assert cluster.run(1, "setpe -g 2") == "from now on, at most 2 gateways lie between two nodes\n"
        assert cluster.run(1, "cat /mfs/proc/hpc/admin/gateways") == "2\n"
    finally:
        cluster.run(1, "setpe -w -g 0")
    assert cluster.run(1, "cat /mfs/proc/hpc/admin/gateways") == "0\n"


def test_a_program_keeps_its_node_in_the_cluster(cluster: Cluster) -> None:
    program = cluster.run(1, "mosrun sleep 1000 > /dev/null 2>&1 & echo $!").strip()
    wait_until(lambda: cluster.try_run(1, f"test -e /run/omfs/guests/1.{program}.*/record").returncode == 0, "it runs")
    before = cluster.run(1, "mosctl status")
    refused = cluster.try_run(1, "openmosix stop")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert f"end {program} first" in refused.stderr
    assert cluster.run(1, f"mosctl status; kill {program}") == before


def test_where_a_program_runs_is_seen_by_all_tools(cluster: Cluster) -> None:
    program = cluster.run(1, "mosrun sleep 1000 > /dev/null 2>&1 & echo $!").strip()
    wait_until(lambda: cluster.try_run(1, f"test -e /run/omfs/guests/1.{program}.*/record").returncode == 0, "it runs")
    try:
        cluster.run(1, f"migrate {program} 2")
        row = cluster.run(1, f"mtop -b -n 1 -p {program}").splitlines()[-1].split()
        assert row[:3] == [program, "2", "1"]
        nodes = json.loads(cluster.run(1, "mosmon --json"))
        assert [one["node"] for one in nodes] == [1, 2]
        assert nodes[0]["cpus"] == json.loads(cluster.run(1, "mosctl getspeed --json; nproc").split("\n")[1])
    finally:
        cluster.run(1, f"kill {program}")


def test_a_map_is_put_in_force_while_all_runs(cluster: Cluster) -> None:
    cluster.run(1, "cp /etc/openmosix.map /tmp/old; (cat /tmp/old; echo '9 192.0.2.9 1') > /tmp/new")
    try:
        assert "3 nodes, is in force" in cluster.run(1, "setpe -w -f /tmp/new")
        assert cluster.run(1, "showmap | tail -1; ls -d /mfs/9; mosctl whois 9").split() == [
            "0x0009", "192.0.2.9", "1", "/mfs/9", "192.0.2.9",
        ]  # fmt: skip
    finally:
        cluster.run(1, "setpe -w -f /tmp/old")
    assert cluster.try_run(1, "ls -d /mfs/9").returncode != 0


def tuned(cluster: Cluster) -> list[list[int]]:
    told = json.loads(cluster.run(1, "mosctl gettune --json"))
    return [told["overheads"], told["mfscosts"]]


def nothing_of_tune(cluster: Cluster) -> None:
    """On either node; a guest whose mosrun was killed is ended by mignode, a moment later."""
    assert cluster.run(1, "find /mfs/2/var/tmp -name 'omfs-tune.*'; find /run/omfs -name 'tune*'") == ""
    for node in (1, 2):
        wait_until(lambda node=node: cluster.run(node, "ls /run/omfs/guests") == "", f"no guests on node {node}")


def test_what_moving_costs_is_measured_and_kept(cluster: Cluster) -> None:
    assert tuned(cluster) == [[0] * 14, [0] * 6]
    told = json.loads(cluster.run(1, "tune 2 --json", timeout_s=200))
    found = [list(told["overheads"].values()), list(told["mfscosts"].values())]
    assert tuned(cluster) == found
    assert min(min(values) for values in found) > 0
    overheads = told["overheads"]
    assert overheads["freeze"] < overheads["move"], "it runs on while it is asked whether it may come"
    kept = json.loads(cluster.run(1, "cat /var/lib/omfs/mignode.json"))
    assert [kept["overheads"], kept["mfscosts"]] == found
    nothing_of_tune(cluster)


def test_who_interrupts_tune_finds_all_as_it_was(cluster: Cluster) -> None:
    before = tuned(cluster)
    process = cluster.lab.popen(1, "exec tune 2 2>&1")
    try:
        wait_until(lambda: cluster.run(1, "ls /run/omfs/guests") != "", "it measures")
        other = cluster.try_run(1, "tune 2")
        assert (other.returncode, other.stderr.count("\n")) == (1, 1)
        assert "another tune runs on this node" in other.stderr
        cluster.run(1, "kill -INT $(cat /run/omfs/tune.lock)")
        assert process.wait(60) == 130
    finally:
        cluster.lab.end(process)
    nothing_of_tune(cluster)
    assert tuned(cluster) == before


def test_a_node_that_takes_no_guests_can_not_be_measured(cluster: Cluster) -> None:
    cluster.run(2, "mosctl block")
    try:
        refused = cluster.try_run(1, "tune 2")
    finally:
        cluster.run(2, "mosctl noblock")
    assert refused.returncode == 1
    assert "it takes no guests now (block)" in refused.stderr.splitlines()[-1]
    nothing_of_tune(cluster)


def test_a_command_on_all_nodes(cluster: Cluster) -> None:
    stub = "/tmp/ssh-in-its-place"
    cluster.run(1, f"cat > {stub} <<'END'\n{SSH}END\nchmod 755 {stub}")
    told = cluster.run(1, f"mosdo --ssh {stub} 'cat /mfs/here/etc/hostname | wc -l'")
    assert sorted(told.splitlines()) == ["1: 1", "2: 1", f"2: for {cluster.address(2)}"]
