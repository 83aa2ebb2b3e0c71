"""Who this node is towards others: its certificate, its key and the two TLS contexts made of them.

Here: reading and checking ca.pem, node.pem and node.key of the configuration directory, and reading the node id
out of a peer's certificate.  Not here: making certificates (authority.py) and connections (connection code).
Invariants: TLS 1.3 only, both sides authenticate, only the cluster's own CA counts; no resumption, so every
connection checks certificates anew.  An identity is the URI `omfs://<cluster>/node/<N>` in subjectAltName;
addresses and host names play no part, hence no host name check.  Files are read once: to pick up a renewed
certificate, load again.  Called by the daemon and by omfs-admin.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from omfs.errors import ConfigError, HelloRefused

CA_FILE: Final = "ca.pem"
CA_KEY_FILE: Final = "ca.key"  # only where the authority lives
NODE_FILE: Final = "node.pem"
KEY_FILE: Final = "node.key"
EXPIRY_WARNING: Final = datetime.timedelta(days=30)  # long enough to be seen and acted upon
FILE_MAX_BYTES: Final = 1 << 16  # a certificate or key is about 1 KiB

_NODE_URI: Final = re.compile(r"omfs://([0-9a-z]{1,64})/node/([1-9][0-9]{0,4})\Z")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class LocalIdentity:
    """This node towards its peers; without contexts where sec is "none"."""

    node_id: int
    sec: str
    server_context: ssl.SSLContext | None
    client_context: ssl.SSLContext | None
    cluster: str = ""
    expires: datetime.datetime | None = None

    @property
    def expires_s(self) -> int:
        """When the certificate expires, in seconds since the epoch; 0 without one."""
        return int(self.expires.timestamp()) if self.expires else 0


def node_uri(cluster: str, node_id: int) -> str:
    """The identity in a node's certificate."""
    return f"omfs://{cluster}/node/{node_id}"


def parse_node_uri(uri: str) -> tuple[str, int] | None:
    """(cluster, node id) of a node's URI, None for anything else."""
    match = _NODE_URI.match(uri)
    if not match or int(match[2]) > 65535:
        return None
    return match[1], int(match[2])


def peer_node_id(certificate: Mapping[str, object] | None) -> int:
    """The node id in *certificate* (SSLSocket.getpeercert()); its signature was checked in the handshake.

    Raises HelloRefused when there is none, or more than one.
    """
    names = (certificate or {}).get("subjectAltName", ())
    found = []
    for name in names if isinstance(names, tuple) else ():
        if name[0] == "URI" and (identity := parse_node_uri(name[1])):
            found.append(identity[1])
    if len(found) != 1:
        raise HelloRefused("the peer's certificate names no omfs node; make it with omfs-admin join")
    return found[0]


# ---------------------------------------------------------------- loading


def load_identity(config_dir: Path, sec: str, node_id: int) -> LocalIdentity:
    """Load and check this node's credentials; *node_id* is who the map says we are.

    Raises ConfigError with one line that names the file, the fault and the remedy.
    """
    if sec == "none":
        log.warning("sec=none: NO ENCRYPTION AND NO AUTHENTICATION; anybody who reaches the port owns all files")
        return LocalIdentity(node_id, sec, None, None)
    if sec != "tls":
        raise ConfigError(f'sec must be "tls" or "none", not "{sec}"')
    certificate = check_credentials(config_dir)
    cluster, certified = certified_identity(certificate, config_dir / NODE_FILE)
    if certified != node_id:
        raise ConfigError(
            f"{config_dir / NODE_FILE}: is the certificate of node {certified}, but the map says this is node "
            f"{node_id}; install the right bundle (omfs-admin join --bundle) or correct the map"
        )
    expires = certificate.not_valid_after_utc
    if expires - _now() < EXPIRY_WARNING:
        log.warning("%s expires on %s; renew it (omfs-admin cert --help)", config_dir / NODE_FILE, expires.date())
    server = _context(ssl.PROTOCOL_TLS_SERVER, config_dir)
    server.num_tickets = 0  # no resumption: saves two messages, and each connection is checked in full
    return LocalIdentity(node_id, sec, server, _context(ssl.PROTOCOL_TLS_CLIENT, config_dir), cluster, expires)


def check_credentials(config_dir: Path, now: datetime.datetime | None = None) -> x509.Certificate:
    """The node's certificate, after checking that the three files fit together and hold at *now*.

    Raises ConfigError.
    """
    ca_path, node_path, key_path = (config_dir / name for name in (CA_FILE, NODE_FILE, KEY_FILE))
    ca, certificate, key = read_certificate(ca_path), read_certificate(node_path), read_private_key(key_path)
    check_fit(ca, certificate, key, f"{config_dir}/", now)
    return certificate


def check_fit(
    ca: x509.Certificate,
    certificate: x509.Certificate,
    key: PrivateKeyTypes,
    where: str,
    now: datetime.datetime | None = None,
) -> None:
    """Raise ConfigError unless *key* and *certificate* belong together, *ca* signed it and all hold at *now*.

    *where* goes before the file names in the message.
    """
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        raise ConfigError(f"{where}{KEY_FILE}: does not fit the certificate {where}{NODE_FILE}; install both together")
    check_signed(certificate, ca, f"{where}{NODE_FILE}", f"{where}{CA_FILE}")
    check_valid_at(ca, f"{where}{CA_FILE}", now)
    check_valid_at(certificate, f"{where}{NODE_FILE}", now)


def certified_identity(certificate: x509.Certificate, path: Path | str) -> tuple[str, int]:
    """(cluster, node id) of a node's certificate; raises ConfigError when it names none or several."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    found = [identity for uri in uris if (identity := parse_node_uri(uri))]
    if len(found) != 1:
        raise ConfigError(f"{path}: names no omfs node; make it with omfs-admin join")
    return found[0]


def check_signed(certificate: x509.Certificate, ca: x509.Certificate, path: Path | str, ca_path: Path | str) -> None:
    """Raise ConfigError unless *ca* signed *certificate*; the paths are for the message."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        raise ConfigError(f"{path}: not signed by the CA in {ca_path}; it belongs to another cluster") from None


def check_valid_at(certificate: x509.Certificate, path: Path | str, now: datetime.datetime | None = None) -> None:
    """Raise ConfigError if *certificate* is expired, or not valid yet, at *now* (default: this clock)."""
    now = now or _now()
    if now > certificate.not_valid_after_utc:
        remedy = "renew it (omfs-admin cert --help)"
        raise ConfigError(f"{path}: expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; {remedy}")
    if now < certificate.not_valid_before_utc:
        since = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(f"{path}: not valid before {since}; is this machine's clock right?")


# ---------------------------------------------------------------- files


def read_certificate(path: Path) -> x509.Certificate:
    """Raises ConfigError when the file is missing or no certificate."""
    return parse_certificate(read_small(path), path)


def parse_certificate(data: bytes, path: Path | str) -> x509.Certificate:
    """*path* is for the message.  Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ConfigError(f"{path}: not a certificate in PEM form") from None


def read_private_key(path: Path) -> PrivateKeyTypes:
    """Raises ConfigError when the file is missing, no key, or open to others."""
    data = read_small(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{path}: readable by others (mode {mode:04o}); chmod 600 it, or make a new key")
    return parse_private_key(data, path)


def parse_private_key(data: bytes, path: Path | str) -> PrivateKeyTypes:
    """*path* is for the message.  Raises ConfigError."""
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: not an unencrypted private key in PEM form") from None


def read_small(path: Path) -> bytes:
    """The contents of a credentials file.  Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        remedy = "make it with omfs-admin init (first node) or omfs-admin join (every other node)"
        raise ConfigError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(data) > FILE_MAX_BYTES:
        raise ConfigError(f"{path}: larger than {FILE_MAX_BYTES} bytes; not a certificate or key")
    return data


def _context(protocol: int, config_dir: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(config_dir / CA_FILE)
        context.load_cert_chain(config_dir / NODE_FILE, config_dir / KEY_FILE)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{config_dir}: unusable credentials: {error}") from None
    return context


def public_bytes(key: PublicKeyTypes) -> bytes:
    """*key* in its one canonical encoding, for comparing."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
