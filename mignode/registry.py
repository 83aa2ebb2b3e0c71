"""The process registry: the rules of book.py, driven by the kernel, and brought to the mount.

Each process with an entry has a pidfd that tells its end; fork events come from the proc connector where the kernel
gives them.  The book is used without an await in between, so its calls are in one order, and the forks that the kernel
has queued are taken before each.  What changes is told to the mount before the one who caused it is answered
(mountnews.py).  At the start the entries come back from the mount, each believed only if its process still is the same;
without a mount there is nothing to take back.
A look at a process may wait for it (kernel/processes.py: execve), and then all of mignode does: it answers no mount's
requests, so that ends when the mount's own wait does.
What it does not do: permissions and values (processfiles.py), the rules.  Called by daemon.py and processfiles.py.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from mignode.book import Book, Change, Entry
from mignode.keptsettings import KeptSettings
from mignode.mountnews import MountNews
from omfs.errors import ControlError, NotRunning
from omfs.kernel import processes
from omfs.kernel.forkevents import ForkEvents
from omfs.kernel.processes import Identity
from omfs.magic.places import Key, Place
from omfs.net import control

FORKS_GATHER_S: Final = 0.05  # far less than fills the kernel's queue, and a wakeup for each fork were dear
TAKE_BACK_WITHIN_S: Final = 10.0  # the mount tells what it knows; it may be busy
TAKE_BACK_PAUSE_S: Final = 1.0
TAKE_BACK_TRIES: Final = 6  # a minute in all: systemd waits for 90 s

log = logging.getLogger(__name__)


class _Told(msgspec.Struct):
    """A mount's answer to {"command": "places"}."""

    places: list[Place]
    dfsa: bool | None = None


class Registry:
    """The processes of this node that have something to remember."""

    def __init__(self, own_id: int, run_dir: Path) -> None:
        self.own_id = own_id
        self._mount = run_dir / "mount.sock"
        self._kept = KeptSettings(run_dir)
        self._kernel = _Kernel(_open_fork_events())
        self._book = Book(own_id, self._kernel)
        self._news = MountNews(self._mount, self._places, self.has_fork_events)
        self._ends = select.epoll()
        self._pidfds: dict[Key, int] = {}
        self._watched: dict[int, Key] = {}  # by pidfd
        self.exits = 0
        self.dfsa_of_mount: bool | None = None
        """As the mount said when we began; None: there was none."""

    def close(self) -> None:
        for key in list(self._pidfds):
            self._unwatch(key)
        self._ends.close()
        if self._kernel.events is not None:
            self._kernel.events.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started when everything was taken back."""
        await self._take_back()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._news.run)
            nursery.start_soon(self._heed_ends)
            if self._kernel.events is not None:
                nursery.start_soon(self._heed_forks, self._kernel.events)
            task_status.started()

    # ------------------------------------------------------------ what is asked

    def entry_of(self, key: Key) -> Entry:
        """What holds for this process."""
        self._note(self._book.notice())
        return self._book.entry_of(key)

    async def select(self, key: Key, node: int) -> None:
        """The process wrote *node* to its `selected`.  Its descendants keep what they have."""
        await self._tell(self._book.selected(key, node))

    async def set_settings(self, key: Key, **changes: object) -> None:
        """As book.Settings has them.  Raises OSError where they can't be kept; they hold all the same."""
        settings = msgspec.structs.replace(self.entry_of(key).settings, **changes)
        await self._tell(self._book.set_settings(key, settings))
        self._kept.keep(self._book)

    async def created(self, key: Key, node: int) -> None:
        """It created a file through /mfs/magic at *node*, says the mount."""
        await self._tell(self._book.created(key, node))

    def departing(self, process: Identity) -> Entry:
        """What another node must know of it."""
        self._note(self._book.notice())
        return self._book.departing(process, processes.image_of(process))

    async def arrived(self, entries: Iterable[Entry]) -> None:
        """Processes that are to run here, with what their last node knew of them; the mount knows when this returns."""
        for entry in entries:
            self._note(self._book.register(entry.place, entry.settings))
        await self._news.wait_told()

    def moved(self, process: Identity, node: int) -> None:
        """The guest of this deputy runs at *node* now."""
        self._note(self._book.moved(process, node, processes.image_of(process)))

    def resolve(self, key: Key) -> Place | None:
        """The entry that counts for a process, with all forks in it that have happened by now."""
        self._note(self._book.notice())
        return self._book.nearest(key)

    def tell_mount_everything(self) -> None:
        """A mount has asked for the places: whatever changes meanwhile, it will have the newest."""
        self._news.tell_everything()

    @property
    def has_fork_events(self) -> bool:
        return self._kernel.events is not None

    def places(self) -> list[Place]:
        """All entries."""
        self._note(self._book.notice())
        return self._places()

    def describe(self) -> dict[str, Any]:
        """For {"command": "status"}."""
        return {
            "processes": len(self._book),
            "fork_events": self.has_fork_events,
            "forks": self._kernel.forks_told,
            "exits": self.exits,
            "overruns": self._kernel.overruns,
            "told": self._news.told,
            "mount": self._news.refusal,
        }

    def _places(self) -> list[Place]:
        return [entry.place for entry in self._book]

    async def _tell(self, change: Change) -> None:
        """Returns when the mount has applied it."""
        self._note(change)
        await self._news.wait_told()

    # ------------------------------------------------------------ what the kernel tells

    async def _heed_forks(self, events: ForkEvents) -> None:
        """In batches, and most of a storm's children are gone by then: whom it matters to takes the forks before that.

        Whoever changes something, ends, or is asked about does.  Until then a child has the same from its ancestors.
        """
        while True:
            await trio.lowlevel.wait_readable(events.fileno())
            await trio.sleep(FORKS_GATHER_S)
            self._note(self._book.notice())

    async def _heed_ends(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._ends.fileno())
            for fd, _ in self._ends.poll(0):
                if (key := self._watched.get(fd)) is not None:
                    self.exits += 1
                    self._note(self._book.exited(key))

    # ------------------------------------------------------------ pidfds, and the mount

    def _note(self, change: Change) -> None:
        """Watch whom it brings, and have the mount told."""
        for key in change.gone:
            self._unwatch(key)
        for place in change.puts:
            if place.key not in self._pidfds and not self._watch(place.key):
                change.gone.extend(self._book.exited(place.key).gone)
        if change:
            self._news.note(change.puts, change.gone)

    def _watch(self, key: Key) -> bool:
        """False: it is gone already."""
        try:
            fd = processes.open_pidfd(Identity(*key))
        except ProcessLookupError:
            return False
        except OSError as error:  # its entry stays until we are started again: it matches no other process
            log.error("process %d can't be watched: %s", key[0], error.strerror)
            return True
        self._pidfds[key], self._watched[fd] = fd, key
        self._ends.register(fd, select.EPOLLIN)
        return True

    def _unwatch(self, key: Key) -> None:
        fd = self._pidfds.pop(key, None)
        if fd is not None:
            del self._watched[fd]
            self._ends.unregister(fd)
            os.close(fd)

    async def _take_back(self) -> None:
        """What was known before we were started."""
        places = await self._ask_mount()
        begun_s = time.monotonic()
        alive = [place for place in places if self._watch(place.key)]
        self._book.take_back(Entry(place, self._kept.of(place.key, self._kernel.parent_of)) for place in alive)
        if alive and self.has_fork_events:  # otherwise ancestors are all there is to go by
            self._note(self._book.catch_up())
        if places:
            took_s = time.monotonic() - begun_s
            log.info("%d of %d processes taken back in %.3f s", len(alive), len(places), took_s)

    async def _ask_mount(self) -> list[Place]:
        """Asked again while it is silent: what it is told next is all that it will know."""
        for _ in range(TAKE_BACK_TRIES):
            try:
                told = await control.ask(self._mount, "places", deadline_s=TAKE_BACK_WITHIN_S)
                answer = msgspec.convert(told, _Told)
                self.dfsa_of_mount = answer.dfsa
                return answer.places
            except NotRunning:
                return []
            except (ControlError, msgspec.ValidationError) as error:
                refusal = error
                await trio.sleep(TAKE_BACK_PAUSE_S)
        log.error("nothing is known of the processes that had an entry: %s", refusal)
        return []


def _open_fork_events() -> ForkEvents | None:
    try:
        return ForkEvents.open()
    except OSError as error:
        log.info("no fork events: %s; children are known by their ancestors", error.strerror or error)
        return None


class _Kernel:
    """book.Processes, as the kernel shows them."""

    def __init__(self, events: ForkEvents | None) -> None:
        self.events = events
        self.forks_told = 0
        self.overruns = 0  # times that there was more to tell than its queue could keep

    def parent_of(self, key: Key) -> Key | None:
        return processes.parent_of(Identity(*key))

    def children_of(self, key: Key) -> list[Identity]:
        return processes.children_of(Identity(*key))

    def identify(self, pid: int) -> Key | None:
        return processes.identify(pid)

    def living(self) -> list[Identity]:
        return [one for pid in processes.processes() if (one := processes.identify(pid)) is not None]

    def forks(self) -> list[tuple[int, int]] | None:
        if self.events is None:
            return []
        forked = self.events.drain()
        self.forks_told += len(forked)
        if self.events.lost:
            self.overruns += 1
            log.warning("fork events were lost: looking at all processes")
            return None
        return [(one.parent, one.child) for one in forked]
