"""Names, addresses and file texts of a lab."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from omfs.errors import ConfigError
from omfs.lab import topology
from omfs.lab.topology import LabPaths, LabPlan
from omfs.net import nodemap

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)


@given(NAMES, st.integers(1, topology.NODES_MAX))
def test_addresses_are_in_the_benchmark_network(name: str, node: int) -> None:
    address = ipaddress.ip_address(topology.address(name, node))
    assert address in ipaddress.ip_network("198.18.0.0/15")
    assert str(address).rpartition(".")[2] == str(node)


def test_macs_are_local_unicast_distinct_and_never_the_unreachable_one() -> None:
    macs = {topology.mac(node) for node in range(1, topology.NODES_MAX + 1)}
    assert len(macs) == topology.NODES_MAX
    assert topology.UNREACHABLE_MAC not in macs
    for mac in macs:
        assert int(mac[:2], 16) & 3 == 2


def test_the_map_names_every_node(tmp_path: Path) -> None:
    plan = LabPlan(name="m", nodes=200)
    path = tmp_path / "map"
    path.write_text(topology.map_text(plan))
    read = nodemap.read_map(path)
    assert {node: addresses[0] for node, addresses in read.nodes.items()} == {
        node: topology.address("m", node) for node in range(1, 201)
    }


def test_hosts_never_give_a_node_a_loopback_address() -> None:
    lines = topology.hosts_text(LabPlan(name="h", nodes=2)).splitlines()
    assert lines == ["127.0.0.1 localhost", f"{topology.subnet('h')}.1 node1", f"{topology.subnet('h')}.2 node2"]


@pytest.mark.parametrize(("dfsa", "option"), [(True, "dfsa=1"), (False, "dfsa=0")])
def test_fstab_is_the_documented_line(dfsa: bool, option: str) -> None:
    assert topology.fstab_text(LabPlan(dfsa=dfsa)).split() == ["mfs_mnt", "/mfs", "fuse.omfs", option, "0", "0"]


def test_settings_are_toml() -> None:
    plan = LabPlan(sec="none", settings='timeo_s = 2.0\n[[trees]]\npath = "/srv"')
    assert tomllib.loads(topology.settings_text(plan)) == {
        "sec": "none", "dfsa": True, "timeo_s": 2.0, "trees": [{"path": "/srv"}],
    }  # fmt: skip
    assert tomllib.loads(topology.settings_text(LabPlan(dfsa=False))) == {"sec": "tls", "dfsa": False}


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("8G", 8 << 30), ("64M", 64 << 20), ("64m", 64 << 20), ("1GiB", 1 << 30), ("2TB", 2 << 40), ("4096", 4096)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert topology.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.5G", "8 G", "8X", "8GG"])
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        topology.parse_size(text)


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "..", "a b", "a" * 33, "ä"])
def test_names_that_are_no_path_component_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        LabPaths(name)
    with pytest.raises(ConfigError):
        LabPlan(name=name).check()


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (LabPlan(nodes=0), "1 to 200 nodes, not 0"),
        (LabPlan(nodes=201), "1 to 200 nodes, not 201"),
        (LabPlan(size_bytes=1 << 20), "at least 16 MiB"),
    ],
)
def test_impossible_plans_are_refused(plan: LabPlan, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        plan.check()


def test_a_possible_plan_is_accepted() -> None:
    LabPlan(name="a-1", nodes=200, size_bytes=topology.SIZE_MIN_BYTES).check()
    LabPlan(nodes=3).check_node(3)


@pytest.mark.parametrize("node", [0, 4, -1])
def test_nodes_that_the_lab_lacks_are_refused(node: int) -> None:
    with pytest.raises(ConfigError, match="has nodes 1 to 3"):
        LabPlan(nodes=3).check_node(node)


@given(NAMES, st.integers(1, topology.NODES_MAX))
def test_everything_of_a_lab_is_below_its_directory(name: str, node: int) -> None:
    paths = LabPaths(name, Path("/base"))
    own = paths.node(node)
    for path in (paths.plan, paths.lock, paths.switch, paths.authority, own.disk, own.log, own.init, own.boot, own.etc):
        assert path.is_relative_to("/base/" + name)


def test_port_names_fit_the_kernel_and_differ() -> None:
    names = {topology.port_name(node) for node in range(1, topology.NODES_MAX + 1)}
    assert len(names) == topology.NODES_MAX
    assert max(len(name) for name in names) < 16  # IFNAMSIZ, with its NUL


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (LabPlan(nodes=0), "a lab has 1 to"),
        (LabPlan(size_bytes=1 << 20), "a node's disk has at least 16 MiB"),
        (LabPlan(memory_bytes=1 << 20), "a node needs 256 MiB"),
        (LabPlan(processors=0.01), "a node has 0.1 to 1024 processors, not 0.01"),
        (LabPlan(processors=4000), "a node has 0.1 to 1024 processors, not 4000"),
    ],
)
def test_what_cannot_be_a_lab_is_refused_in_one_line(plan: LabPlan, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        plan.check()
    LabPlan(memory_bytes=256 << 20, processors=0.5).check()


@pytest.mark.parametrize(
    ("plan", "is_limited"), [(LabPlan(), False), (LabPlan(memory_bytes=1 << 30), True), (LabPlan(processors=1), True)]
)
def test_a_lab_is_limited_by_memory_or_processors(plan: LabPlan, is_limited: bool) -> None:
    assert plan.is_limited is is_limited


def test_only_the_nodes_of_the_lab_are_its_nodes() -> None:
    plan = LabPlan(nodes=2)
    plan.check_node(2)
    with pytest.raises(ConfigError, match="has nodes 1 to 2, not 3"):
        plan.check_node(3)
