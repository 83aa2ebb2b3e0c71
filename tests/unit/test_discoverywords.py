"""The words of discovery: read as they were said, and nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mignode.discoverywords import SERIAL_MAX, VERSION, Kind, Said, decode, encode, may_be_announced
from omfs.errors import WireError
from tests.unit.discoveryroom import said


def test_words_are_read_as_they_were_said() -> None:
    for statement in (said(Kind.HERE, 65535, SERIAL_MAX, digest=bytes(32), settled=True), said(Kind.ASK, 1, 0)):
        assert decode(encode(statement)) == statement
    assert encode(said(Kind.HERE, 2780, 5, digest=b"\1" * 32)).hex() == (
        "99" "01" "02" "cd0adc" "cd0adc" "05" "a0" "91ab31302e302e31302e323230" "c2" "c420" + "01" * 32
    )  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        (Said(2, Kind.HERE, 1, 1, 1, addresses=("10.0.0.1",)), "install the same version"),
        (Said(VERSION, Kind.HERE, 1, 2, 1, addresses=("10.0.0.1",)), "node 1 says where node 2 is"),
        (Said(VERSION, Kind.HERE, 1, 1, 1), "HERE with 0 addresses"),
        (Said(VERSION, Kind.LEFT, 1, 2, 1, addresses=("10.0.0.1",)), "LEFT with 1 addresses"),
        (Said(VERSION, Kind.HERE, 1, 1, 1, addresses=("10.0.0.1", "10.0.0.1")), "can't be at"),
        (Said(VERSION, Kind.HERE, 1, 1, 1, addresses=("node1",)), "can't be at 'node1'"),
        (Said(VERSION, Kind.HERE, 0, 0, 1, addresses=("10.0.0.1",)), "nothing of discovery"),
        (Said(VERSION, Kind.HERE, 1, 1, SERIAL_MAX + 1, addresses=("10.0.0.1",)), "nothing of discovery"),
        (Said(VERSION, Kind.HERE, 1, 1, 1, addresses=("10.0.0.1",) * 17), "nothing of discovery"),
    ],
    ids=range(9),
)
def test_what_nobody_says(statement: Said, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        decode(encode(statement))


@given(st.binary(max_size=80))
def test_whatever_comes_is_refused_or_understood(data: bytes) -> None:
    try:
        statement = decode(data)
    except WireError:
        return
    assert statement.kind is Kind.LEFT or statement.sender == statement.node


@pytest.mark.parametrize(
    ("written", "may"),
    [("10.0.0.1", True), ("127.0.0.1", False), ("0.0.0.0", False), ("239.192.0.1", False), ("255.255.255.255", False)],
)
def test_where_a_node_may_be(written: str, may: bool) -> None:
    assert may_be_announced(written) is may
