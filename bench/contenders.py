"""What is compared: native ext4 and oMFS here, sshfs and MooseFS in rooms of their own.

A contender says where its files are made (a node and a directory, natively or through a second mount) and under
which path node 1 sees them.  All start with the defaults of their own, TLS or ssh's ciphers where they have any.
"""

from __future__ import annotations

from typing import Protocol

from bench import nodes
from omfs.config import SOFTWARE


class Contender(Protocol):
    name: str
    note: str  # what it caches, for the reader of the table

    def start(self) -> None:
        """Make it ready inside the nodes."""

    def software(self) -> str: ...

    def origin(self) -> tuple[int, str]:
        """Node and directory where files are made without the measured mount seeing them."""

    def seen_at(self) -> str:
        """The same directory, as node 1 sees it through what is measured."""


class Native:
    name = "native"
    note = "node 1's own ext4, page cache and dentries warm"

    def start(self) -> None:
        nodes.on(nodes.CLIENT, "mkdir", "-p", self.seen_at())

    def software(self) -> str:
        return "ext4, " + nodes.on(nodes.CLIENT, "uname", "-r").strip()

    def origin(self) -> tuple[int, str]:
        return nodes.CLIENT, self.seen_at()

    def seen_at(self) -> str:
        return f"{nodes.DISK}/native"


class Omfs:
    name = "oMFS"
    note = "sec=tls; no caching: every answer comes from the owner"

    def start(self) -> None:
        nodes.on(nodes.SERVER, "mkdir", "-p", f"{nodes.DISK}/omfs")

    def software(self) -> str:
        return SOFTWARE

    def origin(self) -> tuple[int, str]:
        return nodes.SERVER, f"{nodes.DISK}/omfs"

    def seen_at(self) -> str:
        return f"/mfs/{nodes.SERVER}{nodes.DISK}/omfs"
