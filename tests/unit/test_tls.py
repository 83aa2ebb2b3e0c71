"""Certificates: what the authority makes works both ways; every fault is one clear line."""

from __future__ import annotations

import datetime
import gzip
import io
import logging
import os
import ssl
import stat
import tarfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from omfs.errors import ConfigError, HelloRefused
from omfs.net import authority, tls
from omfs.net.bundle import pack_bundle, unpack_bundle

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> authority.Authority:
    return authority.make_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> authority.Authority:
    return authority.make_authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def config_dir(tmp_path: Path, cluster: authority.Authority) -> Path:
    authority.install_credentials(tmp_path / "etc", cluster.issue(7))
    return tmp_path / "etc"


def identity_of(issuer: authority.Authority, node_id: int, directory: Path) -> tls.LocalIdentity:
    authority.install_credentials(directory, issuer.issue(node_id))
    return tls.load_identity(directory, "tls", node_id)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A handshake in memory, and one byte each way (TLS 1.3 tells the client of a refusal only then)."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_side=False),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = list(ends)
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    for writer, reader in (ends, ends[::-1]):
        writer.write(b"x")
        assert reader.read(1) == b"x"
    return ends


def contexts(server: tls.LocalIdentity, client: tls.LocalIdentity) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    assert server.server_context is not None
    assert client.client_context is not None
    return server.server_context, client.client_context


def test_both_ends_learn_whom_they_talk_to(cluster: authority.Authority, tmp_path: Path) -> None:
    first, second = (identity_of(cluster, node_id, tmp_path / str(node_id)) for node_id in (1, 65535))
    client, server = shake_hands(*contexts(first, second))
    assert client.version() == "TLSv1.3"
    assert tls.peer_node_id(client.getpeercert()) == 1
    assert tls.peer_node_id(server.getpeercert()) == 65535
    assert first.cluster == second.cluster == cluster.cluster
    assert not client.session_reused


@pytest.mark.parametrize("strange_end", ["server", "client"])
def test_another_cluster_is_refused(
    cluster: authority.Authority, stranger: authority.Authority, tmp_path: Path, strange_end: str
) -> None:
    ours, theirs = identity_of(cluster, 1, tmp_path / "1"), identity_of(stranger, 2, tmp_path / "2")
    pair = contexts(theirs, ours) if strange_end == "server" else contexts(ours, theirs)
    with pytest.raises(ssl.SSLError):
        shake_hands(*pair)


def test_a_client_without_certificate_is_refused(cluster: authority.Authority, tmp_path: Path) -> None:
    ours = identity_of(cluster, 1, tmp_path)
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname = False
    anonymous.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match=r"(?i)peer.did.not.return"):
        shake_hands(contexts(ours, ours)[0], anonymous)


def test_tls_1_2_is_refused(config_dir: Path) -> None:
    ours = tls.load_identity(config_dir, "tls", 7)
    server, client = contexts(ours, ours)
    client.minimum_version = ssl.TLSVersion.TLSv1_2
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client)


def test_a_ca_certificate_is_not_a_node(config_dir: Path, stranger: authority.Authority) -> None:
    """A node's key must not be able to sign for others: path length 0 and CA:FALSE."""
    rogue_key = ed25519.Ed25519PrivateKey.generate()
    ours = tls.load_identity(config_dir, "tls", 7)
    node_key = tls.read_private_key(config_dir / tls.KEY_FILE)
    node_certificate = tls.read_certificate(config_dir / tls.NODE_FILE)
    assert isinstance(node_key, ed25519.Ed25519PrivateKey)
    rogue = authority.Authority(node_certificate, node_key, ours.cluster).certify(rogue_key.public_key(), 1)
    pem = serialization.Encoding.PEM
    (config_dir / "chain.pem").write_bytes(rogue.public_bytes(pem) + node_certificate.public_bytes(pem))
    (config_dir / "rogue.key").write_bytes(
        rogue_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.load_cert_chain(config_dir / "chain.pem", config_dir / "rogue.key")
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.verify.failed"):
        shake_hands(contexts(ours, ours)[0], client)


def test_sec_none_is_loud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        identity = tls.load_identity(tmp_path, "none", 3)
    assert (identity.node_id, identity.server_context, identity.client_context) == (3, None, None)
    assert "NO ENCRYPTION" in caplog.text
    with pytest.raises(ConfigError, match='"tls" or "none", not "ssl"'):
        tls.load_identity(tmp_path, "ssl", 3)


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        {"subjectAltName": ()},
        {"subjectAltName": (("DNS", "omfs://c/node/1"),)},
        {"subjectAltName": (("URI", "https://c/node/1"),)},
        {"subjectAltName": (("URI", "omfs://c/node/0"),)},
        {"subjectAltName": (("URI", "omfs://c/node/65536"),)},
        {"subjectAltName": (("URI", "omfs://c/node/1/"),)},
        {"subjectAltName": (("URI", "omfs://c/node/1\n"),)},
        {"subjectAltName": (("URI", "omfs://c/node/1"), ("URI", "omfs://c/node/2"))},
    ],
)
def test_certificates_that_name_no_node(certificate: dict[str, object] | None) -> None:
    with pytest.raises(HelloRefused, match="names no omfs node"):
        tls.peer_node_id(certificate)


# ---------------------------------------------------------------- faults of the files


def fault_of(config_dir: Path, node_id: int = 7) -> str:
    with pytest.raises(ConfigError) as caught:
        tls.load_identity(config_dir, "tls", node_id)
    text = str(caught.value)
    assert "\n" not in text
    assert str(config_dir) in text
    return text


@pytest.mark.parametrize("name", [tls.CA_FILE, tls.NODE_FILE, tls.KEY_FILE])
def test_missing_garbage_and_oversized_files(config_dir: Path, name: str) -> None:
    path = config_dir / name
    path.write_bytes(b"not PEM")
    assert f"{path}: not " in fault_of(config_dir)
    path.write_bytes(b"x" * (tls.FILE_MAX_BYTES + 1))
    assert f"{path}: larger than" in fault_of(config_dir)
    path.unlink()
    assert f"{path}: missing; make it with omfs-admin init" in fault_of(config_dir)
    path.mkdir()
    assert f"{path}: Is a directory" in fault_of(config_dir)


def test_a_key_readable_by_others(config_dir: Path) -> None:
    (config_dir / tls.KEY_FILE).chmod(0o640)
    assert "node.key: readable by others (mode 0640)" in fault_of(config_dir)


def test_an_encrypted_key(config_dir: Path) -> None:
    key = tls.read_private_key(config_dir / tls.KEY_FILE)
    sealed = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"p")
    )
    (config_dir / tls.KEY_FILE).write_bytes(sealed)
    assert "not an unencrypted private key" in fault_of(config_dir)


def test_a_key_of_another_certificate(config_dir: Path, cluster: authority.Authority) -> None:
    (config_dir / tls.KEY_FILE).write_bytes(cluster.issue(7).key)
    assert "node.key: does not fit the certificate" in fault_of(config_dir)


def test_a_certificate_of_another_ca(config_dir: Path, stranger: authority.Authority) -> None:
    (config_dir / tls.CA_FILE).write_bytes(stranger.certificate.public_bytes(serialization.Encoding.PEM))
    assert "not signed by the CA" in fault_of(config_dir)


def test_expired_and_not_yet_valid(config_dir: Path, cluster: authority.Authority) -> None:
    authority.install_credentials(config_dir, cluster.issue(7, 10, NOW - datetime.timedelta(days=11)))
    assert "node.pem: expired on 20" in fault_of(config_dir)
    authority.install_credentials(config_dir, cluster.issue(7, 10, NOW + datetime.timedelta(days=3)))
    assert "is this machine's clock right?" in fault_of(config_dir)
    expired = datetime.timedelta(days=authority.CA_DAYS + 1)
    with pytest.raises(ConfigError, match="expired"):
        tls.check_credentials(config_dir, NOW + expired)


def test_a_slow_clock_is_forgiven_and_a_near_end_warned_of(
    config_dir: Path, cluster: authority.Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls.check_credentials(config_dir, NOW - datetime.timedelta(hours=23))
    assert tls.load_identity(config_dir, "tls", 7).expires is not None
    assert not caplog.records
    authority.install_credentials(config_dir, cluster.issue(7, 10))
    tls.load_identity(config_dir, "tls", 7)
    assert "expires on" in caplog.text


def test_the_certificate_of_another_node(config_dir: Path) -> None:
    assert "is the certificate of node 7, but the map says this is node 8" in fault_of(config_dir, 8)


def test_a_certificate_that_names_nobody(config_dir: Path, cluster: authority.Authority) -> None:
    (config_dir / tls.NODE_FILE).write_bytes((config_dir / tls.CA_FILE).read_bytes())
    with pytest.raises(ConfigError, match="names no omfs node"):
        tls.certified_identity(tls.read_certificate(config_dir / tls.NODE_FILE), "node.pem")


# ---------------------------------------------------------------- the authority


def test_keys_are_private_and_nothing_is_left_over(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = authority.make_authority(tmp_path / "new" / "etc")
        authority.install_credentials(tmp_path / "new" / "etc", made.issue(1))
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new" / "etc").iterdir()}
    assert modes == {tls.CA_FILE: 0o644, tls.NODE_FILE: 0o644, tls.KEY_FILE: 0o600, tls.CA_KEY_FILE: 0o600}


@pytest.mark.parametrize("present", [tls.CA_FILE, tls.CA_KEY_FILE])
def test_a_ca_is_not_overwritten_without_force(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("precious")
    with pytest.raises(ConfigError, match="there is a CA already"):
        authority.make_authority(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [present]
    assert (tmp_path / present).read_text() == "precious"
    made = authority.make_authority(tmp_path, force=True)
    assert authority.load_authority(tmp_path).cluster == made.cluster


def test_write_whole_is_atomic_and_may_refuse(tmp_path: Path) -> None:
    path = tmp_path / "file"
    authority.write_whole(path, b"one", mode=0o600, replace=False)
    with pytest.raises(ConfigError, match="exists already"):
        authority.write_whole(path, b"two", mode=0o600, replace=False)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="No such file or directory"):
        authority.write_whole(tmp_path / "none" / "file", b"", mode=0o600)
    with pytest.raises(ConfigError, match=r"File exists|Not a directory"):
        authority.make_directory(path / "below")


def test_load_authority_faults(tmp_path: Path, stranger: authority.Authority) -> None:
    authority.make_authority(tmp_path)
    own_ca = (tmp_path / tls.CA_FILE).read_bytes()
    (tmp_path / tls.CA_FILE).write_bytes(stranger.certificate.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match="does not fit the CA"):
        authority.load_authority(tmp_path)
    (tmp_path / tls.CA_FILE).write_bytes(own_ca)
    (tmp_path / tls.CA_KEY_FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="readable by others"):
        authority.load_authority(tmp_path)
    (tmp_path / tls.CA_KEY_FILE).unlink()
    with pytest.raises(ConfigError, match="only the node where omfs-admin init ran"):
        authority.load_authority(tmp_path)


def test_a_node_never_outlives_its_ca(tmp_path: Path) -> None:
    made = authority.make_authority(tmp_path, days=5)
    certificate = x509.load_pem_x509_certificate(made.issue(1, days=5000).certificate)
    assert certificate.not_valid_after_utc == made.certificate.not_valid_after_utc


def test_renewal_keeps_key_and_identity(tmp_path: Path) -> None:
    made = authority.make_authority(tmp_path)
    authority.install_credentials(tmp_path, made.issue(9, 1, NOW - datetime.timedelta(days=30)))
    key = (tmp_path / tls.KEY_FILE).read_bytes()
    with pytest.raises(ConfigError, match="expired"):
        tls.load_identity(tmp_path, "tls", 9)
    authority.renew_certificate(tmp_path, days=100)
    assert (tmp_path / tls.KEY_FILE).read_bytes() == key
    expires = tls.load_identity(tmp_path, "tls", 9).expires
    assert expires is not None
    now = datetime.datetime.now(datetime.UTC)
    assert abs(expires - now - datetime.timedelta(days=100)) < datetime.timedelta(minutes=5)


# ---------------------------------------------------------------- bundles


def test_bundle_round_trip(cluster: authority.Authority) -> None:
    credentials = cluster.issue(12)
    assert unpack_bundle(pack_bundle(credentials), "b") == (credentials, cluster.cluster, 12)


def archive(**files: bytes) -> bytes:
    """A tar of *files*; "__" in a name stands for "." and a leading "up_" for "../"."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name.replace("__", ".").replace("up_", "../"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_damaged_bundles_are_refused(cluster: authority.Authority, stranger: authority.Authority) -> None:
    good = cluster.issue(12)
    whole = pack_bundle(good)
    swapped_key = authority.Credentials(good.ca, good.certificate, cluster.issue(12).key)
    swapped_ca = authority.Credentials(stranger.issue(1).ca, good.certificate, good.key)
    for data, reason in (
        (b"", "not a bundle"),
        (b"hello", "not a bundle"),
        (gzip.compress(whole), "not a bundle"),
        (whole[:700], "not a bundle"),
        (whole[:1536], "lacks node.pem, node.key"),
        (b"\0" * 10240, "lacks ca.pem, node.pem, node.key"),
        (archive(ca__pem=good.ca, up_node__pem=good.certificate), r"something else inside \('\.\./node\.pem'\)"),
        (archive(ca__pem=b"x" * (tls.FILE_MAX_BYTES + 1)), "something else inside"),
        (b"x" * 1_000_000, "larger than"),
        (pack_bundle(swapped_key), "node.key: does not fit"),
        (pack_bundle(swapped_ca), "not signed by the CA"),
    ):
        with pytest.raises(ConfigError, match=reason):
            unpack_bundle(data, "b.tar")
