"""The values of /mfs/proc/<pid>/: what a process has set, where it is, and what may be asked of it.

Each is read from the registry as it is now, cantmove from the process itself.  Writing goto or migrate has it moved
(moves.py), and returns when it runs there.
What it does not do: parse, format, or look who may (controls.py).  Called by controls.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from typing import Final

import trio
from msgspec.structs import replace

from mignode.decay import DecayClass, spelled, triggered, understood
from mignode.guestsettings import OF_GUEST, meant, value_of
from mignode.journey import Journey, Journeys, told as told_journey
from mignode.moves import BEST, Moves
from mignode.reasons import Kind
from mignode.registry import Registry
from omfs.errors import RemoteFailure
from omfs.kernel import processes
from omfs.kernel.processes import Identity
from omfs.magic.controlfiles import Value

LOOK_WITHIN_S: Final = 5.0  # the mount gives us 10 s in all
_NOWHERE: Final = 0  # goto: home, and nobody has asked for anything else
_BALANCE: Final = -1


class ProcessFiles:
    """Reads and changes what is known of one process."""

    def __init__(self, registry: Registry, nodes: Callable[[], Collection[int]]) -> None:
        """*nodes*: the ids of the map, as it is now."""
        self.journeys = Journeys()  # noted by who moves processes
        self.moves: Moves | None = None  # set when guests may come
        self._registry = registry
        self._nodes = nodes

    def find(self, pid: int, start_ticks: int = 0) -> Identity:
        """The process; *start_ticks*, unless 0, tells it from others that got its pid.  Raises RemoteFailure(ESRCH)."""
        found = processes.identify(pid)
        if found is None or found.pid != pid or start_ticks not in (0, found.start_ticks):
            raise RemoteFailure(errno.ESRCH)
        return found

    def owner_of(self, process: Identity) -> int:
        """Its effective uid.  Raises RemoteFailure(ESRCH)."""
        try:
            return processes.owner_of(process)[0]
        except ProcessLookupError:
            raise RemoteFailure(errno.ESRCH) from None

    async def read(self, process: Identity, name: str, uid: int) -> Value:
        """As it is now.  *uid*: who reads.  Raises RemoteFailure."""
        if name == "cantmove":
            return await self._cantmove(process, uid)
        if name == "decision":
            return await self._moves().why_there(process)
        if name == "journey":
            return told_journey(self._journey(process, uid))
        if name == "decay":
            return spelled(replace(await self.decay_of(process), mark=""))
        if name in OF_GUEST:
            return await self._setting(process, name)
        place = self._registry.entry_of(process).place
        match name:
            case "where":
                return 0 if place.here == place.home else place.here
            case "selected":
                return await self._selected(process, None)
        return _NOWHERE  # goto, migrate

    async def _selected(self, process: Identity, node: int | None) -> int:
        """Of a guest, by its pid at home, it is its root's, wherever that is.  *node*: selects that first."""
        found = await self.moves.selected(process, node) if self.moves is not None else None
        if found is not None:
            return found
        if node is not None:
            await self._registry.select(process, node)
        return self._registry.entry_of(process).place.selected

    async def decay_of(self, process: Identity) -> DecayClass:
        """With its mark."""
        return understood(str(await self._setting(process, "decay")))

    async def _setting(self, process: Identity, name: str) -> Value:
        """One of OF_GUEST: the guest's that it belongs to, or its own; as long as no guests may come, nobody is one."""
        found = await self.moves.setting(process, name) if self.moves is not None else None
        return value_of(self._registry.entry_of(process).settings, name) if found is None else found

    def _may_know(self, process: Identity, uid: int) -> bool:
        """The names of files and services that it uses."""
        return uid in (0, self.owner_of(process))

    def _journey(self, process: Identity, uid: int) -> Journey | None:
        journey = self.journeys.of(process)
        if journey is not None and journey.reason and not self._may_know(process, uid):
            journey = replace(journey, reason="")
        return journey

    async def _cantmove(self, process: Identity, uid: int) -> str:
        """The reasons; who looks may have to wait for the process, and is then left behind with that."""
        with trio.move_on_after(LOOK_WITHIN_S):
            return await self._moves().why(process, is_brief=not self._may_know(process, uid))
        return Kind.NOT_LOOKED_AT.value

    async def write(self, process: Identity, name: str, value: Value, by: int = 0) -> None:
        """*by*: the thread that writes, 0 where it is none of this node.

        Raises RemoteFailure; OSError where a setting can't be kept.
        """
        if name in OF_GUEST:
            setting = meant(name, value)  # malformed is malformed, whoever would have it
            if self.moves is None or not await self.moves.change_setting(process, name, value):
                await self._registry.set_settings(process, **{name: setting})
            return
        assert isinstance(value, int)
        if name == "selected":
            await self._selected(process, value)
        else:
            await self._send(process, value, by)

    async def trigger_decay(self, process: Identity, name: str) -> None:
        """The process has written 1 to hpc/decay/*name*: for all of its guest.  Raises OmfsError, OSError."""
        before = await self.decay_of(process)
        try:
            after = triggered(before, name)
        except ValueError as error:
            raise RemoteFailure(errno.EINVAL, str(error)) from None
        if self.moves is not None:
            after = replace(after, mark=await self.moves.mark_of(process))
            if name == "clear":
                self.moves.forget_past(process)
        await self.write(process, "decay", spelled(after))

    async def _send(self, process: Identity, node: int, by: int) -> None:
        """goto: 0 is home, -1 lets balancing choose."""
        place = self._registry.entry_of(process).place
        wanted = place.home if node == 0 else node
        if wanted == _BALANCE:
            if await self._setting(process, "lock"):
                raise RemoteFailure(errno.EROFS, "the process is locked")
            await self._moves().move(process, BEST, by)
            return
        if wanted not in self._nodes():
            raise RemoteFailure(errno.EINVAL, f"node {wanted} is not in the map")
        await self._moves().move(process, wanted, by)

    def _moves(self) -> Moves:
        if self.moves is None:
            raise RemoteFailure(errno.EAGAIN, "mignode has only just started")
        return self.moves
