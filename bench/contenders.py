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

    def seen_by_another(self) -> tuple[int, str] | None:
        """A node and the same directory as it sees it by a mount of its own; None where two mounts are not coherent."""


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

    def seen_by_another(self) -> tuple[int, str]:
        return self.origin()


class Omfs:
    name = "oMFS"
    note = "sec=tls; caches names, attributes, listings and data under leases: coherent"

    def start(self) -> None:
        nodes.on(nodes.SERVER, "mkdir", "-p", f"{nodes.DISK}/omfs")

    def software(self) -> str:
        return SOFTWARE

    def origin(self) -> tuple[int, str]:
        return nodes.SERVER, f"{nodes.DISK}/omfs"

    def seen_at(self) -> str:
        return f"/mfs/{nodes.SERVER}{nodes.DISK}/omfs"

    def seen_by_another(self) -> tuple[int, str]:
        return nodes.THIRD, self.seen_at()

    def own_tree(self) -> str:
        """Node 1's own disk, by its path below /mfs."""
        return f"/mfs/{nodes.CLIENT}{nodes.DISK}"
