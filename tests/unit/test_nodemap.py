"""The cluster map: what is accepted means what it says, what is refused names file, line and reason."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from omfs.errors import ConfigError, MapError
from omfs.net import nodemap
from omfs.net.nodemap import find_self, local_addresses, own_node, parse_map, read_map, resolve


def test_ranges_aliases_names_and_comments() -> None:
    text = """\
# the cluster
1  10.0.0.1    2      # two nodes
3\tNode3.Example. 1
7  10.0.1.250  6
1  10.0.9.1    ALIAS
1  front-1     0
"""
    node_map = parse_map(text, "m")
    assert node_map.nodes[1] == ("10.0.0.1", "10.0.9.1", "front-1")
    assert node_map.nodes[2] == ("10.0.0.2",)
    assert node_map.nodes[3] == ("node3.example",)
    assert node_map.nodes[12] == ("10.0.1.255",)
    assert list(node_map.nodes) == [1, 2, 3, *range(7, 13)]
    assert node_map.line_of("10.0.1.252") == 4
    assert node_map.line_of("front-1") == 6


def test_an_alias_may_stand_before_its_node() -> None:
    assert parse_map("1 10.0.0.9 alias\n1 10.0.0.1 1\n", "m").nodes == {1: ("10.0.0.1", "10.0.0.9")}


def test_digest_is_of_the_meaning() -> None:
    digest = parse_map("1 10.0.0.1 3\n2 10.0.1.1 ALIAS\n2 other 0", "m").digest
    assert len(digest) == 32
    assert parse_map("2 other 0\n# x\n2 10.0.1.1 0\n3 10.0.0.3 1\n1 10.0.0.1 2\n", "elsewhere").digest == digest
    assert parse_map("1 10.0.0.1 3\n2 10.0.1.1 ALIAS", "m").digest != digest
    assert parse_map("1 10.0.0.1 3\n2 10.0.1.2 ALIAS\n2 other 0", "m").digest != digest
    assert parse_map("1 10.0.1.1 1\n2 10.0.0.1 ALIAS\n2 10.0.0.2 1", "m").digest != digest


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 0, "no entries"),
        ("# only a comment\n", 0, "no entries"),
        ("1 10.0.0.1", 1, "three fields"),
        ("1 10.0.0.1 1 x", 1, "three fields"),
        ("\nx 10.0.0.1 1", 2, 'node id "x" is not a number'),
        ("0 10.0.0.1 1", 1, "out of range"),
        ("65536 10.0.0.1 1", 1, "out of range"),
        ("-1 10.0.0.1 1", 1, "out of range"),
        ("0 10.0.0.1 ALIAS", 1, "out of range"),
        ("1_0 10.0.0.1 1", 1, "not a number"),
        ("٣ 10.0.0.1 1", 1, "not a number"),
        ("9999999999 10.0.0.1 1", 1, "not a number"),
        ("65530 10.0.0.1 7", 1, "ends at node id 65536"),
        ("1 10.0.0.1 two", 1, 'range size "two" is not a number'),
        ("1 10.0.0.1 -2", 1, "negative range -2"),
        ("1 10.0.0.250 7", 1, "wraps past .255"),
        ("1 10.0.0.1 1\n2 node2 2", 2, "needs an IP address"),
        ("1 10.0.0 1", 1, "not an IPv4 address"),
        ("1 10.0.0.256 1", 1, "not an IPv4 address"),
        ("1 10.0.0.01 1", 1, "not an IPv4 address"),
        ("1 fd00::1 1", 1, "only IPv4"),
        ("1 0.0.0.0 1", 1, "can't be the address of a node"),
        ("1 239.192.0.1 1", 1, "can't be the address of a node"),
        ("1 no/de 1", 1, "neither"),
        ("1 -node 1", 1, "neither"),
        ("1 n\x1b[2J 1", 1, r"n\x1b[2J"),
        ("1 10.0.0.1 1\n2 10.0.0.1 1", 2, "conflicting addresses: 10.0.0.1 is already in line 1"),
        ("1 10.0.0.1 5\n9 10.0.0.3 ALIAS", 2, "conflicting addresses: 10.0.0.3 is already in line 1"),
        ("1 Node 1\n2 node. 1", 2, "conflicting addresses: node is already in line 1"),
        ("1 10.0.0.1 1\n\n1 10.0.0.2 1", 3, "conflicting ids: node 1 is already in line 1"),
        ("5 10.0.0.1 1\n1 10.0.1.1 6", 2, "conflicting ids: node 5 is already in line 1"),
        ("1 10.0.0.1 1\n2 10.0.0.2 ALIAS", 2, "alias for node 2, which is not in the map"),
        ("\n".join(f"{n} 10.0.{n // 100}.{n % 100} 1" for n in range(1, 258)), 257, "too many entries"),
    ],
)
def test_refusals_name_file_line_and_reason(text: str, line: int, reason: str) -> None:
    with pytest.raises(MapError) as caught:
        parse_map(text, "/etc/openmosix.map")
    assert caught.value.line == line
    assert reason in caught.value.reason
    start = f"/etc/openmosix.map:{line}: " if line else "/etc/openmosix.map: "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


def test_the_largest_map_is_accepted() -> None:
    text = "".join(f"{1 + 255 * n} 10.0.{n}.1 255\n" for n in range(256))
    node_map = parse_map(text + "# not an entry\n", "m")
    assert len(node_map.nodes) == 65280
    assert node_map.nodes[65280] == ("10.0.255.255",)


@st.composite
def maps(draw: st.DrawFn) -> dict[int, tuple[str, ...]]:
    ids = draw(st.lists(st.integers(1, 65535), min_size=1, max_size=30, unique=True))
    octets = st.integers(0, 2**24 - 1).map(lambda n: f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    names = st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{1,5})?", fullmatch=True)
    addresses = draw(st.lists(octets | names, min_size=len(ids), max_size=60, unique=True))
    nodes = {node_id: [address] for node_id, address in zip(ids, addresses, strict=False)}
    for address in addresses[len(ids) :]:
        nodes[draw(st.sampled_from(ids))].append(address)
    return {node_id: tuple(nodes[node_id]) for node_id in sorted(nodes)}


@given(maps(), st.randoms(use_true_random=False))
def test_round_trip(nodes: dict[int, tuple[str, ...]], random: object) -> None:
    lines = [f"{node_id} {first} 1" for node_id, (first, *_) in nodes.items()]
    random.shuffle(lines)  # type: ignore[attr-defined]
    lines += [f"{node_id} {more} ALIAS  # again" for node_id, (_, *aliases) in nodes.items() for more in aliases]
    node_map = parse_map("\n".join(lines), "m")
    assert node_map.nodes == nodes
    for node_id, addresses in nodes.items():
        assert find_self(node_map, addresses[-1:]) == node_id


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 255), st.integers(0, 20)), min_size=1, max_size=12))
def test_ranges_against_an_oracle(entries: list[tuple[int, int, int]]) -> None:
    """Whatever the lines are: accepted exactly when no id and no address is claimed twice and nothing wraps."""
    text = "\n".join(f"{node_id} 10.0.0.{last} {count}" for node_id, last, count in entries)
    ids = [node_id + k for node_id, _, count in entries for k in range(count)]
    lasts = [last + k for _, last, count in entries for k in range(max(count, 1))]
    aliases = [node_id for node_id, _, count in entries if count == 0]
    good = (
        len(set(ids)) == len(ids) and len(set(lasts)) == len(lasts) and max(lasts) <= 255 and set(aliases) <= set(ids)
    )
    try:
        node_map = parse_map(text, "m")
    except MapError:
        assert not good
    else:
        assert good
        assert sorted(node_map.nodes) == sorted(ids)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    fault = ""
    try:
        parse_map(text, "m")
    except MapError as error:
        fault = str(error)
    assert fault.isprintable()


# ---------------------------------------------------------------- files and addresses


def test_read_map_falls_through_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = tuple(tmp_path / name for name in ("openmosix.map", "mosix.map", "hpc.map"))
    monkeypatch.setattr(nodemap, "MAP_PATHS", places)
    with pytest.raises(MapError, match=r"openmosix\.map: no cluster map here"):
        read_map(None)
    places[2].write_text("3 10.0.0.3 1\n")
    assert read_map(None).path == str(places[2])
    places[1].write_text("2 10.0.0.2 1\n")
    assert list(read_map(None).nodes) == [2]


def test_read_map_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "map"
    with pytest.raises(MapError, match=f"{path}: no such file"):
        read_map(path)
    path.mkdir()
    with pytest.raises(MapError, match=f"{path}: Is a directory"):
        read_map(path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"1 10.0.0.1 1\n2 \xff\xfe 1\n")
    with pytest.raises(MapError, match=f"{binary}:2: .*neither"):
        read_map(binary)
    huge = tmp_path / "huge"
    huge.write_bytes(b"#" * (nodemap.MAP_MAX_BYTES + 1))
    with pytest.raises(MapError, match="not a cluster map"):
        read_map(huge)


def test_find_self_wants_exactly_one_node() -> None:
    node_map = parse_map("1 10.0.0.1 2\n2 10.0.1.2 ALIAS\n", "m")
    assert find_self(node_map, {"10.0.1.2", "192.168.0.1"}) == 2
    assert find_self(node_map, {"10.0.1.2", "10.0.0.2"}) == 2
    with pytest.raises(MapError, match="addresses of several nodes \\(1, 2\\); say which"):
        find_self(node_map, {"10.0.0.1", "10.0.0.2"})
    with pytest.raises(MapError, match="my own address is missing"):
        find_self(node_map, {"10.0.0.3"})


# 240.0.0.0/4 is reserved: no machine has such an address, whatever network the tests run in.


def test_local_addresses_asks_the_kernel() -> None:
    node_map = parse_map("1 240.0.0.1 1\n2 127.0.0.9 1\n3 240.0.0.7 1\n", "m")
    assert local_addresses(node_map) == {"127.0.0.9"}
    assert own_node(node_map) == 2


def test_own_address_missing() -> None:
    with pytest.raises(MapError, match="m: my own address is missing: no address of this machine is in the map"):
        own_node(parse_map("1 240.0.0.1 1\n", "m"))
    with pytest.raises(MapError, match=r"my own address is missing: 10\.1\.1\.1 \(omfs.toml\) is not in the map"):
        own_node(parse_map("1 127.0.0.1 1\n", "m"), "10.1.1.1")


def test_own_address_by_configuration() -> None:
    node_map = parse_map("1 127.0.0.1 1\n2 127.0.0.2 1\n3 Three 1\n", "m")
    assert own_node(node_map, "127.0.0.2") == 2
    assert own_node(node_map, "THREE.") == 3
    with pytest.raises(MapError, match="say which by address ="):
        own_node(node_map)


def resolver(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> list[str]:
    """Replace the system's resolver; returns the list of what was asked."""
    asked: list[str] = []

    def getaddrinfo(name: str, *_: object) -> list[tuple[object, ...]]:
        asked.append(name)
        if name not in names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0)) for address in names[name]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_host_name_that_means_loopback_gets_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, {"node1": ["127.0.1.1"], "node2": ["240.0.0.2"]})
    with pytest.raises(MapError) as caught:
        own_node(parse_map("2 node2 1\n1 node1 1\n", "m"))
    assert caught.value.line == 2
    assert "my own address is missing" in caught.value.reason
    assert '"node1" means 127.0.1.1' in caught.value.reason
    assert "/etc/hosts" in caught.value.reason


def test_host_names_are_resolved_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolver(monkeypatch, {})
    assert own_node(parse_map("1 127.0.0.1 1\n2 node2 1\n", "m")) == 1
    assert asked == []
    with pytest.raises(MapError, match="missing"):
        own_node(parse_map("1 240.0.0.1 1\n2 node2 1\n", "m"))
    assert set(asked) == {"node2"}


def test_a_host_name_may_be_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, {"node2": ["127.0.1.1", "240.0.0.2"], "node3": ["240.0.0.3"]})
    monkeypatch.setattr(nodemap, "_bindable", lambda addresses: [a for a in addresses if a == "240.0.0.2"])
    node_map = parse_map("2 node2 1\n3 node3 1\n", "m")
    assert own_node(node_map) == 2
    assert own_node(node_map, "240.0.0.3") == 3
    assert resolve("node2") == ("127.0.1.1", "240.0.0.2")
    assert resolve("unknown") == ()
    assert resolve("10.0.0.1") == ("10.0.0.1",)


def test_nonlocal_bind_makes_the_kernel_no_witness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    switch = tmp_path / "ip_nonlocal_bind"
    monkeypatch.setattr(nodemap, "NONLOCAL_BIND", switch)
    node_map = parse_map("1 127.0.0.1 1\n", "m")
    assert own_node(node_map) == 1
    switch.write_text("1\n")
    with pytest.raises(MapError, match=r"address = in omfs\.toml"):
        own_node(node_map)
    assert own_node(node_map, "127.0.0.1") == 1


def test_local_addresses_does_not_take_another_fault_for_a_foreign_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(1, "no network for you")

    monkeypatch.setattr(nodemap.socket, "socket", Broken)
    with pytest.raises(PermissionError):
        local_addresses(parse_map("1 10.0.0.1 1\n", "m"))


def test_the_id_that_an_address_gives_is_its_low_half() -> None:
    assert nodemap.id_of_address("10.0.1.250") == 0x1FA
    with pytest.raises(ConfigError, match=r"ends in 0\.0"):
        nodemap.id_of_address("10.1.0.0")
