"""Who made an image: a node of this cluster, by its own key (Ed25519), with its certificate of the cluster's CA.

An image lies in a file of its user, who may write to it whatever he likes, and CRIU, which reads it as root, was not
made for that.  So what no node of this cluster has made is not looked into.  A certificate that has expired since is
good enough: it was not when the image was taken.  Where the cluster has no certificates (sec=none) there is no seal.

Raises OmfsError.  Called by saving.py and restarting.py; what is sealed is imagefile.py's.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from mignode.imagefile import Seal
from omfs.errors import ConfigError, ImagesDamaged, RemoteFailure
from omfs.net import tls
from omfs.net.tls import LocalIdentity

_PURPOSE: Final = b"omfs image of a program\0"  # so that a signature of this key for anything else is none for this
_FORGED: Final = "it was not made by a node of this cluster"


def sealed(digest: bytes, identity: LocalIdentity, config_dir: Path) -> Seal:
    """For the end of a file.  Raises ConfigError where this node has no key that can."""
    if identity.sec == "none":
        return Seal(digest, b"", b"")
    key = tls.read_private_key(config_dir / tls.KEY_FILE)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{config_dir / tls.KEY_FILE}: not a key that omfs-admin made")
    return Seal(digest, key.sign(_PURPOSE + digest), tls.read_small(config_dir / tls.NODE_FILE))


def check_seal(seal: Seal, digest: bytes, identity: LocalIdentity, config_dir: Path) -> None:
    """*digest*: of what came.  Raises ImagesDamaged, RemoteFailure(EPERM) where somebody else has made it."""
    if seal.digest != digest:
        raise ImagesDamaged("it is damaged: its sum is not that of its bytes")
    if identity.sec == "none":
        return
    if not seal.signature:
        raise RemoteFailure(errno.EPERM, _FORGED)
    try:
        certificate = x509.load_pem_x509_certificate(seal.certificate)
        certificate.verify_directly_issued_by(tls.read_certificate(config_dir / tls.CA_FILE))
        tls.certified_identity(certificate, "its certificate")
        key = certificate.public_key()
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise InvalidSignature
        key.verify(seal.signature, _PURPOSE + digest)
    except (InvalidSignature, ValueError, TypeError, ConfigError):
        raise RemoteFailure(errno.EPERM, _FORGED) from None
