"""Seals: what a node of the cluster sealed is open to the others, and nobody else can make one."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, strategies as st

from mignode import gossipseal
from mignode.gossipseal import Seal, load_seal
from mignode.gossipwords import DATAGRAM_MAX_BYTES
from omfs.errors import ConfigError, WireError
from omfs.net import authority, tls
from omfs.net.authority import Authority, install_credentials, make_authority


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ca"))


def sealer(ca: Authority, place: Path, node: int, now: datetime.datetime | None = None) -> Seal:
    install_credentials(place, ca.issue(node, 10, now))
    return load_seal(place, "tls")


@pytest.fixture(scope="module")
def two(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> tuple[Seal, Seal]:
    """Of node 1 and node 65535."""
    return sealer(ca, tmp_path_factory.mktemp("one"), 1), sealer(ca, tmp_path_factory.mktemp("last"), 65535)


def test_a_sealed_message_says_from_whom_it_is(two: tuple[Seal, Seal]) -> None:
    one, last = two
    for _ in range(2):  # the second time the certificate is known
        assert last.open(one.close(b"something")) == (1, b"something")
    assert one.open(last.close(b"")) == (65535, b"")
    for seal in two:
        assert len(seal.close(bytes(seal.room_bytes))) == DATAGRAM_MAX_BYTES


@given(st.data())
def test_no_byte_of_it_can_be_changed(two: tuple[Seal, Seal], data: st.DataObject) -> None:
    one, last = two
    sealed = bytearray(one.close(b"the load is 100"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        last.open(bytes(sealed))


def test_every_byte_of_a_certificate_that_nobody_knows_yet_matters(
    two: tuple[Seal, Seal], ca: Authority, tmp_path: Path
) -> None:
    """The X.509 library meets bytes that nobody has vouched for."""
    sealed = sealer(ca, tmp_path, 2).close(b"hello")
    for place in range(len(sealed)):
        for other in (sealed[place] ^ 0xFF, sealed[place] ^ 0x01):
            with pytest.raises(WireError):
                two[0].open(sealed[:place] + bytes([other]) + sealed[place + 1 :])


@given(st.binary(max_size=1500))
def test_whatever_comes_is_refused(two: tuple[Seal, Seal], data: bytes) -> None:
    bare = Seal(None)
    for seal in two:
        for datagram in (data, b"og" + data, b"og\x01\x00\x20" + data, bare.close(data)):
            with pytest.raises(WireError):
                seal.open(datagram)


def test_another_clusters_node_is_a_stranger(two: tuple[Seal, Seal], tmp_path: Path) -> None:
    other = make_authority(tmp_path / "ca")
    with pytest.raises(WireError, match="not signed by the CA"):
        two[0].open(sealer(other, tmp_path / "node", 2).close(b"hello"))


def test_what_was_signed_for_another_purpose_is_no_seal(two: tuple[Seal, Seal], ca: Authority, tmp_path: Path) -> None:
    install_credentials(tmp_path, ca.issue(1))
    sealed = load_seal(tmp_path, "tls", gossipseal.DISCOVERY).close(b"hello")
    with pytest.raises(WireError, match="not sealed by node 1"):
        two[1].open(sealed)


@pytest.mark.parametrize("days", [-40, 40])
def test_a_certificate_counts_only_in_its_time(
    two: tuple[Seal, Seal], ca: Authority, tmp_path: Path, days: int
) -> None:
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    with pytest.raises(WireError, match="node 2 does not hold now"):
        two[0].open(sealer(ca, tmp_path, 2, then).close(b"hello"))


def test_certificates_are_forgotten_before_they_are_too_many(
    two: tuple[Seal, Seal], ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossipseal, "_REMEMBERED_MAX", 2)
    me = sealer(ca, tmp_path / "me", 9)
    for node in range(2, 7):
        assert me.open(sealer(ca, tmp_path / str(node), node).close(b"x")) == (node, b"x")
        assert len(me._remembered) <= 2


def test_without_security_nothing_is_sealed_and_nothing_sealed_is_taken(two: tuple[Seal, Seal]) -> None:
    bare = load_seal(Path("nowhere"), "none")
    assert bare.open(bare.close(b"hello")) == (0, b"hello")
    with pytest.raises(WireError, match="use the same sec= on all nodes"):
        bare.open(two[0].close(b"hello"))
    with pytest.raises(WireError, match="use the same sec= on all nodes"):
        two[0].open(bare.close(b"hello"))


def test_a_key_of_another_kind(ca: Authority, tmp_path: Path, two: tuple[Seal, Seal]) -> None:
    """omfs-admin makes none; who makes his own hears of it, and others don't take it."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = ca.certify(key.public_key(), 3)  # type: ignore[arg-type]
    sealer(ca, tmp_path, 3)
    (tmp_path / tls.KEY_FILE).write_bytes(authority._key_pem(key))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a key that omfs-admin made"):
        load_seal(tmp_path, "tls")
    der = certificate.public_bytes(gossipseal.Encoding.DER)
    forged = b"og\x01" + len(der).to_bytes(2, "big") + der + bytes(64) + b"hello"
    with pytest.raises(WireError, match="node 3 has another kind of key"):
        two[0].open(forged)
