"""omfs-admin check --repair: what was found wrong with leases is ended, and holders ask again.

Nothing is ended on the word of one side: a lease ends because its holder has answered a recall, or because omfs-export
looks again and finds no such session.  Called by admin_check.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from omfs.cli.checks import LeaseFacts, orphaned_sessions
from omfs.cli.leasechecks import HeldFacts, Kind
from omfs.cli.ownnode import OwnNode, ask_for

HANDLES_MAX: Final = 200  # in one command: a line of 64 KiB


class _Removed(msgspec.Struct):
    removed: int


class _Recalled(msgspec.Struct):
    recalled: int


async def mend(node: OwnNode, leases: LeaseFacts | None, held: HeldFacts) -> int:
    """The number of leases that were ended.  ControlError."""
    ended = 0
    if leases is not None and (orphans := orphaned_sessions(leases)):
        keys = [one.key.hex() for one in orphans]
        ended += (await ask_for(node.export, _Removed, "forget", sessions=keys)).removed
    for holder in held.holders:
        if holder.handles(Kind.UNOWNED):  # there is no lease that could be recalled, so everything is
            reply = await ask_for(node.export, _Recalled, "drop", node=holder.node_id)
            ended += max(reply.recalled, len(holder.handles(Kind.UNOWNED)))
    wrong = {handle for guard in held.guards for handle in guard.handles}
    wrong |= {
        one.handle for holder in held.holders for one in holder.found if one.kind in (Kind.UNGUARDED, Kind.UNUSED)
    }
    wrong |= {one.handle for audit in held.audits or () for one in audit.stale}
    return ended + await _drop(node, sorted(wrong))


async def _drop(node: OwnNode, handles: Sequence[bytes]) -> int:
    ended = 0
    for start in range(0, len(handles), HANDLES_MAX):
        some = handles[start : start + HANDLES_MAX]
        ended += (await ask_for(node.export, _Recalled, "drop", handles=some)).recalled
    return ended
