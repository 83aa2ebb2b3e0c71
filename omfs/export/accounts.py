"""This node's users and groups, as /etc/passwd and /etc/group list them, for comparing nodes.

Requests carry numbers (wire.Caller), so a name must have the same number on every node.  Only the two files are
compared: what comes from a directory service is the same everywhere by itself.  A file is read again when it
changed.  Called by export/service.py.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, TypeAlias

PASSWD: Final = Path("/etc/passwd")
GROUP: Final = Path("/etc/group")
DIGEST_BYTES: Final = 16
TOLD_MAX_BYTES: Final = 256 << 10  # of names per file, so that both fit into one message; beyond it only the digest

Accounts: TypeAlias = tuple[tuple[bytes, int], ...]


class AccountFile:
    """Names and numbers of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._accounts: Accounts = ()
        self._digest = b""

    @property
    def digest(self) -> bytes:
        """Equal where all names and numbers are; empty where the file can't be read."""
        self._read()
        return self._digest

    def told(self) -> Accounts:
        """Names with their numbers, by name; none of them where they are too many to tell."""
        self._read()
        size_bytes = sum(len(name) + 8 for name, _ in self._accounts)
        return self._accounts if size_bytes <= TOLD_MAX_BYTES else ()

    def _read(self) -> None:
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_mtime_ns, status.st_size, status.st_ino)
                if seen != self._seen:
                    self._accounts = parse_accounts(file.read())
                    self._digest = digest_of(self._accounts)
                    self._seen = seen
        except OSError:
            self._accounts, self._digest, self._seen = (), b"", None


def parse_accounts(text: bytes) -> Accounts:
    """passwd(5) and group(5) alike: the first and the third field, of a name that stands twice the first line."""
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        fields = line.split(b":")
        if len(fields) >= 3 and fields[0] and fields[0][:1] not in b"+-#" and fields[2].isdigit():
            found.setdefault(fields[0], int(fields[2][:10]))
    return tuple(sorted(found.items()))


def digest_of(accounts: Accounts) -> bytes:
    whole = b"".join(b"%b:%d\n" % account for account in accounts)
    return hashlib.blake2b(whole, digest_size=DIGEST_BYTES).digest()
