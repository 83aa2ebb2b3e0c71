"""A guest on the node where it runs, at home as well as away: its init, and the way to its home.

`serve` forwards what its standard files say, until the init has ended.  What it knows of the body comes from body.py;
moving it is migrate.py's.  At most one journey at a time (`departing`).  Made by door.py, receive.py and recovery.py.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Final, Protocol

import trio

from dfsa.outside import Outside
from dfsa.router import Router
from dfsa.verdict import judged, judged_at_home
from mignode.body import Body
from mignode.checkpoint import Tree
from mignode.decay import mark_of
from mignode.guestfolder import GuestFolder
from mignode.journey import Journey
from mignode.lasting import Rooted, handlers as lasting_handlers
from mignode.past import Past
from mignode.traits import Traits
from omfs.errors import BodyLost, HandoverRefused, OmfsError
from omfs.kernel import processes
from omfs.kernel.seccomp import Listener
from omfs.magic.controlfiles import Value

log: Final = logging.getLogger(__name__)


class HomeWay(Protocol):
    """From a guest to its home: the deputy itself, or the link."""

    def send_frame(self, frame: bytes) -> None:
        """Of the standard files; where there is no way now it is lost, and said again when there is one."""

    async def ask(self, process: int, call: str, arguments: tuple[int, ...]) -> int:
        """As dfsa.outside.Home has it."""


class HomeLink(Protocol):
    """From a guest that is away to its home, as a node asks it."""

    async def ask_setting(self, name: str) -> Value:
        """One of guestsettings.OF_GUEST.  Raises OmfsError, OSError."""

    async def change_setting(self, name: str, value: Value) -> None:
        """The same."""

    def tell_journey(self, journey: Journey) -> None:
        """Of a move that home has not ordered; where there is no way now it is lost."""

    def tell_end(self, status: int) -> None:
        """As words.Ended has it; said until home knows."""


class Guest:
    """*epoch*: of its stay here, in home's record.  *router*: of its calls.  Away there is a *link*.

    *past*: what is known of it from before it came, and then from here too: balance.py's, and the next node is told.
    """

    def __init__(self, folder: GuestFolder, traits: Traits, body: Body, epoch: int, past: Past | None = None) -> None:
        self.folder = folder
        self.traits = traits
        self.body = body
        self.epoch = epoch
        self.past = past or Past()
        self.rooted: tuple[str, ...] = ()
        """The calls by which it stays for good, as lasting.py has them."""
        self.router: Router | None = None
        self.home: HomeWay | None = None
        self._met = trio.Event()
        self.link: HomeLink | None = None
        self.is_over = trio.Event()
        """Its init has ended, and what there is to be told of that was."""
        self.is_departing = False
        self.is_being_saved = False
        """Departing, but only as far as an image."""
        self.is_frozen = False
        """It stands still, as long as it is departing."""
        self._is_settled = trio.Event()
        self.has_departed = False
        """It has left, or has ended and its deputy knows; or it was ended here on purpose."""
        self._orphaned = trio.Event()

    @property
    def name(self) -> str:
        return self.traits.name

    @property
    def filters(self) -> int:
        """Of ours, that it is below."""
        return int(self.router is not None)

    def answer_calls(self, listener: int, nursery: trio.Nursery, *, restoring: bool = False) -> None:
        """From now on those that the filter of its calls stops.  *listener*: a descriptor, which is ours now."""
        handlers = Outside(self, self.body.proc, self.traits.pid, self.traits.uid).handlers()
        judge = judged
        if self.folder.record is not None:  # it is at home, below another filter
            self.rooted = (self.folder.rooted or Rooted()).calls
            handlers = {**handlers, **lasting_handlers(self._take_root)}
            judge = judged_at_home
        self.router = Router(Listener(listener), handlers, restoring=restoring, judge=judge)
        nursery.start_soon(self.router.serve)

    def _take_root(self, call: str) -> None:
        """Raises OSError where that can't be written down."""
        if call not in self.rooted:
            calls = (*self.rooted, call)
            self.folder.rooted = Rooted(calls)
            self.rooted = calls

    def meet(self, home: HomeWay | None) -> None:
        """This is the way home from now on; None: there is none."""
        self.home = home
        if home is None:
            self._met = trio.Event()
        else:
            self._met.set()
        with contextlib.suppress(BodyLost):  # `serve` sees it as well
            if home is None:
                self.body.way_is_lost()
            else:
                self.body.way_is_open()

    async def ask(self, process: int, call: str, arguments: tuple[int, ...]) -> int:
        """For dfsa.outside: what home says; waits for a way there, as long as the router lets it.

        Raises OSError as the call would, NodeDown where the way is lost before there is an answer.
        """
        if call == "kill" and arguments[0] == self.traits.pid and self.body.root:  # by its number at home
            await self.body.signal(self.body.root, arguments[1])
            return 0
        while self.home is None:
            await self._met.wait()
        return await self.home.ask(process, call, arguments)

    def deputy_lost(self) -> None:
        """As if it had been killed: so is the root; what it has left behind goes on, with nobody to talk to."""
        self._orphaned.set()

    def deputy_stopped(self) -> None:
        """By somebody who did not mean it alone: so is the root."""
        with contextlib.suppress(BodyLost):
            self.body.deputy_stopped()

    async def _end_as_orphan(self) -> None:
        await self._orphaned.wait()
        with contextlib.suppress(OmfsError, OSError):
            if self.body.root:
                await self.body.signal(self.body.root, signal.SIGKILL)

    async def wait_ended(self) -> bool:
        """Until all of it has ended, and its deputy knows or is no more.  False: its init was killed before."""
        try:
            await self.body.wait_gone()
        except BodyLost:
            return False
        told = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_told, told, nursery.cancel_scope)
            await self._orphaned.wait()
            told.set()
            nursery.cancel_scope.cancel()
        return told.is_set()

    async def _wait_told(self, told: trio.Event, waiting: trio.CancelScope) -> None:
        with contextlib.suppress(BodyLost):
            await self.body.wait_told()
            told.set()
        waiting.cancel()

    async def mark(self) -> str:
        """What its program is now, as decay.py marks it; "" where nobody can say."""
        try:
            pid = await self.body.outer_root()
            return await trio.to_thread.run_sync(_mark_of, pid)
        except (OmfsError, OSError):  # it has ended
            return ""

    def send_frame(self, frame: bytes) -> None:
        """From the deputy."""
        with contextlib.suppress(BodyLost):
            self.body.send_frame(frame)

    @contextlib.contextmanager
    def departing(self) -> Iterator[None]:
        """Around a journey.  Raises HandoverRefused where it is on its way already."""
        if self.is_departing or self.has_departed:
            raise HandoverRefused("the process is on its way already")
        self.is_departing = True
        self._is_settled = trio.Event()
        try:
            yield
        finally:
            self.is_departing = self.is_frozen = False
            self._is_settled.set()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around the dump of an image: whoever wants to move it meanwhile waits (`wait_saved`)."""
        with self.departing():
            self.is_being_saved = self.is_frozen = True
            try:
                yield
            finally:
                self.is_being_saved = False

    async def wait_saved(self) -> None:
        """Until no image of it is being dumped."""
        while self.is_being_saved:
            await self._is_settled.wait()

    async def wait_settled(self) -> None:
        """Until it is on no journey."""
        if self.is_departing:
            await self._is_settled.wait()

    async def serve(self) -> None:
        """Until its init has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relay)
            nursery.start_soon(self._end_as_orphan)
            await self.body.wait_lost()
            nursery.cancel_scope.cancel()

    async def _relay(self) -> None:
        async for frame in self.body.frames:
            if self.home is not None:
                self.home.send_frame(frame)


def _mark_of(pid: int) -> str:
    process = processes.identify(pid)
    return mark_of(processes.image_of(process)) if process is not None else ""


def tree_of(external: tuple[str, ...]) -> Tree:
    """What is told to CRIU at the dump and at the restore of any guest."""
    return Tree(external=external, tcp_established=True, shell_job=True)  # the init leads its session
