"""mignode/imagefile.py and seal.py: what a file says it is, and what is made of one that is cut, damaged or forged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from mignode.imagefile import HEAD_MAX_BYTES, Found, Head, Reader, Record, Seal, Writer, head_in, told
from mignode.seal import check_seal, sealed
from mignode.words import Image, ImagePiece, ImagesSent, State
from omfs.errors import ImagesDamaged, RemoteFailure
from omfs.net import authority, tls

HEAD = Head(
    guest="1.4242.99", home=1, node=2, cluster="c0ffee", software="omfs 0.1.0", processor=b"any",
    uid=1000, gid=1000,
    groups=(24, 1000), root=4242, arguments=(b"python3", b"count.py"), taken_s=1_795_000_000, every_s=60, processes=2,
    memory_bytes=5 << 20, plan=b"plan",
)  # fmt: skip

names = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=10)
heads = st.builds(
    Head, guest=st.just(HEAD.guest), home=st.integers(1, 65535), node=st.integers(1, 65535), cluster=names,
    software=names, processor=st.binary(max_size=40), uid=st.integers(0, (1 << 32) - 1),
    gid=st.integers(0, (1 << 32) - 1),
    groups=st.lists(st.integers(0, (1 << 32) - 1), max_size=5).map(tuple), root=st.integers(2, (1 << 22) - 1),
    arguments=st.lists(st.binary(max_size=20), max_size=4).map(tuple), taken_s=st.integers(1, 1 << 40),
    every_s=st.integers(0, (1 << 32) - 1), processes=st.integers(1, 1000), memory_bytes=st.integers(0, 1 << 50),
    plan=st.binary(max_size=100),
)  # fmt: skip
pieces = st.tuples(st.builds(ImagePiece, names, st.integers(0, 1 << 40), st.integers(0, (1 << 32) - 1)), st.binary())
middles = st.lists(pieces | st.tuples(st.just(State()), st.binary(max_size=50)), max_size=5)


def file_of(records: list[tuple[Record, bytes]]) -> bytes:
    """With a seal that nobody signed."""
    writer, data = Writer(), b""
    for record, bulk in records:
        data += writer.head_of(record, len(bulk)) + bulk
        writer.passed(bulk)
    return data + writer.head_of(Seal(writer.digest(), b"", b""))


def read(data: bytes, piece_bytes: int = 1 << 20) -> list[Found]:
    reader, found = Reader(), []
    for at in range(0, len(data), piece_bytes):
        found += reader.arrived(data[at : at + piece_bytes])
    reader.end()
    return found


@given(heads, middles, st.integers(1, 100))
def test_what_was_written_is_read(head: Head, middle: list[tuple[Record, bytes]], piece_bytes: int) -> None:
    records = [(head, b""), *middle, (ImagesSent((Image("core-1.img", 3),)), b"")]
    *found, last = read(file_of(records), piece_bytes)
    assert [(each.record, each.data) for each in found] == records
    assert isinstance(last.record, Seal)
    assert last.record.digest == last.digest


@given(heads, middles, st.data())
def test_a_file_that_was_cut_short_is_known(head: Head, middle: list[tuple[Record, bytes]], data: Any) -> None:
    whole = file_of([(head, b""), *middle])
    with pytest.raises(ImagesDamaged, match="cut short"):
        read(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(heads, middles, st.data())
def test_a_byte_that_was_changed_is_known(head: Head, middle: list[tuple[Record, bytes]], data: Any) -> None:
    damaged = bytearray(file_of([(head, b""), *middle]))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ImagesDamaged):
        check_seal_of(read(bytes(damaged)))


def check_seal_of(found: list[Found]) -> None:
    seal = found[-1]
    if not isinstance(seal.record, Seal) or seal.record.signature or seal.record.certificate:
        raise ImagesDamaged("of the seal itself")
    check_seal(seal.record, seal.digest, SimpleNamespace(sec="none"), Path())  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_anything_else_is_none(data: bytes) -> None:
    with pytest.raises(ImagesDamaged):
        read(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"#!/bin/sh\necho\n", "no image of a program"),
        (b"", "cut short"),
        (b"omfs image 7\n" + bytes(100), "another version"),
        (file_of([(HEAD, b"")]) + b"more", "something behind its end"),
        (b"omfs image 1\n" + b"\xff" * 100, "a length that cannot be"),
        (file_of([(HEAD, b"x")]), "Head with 1 bytes"),
    ],
)
def test_it_says_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(ImagesDamaged, match=reason):
        read(data)


def test_the_head_is_found_at_the_beginning() -> None:
    assert head_in(file_of([(HEAD, b"")])[:HEAD_MAX_BYTES]) == HEAD
    with pytest.raises(ImagesDamaged, match="does not begin with its head"):
        head_in(file_of([(State(), b"x")]))
    with pytest.raises(ImagesDamaged, match="cut short"):
        head_in(b"omfs im")


def test_what_is_told_moves_nobodys_cursor() -> None:
    text = told(replace(HEAD, arguments=(b"\x1b[2Jprog", b"\xff\n")))
    assert "?[2Jprog \ufffd?" in text
    assert "every 60 s, on node 2" in text


# ---------------------------------------------------------------- the seal


@dataclass
class Node:
    """A node of a cluster: its identity is only asked for `sec`."""

    config: Path
    sec: str = "tls"


def node_of(cluster: authority.Authority, node_id: int, place: Path) -> Node:
    config = place / f"{cluster.cluster}-{node_id}"
    authority.install_credentials(config, cluster.issue(node_id))
    return Node(config)


def check(seal: Seal, digest: bytes, node: Node) -> None:
    check_seal(seal, digest, node, node.config)  # type: ignore[arg-type]


def test_what_a_node_of_the_cluster_has_made_all_others_believe(tmp_path: Path) -> None:
    cluster = authority.make_authority(tmp_path / "ca")
    one, two = node_of(cluster, 1, tmp_path), node_of(cluster, 2, tmp_path)
    digest = bytes(range(32))
    seal = sealed(digest, one, one.config)  # type: ignore[arg-type]
    check(seal, digest, two)
    with pytest.raises(ImagesDamaged, match="its sum"):
        check(seal, bytes(32), two)


def test_what_anybody_else_has_made_nobody_believes(tmp_path: Path) -> None:
    cluster, other = authority.make_authority(tmp_path / "ca"), authority.make_authority(tmp_path / "other")
    one, stranger = node_of(cluster, 1, tmp_path), node_of(other, 1, tmp_path)
    digest = bytes(range(32))
    theirs = sealed(digest, stranger, stranger.config)  # type: ignore[arg-type]
    ours = sealed(digest, one, one.config)  # type: ignore[arg-type]
    authorities = (tmp_path / "ca" / tls.CA_FILE).read_bytes()
    for forged in (
        Seal(digest, b"", b""),  # of a cluster without certificates
        theirs,
        replace(theirs, certificate=ours.certificate),
        replace(ours, signature=bytes(64)),
        replace(ours, certificate=authorities),  # no node's
        replace(ours, certificate=b"nothing"),
        replace(sealed(bytes(32), one, one.config), digest=digest),  # type: ignore[arg-type]
    ):
        with pytest.raises(RemoteFailure, match="not made by a node of this cluster"):
            check(forged, digest, one)


def test_a_cluster_without_certificates_has_no_seals(tmp_path: Path) -> None:
    node = Node(tmp_path, "none")
    seal = sealed(bytes(32), node, node.config)  # type: ignore[arg-type]
    assert seal == Seal(bytes(32), b"", b"")
    check(seal, bytes(32), node)


def test_a_key_that_others_can_read_seals_nothing(tmp_path: Path) -> None:
    one = node_of(authority.make_authority(tmp_path / "ca"), 1, tmp_path)
    copy = shutil.copytree(one.config, tmp_path / "copy")
    (copy / tls.KEY_FILE).chmod(0o644)
    with pytest.raises(tls.ConfigError, match="readable by others"):
        sealed(bytes(32), one, copy)  # type: ignore[arg-type]
