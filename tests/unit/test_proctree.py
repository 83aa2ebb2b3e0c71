"""The shape of a guest's /proc, and its words to the kernel."""

from __future__ import annotations

import stat
import struct

import pytest
from hypothesis import given, strategies as st

from dfsa import fusewords as words, proctree as tree
from dfsa.fusewords import Entry, Request
from dfsa.proctree import TOP, Kind, Names, Spot

KINDS = range(Kind.MOUNTED, Kind.WHEREABOUTS + 1)
PIDS = st.integers(1, (1 << 22) - 1)


@given(st.builds(Spot, st.sampled_from(KINDS), PIDS, PIDS, st.integers(0, 0xFFFF)))
def test_a_node_id_says_what_it_is(spot: Spot) -> None:
    assert tree.spot_of(spot.node) == spot
    assert TOP.node < spot.node < 1 << 64


def test_the_root_and_serials() -> None:
    assert tree.spot_of(1) == TOP
    assert Spot(Kind.WHEREABOUTS, 5, 1, 0x1_0002).node == Spot(Kind.WHEREABOUTS, 5, 1, 2).node
    assert [kind for kind in KINDS if Spot(kind).is_directory] == [Kind.MOUNTED, Kind.PROCESS]
    assert {stat.S_IFMT(Spot(kind).mode) for kind in KINDS if Spot(kind).is_directory} == {stat.S_IFDIR}
    assert {stat.S_IFMT(Spot(kind).mode) for kind in KINDS if not Spot(kind).is_directory} == {stat.S_IFLNK}


def test_serials() -> None:
    assert [tree.next_serial(serial) for serial in (tree.TARGETLESS, 1, 0xFFFE, 0xFFFF)] == [1, 2, 0xFFFF, 1]


@pytest.mark.parametrize(
    ("name", "pid"),
    [
        (b"1", 1),
        (b"4194303", 4194303),
        (b"4194304", 0),
        (b"0", 0),
        (b"01", 0),
        (b"12345678", 0),
        (b"self", 0),
        (b"", 0),
    ],
)
def test_which_names_are_pids(name: bytes, pid: int) -> None:
    assert tree.pid_of(name) == pid


def test_names_have_numbers() -> None:
    names = Names()
    assert [names.number(name) for name in (b"fd", b"stat", b"fd")] == [0, 1, 0]
    assert names[1] == b"stat"
    assert tree.into_real(Spot(Kind.LINK, 12, 1), names) == b"../.real/12/stat"
    assert tree.into_real(Spot(Kind.TOP_LINK, 0, 1), names) == b".real/stat"


def test_links_that_can_be_followed_by_their_text() -> None:
    assert [tree.is_followable(text) for text in (b"/bin/sh", b"/bin/sh (deleted)", b"pipe:[12]")] == [
        True,
        False,
        False,
    ]


# ---------------------------------------------------------------- words


def asked(opcode: int, body: bytes = b"") -> Request:
    return words.request(struct.pack("<IIQQIIII", 40 + len(body), opcode, 77, 5, 1000, 100, 42, 0) + body)


def unpacked(message: bytes) -> tuple[int, int, bytes]:
    """Error, unique and payload."""
    length, error, unique = struct.unpack_from("<IiQ", message)
    assert length == len(message)
    return error, unique, message[16:]


def test_requests() -> None:
    assert asked(words.LOOKUP, b"stat\0") == Request(words.LOOKUP, 77, 5, 1000, 42, b"stat\0")
    assert words.name_in(asked(words.LOOKUP, b"stat\0")) == b"stat"
    assert words.listing_in(asked(words.READDIR, struct.pack("<QQIIQII", 9, 300, 4096, 0, 0, 0, 0))) == (9, 300, 4096)
    assert words.opened_in(asked(words.RELEASEDIR, struct.pack("<QIIQ", 9, 0, 0, 0))) == 9


def test_answers() -> None:
    assert unpacked(words.answer(77, b"target")) == (0, 77, b"target")
    assert unpacked(words.refusal(77, 2)) == (-2, 77, b"")
    assert unpacked(words.done(asked(words.RELEASEDIR))) == (0, 77, b"")
    assert unpacked(words.opened(77, 9)) == (0, 77, struct.pack("<QII", 9, 0, 0))
    assert len(unpacked(words.statistics(asked(words.STATFS)))[2]) == 80  # struct fuse_kstatfs


def test_agreement() -> None:
    """Only of what is offered; struct fuse_init_out has 64 bytes."""
    for offered, agreed in ((0xFFFF_FFFF, 1 << 18 | 1 << 23), (1 << 23, 1 << 23), (0, 0)):
        error, _, payload = unpacked(words.agreement(asked(words.INIT, struct.pack("<IIII", 7, 45, 131072, offered))))
        assert (error, len(payload)) == (0, 64)
        assert struct.unpack_from("<IIII", payload) == (7, 31, 131072, agreed)


def test_attributes_and_for_how_long_they_are_believed() -> None:
    told = words.attributes(9, stat.S_IFDIR | 0o555, 1000, 100, 2, 1234)
    assert struct.unpack("<QQQqqqIIIIIIIIII", told) == (
        9,
        0,
        0,
        1234,
        1234,
        1234,
        0,
        0,
        0,
        0o40555,
        2,
        1000,
        100,
        0,
        4096,
        0,
    )
    _, _, entry = unpacked(words.found(77, 9, told, 60, 1_500_000_000))
    assert entry == struct.pack("<QQQQII", 9, 0, 60, 1, 0, 500_000_000) + told
    _, _, alone = unpacked(words.told(77, told, 10_000_000))
    assert alone == struct.pack("<QII", 0, 10_000_000, 0) + told


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=10), st.integers(0, 400))
def test_listings_are_cut_where_the_room_ends(names: list[bytes], room_bytes: int) -> None:
    entries = [Entry(10 * position, name, 100 + position, stat.S_IFLNK) for position, name in enumerate(names)]
    _, _, payload = unpacked(words.listed(77, entries, room_bytes))
    at, found = 0, []
    while at < len(payload):
        inode, position, length, kind = struct.unpack_from("<QQII", payload, at)
        found.append(Entry(position, payload[at + 24 : at + 24 + length], inode, kind << 12))
        at += (24 + length + 7) // 8 * 8
    assert found == entries[: len(found)]
    assert len(payload) <= room_bytes
    if len(found) < len(entries):
        assert len(payload) + (24 + len(entries[len(found)].name) + 7) // 8 * 8 > room_bytes
