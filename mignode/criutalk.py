"""One CRIU: started, asked one thing, and waited for.

A `criu swrk` reads its request from a socket, asks at some points whether to go on (notices), and answers; the words
are in criurpc.py.  A Talk holds it at one of those points for as long as somebody needs, has it go on or undo
everything, and always waits for its end.  Every wait has a deadline; when it passes, CRIU is given time to undo things
and then killed.  Errors carry CRIU's own reason, from its answer and from its log, which goes to an anonymous file in
memory: images hold nothing but the tree, and a full disk does not hide the reason.

A Start decides where it runs.  Called by checkpoint.py, which knows what may be asked.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio

from mignode.criurpc import Answer, Notice, notice_answer, parse_answer
from omfs.errors import CheckpointError, CriuEnded, WireError
from omfs.kernel.criuprogram import CriuProgram

IMAGES: Final = 5
"""The number that the images' directory has as a descriptor of CRIU."""
FIRST_INHERITED: Final = 6
_SOCKET: Final = 3
_PREFIX: Final = 4
_ANSWER_MAX_BYTES: Final = 1 << 16
_DESCRIPTORS_MAX: Final = 4  # that one notice may carry
_LOG_TAIL_BYTES: Final = 1 << 16
_UNDO_S: Final = 20.0  # for undoing a dump or restore, which is little: thawing, killing
_KILLED_S: Final = 5.0  # for a killed CRIU to end, unless it hangs in the kernel
_ERROR: Final = re.compile(r"Error \([^()\s]+:\d+\): *(.*)")
_NO_REASON: Final = "Can't setup RLIMIT_NOFILE for self"  # it wants more descriptors, and goes on where it may not

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- starting it


class Worker(Protocol):
    """A CRIU that was started."""

    async def wait(self) -> int:
        """Until it has ended; its status as waitpid(2) has it.  May be called again when it was cancelled."""

    def kill(self) -> None:
        """SIGKILL for it and what it started; nothing where it has ended."""


Start = Callable[[Sequence[str], Mapping[int, int]], Awaitable[Worker]]
"""Runs a command, by execve(2) of its first word, with exactly these descriptors: the number it has there, and ours.

They may be closed here when the call returns.  Who starts CRIU becomes the parent of the root that is restored; who
waits for any child has to pass CRIU's status on.
"""


class _Child:
    """One that is our own child, and leads a process group, so that what it had begun can be ended with it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)

    async def wait(self) -> int:
        await trio.lowlevel.wait_readable(self._pidfd)
        return self._reap()

    def _reap(self) -> int:
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        if ended is not None and ended.si_code != os.CLD_EXITED:
            self.kill()  # as long as it is not waited for, its number is nobody else's
        os.close(self._pidfd)
        self._pidfd = -1
        return os.waitpid(self._pid, 0)[1]

    def kill(self) -> None:
        if self._pidfd >= 0:
            os.killpg(self._pid, signal.SIGKILL)


async def start_here(command: Sequence[str], descriptors: Mapping[int, int]) -> Worker:
    """A Start in this process's own namespaces, as its child.  Raises OSError."""
    return _Child(_spawn(list(command), descriptors))


def _inheritable() -> list[int]:
    """What an execve would leave open: what we were started with ourselves."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the one that listed them
            if os.get_inheritable(fd):
                found.append(fd)
    return found


def _spawn(command: list[str], descriptors: Mapping[int, int]) -> int:
    above = max(descriptors) + 1
    # moved out of the way first: one of ours may have the number that another is to have there
    moved = {there: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, above) for there, ours in descriptors.items()}
    try:
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, ours, there) for there, ours in moved.items()]
        actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in moved]
        # SIGPIPE stays ignored, as in Python: CRIU then fails in order, and undoes things, when we are gone
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0, setsigmask=())
    finally:
        for fd in moved.values():
            os.close(fd)


# ---------------------------------------------------------------- one conversation


@asynccontextmanager
async def talk_with(
    program: CriuProgram, start: Start, what: str, images: int | None, inherited: Sequence[int], deadline_s: float
) -> AsyncIterator[Talk]:
    """A CRIU that waits for its request; it has ended when the context does.

    *what* completes "criu could not ..."; *images* is the directory it works in, *inherited* what it gets besides.
    Raises CheckpointError where it can't be started.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)  # only ours: CRIU waits in read(2)
    criu_log = os.memfd_create("criu.log")
    talk = None
    try:
        with its, opened(str(program.prefix), os.O_DIRECTORY) as prefix, opened(os.devnull, os.O_RDWR) as null:
            descriptors = {0: null, 1: null, 2: criu_log, _SOCKET: its.fileno(), _PREFIX: prefix}
            if images is not None:
                descriptors[IMAGES] = images
            descriptors |= {FIRST_INHERITED + index: fd for index, fd in enumerate(inherited)}
            try:
                worker = await start(program.command("swrk", str(_SOCKET), through=_PREFIX), descriptors)
            except OSError as error:
                raise CheckpointError(f"criu can't be started: {error.strerror}") from None
        talk = Talk(what, ours, worker, criu_log, deadline_s)
        yield talk
    finally:
        if talk is not None:
            with trio.CancelScope(shield=True):
                await talk.end()
        ours.close()
        os.close(criu_log)


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """A descriptor for as long as the context lasts."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class Talk:
    """One request, the notices that CRIU asks about meanwhile, and its answer."""

    def __init__(self, what: str, sock: socket.socket, worker: Worker, log: int, deadline_s: float) -> None:
        self._what = what
        self._sock = sock
        self._worker = worker
        self._log = log
        self._deadline_s = deadline_s
        self._is_held = False  # CRIU waits for our word
        self._status: int | None = None  # how it ended
        self.received: list[int] = []  # descriptors that came with notices

    async def ask(self, packet: bytes) -> Answer:
        """Send the request and wait for the answer; whatever is asked meanwhile is granted."""
        async with self._deadline():
            await self._send(packet)
            return await self._answer(hold_at="")

    async def begin(self, packet: bytes, hold_at: str) -> Notice:
        """Send the request and wait until CRIU is at the notice *hold_at*; there it waits for `finish`."""
        async with self._deadline():
            await self._send(packet)
            answer = await self._answer(hold_at)
        if answer.notice is None:
            raise CheckpointError(f"criu did not ask before it was to {self._what}")
        self._is_held = True
        return answer.notice

    async def finish(self) -> Answer:
        """Have it go on to the end."""
        self._is_held = False
        async with self._deadline():
            await self._send(notice_answer(True))
            return await self._answer(hold_at="")

    @property
    def socket(self) -> int:
        """The descriptor of our end: as long as anybody has a duplicate, CRIU waits where it is held."""
        return self._sock.fileno()

    async def end(self) -> None:
        """Have it undo what was not finished, and wait for its end."""
        if self._is_held:
            with contextlib.suppress(OSError):  # it has ended
                self._sock.send(notice_answer(False))
        await self._stop()
        for fd in self.received:
            os.close(fd)

    async def _stop(self) -> None:
        """Nobody hears it any more, so it fails when it asks or answers next, and undoes; kill it only if it does not.

        A kill while it has its own code run in a process that it dumps can take that process with it.
        """
        if self._sock.fileno() < 0:
            return  # it was tried
        self._sock.close()
        with trio.move_on_after(_UNDO_S):
            await self._wait_ended()
            return
        self._worker.kill()
        with trio.move_on_after(_KILLED_S):
            await self._wait_ended()
            return
        log.error("criu that was to %s hangs in the kernel and can't be killed", self._what)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            with trio.fail_after(self._deadline_s):
                yield
        except trio.TooSlowError:
            with trio.CancelScope(shield=True):
                await self._stop()
            in_order = self._status is not None and not os.WIFSIGNALED(self._status)
            text = f"criu did not {self._what} within {self._deadline_s:g} s"
            raise (CheckpointError(text) if in_order else CriuEnded(f"{text} and was killed")) from None

    async def _send(self, packet: bytes) -> None:
        try:
            self._sock.send(packet)  # of its size and number any would fit
        except (BrokenPipeError, ConnectionResetError):
            raise await self._ended() from None

    async def _answer(self, hold_at: str) -> Answer:
        """The next answer that is not a notice, or the notice *hold_at*.  Raises CheckpointError where it failed."""
        while True:
            packet = await self._receive()
            if not packet:
                raise await self._ended()
            try:
                answer = parse_answer(packet)
            except WireError as error:
                raise CheckpointError(f"criu could not {self._what}: {error}") from None
            if answer.notice is None:
                if not answer.success:
                    raise CheckpointError(self._line(f"criu could not {self._what}", answer))
                return answer
            if answer.notice.name == hold_at:
                return answer
            await self._send(notice_answer(True))

    async def _receive(self) -> bytes:
        """One packet; empty where it has ended."""
        async with trio.open_nursery() as nursery:
            # no end of file tells it: something that CRIU had started may still have the socket
            nursery.start_soon(self._cancel_when_ended, nursery.cancel_scope)
            await trio.lowlevel.wait_readable(self._sock)
            nursery.cancel_scope.cancel()
        room = socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)
        try:
            packet, ancillary, _, _ = self._sock.recvmsg(_ANSWER_MAX_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, ConnectionResetError):
            return b""
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self.received += numbers
        return packet

    async def _cancel_when_ended(self, waiting: trio.CancelScope) -> None:
        await self._wait_ended()
        waiting.cancel()

    async def _wait_ended(self) -> None:
        if self._status is None:
            self._status = await self._worker.wait()

    async def _ended(self) -> CriuEnded:
        """What to raise where it ended without an answer."""
        await self._wait_ended()
        return CriuEnded(self._line(f"criu {_end(self._status or 0)} when it was to {self._what}"))

    def _line(self, text: str, answer: Answer | None = None) -> str:
        """*text*, and CRIU's own reason."""
        tail = os.pread(self._log, _LOG_TAIL_BYTES, max(0, os.fstat(self._log).st_size - _LOG_TAIL_BYTES))
        reason = reason_in(tail.decode(errors="replace"), answer.message if answer else "")
        if not reason and answer and answer.errno:
            reason = os.strerror(answer.errno)
        return f"{text}: {reason}" if reason else text


def decide_kept(kept: int, *, finish: bool) -> None:
    """Have a CRIU go on, or undo, that was held for one who was killed; *kept*: a duplicate of Talk.socket.

    Its end tells that it is done; how it went nobody hears: of a dump, whether the tree is there tells.  Raises OSError
    where it has ended.
    """
    with socket.socket(fileno=os.dup(kept)) as sock:
        sock.send(notice_answer(finish), socket.MSG_NOSIGNAL)


def reason_in(log: str, first: str = "") -> str:
    """CRIU's *first* error and the last two of its log, in one line; where there is no error, its last line."""
    lines = [" ".join(line.split()) for line in [first, *log.splitlines()]]
    errors = [found[1] for line in lines if (found := _ERROR.search(line)) and _NO_REASON not in found[1]]
    if errors:
        return "; ".join(dict.fromkeys([errors[0], *errors[-2:]]))
    return next((line for line in reversed(lines) if line and _NO_REASON not in line), "")


def _end(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
