"""The standard files of real programs that CRIU moves again and again: no byte lost or repeated, and the terminal too.

Each test is in namespaces of its own (criuroom.py), as their process 1, which is what a guest's init is: it leads a
session, starts the program and holds the inner ends (BodyFiles).  The deputy's end is a Relay in the same process.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import selectors
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mignode.bodyfiles import BodyFiles
from mignode.checkpoint import Tree
from mignode.filewords import Control, Ended, FilesPlan, Kind, ReaderGone, Size, pack, words_in
from mignode.guestterminal import enter_foreground
from mignode.ownsession import TERMINALS, terminals_without
from mignode.relay import FROM_BODY, TO_BODY, Relay, Stream
from tests.lab.criuroom import DEADLINE_S, IMAGES, criu, images, run, run_inside, wait_childless
from tests.lab.movedprograms import PYTHON

PIPES = FilesPlan((Kind.PIPE, Kind.PIPE, Kind.PIPE))
TERMINAL = FilesPlan((Kind.TERMINAL,) * 3, Size(33, 111))

GO = Path("/run/go")


def let_go() -> None:
    """Whoever waits for that."""
    GO.touch()


class Guest:
    """A program with its standard files, and the deputy's end of them."""

    def __init__(self, plan: FilesPlan, *command: str) -> None:
        self.deputy = Relay(TO_BODY, FROM_BODY)
        self.files = BodyFiles(plan, self.deputy_gets, self)
        self.hops = 0
        self.words: list[Control] = []
        self.reads = True
        self.pid = self.start(command)
        self.files.given()
        self.connect()

    def start(self, command: Sequence[str]) -> int:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            for number, end in self.files.guest_ends.items():
                os.dup2(end, number)
            if self.files.has_terminal:
                enter_foreground(0)
            os.closerange(3, 1000)
            os.execv(command[0], command)
        return pid

    def signal(self, number: int, group: bool) -> None:
        os.kill(self.pid, number)

    def connect(self) -> None:
        self.deputy.connected()
        self.files.connected()

    def deputy_gets(self, frame: bytes) -> None:
        self.deputy.received(frame)
        for word, size in words_in(self.deputy.peek(Stream.CONTROL, 1 << 20)):
            self.deputy.took(Stream.CONTROL, size)
            self.words.append(word)

    def turn(self) -> None:
        """Do what can be done now."""
        for frame in list(self.deputy.frames()):
            self.files.received(frame)
        poll = select.poll()
        wanted = dict(self.files.descriptors())
        for fd, events in wanted.items():
            read, write = events & selectors.EVENT_READ, events & selectors.EVENT_WRITE
            poll.register(fd, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
        for fd, found in poll.poll(0):
            ready = (1 if found & ~select.POLLOUT else 0) | (2 if found & ~select.POLLIN else 0)
            self.files.ready(fd, ready & wanted[fd])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bytes move all the time, also while CRIU is at work."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._turns)
            with trio.fail_after(4 * DEADLINE_S):
                yield
            nursery.cancel_scope.cancel()

    async def _turns(self) -> None:
        while True:
            self.turn()
            await trio.sleep(0.001)

    async def hop(self) -> None:
        """To new standard files, by CRIU."""
        self.hops += 1
        name = str(self.hops)
        directory = images(name)
        tree = Tree(external=self.files.external, shell_job=True)
        async with criu().dump(self.pid, directory, tree, DEADLINE_S) as frozen:
            state = self.files.freeze()
            if self.hops % 3 == 0:  # the migration fails: all goes on here
                self.files.thaw()
                return
            await frozen.finish()
        assert self.reap() == signal.SIGKILL
        self.files.close()
        with contextlib.suppress(FileNotFoundError):
            terminals = IMAGES / name / TERMINALS
            terminals.write_bytes(terminals_without(terminals.read_bytes()))
        self.files = BodyFiles(PIPES, self.deputy_gets, self, state)
        tree = Tree(external=self.files.external, shell_job=True)
        inherited = self.files.inherited()
        async with criu().restore(directory, tree, DEADLINE_S, inherited=inherited) as restored:
            self.files.given()
            self.connect()
            await restored.finish()
        os.close(directory)
        run("rm", "-r", IMAGES / name)

    def reap(self) -> int:
        """Its wait status, when its children have ended too."""
        status = os.waitpid(self.pid, 0)[1]
        wait_childless()
        return status

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until it holds; nobody tells when."""
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)

    async def reads_until(self, stream: Stream, end: bytes) -> bytes:
        """What it writes, up to and with *end*."""
        seen = b""
        while not seen.endswith(end):
            data = self.deputy.peek(stream, 1)
            self.deputy.took(stream, len(data))
            seen += data
            if not data:
                assert not self.deputy.is_at_end(stream), seen
                await trio.sleep(0.001)
        return seen

    def types(self, text: str) -> None:
        self.deputy.put(Stream.INPUT, text.encode())

    def stops(self) -> bool:
        """Whether it stopped since it was last asked."""
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
        return pid == self.pid and os.WIFSTOPPED(status)


FILTER = """
import os, sys
while data := os.read(0, 10000):
    for fd in (1, 2):
        left = data
        while left:
            left = left[os.write(fd, left):]
"""


async def inside_pipes() -> None:
    os.setsid()
    guest = Guest(PIPES, PYTHON, "-c", FILTER)
    fed = bytearray()
    collected = {Stream.OUTPUT: bytearray(), Stream.ERRORS: bytearray()}
    source = random.Random(5)

    async def feed() -> None:
        while guest.hops < 100:
            await guest.wait_for(lambda: guest.deputy.room(Stream.INPUT) >= 10_000)
            piece = source.randbytes(10_000)
            guest.deputy.put(Stream.INPUT, piece)
            fed.extend(piece)
        guest.deputy.end(Stream.INPUT)

    async def collect(stream: Stream) -> None:
        """Slowly, so that the pipes are full all the time."""
        while not guest.deputy.is_at_end(stream):
            piece = guest.deputy.peek(stream, 2500)
            guest.deputy.took(stream, len(piece))
            collected[stream] += piece
            await trio.sleep(0.001)

    async with guest.running(), trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        for stream in collected:
            nursery.start_soon(collect, stream)
        for _ in range(100):
            await guest.hop()
    assert collected[Stream.OUTPUT] == collected[Stream.ERRORS] == fed
    guest.files.ended(guest.reap())
    assert guest.words == [Ended(0, {2: len(fed), 3: len(fed), 4: 0}, len(fed))]


def test_no_byte_is_lost_or_repeated() -> None:
    run_inside(inside_pipes)


async def inside_ends() -> None:
    """What has ended before a hop is still so after it: the input, with some unread, and an output's reader."""
    os.setsid()
    program = (
        "import sys; print(sys.stdin.readline(), end='', flush=True); sys.stdin.readline()\n"
        "import signal; go = {signal.SIGUSR1}; signal.pthread_sigmask(signal.SIG_BLOCK, go)\n"
        "sys.stderr.write('.'); signal.sigwait(go)\n"  # pause(2) begins anew after a hop, and misses a signal before that
        "print(sys.stdin.read(), end='', flush=True)\n"
        "try: sys.stderr.write('nobody reads this'); sys.stderr.flush()\n"
        "except BrokenPipeError: print('and it knows')\n"
    )
    guest = Guest(PIPES, PYTHON, "-u", "-c", program)
    async with guest.running():
        guest.types("one\n")
        assert await guest.reads_until(Stream.OUTPUT, b"\n") == b"one\n"
        guest.types("two\n" + "x" * 100_000)
        guest.deputy.end(Stream.INPUT)
        assert await guest.reads_until(Stream.ERRORS, b".") == b"."
        guest.deputy.put(Stream.CONTROL, pack(ReaderGone(Stream.ERRORS)))
        await guest.wait_for(lambda: guest.deputy.is_at_end(Stream.ERRORS))
        for _ in range(3):
            await guest.hop()
        os.kill(guest.pid, signal.SIGUSR1)
        assert await guest.reads_until(Stream.OUTPUT, b"\n") == b"x" * 100_000 + b"and it knows\n"


def test_what_has_ended_stays_so() -> None:
    run_inside(inside_ends)


LINES = """
import os, sys, time
own = os.open("/dev/tty", os.O_RDWR)
print(os.get_terminal_size().lines, os.tcgetpgrp(own) == os.getpgrp(), flush=True)
while line := sys.stdin.readline():
    if line == "wait\\n":
        while not os.path.exists("/run/go"): time.sleep(0.01)
        os.unlink("/run/go")
    print("got", repr(line), os.get_terminal_size(own).lines, flush=True)
print("end")
"""


async def inside_terminal() -> None:
    os.setsid()
    guest = Guest(TERMINAL, PYTHON, "-c", LINES)

    async def says(text: str, answer: str) -> None:
        guest.types(text)
        seen = await guest.reads_until(Stream.TERMINAL, answer[-3:].encode())
        assert seen == answer.encode(), seen

    async def stops_at_a_key() -> None:
        await says("\x1a", "^Z")
        await guest.wait_for(guest.stops)
        os.killpg(guest.pid, signal.SIGCONT)

    async with guest.running():
        assert await guest.reads_until(Stream.TERMINAL, b"\n") == b"33 True\r\n"
        await stops_at_a_key()
        await says("a\n", "a\r\ngot 'a\\n' 33\r\n")
        for _ in range(5):
            await says("wait\none\n\x16\x03tw", "wait\r\none\r\n^\b^Ctw")
            await guest.hop()
            let_go()
            assert await guest.reads_until(Stream.TERMINAL, b"'one\\n' 33\r\n") == (
                b"got 'wait\\n' 33\r\ngot 'one\\n' 33\r\n"
            )
            await says("oo\x7fO\n", "oo\b \bO\r\ngot '\\x03twoO\\n' 33\r\n")
            await stops_at_a_key()
            await says("b\n", "b\r\ngot 'b\\n' 33\r\n")
        await says("wait\n\x04", "wait\r\n")
        await guest.hop()
        let_go()
        assert await guest.reads_until(Stream.TERMINAL, b"end\r\n") == b"got 'wait\\n' 33\r\nend\r\n"


def test_a_terminal_with_type_ahead_and_job_control() -> None:
    run_inside(inside_terminal)


async def inside_shell() -> None:
    """A shell whose jobs are in the foreground by turns."""
    os.setsid()
    os.environ["PS1"] = "> "
    guest = Guest(TERMINAL, "/bin/bash", "--norc", "--noprofile", "--noediting", "-i")

    async def says(text: str, answer: bytes) -> None:
        guest.types(text)
        await guest.reads_until(Stream.TERMINAL, answer)

    async with guest.running():
        await guest.reads_until(Stream.TERMINAL, b"> ")
        for _ in range(3):
            await says("cat\n", b"cat\r\n")
            await says("line\n", b"line\r\nline\r\n")
            await guest.hop()
            await says("more\n", b"more\r\nmore\r\n")
            await says("\x1a", b"> ")
            await guest.hop()
            await says("jobs\n", b"cat\r\n> ")
            await says("fg\n", b"cat\r\n")
            await says("here\n", b"here\r\nhere\r\n")  # before that the key might be the shell's
            await says("\x03", b"> ")


def test_a_shell_with_jobs() -> None:
    run_inside(inside_shell)
