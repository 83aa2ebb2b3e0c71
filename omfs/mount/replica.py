"""Where the magic names lead a process: this mount's copy of the registry of processes (mignode), and what it says.

Nobody waits for mignode to look a name up: all that is remembered of processes is here (magic/places.py), and what is
not here is an ordinary process, for which everything is this node.  While there is nothing, nobody looks at processes
at all.  Only where mignode hears of forks it is asked once for each process without an entry.  mignode tells every
change before whoever made it is answered; one that begins takes the entries from here, and a mount that begins takes
them from it.

A creation through /mfs/magic may change where that leads afterwards: then mignode is told before the name is answered.
Called by magiclinks.py and daemon.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import trio

from omfs.errors import ControlError, NotRunning, OmfsError
from omfs.kernel.callers import creates
from omfs.kernel.processes import Identity, identify, image_of, parent_of
from omfs.magic.names import Magic, explain, is_news, resolve
from omfs.magic.places import Place, Places
from omfs.net import control

log = logging.getLogger(__name__)

ASK_WITHIN_S: Final = 2.0  # mignode is on this machine
ORDINARY_MAX: Final = 65536  # processes that need not be asked for again
THREADS_MAX: Final = 256  # that look at processes; one may wait for an execve, which may wait for a silent owner
T = TypeVar("T")


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """mignode's "place": *everything*: there are no other entries; *gone*: pid and start of processes that ended."""

    places: tuple[Place, ...] = ()
    gone: tuple[tuple[int, int], ...] = ()
    fork_events: bool = False
    everything: bool = False


class _Seen(NamedTuple):
    """A process that asks.  *place*: its entry as known here; *image*: its exec identity, where that was wanted."""

    identity: Identity
    place: Place | None
    image: str
    is_creating: bool


class Replica:
    """One per mount."""

    def __init__(self, own_id: int, mignode: Path, mountpoint: str, *, dfsa: bool) -> None:
        """*mignode*: its control socket.  *dfsa*: as it is mounted, which mignode may not know otherwise."""
        self.own_id = own_id
        self._mountpoint = mountpoint
        self._dfsa = dfsa
        self._mignode = mignode
        self._places = Places(ORDINARY_MAX)
        self._hears_forks = False
        self._threads = trio.CapacityLimiter(THREADS_MAX)

    # ------------------------------------------------------------ what mignode tells

    @property
    def handlers(self) -> dict[str, control.Handler]:
        """For net/control.py."""
        return {"place": self._place, "places": self._tell, "where": self._where}

    async def _place(self, arguments: control.Arguments) -> dict[str, Any]:
        arguments["everything"] = arguments.pop("all", False)
        try:
            told = msgspec.convert(arguments, Told)
        except msgspec.ValidationError as error:
            raise ControlError(f"bad request: {error}") from None
        self._take(told)
        return {}

    def _take(self, told: Told) -> None:
        self._hears_forks = told.fork_events
        if told.everything:
            self._places.replace_all(told.places)
            return
        for key in told.gone:
            self._places.remove(key)
        for place in told.places:
            self._places.put(place)

    async def _tell(self, _: control.Arguments) -> dict[str, Any]:
        return {"places": tuple(self._places), "dfsa": self._dfsa}

    async def fetch(self) -> None:
        """Take what a mignode that runs already knows."""
        try:
            reply = await control.ask(self._mignode, "places", deadline_s=ASK_WITHIN_S, dfsa=self._dfsa)
            self._take(msgspec.convert({**reply, "everything": True}, Told))
        except NotRunning:
            return
        except (OmfsError, msgspec.ValidationError) as error:
            log.warning("mignode did not tell what it knows of processes: %s", error)

    # ------------------------------------------------------------ what is asked

    @property
    def is_empty(self) -> bool:
        """All processes are ordinary ones: every name leads to this node."""
        return not len(self._places)

    async def wait_resolved(self, name: Magic, thread: int) -> int:
        """The node that the name leads to for the process of this thread."""
        seen = await self._aside(self._see, name, thread)
        place = await self._find(seen) if seen is not None else None
        if seen is None or place is None:
            return self.own_id
        if seen.is_creating and is_news(place):
            place = await self._created(seen.identity, place)
        return resolve(name, place, seen.image, self.own_id, seen.is_creating)

    def _see(self, name: Magic | None, thread: int) -> _Seen | None:
        """What must be known of the process, for one name or (None) for all.  In a thread of its own."""
        identity = identify(thread)
        if identity is None:
            return None
        # Where forks are told, an orphan may be below a stranger with an entry: only mignode knows its ancestors.
        place = self._places.get(identity) if self._hears_forks else self._places.nearest(identity, _parent)
        if place is None and not self._hears_forks:
            return _Seen(identity, None, "", False)
        image = image_of(identity) if name in (Magic.LASTEXEC, None) else ""
        return _Seen(identity, place, image, name is Magic.MAGIC and creates(thread))

    async def _find(self, seen: _Seen) -> Place | None:
        """Its entry, or its nearest ancestor's.  A mignode that is not there knows no more than we do."""
        if seen.place is not None or not self._hears_forks or self._places.is_ordinary(seen.identity):
            return seen.place
        reply = await self._ask("resolve", seen.identity)
        if reply is None:
            return await self._aside(self._places.nearest, seen.identity, _parent)
        place: Place | None = msgspec.convert(reply.get("place"), Place | None)
        if place is None:
            self._places.note_ordinary(seen.identity)
        return place

    async def _created(self, identity: Identity, place: Place) -> Place:
        """A creation through magic where it runs: that is where magic leads from now on."""
        created = msgspec.structs.replace(place.passed_to(identity), magic=place.here)
        if await self._ask("created", identity, node=place.here) is None:  # the next mignode takes it from here
            self._places.put(created)
        return created

    async def _aside(self, look: Callable[..., T], *arguments: object) -> T:
        """Who looks at a process may have to wait for it, and it for this mount (kernel/processes.py)."""
        return await trio.to_thread.run_sync(look, *arguments, limiter=self._threads, abandon_on_cancel=True)

    async def _ask(self, command: str, identity: Identity, **arguments: object) -> control.Arguments | None:
        """mignode's answer about this process; None: it gives none."""
        pid, start_ticks = identity
        try:
            return await control.ask(
                self._mignode, command, deadline_s=ASK_WITHIN_S, pid=pid, start_ticks=start_ticks, **arguments
            )
        except OmfsError as error:
            log.debug("mignode, %s of process %d: %s", command, pid, error)
            return None

    # ------------------------------------------------------------ omfs-admin where

    async def _where(self, arguments: control.Arguments) -> control.WhereReply | control.NamesReply:
        """Where a path, or every magic name, leads a process, and why."""
        path, pid = arguments.get("path"), arguments.get("pid")
        if not isinstance(pid, int):
            raise ControlError('bad request: "pid" is missing')
        seen = await self._aside(self._see, None, pid)
        if seen is None:
            raise ControlError(f"process {pid}: no such process, or not shown to this mount")
        place, image = await self._find(seen), seen.image

        def explained(name: Magic) -> tuple[int, str]:
            node_id = resolve(name, place, image, self.own_id, False)
            return node_id, explain(name, place, image, self.own_id, False)

        if not isinstance(path, str):
            return control.NamesReply({name.value: explained(name) for name in Magic})
        return self._where_path(path, explained)

    def _where_path(self, path: str, explained: Callable[[Magic], tuple[int, str]]) -> control.WhereReply:
        """Raises ControlError."""
        below, top = PurePosixPath(path), PurePosixPath(self._mountpoint)
        if below == top:
            return control.WhereReply(0, path, why=f"{top} itself is nobody's")
        if top not in below.parents:
            raise ControlError(f"{path}: not below {top}")
        first, *rest = below.relative_to(top).parts
        if first in {name.value for name in Magic}:
            node_id, why = explained(Magic(first))
            return control.WhereReply(node_id, str(top.joinpath(str(node_id), *rest)), first, why)
        if first.isdigit():
            return control.WhereReply(int(first), str(below), why="the path names the node")
        return control.WhereReply(self.own_id, str(below), why="it is this node's own")


def _parent(key: tuple[int, int]) -> tuple[int, int] | None:
    return parent_of(Identity(*key))
