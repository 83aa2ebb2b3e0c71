"""Answers the calls of a guest that its filter stops: those that home must answer, and those that are refused.

One router per guest, that is, per filter.  A refused call fails at once with the errno of its verdict and is counted
by name.  A call of HOME goes to its handler; what the handler gives is the answer: a value, an error, a descriptor, or
Proceed, the kernel's own answer.  What a handler knows at once is answered at once, since a task of its own would take
longer than all the rest; what it has to wait for is awaited in one.

Invariants:

* Proceed is only for calls whose arguments are all values (verdict.VALUES_ONLY), and for those that are noted whatever
  they do (LASTING).  A handler that looks into the guest's memory (a path, a structure) acts on what it has read,
  once, and answers with a value or a descriptor;
* each call that was received gets one answer, whatever the handler does: an error of ours gives its errno, what took
  longer than HOME_CALL_TIMEOUT_S the errno of a node that is down, anything else EIO and a line in the log;
* at most GUEST_CALLS_MAX calls are with handlers; what comes meanwhile waits in the kernel, and nothing is lost;
* the end of the router, also by kill -9, is ENOSYS for all calls that it answered for: nobody hangs.

While CRIU restores a guest below the filter, it is its calls that are stopped: until `restored` all proceed.

What it does not do: install the filter, know home (outside.py does).  Runs in mignode, on the node where the guest is.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple, TypeAlias, assert_never

import trio

from dfsa.verdict import LASTING, UNKNOWN, VALUES_ONLY, Verdict, Where, judged, named
from omfs.config import GUEST_CALLS_MAX, HOME_CALL_TIMEOUT_S
from omfs.errors import NodeDown, OmfsError
from omfs.kernel.seccomp import Listener, Notification

log: Final = logging.getLogger(__name__)


class Call(NamedTuple):
    """*thread*: its number here, not in the guest's namespace.

    *waits* tells whether it still waits: to be asked after whatever went by that number, such as reading its memory.
    """

    name: str
    arguments: tuple[int, ...]
    thread: int
    waits: Callable[[], bool]


class Value(NamedTuple):
    """What the call returns."""

    value: int


class Descriptor(NamedTuple):
    """The guest gets a duplicate, and its number is what the call returns; the router closes this one."""

    descriptor: int
    close_on_exec: bool


class Proceed(NamedTuple):
    """The kernel does the call."""


Answer: TypeAlias = Value | Descriptor | Proceed
Handler: TypeAlias = Callable[[Call], Answer | Awaitable[Answer]]
"""Raises OSError or OmfsError, at once or later: the call fails with its errno."""


class Router:
    """For the guest below *listener*'s filter.  *handlers* by name of the call; *judge* gives a call's verdict."""

    def __init__(
        self,
        listener: Listener,
        handlers: Mapping[str, Handler],
        *,
        restoring: bool = False,
        judge: Callable[[str], Verdict] = judged,
        timeout_s: float = HOME_CALL_TIMEOUT_S,
    ) -> None:
        self.refused: Counter[str] = Counter()
        """Calls refused so far, by name; "call 999" where the number has none."""
        self.asked: Counter[str] = Counter()
        """Calls that went to a handler so far, by name."""
        self._listener = listener
        self._handlers = handlers
        self._is_restoring = restoring
        self._judge = judge
        self._timeout_s = timeout_s
        self._names = named(platform.machine())
        self._room = trio.Semaphore(GUEST_CALLS_MAX)

    def restored(self) -> None:
        """From now on it is the guest that calls."""
        self._is_restoring = False

    async def serve(self) -> None:
        """Until no thread is left below the filter.  Closes the listener, also when cancelled.

        With all places taken the end is noticed when one is free again, after the time-out at the latest.
        """
        try:
            async with trio.open_nursery() as nursery:
                await self._room.acquire()
                while (stopped := await self._wait_for_next()) is not None:
                    name = self._names.get(stopped.call, f"call {stopped.call}")
                    later = self._answer_at_once(stopped, name)
                    if later is not None:
                        nursery.start_soon(self._answer_later, later, stopped, name)
                        await self._room.acquire()
                nursery.cancel_scope.cancel()  # whoever is still asked for has died
        finally:
            self._listener.close()

    async def _wait_for_next(self) -> Notification | None:
        """None: none will come."""
        while True:
            await trio.lowlevel.wait_readable(self._listener.descriptor)
            stopped = self._listener.receive()
            if stopped is not None or self._listener.is_deserted():
                return stopped

    def _answer_at_once(self, stopped: Notification, name: str) -> Awaitable[Answer] | None:
        """What is to be waited for before there is an answer; None: it has one."""
        if self._is_restoring:
            self._listener.proceed(stopped.id)
            return None
        verdict = self._judge(name)
        handler = self._handlers.get(name) if verdict.where is Where.HOME else None
        if handler is None:
            self._refuse(stopped.id, name, UNKNOWN if verdict.where is Where.HOME else verdict)
            return None
        self.asked[name] += 1
        try:
            found = handler(Call(name, stopped.arguments, stopped.thread, lambda: self._listener.waits(stopped.id)))
            if not isinstance(found, Value | Descriptor | Proceed):
                return found
            self._give(stopped.id, name, found)
        except Exception as error:
            self._listener.fail(stopped.id, _errno_of(error, name))
        return None

    def _refuse(self, id_: int, name: str, verdict: Verdict) -> None:
        if name not in self.refused:
            log.info("a guest's %s is refused (%s): %s", name, errno.errorcode[verdict.errno], verdict.reason)
        self.refused[name] += 1
        self._listener.fail(id_, verdict.errno)

    async def _answer_later(self, later: Awaitable[Answer], stopped: Notification, name: str) -> None:
        try:
            with trio.fail_after(self._timeout_s):
                answer = await later
            self._give(stopped.id, name, answer)
        except Exception as error:
            self._listener.fail(stopped.id, _errno_of(error, name))
        finally:
            self._room.release()

    def _give(self, id_: int, name: str, answer: Answer) -> None:
        """False of the listener is no error: who asked has died."""
        match answer:
            case Value(value):
                self._listener.answer(id_, value)
            case Descriptor(descriptor, close_on_exec):
                try:
                    self._listener.hand_over(id_, descriptor, close_on_exec=close_on_exec)
                finally:
                    os.close(descriptor)
            case Proceed():
                if name not in VALUES_ONLY | LASTING:
                    raise RuntimeError(f"{name} has arguments in memory: its handler must answer it")
                self._listener.proceed(id_)
            case _:
                assert_never(answer)


def _errno_of(error: Exception, name: str) -> int:
    match error:
        case trio.TooSlowError():
            return NodeDown.errno
        case OmfsError():
            return error.errno
        case OSError() if error.errno:
            return error.errno
        case _:
            log.error("the handler of %s failed", name, exc_info=error)
            return errno.EIO
