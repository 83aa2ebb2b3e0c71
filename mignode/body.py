"""A guest's init as mignode sees it: asks and tells it over body.sock, and hears what happens there.

`hatch` makes a new one, `connect` finds one that has outlived another mignode.  What the init says is read by a task in
the nursery that they were given, until the init ends or another mignode connects; then whatever waits raises BodyLost.
What fails in there raises OSError, with the errno and reason that it has there; an init that is silent, ETIMEDOUT.

Numbers of processes are the guest's own, but where "outer" says that they are mignode's.  What an init does is in
guestinit.py.  Called by mignode's rooms for guests.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import trio

from dfsa.guestroot import World
from mignode import bodywords as words
from mignode.bodysocket import BodySocket
from mignode.bodytime import ANSWER_S, in_time
from mignode.criutalk import Start, Worker
from mignode.guestinit import SOCKET
from mignode.hatchery import Hatchery
from omfs.errors import BodyLost, WireError
from omfs.kernel.processes import descendants_of, identify, read_file
from omfs.kernel.procfs import parse_status

log: Final = logging.getLogger(__name__)

_Answer = TypeVar("_Answer", bound=words.Answer)
_ENDED: Final = "the guest's init has ended"


class Prepared(NamedTuple):
    """Standard files for a tree to be restored.

    *external*: for checkpoint.Tree.  *inherited*: for Criu.restore; the descriptors are the caller's to close.
    """

    external: tuple[str, ...]
    inherited: dict[str, int]


async def hatch(hatchery: Hatchery, nursery: trio.Nursery, folder: Path, world: World) -> Body:
    """A new init in *folder*.  Raises OSError where its tree can't be made, BodyLost."""
    return await _begin(hatchery.order(folder, world), nursery)


async def connect(nursery: trio.Nursery, folder: Path) -> Body:
    """The init that listens in *folder*.  Raises BodyLost where there is none any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        sock.connect(str(folder / SOCKET))  # of a unix socket this does not wait
    except OSError as error:
        sock.close()
        raise BodyLost(f"{_ENDED} ({error.strerror})") from None
    with in_time("the guest's init did not answer"):
        return await _begin(sock, nursery)


async def _begin(sock: socket.socket, nursery: trio.Nursery) -> Body:
    way = BodySocket(sock)
    try:
        received = await _next(way)
        if received is None:
            raise BodyLost(_ENDED)
        word, descriptors = received
        if isinstance(word, words.Failed):
            raise OSError(word.errno, word.text)
        if not isinstance(word, words.Ready) or len(descriptors) != 1:
            raise WireError(f"a guest's init begins with {type(word).__name__}")
    except BaseException:
        way.close()
        raise
    body = Body(way, word, descriptors[0])
    nursery.start_soon(body.serve)
    return body


async def _next(way: BodySocket) -> tuple[words.Word, list[int]] | None:
    while True:
        await trio.lowlevel.wait_readable(way.sock)
        try:
            return way.receive()
        except BlockingIOError:
            continue
        except ConnectionResetError:  # it ended before it had accepted us
            return None


class _Call:
    """A request under way."""

    def __init__(self) -> None:
        self.is_answered = trio.Event()
        self.answer: words.Answer | None = None  # None: it was lost
        self.descriptors: list[int] = []
        self.command: _Command | None = None  # where it is one that was started


class Body:
    """Made by `hatch` and `connect`."""

    def __init__(self, way: BodySocket, ready: words.Ready, proc: int) -> None:
        self.pid = ready.pid
        """Of the init; outer."""
        self.proc = proc
        """A descriptor of the guest's /proc; closed with the connection, so who may need it longer has a duplicate."""
        self.root = ready.root
        """Of the guest's root; 0: there is none (yet, or any more)."""
        self.root_status = ready.root_status
        """How the root ended, as waitpid(2) has it."""
        self.has_run = ready.has_run
        """As words.Ready has it."""
        self.is_frozen = ready.is_frozen
        self.kept = frozenset(ready.kept)
        """What an earlier mignode gave it to keep."""
        self._way = way
        self._calls: dict[int, _Call] = {}
        self._last_id = 0
        self._commands = {pid: _Command(self, pid) for pid in ready.commands}
        self._is_behind = trio.Event()
        self._root_ended = trio.Event()
        self._gone = trio.Event()
        self._told = trio.Event()
        self._lost = trio.Event()
        # without a bound here, since the windows of the standard files are one
        self._frames_in, self.frames = trio.open_memory_channel[bytes](math.inf)
        """Of the standard files, for the deputy; ends with the connection."""
        for happened, event in (
            (ready.root_status is not None, self._root_ended), (ready.is_gone, self._gone), (ready.is_told, self._told)
        ):  # fmt: skip
            if happened:
                event.set()

    # ------------------------------------------------------------ the guest's program

    async def run(
        self, program: words.Program, plan: bytes, filter_: bytes = b"", listening: Callable[[int], None] | None = None
    ) -> None:
        """Start it as the guest's root; *plan*: of its standard files; below a filter as `starting` says.

        However long that takes: its file may be of a silent node.  OSError as execvp(3) has it; EEXIST: somebody in
        there has its pid.
        """
        call = await self._call(words.Run(self._id(), program, plan, filter_), deadline_s=math.inf)
        self.root = _answered(call, words.Started).pid
        _hand_over(call.descriptors, listening)
        self._commands.pop(self.root)  # it is none

    async def adopt(self, pid: int) -> None:
        """What CRIU has restored is the root.  To be said before it runs."""
        await self._ask(words.Adopt(self._id(), pid), words.Done)
        self.root = pid

    async def signal(self, pid: int, number: int) -> None:
        """kill(2); -1: all but the init."""
        await self._ask(words.Signal(self._id(), pid, number), words.Done)

    async def set_last_pid(self, number: int) -> None:
        """The next process inside gets a number above this."""
        await self._ask(words.SetLastPid(self._id(), number), words.Done)

    async def all_pids(self) -> dict[int, int]:
        """Outer pids by inner ones, parents first, of all processes but the init and its commands.

        What comes and goes meanwhile may be missed.
        """
        commands = frozenset(self._commands)
        with in_time("its processes could not be looked at"):
            return await trio.to_thread.run_sync(_pids_below, self.pid, commands, abandon_on_cancel=True)

    async def outer_root(self) -> int:
        """The root's outer pid.  Raises ProcessLookupError."""
        try:
            return (await self.all_pids())[self.root]
        except KeyError:
            raise ProcessLookupError(errno.ESRCH, "the guest's root has ended") from None

    # ------------------------------------------------------------ commands

    async def start(self, command: Sequence[str], descriptors: Mapping[int, int]) -> Worker:
        """A criutalk.Start inside, as the init's child and with root's ids.  Raises OSError."""
        return await self._start(command, descriptors)

    def running(self) -> Mapping[int, Worker]:
        """The commands that run inside, by pid; also those of an earlier mignode."""
        return self._commands

    def starting(
        self, real_uid: int = 0, real_gid: int = 0, filter_: bytes = b"", listening: Callable[[int], None] | None = None
    ) -> Start:
        """The same with other real ids (docs/migration.md says why CRIU needs them), below a filter of system calls.

        *listening* gets the descriptor of the filter's listener, which it owns, before the Start returns: from then on
        what the filter stops waits for whoever serves it.  The init keeps one too, see `fetch`.
        """

        async def start(command: Sequence[str], descriptors: Mapping[int, int]) -> Worker:
            return await self._start(command, descriptors, real_uid, real_gid, filter_, listening)

        return start

    def start_below(
        self, filter_: bytes, listening: Callable[[int], None], real_uid: int = 0, real_gid: int = 0
    ) -> Start:
        """`starting` with a filter."""
        return self.starting(real_uid, real_gid, filter_, listening)

    async def _start(
        self, command: Sequence[str], descriptors: Mapping[int, int], real_uid: int = 0, real_gid: int = 0,
        filter_: bytes = b"", listening: Callable[[int], None] | None = None,
    ) -> Worker:  # fmt: skip
        asked = words.StartCommand(
            self._id(), tuple(command), tuple(descriptors), real_uid, real_gid, filter_
        )  # fmt: skip
        call = await self._call(asked, list(descriptors.values()))
        _answered(call, words.Started)
        assert call.command is not None
        _hand_over(call.descriptors, listening)
        return call.command

    # ------------------------------------------------------------ its standard files

    async def prepare_files(self, plan: bytes, state: bytes) -> Prepared:
        """For a tree that will be restored here."""
        call = await self._call(words.PrepareFiles(self._id(), plan, state))
        answer = _answered(call, words.FilesNamed)
        self.is_frozen = False
        return Prepared(answer.external, dict(zip(answer.keys, call.descriptors, strict=True)))

    async def given(self) -> None:
        """The restored tree has them."""
        await self._ask(words.FilesGiven(self._id()), words.Done)

    async def external_files(self) -> tuple[str, ...]:
        """For checkpoint.Tree, at the dump."""
        return (await self._ask(words.NameFiles(self._id()), words.FilesNamed)).external

    async def freeze_files(self) -> bytes:
        """The tree is frozen: their state, for another node.  The root's end is not told to the deputy any more."""
        frozen = await self._ask(words.FreezeFiles(self._id()), words.FilesFrozen)
        self.is_frozen = True
        return frozen.state

    async def thaw_files(self) -> None:
        """It goes on here."""
        await self._ask(words.ThawFiles(self._id()), words.Done)
        self.is_frozen = False

    def send_frame(self, frame: bytes) -> None:
        """From the deputy."""
        self._post(words.Frame(frame))

    def deputy_stopped(self) -> None:
        """The root is to be, too.  Raises BodyLost."""
        self._post(words.StopRoot())

    def way_is_open(self) -> None:
        """Frames reach the deputy, from now on."""
        self._post(words.Way(open=True))

    def way_is_lost(self) -> None:
        """Frames do not."""
        self._post(words.Way(open=False))

    # ------------------------------------------------------------ what must outlive this mignode

    async def keep(self, name: str, descriptors: Sequence[int]) -> None:
        """The init has duplicates of them under this name; none: it forgets what it had."""
        await self._call(words.Keep(self._id(), name), descriptors)

    async def fetch(self, name: str) -> list[int]:
        """Duplicates of them, which are the caller's."""
        call = await self._call(words.Fetch(self._id(), name))
        return call.descriptors

    # ------------------------------------------------------------ its end

    async def wait_root_ended(self) -> int:
        """Its status as waitpid(2) has it; here, and perhaps only because it has moved.  Raises BodyLost."""
        await self._wait(self._root_ended)
        assert self.root_status is not None
        return self.root_status

    async def wait_gone(self) -> None:
        """Until no process of the guest is left.  Raises BodyLost."""
        await self._wait(self._gone)

    async def wait_told(self) -> None:
        """Until the deputy has all that they said, as well.  Raises BodyLost."""
        await self._wait(self._told)

    async def wait_lost(self) -> None:
        """Until the connection is: the init has ended, or another mignode has it."""
        await self._lost.wait()

    async def end(self) -> None:
        """Kill all that is in there, and the init; that is done when this returns, unless another mignode has it."""
        with contextlib.suppress(BodyLost):
            self._post(words.End())
        await self.wait_lost()

    async def _wait(self, event: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_lost, nursery.cancel_scope)
            await event.wait()
            nursery.cancel_scope.cancel()
        if not event.is_set():
            raise BodyLost(_ENDED)

    async def _cancel_when_lost(self, waiting: trio.CancelScope) -> None:
        await self._lost.wait()
        waiting.cancel()

    # ------------------------------------------------------------ the connection

    async def serve(self) -> None:
        """Until it is lost; started by `hatch` and `connect`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_rest)
                while (received := await _next(self._way)) is not None:
                    self._heed(*received)
                nursery.cancel_scope.cancel()
        except* (OSError, WireError) as failed:
            log.warning("the connection to a guest's init is lost: %s", "; ".join(map(str, failed.exceptions)))
        finally:
            self._lose()

    def _lose(self) -> None:
        self._lost.set()
        self._way.close()
        self._frames_in.close()
        os.close(self.proc)
        for call in self._calls.values():
            call.is_answered.set()
        self._calls.clear()
        for command in self._commands.values():
            command.ended.set()

    async def _send_rest(self) -> None:
        while True:
            await self._is_behind.wait()
            await trio.lowlevel.wait_writable(self._way.sock)
            self._way.flush()
            if not self._way.is_behind:
                self._is_behind = trio.Event()

    def _heed(self, word: words.Word, descriptors: list[int]) -> None:
        match word:
            case words.Frame(data):
                self._frames_in.send_nowait(data)
            case words.CommandEnded(pid, status):
                self.has_run |= status == 0 and (self.root > 0 or self.root_status is not None)
                if (command := self._commands.pop(pid, None)) is not None:
                    command.has_ended(status)
            case words.RootEnded(status):
                self.root, self.root_status = 0, status
                self._root_ended.set()
            case words.Gone():
                self._gone.set()
            case words.Told():
                self._told.set()
            case words.Failed(id=0, text=text):
                log.error("a guest's init could not do what it was told: %s", text)
            case (
                words.Done()
                | words.Started()
                | words.FilesNamed()
                | words.FilesFrozen()
                | words.Fetched()
                | (words.Failed())
            ):
                self._answer(word, descriptors)
            case _:
                raise WireError(f"a guest's init says {type(word).__name__}")

    def _answer(self, word: words.Answer, descriptors: list[int]) -> None:
        call = self._calls.pop(word.id, None)
        if call is None:  # nobody waits for it any more
            for each in descriptors:
                os.close(each)
            return
        call.answer, call.descriptors = word, descriptors
        if isinstance(word, words.Started):  # now, since its end may be the next word; of the root it will not be one
            call.command = self._commands[word.pid] = _Command(self, word.pid)
        call.is_answered.set()

    def _id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _post(self, word: words.Word, descriptors: Sequence[int] = ()) -> None:
        """Raises BodyLost."""
        try:
            self._way.send(word, descriptors)
        except OSError:  # which the reader sees, too
            raise BodyLost(_ENDED) from None
        if self._way.is_behind:
            self._is_behind.set()

    async def _call(
        self, word: words.Request, descriptors: Sequence[int] = (), deadline_s: float = ANSWER_S
    ) -> _Call:  # fmt: skip
        """Its answer, which is no failure.  Raises OSError, BodyLost."""
        call = _Call()
        if self._lost.is_set():
            raise BodyLost(_ENDED)
        self._calls[word.id] = call
        try:
            self._post(word, descriptors)
            with in_time("its init did not answer", deadline_s):
                await call.is_answered.wait()
        except BaseException:
            self._calls.pop(word.id, None)
            for each in call.descriptors:
                os.close(each)
            raise
        if call.answer is None:
            raise BodyLost(_ENDED)
        if isinstance(call.answer, words.Failed):
            raise OSError(call.answer.errno, call.answer.text)
        return call

    async def _ask(self, word: words.Request, kind: type[_Answer]) -> _Answer:
        return _answered(await self._call(word), kind)

    def kill_command(self, pid: int) -> None:
        """SIGKILL for it and its process group; for `_Command`."""
        with contextlib.suppress(BodyLost):
            self._post(words.KillCommand(pid))


def _answered(call: _Call, kind: type[_Answer]) -> _Answer:
    if not isinstance(call.answer, kind):
        for each in call.descriptors:
            os.close(each)
        raise WireError(f"a guest's init answers {type(call.answer).__name__} instead of {kind.__name__}")
    return call.answer


def _hand_over(descriptors: Sequence[int], listening: Callable[[int], None] | None) -> None:
    for each in descriptors:
        if listening is None:
            os.close(each)
        else:
            listening(each)


class _Command:
    """A criutalk.Worker in there."""

    def __init__(self, body: Body, pid: int) -> None:
        self._body = body
        self._pid = pid
        self._status = signal.SIGKILL.value  # as it is where the init has ended
        self.ended = trio.Event()

    async def wait(self) -> int:
        await self.ended.wait()
        return self._status

    def kill(self) -> None:
        if not self.ended.is_set():
            self._body.kill_command(self._pid)

    def has_ended(self, status: int) -> None:
        self._status = status
        self.ended.set()


def _pids_below(init: int, commands: frozenset[int]) -> dict[int, int]:
    identity = identify(init)
    found: dict[int, int] = {}
    passed: set[int] = set()
    for one in descendants_of(identity) if identity is not None else ():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            inner = parse_status(read_file(f"/proc/{one.pid}/status")).namespace_pids[-1]
            found[inner] = one.pid
            if inner in commands:
                passed |= {one.pid, *(other.pid for other in descendants_of(one))}
    return {inner: outer for inner, outer in found.items() if outer not in passed}
