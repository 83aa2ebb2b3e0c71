"""Who we are, and whether two nodes fit together: the checks behind Welcomed and Refused.

Pure: no I/O, no sessions.  Every reason is one line that says what to do, because it ends up in the log of the node
that was refused.  Called by net/server.py (the owner checks the Hello) and net/peer.py (the holder checks the owner).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from omfs import wire
from omfs.errors import HelloRefused, NotServed

SESSION_KEY_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class LocalNode:
    """What this node says of itself.  Replaced as a whole when the map was read anew (SIGHUP)."""

    node_id: int
    dfsa: bool
    map_digest: bytes
    software: str


def hello_to(local: LocalNode, wanted_node_id: int, session_key: bytes, lane: wire.Lane) -> wire.Hello:
    return wire.Hello(
        version=wire.PROTOCOL_VERSION,
        software=local.software,
        node_id=local.node_id,
        wanted_node_id=wanted_node_id,
        dfsa=local.dfsa,
        map_digest=local.map_digest,
        session=session_key,
        lane=lane,
    )


def check_hello(hello: wire.Hello, local: LocalNode, certified_node_id: int | None) -> None:
    """Raises HelloRefused unless *hello* fits to us.  *certified_node_id*: the certificate's, None on plain lines."""
    here = f"node {local.node_id}"
    if hello.version != wire.PROTOCOL_VERSION:
        raise HelloRefused(
            f"{here} ({local.software}) speaks protocol {wire.PROTOCOL_VERSION}, node {hello.node_id} "
            f"({hello.software[:64]!r}) speaks {hello.version}: install the same version on both"
        )
    if certified_node_id is not None and certified_node_id != hello.node_id:
        raise HelloRefused(
            f"the certificate is node {certified_node_id}'s but the caller says it is node {hello.node_id}: "
            "give each node its own certificate (omfs-admin cert)"
        )
    if hello.wanted_node_id != local.node_id:
        raise HelloRefused(
            f"this is {here}, not node {hello.wanted_node_id}: compare the maps and addresses of both nodes"
        )
    if hello.map_digest != local.map_digest:
        raise HelloRefused(
            f"the cluster maps of {here} and node {hello.node_id} differ: install the same map on both and reload"
        )
    if hello.dfsa != local.dfsa:
        raise HelloRefused(
            f"{here} is mounted with dfsa={int(local.dfsa)}, node {hello.node_id} with dfsa={int(hello.dfsa)}: "
            "use the same on all nodes"
        )
    if len(hello.session) != SESSION_KEY_BYTES:
        raise HelloRefused(f"a session key has {SESSION_KEY_BYTES} bytes, not {len(hello.session)}")


def check_welcome(reply: wire.Message, wanted_node_id: int) -> wire.Welcomed:
    """The owner's answer to our Hello.  Raises HelloRefused for anything but a fitting Welcomed."""
    match reply:
        case wire.Welcomed(version=wire.PROTOCOL_VERSION, node_id=node_id) if node_id == wanted_node_id:
            return reply
        case wire.Welcomed():
            raise HelloRefused(
                f"wanted node {wanted_node_id} with protocol {wire.PROTOCOL_VERSION}, "
                f"got node {reply.node_id} with protocol {reply.version}"
            )
        case wire.Refused(reason=reason, nomfs=True):
            raise NotServed(reason[:500])
        case wire.Refused(reason=reason):
            raise HelloRefused(reason[:500])
        case _:
            raise HelloRefused(f"answered our Hello with {type(reply).__name__}")


def check_certificate(certified_node_id: int | None, wanted_node_id: int) -> None:
    """The holder's check of the owner's certificate.  Raises HelloRefused."""
    if certified_node_id is not None and certified_node_id != wanted_node_id:
        raise HelloRefused(
            f"wanted node {wanted_node_id}, but the certificate there is node {certified_node_id}'s: "
            "compare the map with the addresses of the nodes"
        )
