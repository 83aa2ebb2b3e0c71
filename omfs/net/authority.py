"""The cluster's own certificate authority: makes the CA, node certificates and the bundles that carry them.

It exists on the node where `omfs-admin init` ran (ca.key beside ca.pem); every other node has only ca.pem and
its own certificate and key.  Keys are Ed25519: a mutual handshake costs the same as with ECDSA P-256 (2.2 ms for
both ends, measured), and its signatures need no randomness.  Invariants: files appear whole or not at all;
private keys are never open to others, not even for a moment; a CA is never overwritten unless *force* says so.
Only omfs-admin and the lab call this; daemons only read the results (tls.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from omfs.errors import ConfigError
from omfs.net import tls

CA_DAYS: Final = 7305  # 20 years: replacing a CA means replacing every certificate of the cluster
NODE_DAYS: Final = 1096  # 3 years; omfs-admin cert shows what is left, and the log warns
SKEW: Final = datetime.timedelta(days=1)  # valid since yesterday, so that a node's slow clock does not refuse it


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """What one node needs, as PEM: the contents of ca.pem, node.pem and node.key."""

    ca: bytes
    certificate: bytes
    key: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can sign; *cluster* is its random id."""

    certificate: x509.Certificate
    key: ed25519.Ed25519PrivateKey
    cluster: str

    def issue(self, node_id: int, days: int = NODE_DAYS, now: datetime.datetime | None = None) -> Credentials:
        """A new key and certificate for *node_id*, valid for *days* from *now* (default: this clock)."""
        key = ed25519.Ed25519PrivateKey.generate()
        certificate = self.certify(key.public_key(), node_id, days, now)
        return Credentials(_pem(self.certificate), _pem(certificate), _key_pem(key))

    def certify(
        self,
        public_key: ed25519.Ed25519PublicKey,
        node_id: int,
        days: int = NODE_DAYS,
        now: datetime.datetime | None = None,
    ) -> x509.Certificate:
        """A certificate for *node_id* over an existing key; never outlives the CA."""
        uri = x509.UniformResourceIdentifier(tls.node_uri(self.cluster, node_id))
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        start, end = _period(days, now)
        builder = (
            _builder(f"omfs node {node_id}", public_key, start, min(end, self.certificate.not_valid_after_utc))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return builder.sign(self.key, None)


def make_authority(config_dir: Path, *, force: bool = False, days: int = CA_DAYS) -> Authority:
    """Make a CA and write ca.key and ca.pem; refuses to replace one unless *force*.  Raises ConfigError."""
    present = [name for name in (tls.CA_KEY_FILE, tls.CA_FILE) if (config_dir / name).exists()]
    if present and not force:
        raise ConfigError(
            f"{config_dir / present[0]}: there is a CA already; with --force it is replaced, and then every node "
            "needs a new certificate"
        )
    cluster = secrets.token_hex(8)
    key = ed25519.Ed25519PrivateKey.generate()
    public_key = key.public_key()
    certificate = (
        _builder(f"omfs cluster {cluster}", public_key, *_period(days, None))
        .issuer_name(_name(f"omfs cluster {cluster}"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False)
        .sign(key, None)
    )
    make_directory(config_dir)
    write_whole(config_dir / tls.CA_KEY_FILE, _key_pem(key), mode=0o600, replace=force)
    write_whole(config_dir / tls.CA_FILE, _pem(certificate), mode=0o644, replace=force)
    return Authority(certificate, key, cluster)


def load_authority(config_dir: Path) -> Authority:
    """The CA of *config_dir*.  Raises ConfigError, also where it has expired or this node has none."""
    ca_path, key_path = config_dir / tls.CA_FILE, config_dir / tls.CA_KEY_FILE
    if not key_path.exists():
        raise ConfigError(f"{key_path}: missing; only the node where omfs-admin init ran can make certificates")
    certificate, key = tls.read_certificate(ca_path), tls.read_private_key(key_path)
    fits = tls.public_bytes(key.public_key()) == tls.public_bytes(certificate.public_key())
    if not isinstance(key, ed25519.Ed25519PrivateKey) or not fits:
        raise ConfigError(f"{key_path}: this key does not fit the CA {ca_path}")
    tls.check_valid_at(certificate, ca_path)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    cluster = str(names[0].value).removeprefix("omfs cluster ") if names else ""
    if tls.parse_node_uri(tls.node_uri(cluster, 1)) is None:
        raise ConfigError(f"{ca_path}: not made by omfs-admin init")
    return Authority(certificate, key, cluster)


def renew_certificate(config_dir: Path, days: int = NODE_DAYS) -> x509.Certificate:
    """Sign this node's existing key anew (only node.pem changes).  Needs the CA's key here.  Raises ConfigError."""
    authority = load_authority(config_dir)
    path = config_dir / tls.NODE_FILE
    old = tls.read_certificate(path)
    tls.check_signed(old, authority.certificate, path, config_dir / tls.CA_FILE)
    _, node_id = tls.certified_identity(old, path)
    key = tls.read_private_key(config_dir / tls.KEY_FILE)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{config_dir / tls.KEY_FILE}: not a key that omfs-admin made")
    certificate = authority.certify(key.public_key(), node_id, days)
    write_whole(path, _pem(certificate), mode=0o644)
    return certificate


# ---------------------------------------------------------------- files


def install_credentials(config_dir: Path, credentials: Credentials) -> None:
    """Write ca.pem, node.key and node.pem.  A crash in between is healed by installing again.  Raises ConfigError."""
    make_directory(config_dir)
    write_whole(config_dir / tls.CA_FILE, credentials.ca, mode=0o644)
    write_whole(config_dir / tls.KEY_FILE, credentials.key, mode=0o600)
    write_whole(config_dir / tls.NODE_FILE, credentials.certificate, mode=0o644)


def make_directory(path: Path) -> None:
    """mkdir -p; raises ConfigError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def write_whole(path: Path, data: bytes, *, mode: int, replace: bool = True) -> None:
    """Write *path* atomically and durably; without *replace* an existing file is left alone.  Raises ConfigError."""
    try:
        _write_whole(path, data, mode, replace)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _write_whole(path: Path, data: bytes, mode: int, replace: bool) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if replace:
            os.rename(temporary, path)
        else:
            os.link(temporary, path)  # unlike rename, link refuses an existing name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# ---------------------------------------------------------------- X.509


def _period(days: int, now: datetime.datetime | None) -> tuple[datetime.datetime, datetime.datetime]:
    now = now or datetime.datetime.now(datetime.UTC)
    return now - SKEW, now + datetime.timedelta(days=days)


def _builder(
    name: str, public_key: ed25519.Ed25519PublicKey, start: datetime.datetime, end: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
