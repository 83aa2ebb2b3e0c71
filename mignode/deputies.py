"""Guests as their home has them: who asked for them, where they are, and what goes back and forth.

mosrun is the deputy: its connection (guests.sock) stands for the process that the user sees.  A Deputy joins it to the
way to the body, which is a guest here or a link to another node, and forwards between them; neither end needs the other
to be there, since both keep what was not acknowledged (relay.py).  When mosrun dies, the guest's root is killed.

What it does not do: know what is relayed; decide where a guest is (desk.py).  Called by guesthouse.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import trio

from mignode.deputynumbers import number_told
from mignode.deputystream import DeputyStream
from mignode.deputywords import Lost, Relayed
from mignode.guest import HomeWay
from mignode.journey import Journey
from mignode.policy import Decision
from mignode.traits import Traits
from omfs.errors import NodeDown

Report = Callable[[Journey], None]
_INIT: Final = 1
WAY_TIMEOUT_S: Final = 10.0  # from the commit until the node where it runs has found its way here

log: Final = logging.getLogger(__name__)


class Deputies:
    """All guests that are at home here."""

    def __init__(self) -> None:
        self._deputies: dict[str, Deputy] = {}
        self._added = trio.Event()

    def __iter__(self) -> Iterator[Deputy]:
        return iter(list(self._deputies.values()))

    def add(self, deputy: Deputy) -> Deputy:
        """Returns it."""
        self._deputies[deputy.traits.name] = deputy
        self._added.set()
        return deputy

    async def wait_some(self) -> None:
        """Until there is one."""
        if not self._deputies:
            await self.wait_added()

    async def wait_added(self) -> None:
        """Until there is one more."""
        if self._added.is_set():
            self._added = trio.Event()
        await self._added.wait()

    def get(self, name: str) -> Deputy | None:
        return self._deputies.get(name)

    def remove(self, name: str) -> Deputy | None:
        """Its guest has ended."""
        return self._deputies.pop(name, None)

    def lost(self, deputy: Deputy) -> None:
        """Its mosrun has died, or has been left by a mignode that is about to end."""
        if self.get(deputy.traits.name) is deputy and deputy.stream is None:
            deputy.is_orphan = True
            if deputy.way is not None:
                deputy.way.deputy_lost()


class BodyWay(Protocol):
    """From a guest's home to where its body is."""

    node_id: int

    def send_frame(self, frame: bytes) -> None:
        """Of the standard files, from mosrun."""

    def meet(self, home: HomeWay | None) -> None:
        """Whether mosrun hears what is said."""

    def deputy_lost(self) -> None:
        """mosrun is no more."""

    def deputy_stopped(self) -> None:
        """mosrun is; what it said before comes before."""

    async def move(self, destination: int, report: Report) -> None:
        """Raises OmfsError where it stays, NodeDown where nobody can say."""

    async def why(self, is_brief: bool) -> str:
        """Why it can't move, in words; brief ones have no names of files.  Raises OmfsError, OSError."""

    async def why_there(self) -> str:
        """The last decision where it should run (balance.py).  Raises OmfsError."""

    async def selected(self, node: int | None) -> int:
        """What its root has selected; *node*: selects that, unless it is None.  Raises OmfsError, OSError."""


class Deputy:
    """One guest of ours."""

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.stream: DeputyStream | None = None
        self.way: BodyWay | None = None
        self.is_orphan = False
        self.began: Decision | None = None  # where; for `mosctl why`
        self._is_stop_told = False  # of mosrun, where its program is, since mosrun has said anything
        self._found = trio.Event()

    async def wait_way(self, node: int = 0) -> bool:
        """Until there is a way to the body, at *node* unless 0; False: there was none for WAY_TIMEOUT_S."""
        with trio.move_on_after(WAY_TIMEOUT_S):
            while self.way is None or node not in (0, self.way.node_id):
                self._found = trio.Event()
                await self._found.wait()
            return True
        return False

    def attach(self, stream: DeputyStream) -> None:
        """mosrun, or the mosrun that was connected to an earlier mignode."""
        self.stream = stream
        if self.way is not None:
            self.way.meet(self)

    def detach(self, stream: DeputyStream) -> bool:
        """Its connection has ended.  False: it has a newer one."""
        if self.stream is not stream:
            return False
        self.stream = None
        if self.way is not None:
            self.way.meet(None)
        return True

    def found(self, way: BodyWay) -> None:
        """The body is there now."""
        self.way = way
        self._is_stop_told = False
        self._found.set()
        way.meet(self if self.stream is not None else None)
        if self.is_orphan:
            way.deputy_lost()

    def lost(self, way: BodyWay) -> None:
        """It is not there any more."""
        if self.way is way:
            self.way = None

    def send_frame(self, frame: bytes) -> None:
        """From the body."""
        if self.stream is not None:
            self.stream.say(Relayed(frame))

    def stopped(self, is_stopped: bool) -> None:
        """Whether mosrun is, as the kernel has it now (deputystops.py)."""
        if is_stopped and not self._is_stop_told and self.way is not None:
            self.way.deputy_stopped()
        self._is_stop_told = is_stopped

    def relayed(self, frame: bytes) -> None:
        """From mosrun; where it is stopped by now, this is from before, and may be what lets the program go on."""
        self._is_stop_told = False
        if self.way is not None:
            self.way.send_frame(frame)

    async def ask(self, process: int, call: str, arguments: tuple[int, ...]) -> int:
        """A guest's call that concerns processes here: numbers are looked up, a signal is mosrun's own.

        mosrun stands for the root alone.  A descendant whose parent is outside has lost its own.
        """
        if self.stream is None:
            raise NodeDown("the deputy is not there")
        if call == "kill":
            return await self.stream.call(call, arguments)
        if call == "getppid" and process != self.traits.root:
            return _INIT
        return number_told(self.traits.pid, call, arguments)

    def give_up(self, reason: str) -> None:
        """Nobody can tell how the guest ended."""
        if self.stream is not None:
            self.stream.say(Lost(reason))
