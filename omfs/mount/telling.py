"""What this mount holds of an owner's objects, as omfs-admin check asks: the leases, and what the kernel has cached.

Two of these commands are for the control socket of this node: `tell_held` and `audit` are asked by its omfs-export on
behalf of an owner (export/ownmount.py); `ask_held` and `ask_audit` have another node asked the same about our objects.
Nothing is changed by them.  An audit reads in a process of its own (cachereader.py) and keeps the mount busy as long as
that runs (umount: EBUSY), at most READ_WITHIN_S.

Called by daemon.py.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from itertools import zip_longest
from typing import Final, NamedTuple, TypeVar

import msgspec
import trio

from omfs import wire
from omfs.cache.parts import is_in_part
from omfs.errors import ControlError, OmfsError
from omfs.kernel.statx import Status
from omfs.mount import cachereader
from omfs.mount.cachereader import Seen, Wanted
from omfs.mount.inodes import Inode, InodeTable
from omfs.mount.remote import RemoteNode
from omfs.net.control import Arguments, Handler, HeldAuditedReply, HeldToldReply
from omfs.wiretypes import Attributes, Mode

LEASES_TOLD_MAX: Final = 4096  # in one part: far below what a frame takes
OBJECTS_MAX: Final = 128  # in one audit
READ_WITHIN_S: Final = 40.0
ASK_WITHIN_S: Final = 10.0  # another node what it holds,
ASK_AUDIT_WITHIN_S: Final = 55.0  # and what it sees
M = TypeVar("M", bound=wire.Message)
S = TypeVar("S", bound=msgspec.Struct)


class _OfPart(msgspec.Struct):
    node: int
    part: int
    parts: int


class _OfAudit(msgspec.Struct):
    node: int
    start: int
    count: int
    seed: int
    handles: tuple[bytes, ...] = ()


class _Choice(NamedTuple):
    """*skipped*: so many may be newer here."""

    inodes: list[Inode[RemoteNode]]
    skipped: int
    at_end: bool


class Teller:
    """*nodes*: those of the map, as it changes."""

    def __init__(
        self, nodes: Mapping[int, RemoteNode], inodes: InodeTable[RemoteNode], mountpoint: str, reader: str = ""
    ) -> None:
        """*reader*: the module that looks; cachereader."""
        self._nodes = nodes
        self._inodes = inodes
        self._mountpoint = mountpoint
        self._reader = reader or cachereader.__name__

    @property
    def handlers(self) -> dict[str, Handler]:
        """For net/control.py."""
        return {
            "tell_held": self.tell_held, "audit": self.audit, "ask_held": self.ask_held, "ask_audit": self.ask_audit,
        }  # fmt: skip

    def _node(self, number: int) -> RemoteNode:
        node = self._nodes.get(number)
        if node is None:
            raise ControlError(f"node {number} is not in the map of this mount")
        return node

    # ------------------------------------------------------------ about this node

    async def tell_held(self, arguments: Arguments) -> HeldToldReply:
        """The leases that this mount believes to hold."""
        asked = _converted(arguments, _OfPart)
        if not 0 <= asked.part < asked.parts:
            raise ControlError(f"there is no part {asked.part} of {asked.parts}")
        node = self._node(asked.node)
        node.leases.look_at_term()
        if not node.leases.round:
            return HeldToldReply(wire.HeldTold(b"", (), is_cut=False))
        leases = []
        for inode in self._inodes.of_owner(node):
            lease, handle = inode.lease, _handle(inode)
            if lease.mode is not Mode.NONE and handle is not None and is_in_part(handle, asked.part, asked.parts):
                leases.append(wire.Believed(handle, lease.serial, lease.mode, lease.data))
        cut = tuple(leases[:LEASES_TOLD_MAX])
        return HeldToldReply(wire.HeldTold(node.peer.session_key, cut, is_cut=len(cut) < len(leases)))

    async def audit(self, arguments: Arguments) -> HeldAuditedReply:
        """What programs here see of some objects that are cached."""
        asked = _converted(arguments, _OfAudit)
        if asked.start < 0 or asked.count < 1 or not 0 <= asked.seed < 1 << 32:
            raise ControlError("there is no such sample")
        node = self._node(asked.node)
        node.leases.look_at_term()
        chosen, skipped, at_end = self._choose(node, asked)
        holds = {inode.id: inode.hold for inode in chosen}
        data = {inode.id for inode in chosen if inode.lease.data}
        seen = await self._look([Wanted(inode.id, inode.id in data, asked.seed) for inode in chosen])
        objects = []
        for inode in chosen:
            hold, handle, one = inode.hold, _handle(inode), seen.get(inode.id)
            if hold is None or hold != holds[inode.id] or handle is None or one is None or one.status is None:
                skipped += 1  # recalled, changed or forgotten meanwhile
                continue
            digest = one.digest if inode.lease.data else b""
            objects.append(wire.Audited(handle, hold[1], _attributes(one.status), one.offset, one.size_bytes, digest))
        return HeldAuditedReply(wire.HeldAudited(tuple(objects), skipped, at_end))

    def _choose(self, node: RemoteNode, asked: _OfAudit) -> _Choice:
        """Every second one has data cached, as far as there are so many."""
        held = [inode for inode in self._inodes.of_owner(node) if inode.hold is not None]
        if asked.handles:
            handles = set(asked.handles)
            held = [inode for inode in held if _handle(inode) in handles]
        audited = [inode for inode in held if not _may_be_newer(inode)]
        # The same for all parts of an audit, whatever comes and goes between them.
        audited.sort(key=lambda inode: zlib.crc32(_handle(inode) or b"", asked.seed))
        pairs = zip_longest(
            (inode for inode in audited if inode.lease.data), (inode for inode in audited if not inode.lease.data)
        )
        ordered = [inode for pair in pairs for inode in pair if inode is not None]
        end = asked.start + min(asked.count, OBJECTS_MAX)
        may_be_newer = 0 if asked.start else len(held) - len(audited)
        return _Choice(ordered[asked.start : end], may_be_newer, end >= len(ordered))

    async def _look(self, wanted: list[Wanted]) -> dict[int, Seen]:
        """By node id.  ControlError where the reader fails, or takes too long."""
        if not wanted:
            return {}
        command = [sys.executable, "-m", self._reader, self._mountpoint]
        lines = b"".join(msgspec.json.encode(one) + b"\n" for one in wanted)
        with trio.move_on_after(READ_WITHIN_S):
            done = await trio.run_process(command, stdin=lines, capture_stdout=True, capture_stderr=True, check=False)
            if done.returncode:
                raise ControlError(f"the audit's reader failed: {done.stderr.decode(errors='replace')[-200:].strip()}")
            seen = (msgspec.json.decode(line, type=Seen) for line in done.stdout.splitlines())
            return {one.number: one for one in seen}
        raise ControlError(f"the audit did not end within {READ_WITHIN_S:g} s")

    # ------------------------------------------------------------ about another node

    async def ask_held(self, arguments: Arguments) -> HeldToldReply:
        """What another node holds of our objects."""
        asked = _converted(arguments, _OfPart)
        request = wire.TellHeld(asked.part, asked.parts)
        return HeldToldReply(*await self._ask(asked.node, request, wire.HeldTold, ASK_WITHIN_S))

    async def ask_audit(self, arguments: Arguments) -> HeldAuditedReply:
        """What programs of another node see of our objects."""
        asked = _converted(arguments, _OfAudit)
        request = wire.AuditHeld(asked.start, asked.count, asked.seed, asked.handles)
        return HeldAuditedReply(*await self._ask(asked.node, request, wire.HeldAudited, ASK_AUDIT_WITHIN_S))

    async def _ask(self, number: int, request: wire.Message, expect: type[M], within_s: float) -> tuple[M | None, str]:
        """Its answer, or None and why there is none."""
        node = self._node(number)
        if node.peer.state != "up":
            return None, node.peer.state
        with trio.move_on_after(within_s):
            try:
                return await node.peer.call(request, expect), ""
            except OmfsError as error:
                return None, str(error)
        return None, f"no answer within {within_s:g} s"


def _converted(arguments: Arguments, shape: type[S]) -> S:
    try:
        return msgspec.convert(arguments, shape)
    except msgspec.ValidationError as error:
        raise ControlError(f"bad request: {error}") from None


def _handle(inode: Inode[RemoteNode]) -> bytes | None:
    return inode.handle if inode.handle is not None else inode.owner.root_handle


def _may_be_newer(inode: Inode[RemoteNode]) -> bool:
    """Than what its owner has: then they can't be compared."""
    return inode.lease.mode is Mode.EXCLUSIVE


def _attributes(status: Status) -> Attributes:
    """Without what is not cached with a lease, or changes by itself: blocks and the access time."""
    return Attributes(
        status.mode, status.nlink, status.uid, status.gid, status.rdev, status.size_bytes, 0, 0, 0,
        status.mtime_ns, status.ctime_ns, status.inode,
    )  # fmt: skip
