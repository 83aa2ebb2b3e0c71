"""The leases that this mount holds of one owner: the pure machine (cache/holder.py) joined to the peer's term.

An answer counts only if the leases were valid, without a break, from before its request was sent (`counts`); what it
grants is used in the same step in which it is taken, before anything is awaited, and then told to the kernel.  What the
kernel forgets is given back, some of it together (`ReturnLeases`), without anybody waiting.  What it does not do:
make the kernel forget (recall.py).  One per RemoteNode.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from omfs import wire
from omfs.cache.holder import Holder, Lease
from omfs.wiretypes import Mode

if TYPE_CHECKING:
    from omfs.net.peer import Peer

NAMES_MAX: Final = 1 << 18  # of one directory that the kernel is allowed to remember: about 30 MB here
_RETURN_WITHIN_S: Final = 0.05
_RETURNS_MAX: Final = 2048  # in one message

Granting = TypeVar(
    "Granting",
    wire.Found, wire.NamesChanged, wire.AttributesGot, wire.FileOpened, wire.FileCreated, wire.DirectoryRead,
    wire.LeaseGranted,
)  # fmt: skip


def _no_leases() -> Iterable[Lease]:
    return ()


class HeldLeases:
    """*root*: of the directory that is /mfs/<N>.  *all_leases*: of everything that the kernel knows of this owner."""

    def __init__(self, peer: Peer) -> None:
        self.holder = Holder()
        self.root = Lease()
        self.all_leases: Callable[[], Iterable[Lease]] = _no_leases  # set by recall.py
        self.is_enabled = False  # set by recall.py, which can make the kernel forget
        self._peer = peer
        self.moves = 0
        """RMDIRs and RENAMEs of ours that began or ended: they change directories that they don't name."""
        self.name_changes = 0
        """Calls of ours that make, move or remove names, begun: they change the objects of these names."""
        self._round = 0
        self._epoch = peer.epoch
        self._to_return: list[tuple[bytes, int]] = []
        self._return_wanted = trio.Event()

    # ------------------------------------------------------------ grants

    @property
    def round(self) -> int:
        """Which stretch of unbroken validity this is; 0: nothing may be cached."""
        return self._peer.lease_round if self.is_enabled else 0

    @property
    def owner_restarted(self) -> bool:
        """Since the machine looked last; then the owner may have kept what it granted (its lease table)."""
        return self._epoch != self._peer.epoch

    def counts(self, asked_in: int, reply: Granting) -> Granting:
        """*reply*, without what it grants unless it was asked for in the round that still is."""
        if reply.serial and (not asked_in or self.round != asked_in):
            return msgspec.structs.replace(reply, serial=0)
        return reply

    def granted(self, lease: Lease, serial: int, mode: Mode, *, writer: object = None) -> bool:
        """Whether what was told of the object with this answer may be cached; if so, it must be told now.

        *writer*: the file that was opened for writing; only that makes a lease EXCLUSIVE, and for itself.  The owner
        says so with every answer, and one that is late may come when the file has been closed.
        """
        if not serial:
            return False
        self.look_at_term()
        if writer is None and lease.mode is not Mode.EXCLUSIVE:
            mode = min(mode, Mode.SHARED)
        held = self.holder.granted(lease, serial, mode)
        if writer is not None and held is Mode.EXCLUSIVE:
            lease.writer = writer
        return held is not Mode.NONE

    def granted_too(self, lease: Lease, serial: int, mode: Mode) -> bool:
        """As `granted`, of another object that the same answer is about, in the same step."""
        if lease.mode is not Mode.EXCLUSIVE:
            mode = min(mode, Mode.SHARED)
        return self.holder.granted(lease, serial, mode) is not Mode.NONE

    def may_name_all(self, directory: Lease, serial: int, mode: Mode, names: Collection[bytes]) -> bool:
        """As `may_name`, of all of them or none."""
        known = len(directory.names) if directory.names is not None else 0
        if not serial or known + len(names) > NAMES_MAX:
            return False
        self.look_at_term()
        return self.holder.may_name_all(directory, serial, mode, names)

    def may_name(self, directory: Lease, serial: int, mode: Mode, name: bytes) -> bool:
        """The same of a name, or of its absence."""
        if not serial or (directory.names is not None and len(directory.names) >= NAMES_MAX):
            return False
        self.look_at_term()
        return self.holder.may_name(directory, serial, mode, name)

    def may_name_unasked(self, directory: Lease, name: bytes) -> bool:
        """As `may_name`, for what is known here, under a lease that is held."""
        if directory.names is not None and len(directory.names) >= NAMES_MAX:
            return False
        self.look_at_term()
        return self.holder.may_name_unasked(directory, name)

    def tell_unasked(self, lease: Lease) -> bool:
        """As `granted`, for what is known here, under a lease that is held."""
        self.look_at_term()
        return self.holder.tell_unasked(lease)

    def look_at_term(self) -> None:
        """Let the machine know whether the leases are valid, and whether the owner counts anew."""
        if self._epoch != self._peer.epoch:
            self._epoch = self._peer.epoch
            self.holder.restart_serials(self.all_leases())
            self._to_return.clear()
        now = self.round
        if now != self._round:
            self._round = now
            if now:
                self.holder.renew()
            else:
                self.holder.lapse()

    # ------------------------------------------------------------ objects come and go

    def new_lease(self, handle: bytes) -> Lease:
        return self.holder.new_lease(handle)

    def drop_lease(self, handle: bytes, lease: Lease) -> None:
        """The kernel has forgotten the object."""
        self.look_at_term()
        self.holder.drop_lease(handle, lease)
        if lease.mode is not Mode.NONE and self._round:
            self._to_return.append((handle, lease.serial))
            self._return_wanted.set()
        lease.mode = Mode.NONE
        lease.data = False

    async def wait_returns(self) -> list[wire.ReturnLeases]:
        """What the owner is to be told next that nothing is cached of."""
        await self._return_wanted.wait()
        await trio.sleep(_RETURN_WITHIN_S)
        self._return_wanted = trio.Event()
        self.look_at_term()
        leases, self._to_return = self._to_return, []
        starts = range(0, len(leases), _RETURNS_MAX)
        return [wire.ReturnLeases(tuple(leases[start : start + _RETURNS_MAX])) for start in starts]
