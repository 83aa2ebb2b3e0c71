"""What omfs-admin check looks for in the leases on this node's objects, beyond its own table: three checks.

    guards    data that others may cache, against the kernel leases that keep this node's own programs from writing them
    holders   the leases that this node granted, against those that each holder believes to have
    audit     what programs of a holder see of cached objects, against what they are

Nothing stands still for them, so only what two looks have found alike is a difference.  Pure; gathered by leasefacts.py
and audit.py, shown by admin_check.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from omfs import wire
from omfs.cli.checks import Finding, Result, few
from omfs.net.control import BrokenGuard, Owned
from omfs.wiretypes import Mode

UNUSED_MANY: Final = 1000  # of one holder; a few are usual: answers that nobody waited for any more
REPAIR: Final = "omfs-admin check --repair, and report it"
SEEN: Final = ("mode", "nlink", "uid", "gid", "rdev", "size_bytes", "mtime_ns", "ctime_ns")


class Kind(enum.Enum):
    """How a holder and its owner can differ."""

    UNOWNED = "used without a lease"  # the holder may see what is old
    UNGUARDED = "cached while native programs may write it"  # likewise
    UNUSED = "leased and not used"  # costs a recall, some day


class Difference(NamedTuple):
    """On one object, as both ends told it; None where one has no lease."""

    kind: Kind
    handle: bytes
    believed: wire.Believed | None
    owned: Owned | None


def differences(believed: Iterable[wire.Believed], owned: Iterable[Owned]) -> set[Difference]:
    """Of one session.  What is being recalled may differ."""
    found: set[Difference] = set()
    theirs = {one.handle: one for one in believed}
    ours = {one.handle: one for one in owned}
    for handle in theirs.keys() | ours.keys():
        their, our = theirs.get(handle), ours.get(handle)
        if our is not None and our.recalled:
            continue
        believes, has = their.mode if their else Mode.NONE, our.mode if our else Mode.NONE
        if believes > has:
            found.add(Difference(Kind.UNOWNED, handle, their, our))
        elif believes < has:
            found.add(Difference(Kind.UNUSED, handle, their, our))
        # Under EXCLUSIVE nobody else has it open at all, which the kernel lease of the open file sees to.
        if their is not None and their.data and our is not None and not our.data and believes is Mode.SHARED:
            found.add(Difference(Kind.UNGUARDED, handle, their, our))
    return found


@dataclass(frozen=True)
class HolderFacts:
    """One holder; *reason*: why it told nothing."""

    node_id: int
    reason: str = ""
    found: frozenset[Difference] = frozenset()

    def handles(self, kind: Kind) -> list[bytes]:
        return sorted(one.handle for one in self.found if one.kind is kind)


class Stale(NamedTuple):
    """*what* differs, in words."""

    handle: bytes
    what: str


@dataclass(frozen=True)
class AuditFacts:
    """One holder; *reason*: why it was not audited, or not wholly.  *skipped*: see wire.HeldAudited."""

    node_id: int
    reason: str = ""
    compared: int = 0
    skipped: int = 0
    data_bytes: int = 0
    stale: tuple[Stale, ...] = ()


@dataclass(frozen=True)
class HeldFacts:
    """Of this node's objects; *names*: those that are known, by handle; *audits* is None where none was wanted."""

    node_id: int
    guards: tuple[BrokenGuard, ...] = ()
    holders: tuple[HolderFacts, ...] = ()
    audits: tuple[AuditFacts, ...] | None = None
    names: dict[bytes, str] = field(default_factory=dict)

    def named(self, handles: Iterable[bytes]) -> str:
        return few([self.names.get(handle, handle.hex()) for handle in handles])


class Fresh(NamedTuple):
    """An object as it is at its owner; *digest* of the same range as was told."""

    attributes: wire.Attributes
    digest: bytes


def stale_parts(told: wire.Audited, fresh: Fresh | None) -> str:
    """What of it a holder sees otherwise than it is, in words; *fresh* is None where no handle leads to it any more.

    A file without a name lives as long as somebody has it open.
    """
    if fresh is None:
        return "is gone" if told.attributes.nlink else ""
    wrong = [name for name in SEEN if getattr(told.attributes, name) != getattr(fresh.attributes, name)]
    if told.digest and fresh.digest and told.digest != fresh.digest:
        wrong.append("data")
    return ", ".join(name.partition("_")[0] for name in wrong)


# ---------------------------------------------------------------- the checks


def run_lease_checks(facts: HeldFacts) -> list[Finding]:
    return [*check_guards(facts), *check_holders(facts), *check_audits(facts)]


def check_guards(facts: HeldFacts) -> Iterator[Finding]:
    for guard in facts.guards:
        nodes = ", ".join(map(str, guard.nodes)) or "?"
        text = f"kernel lease {guard.state}, node {nodes} may read old data: {facts.named(guard.handles[:1])}"
        yield Finding("guards", facts.node_id, Result.FAULT, text, REPAIR)
    if not facts.guards:
        yield Finding("guards", facts.node_id, Result.FINE)


def check_holders(facts: HeldFacts) -> Iterator[Finding]:
    for holder in facts.holders:
        if holder.reason:
            text = f"did not tell what it holds here: {holder.reason}"
            yield Finding("holders", holder.node_id, Result.WARNING, text, "check it again")
            continue
        wrong = [(kind, holder.handles(kind)) for kind in (Kind.UNOWNED, Kind.UNGUARDED)]
        for kind, handles in wrong:
            if handles:
                text = f"{len(handles)} {kind.value}: {facts.named(handles)}"
                yield Finding("holders", holder.node_id, Result.FAULT, text, REPAIR)
        unused = len(holder.handles(Kind.UNUSED))
        text = f"{unused} {Kind.UNUSED.value}" if unused else ""
        if unused > UNUSED_MANY:
            yield Finding("holders", holder.node_id, Result.WARNING, text, "omfs-admin check --repair")
        elif not any(handles for _, handles in wrong):
            yield Finding("holders", holder.node_id, Result.FINE, text)


def check_audits(facts: HeldFacts) -> Iterator[Finding]:
    for audit in facts.audits or ():
        if audit.stale:
            names = few([f"{facts.named([one.handle])} ({one.what})" for one in audit.stale])
            text = f"{len(audit.stale)} of {audit.compared} objects are seen otherwise there: {names}"
            yield Finding("audit", audit.node_id, Result.FAULT, text, REPAIR)
        elif audit.reason:
            text = f"not audited: {audit.reason}"
            yield Finding("audit", audit.node_id, Result.WARNING, text, "check it again")
        else:
            text = f"{audit.compared} objects, {audit.data_bytes >> 10} KiB of data, {audit.skipped} skipped"
            yield Finding("audit", audit.node_id, Result.FINE, text)
