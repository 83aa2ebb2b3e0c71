"""The file that carries a new node's credentials from the authority to that node: a small tar archive.

Pure: bytes in, bytes out; authority.py makes what goes in and installs what comes out.  Invariants: exactly
ca.pem, node.pem and node.key, each a plain file below a size limit; nothing is ever extracted by name, so an
archive can't write anywhere.  A bundle contains a private key: it travels over ssh or a medium that one trusts.
"""

from __future__ import annotations

import io
import tarfile
from typing import Final

from omfs.errors import ConfigError
from omfs.net import tls
from omfs.net.authority import Credentials

BUNDLE_MAX_BYTES: Final = 4 * tls.FILE_MAX_BYTES
_FILES: Final = (tls.CA_FILE, tls.NODE_FILE, tls.KEY_FILE)


def pack_bundle(credentials: Credentials) -> bytes:
    """A tar archive of the three files; the key's mode in it is 0600."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in zip(_FILES, (credentials.ca, credentials.certificate, credentials.key), strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o600 if name == tls.KEY_FILE else 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unpack_bundle(data: bytes, path: str) -> tuple[Credentials, str, int]:
    """(credentials, cluster, node id) of a bundle, checked: signed by its CA, the key fits, valid now.

    *path* is for the messages.  Raises ConfigError.
    """
    if len(data) > BUNDLE_MAX_BYTES:
        raise ConfigError(f"{path}: larger than {BUNDLE_MAX_BYTES} bytes; not a bundle of omfs-admin join")
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if member.name not in _FILES or not member.isreg() or member.size > tls.FILE_MAX_BYTES:
                    raise ConfigError(f"{path}: has something else inside ({member.name[:64]!a}); not a bundle")
                content = archive.extractfile(member)
                found[member.name] = content.read() if content else b""
    except (tarfile.TarError, EOFError, UnicodeError, ValueError, OverflowError):
        raise ConfigError(f"{path}: not a bundle of omfs-admin join") from None
    missing = [name for name in _FILES if name not in found]
    if missing:
        raise ConfigError(f"{path}: lacks {', '.join(missing)}; not a whole bundle of omfs-admin join")
    credentials = Credentials(*(found[name] for name in _FILES))
    where = f"{path}: "
    certificate = tls.parse_certificate(credentials.certificate, where + tls.NODE_FILE)
    ca = tls.parse_certificate(credentials.ca, where + tls.CA_FILE)
    tls.check_fit(ca, certificate, tls.parse_private_key(credentials.key, where + tls.KEY_FILE), where)
    return credentials, *tls.certified_identity(certificate, where + tls.NODE_FILE)
