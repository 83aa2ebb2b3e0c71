"""Where the magic names lead a process: this mount's copy of the registry of processes (mignode), and what it says.

Nobody waits for mignode to look a name up: all that is remembered of processes is here (magic/places.py), and what is
not here is an ordinary process, for which everything is this node.  Only where mignode hears of forks it is asked once
for each process without an entry.  mignode tells every change before
whoever made it is answered; one that begins takes the entries from here, and a mount that begins takes them from it.

A creation through /mfs/magic may change where that leads afterwards: then mignode is told before the name is answered.
Called by magiclinks.py and daemon.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

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
_LOOKS_INTO: Final = frozenset({Magic.LASTEXEC, Magic.MAGIC})  # the process that asks, unless it is ordinary
T = TypeVar("T")
U = TypeVar("U")


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """mignode's "place": *everything*: there are no other entries; *gone*: pid and start of processes that ended."""

    places: tuple[Place, ...] = ()
    gone: tuple[tuple[int, int], ...] = ()
    fork_events: bool = False
    everything: bool = False


class Replica:
    """One per mount."""

    def __init__(self, own_id: int, mignode: Path, mountpoint: str) -> None:
        """*mignode*: its control socket."""
        self.own_id = own_id
        self._mountpoint = mountpoint
        self._mignode = mignode
        self._places = Places(ORDINARY_MAX)
        self._hears_forks = False

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
        return {"places": tuple(self._places)}

    async def fetch(self) -> None:
        """Take what a mignode that runs already knows."""
        try:
            reply = await control.ask(self._mignode, "places", deadline_s=ASK_WITHIN_S)
            self._take(msgspec.convert({**reply, "everything": True}, Told))
        except NotRunning:
            return
        except (OmfsError, msgspec.ValidationError) as error:
            log.warning("mignode did not tell what it knows of processes: %s", error)

    # ------------------------------------------------------------ what is asked

    def resolved(self, name: Magic, thread: int) -> int | None:
        """The node that the name leads to for the process of this thread; None: `wait_resolved` must find out."""
        if not len(self._places):
            return self.own_id
        identity = identify(thread)
        if identity is None:
            return self.own_id
        if self._hears_forks:  # then an orphan may be below a stranger with an entry: only mignode knows its ancestors
            place = self._places.get(identity)
            if place is None and not self._places.is_ordinary(identity):
                return None
        else:
            place = self._places.nearest(identity, _parent)
            if place is None:
                self._places.note_ordinary(identity)
        if place is None:
            return self.own_id
        if name in _LOOKS_INTO:
            return None
        return resolve(name, place, "", self.own_id, False)

    async def wait_resolved(self, name: Magic, thread: int) -> int:
        """As `resolved`, where mignode must be asked or told something, or somebody must look into the process."""
        identity = identify(thread)
        place = await self._find(identity) if identity is not None else None
        if identity is None or place is None:
            return self.own_id
        image, is_creating = "", False
        if name is Magic.LASTEXEC:
            image = await _aside(image_of, identity)
        if name is Magic.MAGIC:
            is_creating = await _aside(creates, thread)
        if is_creating and is_news(place):
            place = await self._created(identity, place)
        return resolve(name, place, image, self.own_id, is_creating)

    async def _find(self, identity: Identity) -> Place | None:
        """Its entry, or its nearest ancestor's.  A mignode that is not there knows no more than we do."""
        place = self._places.get(identity)
        if place is None and self._hears_forks and not self._places.is_ordinary(identity):
            reply = await self._ask("resolve", identity)
            if reply is not None:
                found: Place | None = msgspec.convert(reply.get("place"), Place | None)
                if found is None:
                    self._places.note_ordinary(identity)
                return found
        return place or self._places.nearest(identity, _parent)

    async def _created(self, identity: Identity, place: Place) -> Place:
        """A creation through magic where it runs: that is where magic leads from now on."""
        if await self._ask("created", identity, node=place.here) is None:  # the next mignode takes it from here
            self._places.put(msgspec.structs.replace(place.passed_to(identity), magic=place.here))
        return self._places.nearest(identity, _parent) or place

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
        identity = identify(pid)
        if identity is None:
            raise ControlError(f"process {pid}: no such process, or not shown to this mount")
        place = await self._find(identity)
        image = "" if place is None else await _aside(image_of, identity)

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


async def _aside(look: Callable[[T], U], at: T) -> U:
    """In a thread, as who looks into a process may have to wait for it, and it for us (kernel/processes.py)."""
    return await trio.to_thread.run_sync(look, at, abandon_on_cancel=True)


def _parent(key: tuple[int, int]) -> tuple[int, int] | None:
    return parent_of(Identity(*key))
