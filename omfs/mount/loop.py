"""The cheap session loop: one worker of pyfuse3, the leader, reads the device until it has to wait for an answer.

pyfuse3's own loop passes every request to another task.  Here the leader keeps reading as long as handlers end
without waiting; when one really waits, leadership goes to an idle worker (the one used last, so that few buffers
are warm).  Replaces `pyfuse3._wait_fuse_readable` where the hook (lowlevel.py) is installed.

It also knows which task waits for which request, so that an INTERRUPT of the kernel reaches it.  Invariants: at most
one leader; a waiting handler is never the leader's; the first worker ends last; after `Hook.ended` every worker gets
False and ends.  Called by session.py; operations wrap their methods with `Loop.watched`.
"""

from __future__ import annotations

import contextlib
import select
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, NamedTuple

import trio
from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_readable, wait_task_rescheduled

from omfs.mount import lowlevel_abi as abi
from omfs.mount.lowlevel import Hook
from omfs.net.spin import Spinner

_FAIR_EVERY: Final = 32  # requests answered in a row before other tasks of the daemon get their turn
_LINGER_S: Final = 0.001  # the least that epoll can wait in Python; a reply within one network comes sooner
_LINGERS_IN_VAIN: Final = 4  # after so many in a row the node is far or busy ...
_LINGER_AGAIN_AFTER: Final = 64  # ... and only one request of so many tries it
_IDLE_MAX: Final = 32  # a worker has a buffer of 1 MiB; what a crowd of waiting requests needed is given back
_PAIRS_MAX: Final = 256


class Waiting(NamedTuple):
    """A request whose handler waits: the task to interrupt, and the calling thread (as the daemon sees it)."""

    task: Task
    pid: int


class Loop:
    """Leadership and interruption; one per mount, made when the hook is attached."""

    def __init__(self, hook: Hook, interrupt: Callable[[Waiting], None]) -> None:
        self.waiting: dict[int, Waiting] = {}  # by the request's unique number
        self._hook = hook
        self._interrupt = interrupt
        self.add_worker: Callable[[], None] = lambda: None  # starts one more; set by session.py
        self._leader: Task | None = None
        self._first: Task | None = None  # pyfuse3.main's own worker: the mount is over when that ends
        self._idle: list[Task] = []
        self._in_a_row = 0
        self._poll = select.epoll()
        self._poll.register(hook.fd, select.EPOLLIN)
        self._replies = Spinner()
        self._requests = Spinner(beside=self._replies)
        self._polled: dict[int, tuple[int, int]] = {}  # pairs of descriptors in _poll, by identity
        self._in_vain = 0
        hook.takers[abi.INTERRUPT] = self._take_interrupt
        hook.on_end = self._wake_all
        hook.goes_on = self._goes_on

    def _take_interrupt(self, hook: Hook, request: memoryview) -> None:
        # The kernel sends it only for a request that was read before; if it is not waiting, it was answered.
        waiting = self.waiting.get(abi.interrupted_unique(request))
        if waiting is not None:
            self._interrupt(waiting)

    async def wait(self) -> bool:
        """What a worker does between two requests; False when it shall end: too many are idle, or the mount is over."""
        hook = self._hook
        me = current_task()
        self._first = self._first or me
        if hook.pending is not None:
            (taken, wish), hook.pending = hook.pending, None
            await self._wait_for(taken, wish)
        if self._leader is not me and self._leader is not None and not hook.ended:
            if len(self._idle) >= _IDLE_MAX and me is not self._first:
                return False
            await self._park(me)
        if hook.ended:
            return False
        self._leader = me
        if hook.drained or not (self.waiting or self._comes_soon()):
            hook.drained = False
            return await self._wait_for_request()
        self._in_a_row += 1
        if self._in_a_row >= _FAIR_EVERY:
            self._in_a_row = 0
            await checkpoint()
        return True

    def _goes_on(self) -> bool:
        """A request was answered without waiting: whether the next one may be read at once.

        Saves the way through pyfuse3's loop and `wait`, which do the same slower.
        """
        if self.waiting or self._in_a_row >= _FAIR_EVERY - 1:
            return False
        self._in_a_row += 1
        if self._comes_soon():
            return True
        self._hook.drained = True  # wait() need not look again
        return False

    def _comes_soon(self) -> bool:
        """Whether the next request is there within a moment: programs tend to make several calls in a row."""
        events = self._requests.poll(self._poll, _LINGER_S)
        return len(events) == 1 and events[0][0] == self._hook.fd

    async def _wait_for_request(self) -> bool:
        self._in_a_row = 0
        try:
            await wait_readable(self._hook.fd)
        except trio.ClosedResourceError:
            self._hook.ended = True
            self._wake_all()
            return False
        return True

    def linger(self, descriptors: tuple[int, int]) -> int:
        """`net.peer.Linger`: if nothing else is to do, wait here for the reply to the request just sent.

        Saves handing over leadership, two more tasks' steps and the way back: a third of a small request's time.
        Only the leader may, and only while no other request is under way; any news on the device ends it.
        """
        if self._leader is not current_task() or self.waiting:
            return -1
        if self._in_vain >= _LINGERS_IN_VAIN:
            self._in_vain += 1
            if self._in_vain < _LINGER_AGAIN_AFTER:
                return -1
            self._in_vain = _LINGERS_IN_VAIN - 1
        if self._polled.get(id(descriptors)) is not descriptors:
            self._poll_also(descriptors)
        events = self._replies.poll(self._poll, _LINGER_S)
        if not events:
            self._in_vain += 1
        for descriptor, _ in events:
            if descriptor in descriptors:
                self._in_vain = 0
                return descriptor
        return -1

    def _poll_also(self, descriptors: tuple[int, int]) -> None:
        if len(self._polled) >= _PAIRS_MAX:
            self._poll.close()
            self._poll = select.epoll()
            self._poll.register(self._hook.fd, select.EPOLLIN)
            self._polled.clear()
        for descriptor in descriptors:
            with contextlib.suppress(FileExistsError):  # a closed one with this number has left by itself
                self._poll.register(descriptor, select.EPOLLIN)
        self._polled[id(descriptors)] = descriptors

    def watched(self, method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """*method* of pyfuse3's Operations, run so that the loop knows when it waits."""
        watch = self._watch

        def run(*arguments: Any) -> Any:
            return watch(method(*arguments))

        return run

    async def _park(self, me: Task) -> None:
        self._idle.append(me)

        def abort(_: object) -> Abort:
            if me in self._idle:
                self._idle.remove(me)
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def _wake_all(self) -> None:
        self._leader = None
        while self._idle:
            reschedule(self._idle.pop())

    def _hand_over(self) -> None:
        if self._leader is current_task():
            self._leader = None
            if self._idle:
                self._leader = self._idle.pop()
                self._hook.drained = True  # most likely nothing came meanwhile: let it wait before it reads
                reschedule(self._leader)
            else:
                self.add_worker()  # it finds no leader, and becomes it

    @types.coroutine
    def _watch(self, handler: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run *handler* like `await`, but give up leadership and be interruptible as soon as it waits."""
        try:
            wish = handler.send(None)
        except StopIteration as end:
            return end.value
        return (yield from self._wait_for(handler, wish))

    @types.coroutine
    def _wait_for(self, handler: Coroutine[Any, Any, Any], wish: Any) -> Generator[Any, Any, Any]:
        """The rest of *handler*, which has just asked trio for *wish*."""
        unique = self._hook.unique  # still this one's: nothing else ran since it was received
        if self._hook.opcode not in abi.NOBODY_WAITS_FOR:
            self.waiting[unique] = Waiting(current_task(), self._hook.pid)
        self._hand_over()
        try:
            while True:
                try:
                    answer = yield wish
                except BaseException as error:
                    wish = handler.throw(error)
                else:
                    wish = handler.send(answer)
        except StopIteration as end:
            return end.value
        finally:
            self.waiting.pop(unique, None)
