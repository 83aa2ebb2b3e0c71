"""Names in flight: calls of ours that make, remove or move a name, until this node's kernel has finished with them.

The owner shows a change to others as soon as it has executed it.  From then on no program of this node may see the name
as it was, though the kernel has it cached, and keeps the directory locked for the call, so that nobody can make it
forget.  But it looks at no name without valid attributes of the directory (default_permissions).  So

    sent        the directory's attributes are void, and none that are told stay
    GETATTR     of the directory waits until the kernel was answered (`wait_landed`) ...
    landed      ... and the thread that made the call has taken the answer: when it asks something else, or has ended,
                or another call changes the directory, or somebody else can lock it

So who is alone waits for nothing.  Who asks before the kernel was answered has not locked this directory; but a rename
asks with others locked, and what it waits for may be waiting for those (recall.py).  Who asks afterwards may have it
locked himself, if he is about to change something there.  Both are answered after LOCKED_BY_ASKER_S at the latest, and
what they do is judged by the owner.

Threads that are not known (0) count as one.  Called by operations*.py, takenops.py and unasked.py.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

import trio

from omfs.kernel.callers import may_rename, only_looks
from omfs.mount.forgetting import lock_once

if TYPE_CHECKING:
    from omfs.mount.inodes import Inode
    from omfs.mount.recall import Recaller
    from omfs.mount.remote import RemoteNode

LOCKED_BY_ASKER_S: Final = 0.02  # longer than most calls take
_LOOK_AGAIN_S: Final = 0.001  # whether a thread has ended
_THREADS_MAX: Final = 64


class Flight:
    """One call; *thread* makes it."""

    __slots__ = ("_waiting", "has_landed", "is_answered", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self._waiting: set[trio.CancelScope] = set()
        self.is_answered = False
        self.has_landed = False

    def answered(self) -> None:
        """The kernel is answered in this step."""
        self.is_answered = True
        self._wake()

    def landed(self) -> None:
        """The kernel has finished with it."""
        self.is_answered = self.has_landed = True
        self._wake()

    def is_over_for(self, thread: int) -> bool:
        """Whether it has landed, now that *thread* asks: a thread makes one call after the other."""
        if self.is_answered and not self.has_landed and (self.thread == thread or _has_ended(self.thread)):
            self.landed()
        return self.has_landed

    def _wake(self) -> None:
        for scope in self._waiting:
            scope.cancel()

    async def wait_answered(self) -> None:
        with self.until_news():
            if not self.is_answered:
                await trio.sleep_forever()

    @contextlib.contextmanager
    def until_news(self) -> Iterator[None]:
        """What is waited for inside is given up when the flight is answered, or has landed."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                yield
            finally:
                self._waiting.discard(scope)


def _has_ended(thread: int) -> bool:
    try:
        if thread:
            os.kill(thread, 0)
    except ProcessLookupError:
        return True
    return False


def in_flight(directory: Inode[RemoteNode], thread: int) -> bool:
    """Whether there are names that *thread*, which asks about the directory now, might see as they were."""
    if directory.flights:
        directory.flights = tuple(flight for flight in directory.flights if not flight.is_over_for(thread))
    return bool(directory.flights)


class Flights:
    """Of one mount."""

    def __init__(self, recaller: Recaller, on_next: dict[int, Callable[[], None]]) -> None:
        """*on_next*: called with the next request of a thread (`Hook.on_next`)."""
        self._recaller = recaller
        self._on_next = on_next
        self._threads = trio.CapacityLimiter(_THREADS_MAX)

    def begin(self, directories: Iterable[Inode[RemoteNode]], thread: int) -> Flight:
        """A call is about to be sent that changes names of these directories.

        The kernel has locked them for it, so those that were answered before have landed.
        """
        flight = Flight(thread)
        for directory in directories:
            for earlier in directory.flights:
                if earlier.is_answered:
                    earlier.landed()
            directory.flights = (*(one for one in directory.flights if not one.has_landed), flight)
            self._recaller.void_attributes(directory)
        return flight

    async def wait_landed(self, directory: Inode[RemoteNode], thread: int) -> None:
        """Before anything of the directory is told to *thread*: what is in flight now has landed."""
        for flight in directory.flights:
            if flight.is_answered:
                within_s = math.inf if await self._is(only_looks, thread) else LOCKED_BY_ASKER_S
                with trio.move_on_after(within_s):
                    await self._wait_over(directory, flight, thread)
                continue
            with trio.move_on_after(LOCKED_BY_ASKER_S) as scope:
                await self._wait_over(directory, flight, thread)
            if scope.cancelled_caught and not await self._is(may_rename, thread):
                await self._wait_over(directory, flight, thread)
        in_flight(directory, thread)

    async def _is(self, question: Callable[[int], bool], thread: int) -> bool:
        # From a thread: it may have to wait for that process, and it for us (kernel/processes.py).
        return await trio.to_thread.run_sync(question, thread, limiter=self._threads, abandon_on_cancel=True)

    async def _wait_over(self, directory: Inode[RemoteNode], flight: Flight, thread: int) -> None:
        """Until it has landed, in one way or another."""
        await flight.wait_answered()
        self._on_next[flight.thread] = flight.landed
        try:
            with flight.until_news():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._wait_lock, directory, flight)
                    while True:
                        flight.is_over_for(thread)  # if so, this ends here
                        await trio.sleep(_LOOK_AGAIN_S)
        finally:
            self._on_next.pop(flight.thread, None)

    async def _wait_lock(self, directory: Inode[RemoteNode], flight: Flight) -> None:
        """Until somebody else could lock the directory."""
        notifier = self._recaller.notifier
        if notifier is not None:
            await trio.to_thread.run_sync(
                lock_once, notifier, directory.id, limiter=self._threads, abandon_on_cancel=True
            )
        flight.landed()
