"""The audit of omfs-admin check: what programs of other nodes see of this node's objects, against what they are.

A holder chooses some objects that it has cached and tells what its kernel shows of them (mount/telling.py); here each
is looked at fresh, by its handle.  Where they differ both are looked at once more after SETTLE_S: a difference counts
if nothing has moved, at either end.  What a holder may have newer than its owner (EXCLUSIVE) it leaves out and counts.

Called by admin_check.py; what it means says leasechecks.py.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import trio

from omfs import wire
from omfs.cli.leasechecks import AuditFacts, Fresh, Stale, stale_parts
from omfs.cli.leasefacts import AT_ONCE, SETTLE_S
from omfs.cli.objects import Objects
from omfs.cli.ownnode import OwnNode, ask_for
from omfs.errors import BadHandle, ControlError, StaleHandle
from omfs.net.control import HeldAuditedReply

SAMPLE: Final = 100  # objects of each holder, unless --sample says otherwise
BATCH: Final = 25

Progress = Callable[[int, int], None]
"""(node id, objects compared so far)."""
Looked = dict[bytes, tuple[wire.Audited, Fresh | None]]
"""By handle: what was told, and what is."""


async def audit_facts(
    node: OwnNode, objects: Objects, node_ids: Iterable[int], sample: int, on_progress: Progress
) -> tuple[AuditFacts, ...]:
    """Audit *sample* objects of each of these nodes."""
    audited: list[AuditFacts] = []
    limiter, reading = trio.CapacityLimiter(AT_ONCE), trio.CapacityLimiter(1)

    async def audit(node_id: int) -> None:
        async with limiter:
            audited.append(await _Audit(node, objects, node_id, reading).run(sample, on_progress))

    async with trio.open_nursery() as nursery:
        for node_id in node_ids:
            nursery.start_soon(audit, node_id)
    return tuple(sorted(audited, key=lambda one: one.node_id))


class _Audit:
    """Of one holder.  *reading*: the disk is read by one thread at a time."""

    def __init__(self, node: OwnNode, objects: Objects, node_id: int, reading: trio.CapacityLimiter) -> None:
        self._node = node
        self._objects = objects
        self._node_id = node_id
        self._reading = reading

    async def run(self, sample: int, on_progress: Progress) -> AuditFacts:
        facts, start, seed = AuditFacts(self._node_id), 0, random.getrandbits(32)
        try:
            while start < sample:
                count = min(BATCH, sample - start)
                looked, told = await self._look(start, count, seed)
                facts = replace(
                    facts,
                    compared=facts.compared + len(looked),
                    skipped=facts.skipped + told.skipped,
                    data_bytes=facts.data_bytes + sum(told.size_bytes for told, _ in looked.values() if told.digest),
                    stale=facts.stale + await self._stale(looked, seed),
                )
                on_progress(self._node_id, facts.compared)
                if told.at_end:
                    break
                start += count
        except ControlError as error:
            return replace(facts, reason=str(error))
        return facts

    async def _look(
        self, start: int, count: int, seed: int, handles: tuple[bytes, ...] = ()
    ) -> tuple[Looked, wire.HeldAudited]:
        """What is told, and what is; and the answer."""
        request = {"node": self._node_id, "start": start, "count": count, "seed": seed, "handles": handles}
        reply = await ask_for(self._node.mount, HeldAuditedReply, "ask_audit", **request)
        if reply.told is None:
            raise ControlError(reply.reason)
        looked: Looked = {}
        for told in reply.told.objects:
            try:
                fresh = await trio.to_thread.run_sync(self._fresh, told, limiter=self._reading)
            except OSError:  # a native program has a kernel lease on it, or its disk fails: not a lease's fault
                continue
            looked[told.handle] = (told, fresh)
        return looked, reply.told

    def _fresh(self, told: wire.Audited) -> Fresh | None:
        try:
            return self._objects.fresh(told.handle, told.offset if told.digest else None)
        except (StaleHandle, BadHandle):
            return None
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return None

    async def _stale(self, looked: Looked, seed: int) -> tuple[Stale, ...]:
        """Those that differ, and still do."""
        suspects = {handle: one for handle, one in looked.items() if stale_parts(*one)}
        if not suspects:
            return ()
        await trio.sleep(SETTLE_S)
        again, _ = await self._look(0, len(suspects), seed, tuple(suspects))
        return tuple(Stale(handle, stale_parts(*one)) for handle, one in suspects.items() if again.get(handle) == one)
