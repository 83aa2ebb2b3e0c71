"""Gathers for omfs-admin check what the kernel and the holders say of the leases on this node's objects.

The kernel's part comes from this node's omfs-export.  Holders are asked by this node's mount, through their
omfs-export, which asks the mount beside it (export/ownmount.py): that goes wherever `describe` goes.  Both ends tell
their leases in the same parts, one shortly after the other; where they differ, all is asked again after SETTLE_S.

Called by admin_check.py; what it means says leasechecks.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
import trio

from omfs.cli.leasechecks import Difference, HolderFacts, differences
from omfs.cli.ownnode import OwnNode, ask_for
from omfs.errors import ControlError
from omfs.net.control import BrokenGuard, GuardsReply, HeldToldReply, OwnedReply

SETTLE_S: Final = 1.0  # what is in flight has arrived by then
PART_LEASES: Final = 2000  # about so many in one part
PARTS_MAX: Final = 4096
AT_ONCE: Final = 16  # nodes that are asked side by side


class _Session(msgspec.Struct):
    node_id: int = 0
    leases: int = 0


class _Sessions(msgspec.Struct):
    """What of omfs-export's status says how many parts there should be."""

    sessions: tuple[_Session, ...]


async def guard_facts(node: OwnNode) -> tuple[BrokenGuard, ...]:
    """The guards that are not as they should be.  ControlError."""
    found = (await ask_for(node.export, GuardsReply, "guards")).broken
    if not found:
        return ()
    await trio.sleep(SETTLE_S)
    again = {(frozenset(one.handles), one.state) for one in (await ask_for(node.export, GuardsReply, "guards")).broken}
    return tuple(one for one in found if (frozenset(one.handles), one.state) in again)


async def holder_facts(node: OwnNode, node_ids: Iterable[int]) -> tuple[HolderFacts, ...]:
    """What each of these nodes believes.  ControlError."""
    counts: dict[int, int] = {}
    for session in (await ask_for(node.export, _Sessions, "status")).sessions:
        counts[session.node_id] = counts.get(session.node_id, 0) + session.leases
    told: list[HolderFacts] = []
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def ask(node_id: int) -> None:
        async with limiter:
            try:
                found = await _lasting_differences(node, node_id, counts.get(node_id, 0))
                told.append(HolderFacts(node_id, found=frozenset(found)))
            except ControlError as error:
                told.append(HolderFacts(node_id, reason=str(error)))

    async with trio.open_nursery() as nursery:
        for node_id in node_ids:
            nursery.start_soon(ask, node_id)
    return tuple(sorted(told, key=lambda one: one.node_id))


async def _lasting_differences(node: OwnNode, node_id: int, leases: int) -> set[Difference]:
    found = await _differences(node, node_id, leases)
    if found:
        await trio.sleep(SETTLE_S)
        found &= await _differences(node, node_id, leases)
    return found


async def _differences(node: OwnNode, node_id: int, leases: int) -> set[Difference]:
    parts = max(1, -(-leases // PART_LEASES))
    while (found := await _in_parts(node, node_id, parts)) is None:
        parts *= 4
        if parts > PARTS_MAX:
            raise ControlError("it holds more than can be compared")
    return found


async def _in_parts(node: OwnNode, node_id: int, parts: int) -> set[Difference] | None:
    """None: the parts are too large."""
    found: set[Difference] = set()
    for part in range(parts):
        reply = await ask_for(node.mount, HeldToldReply, "ask_held", node=node_id, part=part, parts=parts)
        told = reply.told
        if told is None:
            raise ControlError(reply.reason)
        if told.is_cut:
            return None
        if not told.session:
            return set()  # its leases have lapsed: it uses none
        owned = await ask_for(node.export, OwnedReply, "owned", session=told.session, part=part, parts=parts)
        found |= differences(told.leases, owned.leases)
    return found
