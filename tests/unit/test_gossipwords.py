"""Gossip as bytes: what is said comes out again, it fits a datagram, and whatever else comes is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, strategies as st

from mignode import gossipwords
from mignode.gossip import WINDOW, Message, Said
from mignode.nodeinfo import NodeInfo
from omfs.errors import WireError

LONG_RUNNING = NodeInfo(
    node=65535, incarnation=1_790_000_000, seq=40_000_000, load=70_000, frozen=400, speed=65535, cpus=256,
    mem_free=2 << 40, mem_raw_free=1 << 40, mem_total=2 << 40, util=100, status=0x7F, version="0.1.0",
)  # fmt: skip
GOLDEN = (
    "9802cd0101ce6ab13b8003" + "cd020200c3" + "92"
    "9f" + "cd0101" + "ce6ab13b80" + "07" + "00" + "ccfa" + "78" + "cd57e4" + "02" + "cd0400" + "cd0200" + "cd0800"
    "61" + "03" + "cd0100" + "ff"
    "9f" + "cd0303" + "05" + "06" + "cd05dc" + "00" + "00" + "cd2710" + "01" + "00" + "00" + "00" + "64" + "03"
    "00" + "cd01f4"
)  # fmt: skip

nodes = st.integers(1, 65535)
counts = st.integers(0, 2**48)
mib = st.integers(0, 2**20).map(lambda number: number << 20)
milliseconds = st.integers(0, 2**31 - 1).map(lambda number: number / 1000)
versions = st.sampled_from(["", "0.1.0", "255.255.255", "1.20.3"])
infos = st.builds(
    NodeInfo, node=nodes, incarnation=counts, seq=counts, age_s=st.just(0.0), load=st.integers(0, 2**31 - 1),
    frozen=st.integers(0, 2**31 - 1), speed=nodes, cpus=nodes, mem_free=mib, mem_raw_free=mib, mem_total=mib,
    util=st.integers(0, 100), status=st.integers(0, 0x7F), version=versions,
)  # fmt: skip
saids = st.builds(Said, infos, milliseconds, st.one_of(st.just(-1.0), milliseconds))


@st.composite
def messages(draw: st.DrawFn) -> Message:
    records = draw(st.lists(saids, min_size=1, max_size=WINDOW))
    return Message(
        records[0].info.node, draw(counts), draw(counts), draw(nodes), draw(counts), draw(st.booleans()), tuple(records)
    )


@given(messages())
def test_what_is_said_comes_out_again(message: Message) -> None:
    assert gossipwords.decode(gossipwords.encode(message, 10_000)) == message


@given(messages(), st.integers(100, 1400))
def test_the_first_records_that_fit_go(message: Message, room: int) -> None:
    data = gossipwords.encode(message, room)
    found = gossipwords.decode(data)
    assert found.records == message.records[: len(found.records)]
    assert len(data) <= max(room, len(gossipwords.encode(message._replace(records=message.records[:1]), room)))


def test_a_window_fits_beside_a_certificate() -> None:
    """Records as they are after a year, of machines with terabytes."""
    message = Message(
        65535, 1_790_000_000, 40_000_000, 65535, 1_790_000_000, True, (Said(LONG_RUNNING, 12.3),) * WINDOW
    )
    data = gossipwords.encode(message, gossipwords.DATAGRAM_MAX_BYTES - 5 - 440 - 64)
    assert len(gossipwords.decode(data).records) >= WINDOW - 2
    assert len(data) <= gossipwords.DATAGRAM_MAX_BYTES - 5 - 440 - 64


def test_the_bytes_that_nodes_of_this_version_understand() -> None:
    one = NodeInfo(
        node=0x101, incarnation=1_790_000_000, seq=7, load=250, frozen=120, speed=22500, cpus=2, mem_free=1 << 30,
        mem_raw_free=1 << 29, mem_total=1 << 31, util=97, version="0.1.0",
    )  # fmt: skip
    other = NodeInfo(node=0x303, incarnation=5, seq=6)
    message = Message(0x101, 1_790_000_000, 3, 0x202, 0, True, (Said(one, 0.0), Said(other, 1.5, 0.5)))
    assert gossipwords.encode(message, 1400).hex() == GOLDEN
    assert gossipwords.decode(bytes.fromhex(GOLDEN)) == message


def test_what_has_no_number_is_told_without() -> None:
    for version in ("", "0.1.0.dev1", "1.2.300", "newest"):
        info = msgspec.structs.replace(LONG_RUNNING, version=version, load=2**40, frozen=2**40)
        (found,) = gossipwords.decode(
            gossipwords.encode(Message(65535, 1, 1, 1, 1, False, (Said(info, -3.0),)), 1400)
        ).records
        assert (found.info.version, found.info.load, found.age_s) == ("", 2**31 - 1, 0.0)


@given(st.one_of(st.binary(max_size=200), st.recursive(counts | st.booleans(), st.lists).map(msgspec.msgpack.encode)))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        gossipwords.decode(data)


@given(messages(), st.data())
def test_what_was_damaged_is_refused_or_within_bounds(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(gossipwords.encode(message, 1400))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = gossipwords.decode(bytes(encoded))
    except WireError:
        return
    assert gossipwords.decode(gossipwords.encode(found, 10_000)) == found
    for said in found.records:
        assert 1 <= said.info.node <= 65535
        assert said.age_s >= 0


def test_another_version_and_a_foreign_record_are_refused_in_a_sentence() -> None:
    with pytest.raises(WireError, match="gossip of version 3, we speak 2: install the same version on all nodes"):
        gossipwords.decode(msgspec.msgpack.encode([3, "whatever it may be"]))
    info = NodeInfo(node=5, incarnation=1, seq=1)
    data = gossipwords.encode(Message(4, 1, 1, 2, 1, False, (Said(info, 0.0),)), 1400)
    with pytest.raises(WireError, match="node 4 begins with a record of node 5"):
        gossipwords.decode(data)
