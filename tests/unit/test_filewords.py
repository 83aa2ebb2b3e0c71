"""mignode/filewords.py and deputywords.py: golden bytes, and what is refused."""

from __future__ import annotations

import os
import termios

import pytest
from hypothesis import given, strategies as st

from mignode import deputywords
from mignode.deputywords import Attend, Attended, DeputyWord, Lost, Refused, Relayed, Run, Started, Words
from mignode.filewords import (
    Continued,
    Control,
    Ended,
    FilesPlan,
    InputUnwanted,
    Kind,
    ReaderGone,
    Resized,
    Signalled,
    Size,
    Stopped,
    pack,
    pack_attributes,
    unpack_attributes,
    words_in,
)
from mignode.mosrunoptions import Options
from omfs.errors import WireError

PLAN = FilesPlan((Kind.PIPE, Kind.TERMINAL, Kind.NULL), Size(24, 80), b"t")
CONTROL: list[tuple[Control, str]] = [
    (Signalled(15, True), "000d93a95369676e616c6c65640fc3"),
    (Resized(Size(24, 80)), "000e92a7526573697a6564941850" + "0000"),
    (ReaderGone(2), "000d92aa526561646572476f6e6502"),
    (InputUnwanted(), "000f91ad496e707574556e77616e746564"),
    (Stopped(20, 300), "000d93a753746f7070656414cd012c"),
    (Continued(), "000b91a9436f6e74696e756564"),
    (Ended(256, {2: 5}, 7), "000e94a5456e646564cd010081020507"),
]
DEPUTY: list[tuple[DeputyWord, str]] = [
    (Attend("1.2.3", 9), "0000000f93a6417474656e64a5312e322e3309"),
    (Started("1.2.3"), "0000001194a753746172746564a5312e322e33c3a0"),
    (Attended(), "0000000a91a8417474656e646564"),
    (Refused(2, "no", True), "0000000e94a75265667573656402a26e6fc3"),
    (Lost("why"), "0000000a92a44c6f7374a3776879"),
    (Relayed(b"\1"), "0000000c92a752656c61796564c40101"),
]


@pytest.mark.parametrize(("word", "golden"), CONTROL)
def test_golden_bytes_of_control(word: Control, golden: str) -> None:
    assert pack(word).hex() == golden
    assert list(words_in(pack(word))) == [(word, len(golden) // 2)]


@pytest.mark.parametrize(("word", "golden"), DEPUTY)
def test_golden_bytes_of_mosrun(word: DeputyWord, golden: str) -> None:
    assert deputywords.pack(word).hex() == golden


def test_a_request() -> None:
    run = Run(b"prog", (b"prog", b"x"), (b"A=b",), b"/", PLAN, Options(), (1,), (2,))
    assert deputywords.pack(run).hex() == (
        "0000003c99a352756ec40470726f6792c40470726f67c4017891c403413d62c4012f94930001029418500000c40174c29b90c200"
        "0000" + "0000c2c3c2c2" + "91019102"
    )
    assert list(Words().arrived(deputywords.pack(run))) == [run]


@given(st.integers(1, 40))
def test_messages_come_in_any_pieces(size: int) -> None:
    data = b"".join(deputywords.pack(word) for word, _ in DEPUTY)
    words = Words()
    found = [word for at in range(0, len(data), size) for word in words.arrived(data[at : at + size])]
    assert found == [word for word, _ in DEPUTY]
    control = b"".join(pack(word) for word, _ in CONTROL)
    assert [word for word, _ in words_in(control)] == [word for word, _ in CONTROL]
    cut = [word for word, _ in words_in(control[:-size])]
    assert cut == [word for word, _ in CONTROL][: len(cut)]


def test_has_a_terminal() -> None:
    assert PLAN.has_terminal
    assert not FilesPlan((Kind.PIPE, Kind.NULL, Kind.CLOSED)).has_terminal


@pytest.mark.parametrize(
    "body", [b"", b"x", b"\x91\xa7Nothing", b"\x93\xa9Signalled\x00\xc3", b"\x93\xa9Signalled\x41\xc3"]
)
def test_what_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="bad message"):
        list(words_in(len(body).to_bytes(2, "big") + body))
    with pytest.raises(WireError, match="bad message"):
        list(Words().arrived(len(body).to_bytes(4, "big") + body))


def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(WireError, match="65535 bytes"):
        list(words_in(b"\xff\xff"))
    with pytest.raises(WireError, match="131073 bytes"):
        list(Words().arrived((131073).to_bytes(4, "big")))
    assert list(Words(131073).arrived((131073).to_bytes(4, "big"))) == []


def test_attributes_of_a_terminal() -> None:
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    os.close(master)
    os.close(slave)
    assert unpack_attributes(pack_attributes(attributes)) == attributes
    attributes[6][termios.VMIN] = 1  # a number, as without ICANON
    assert unpack_attributes(pack_attributes(attributes)) == attributes


CC = [b"x"] * 32


@pytest.mark.parametrize(
    "attributes",
    [
        [],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, -1, CC],
        [1, 1, 1, 1, 1, 1 << 32, CC],
        [1, 1, 1, 1, 1, CC, CC],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, CC[1:]],
        [1, 1, 1, 1, 1, 1, [b"xy", *CC[1:]]],
        [1, 1, 1, 1, 1, 1, [256, *CC[1:]]],
        ["x"],
    ],
)
def test_attributes_that_are_none(attributes: list[object]) -> None:
    with pytest.raises(WireError, match="bad attributes"):
        unpack_attributes(pack_attributes(attributes))
