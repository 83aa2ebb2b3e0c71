"""The seal on a datagram of gossip or discovery: signed with the node's key, with its certificate beside it.

    "og" | kind | length of the certificate, 2 bytes | certificate (DER) | signature | message

Whoever has the cluster's CA can check it, with no key to distribute and no connection first; a certificate is checked
once and remembered.  The signature is over both: not every bit of a certificate is one that its CA's signature covers.
It costs 0.1 ms to make and as much to check, twice a second (docs/adr/0011).  With sec=none there is no seal: kind 0,
and the message.  A seal is for one purpose: what was signed for another one is refused.  What it does not do: see
that a message is new (gossip.py, discovery.py).
Called by gossipport.py and discoveryport.py.
"""

from __future__ import annotations

import datetime
import hashlib
import struct
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from mignode.gossipwords import DATAGRAM_MAX_BYTES
from omfs.errors import ConfigError, WireError
from omfs.net import tls

_HEAD: Final = struct.Struct("!2sBH")
_MAGIC: Final = b"og"
_BARE, _SIGNED = 0, 1
_SIGNATURE_BYTES: Final = 64
GOSSIP: Final = b"omfs gossip 1\0"  # a signature for anything else is none of ours
DISCOVERY: Final = b"omfs discovery 1\0"
_REMEMBERED_MAX: Final = 4096  # certificates; each was signed by the CA, so there are no more than nodes


class _Certified(NamedTuple):
    """What a certificate of the CA says."""

    node_id: int
    key: ed25519.Ed25519PublicKey
    begins: float
    ends: float


class Seal:
    """Makes and checks; without credentials (sec=none) it does neither."""

    def __init__(self, credentials: _Credentials | None, purpose: bytes = GOSSIP) -> None:
        self._purpose = purpose
        self._credentials = credentials
        self._remembered: dict[bytes, _Certified] = {}
        certificate_bytes = len(credentials.certificate) + _SIGNATURE_BYTES if credentials else 0
        self.room_bytes = DATAGRAM_MAX_BYTES - _HEAD.size - certificate_bytes

    def close(self, message: bytes) -> bytes:
        """A datagram."""
        if self._credentials is None:
            return _HEAD.pack(_MAGIC, _BARE, 0) + message
        certificate = self._credentials.certificate
        signature = self._credentials.key.sign(self._purpose + certificate + message)
        return _HEAD.pack(_MAGIC, _SIGNED, len(certificate)) + certificate + signature + message

    def open(self, datagram: bytes) -> tuple[int, bytes]:
        """Who sealed it (0: nobody), and the message.  Raises WireError: it is not from a node of our cluster."""
        if len(datagram) < _HEAD.size:
            raise WireError("no datagram of ours: too short")
        magic, kind, length = _HEAD.unpack_from(datagram)
        if magic != _MAGIC or len(datagram) > DATAGRAM_MAX_BYTES:
            raise WireError("no datagram of ours")
        if self._credentials is None:
            if kind != _BARE or length:
                raise WireError("sealed, and we have sec=none: use the same sec= on all nodes")
            return 0, datagram[_HEAD.size :]
        if kind != _SIGNED:
            raise WireError("not sealed: use the same sec= on all nodes")
        message_at = _HEAD.size + length + _SIGNATURE_BYTES
        certificate = datagram[_HEAD.size : _HEAD.size + length]
        certified = self._certified(certificate, self._credentials.ca)
        try:
            signature, message = datagram[message_at - _SIGNATURE_BYTES : message_at], datagram[message_at:]
            certified.key.verify(signature, self._purpose + certificate + message)
        except InvalidSignature:
            raise WireError(f"not sealed by node {certified.node_id}, whose certificate it has") from None
        return certified.node_id, message

    def _certified(self, der: bytes, ca: x509.Certificate) -> _Certified:
        """Raises WireError."""
        mark = hashlib.sha256(der).digest()
        found = self._remembered.get(mark)
        if found is None:
            found = _look_at(der, ca)
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[mark] = found
        if not found.begins <= datetime.datetime.now(datetime.UTC).timestamp() <= found.ends:
            raise WireError(f"the certificate of node {found.node_id} does not hold now; is a clock wrong?")
        return found


class _Credentials(NamedTuple):
    ca: x509.Certificate
    certificate: bytes  # DER
    key: ed25519.Ed25519PrivateKey


def load_seal(config_dir: Path, sec: str, purpose: bytes = GOSSIP) -> Seal:
    """With this node's credentials, which were checked before (standing.py).  Raises ConfigError."""
    if sec == "none":
        return Seal(None, purpose)
    key = tls.read_private_key(config_dir / tls.KEY_FILE)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{config_dir / tls.KEY_FILE}: not a key that omfs-admin made, which datagrams need")
    certificate = tls.read_certificate(config_dir / tls.NODE_FILE).public_bytes(Encoding.DER)
    return Seal(_Credentials(tls.read_certificate(config_dir / tls.CA_FILE), certificate, key), purpose)


def _look_at(der: bytes, ca: x509.Certificate) -> _Certified:
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        tls.check_signed(certificate, ca, "a datagram's certificate", "ca.pem")
        _, node_id = tls.certified_identity(certificate, "a datagram's certificate")
    except ConfigError as error:
        raise WireError(str(error)) from None
    except (
        Exception
    ) as error:  # bytes of a stranger: the library has many ways to find them odd, some new in each version
        raise WireError(f"no certificate: {error}") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise WireError(f"the certificate of node {node_id} has another kind of key")
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return _Certified(node_id, key, begins, ends)
