"""The programs that `tune` has moved: started by mosrun, told what to do by their input, timed from both ends.

`Guest` is one of them.  `Prober` runs PROBE, which times what only a guest can: it is told so in a line, and answers in
one.  Locked, so that balancing leaves it alone; it ends with its input, so also when tune is killed.
Every wait has a deadline.  Called by tune.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Self

from mignode import journey
from mignode.cli import controlfile, migrate
from mignode.cli.answers import Refused
from mignode.journey import Journey
from mignode.tuning import MIB

HOME: Final = 0
ANSWER_WITHIN_S: Final = 60.0
END_WITHIN_S: Final = 10.0
_MOSRUN: Final = "import sys; from mignode.cli.mosrun import main; sys.argv[0] = 'mosrun'; sys.exit(main())"

PROBE: Final = r"""
import os, signal, statistics, sys, time
said = b""
def line():
    global said
    while b"\n" not in said:
        more = os.read(0, 65536)
        if not more:
            sys.exit(0)
        said += more
    first, _, said = said.partition(b"\n")
    return first.decode()
def median_of(times, do):
    found = []
    for _ in range(int(times)):
        began = time.perf_counter()
        do()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
def write(path, size):
    piece = os.urandom(min(size, 1 << 20))
    with open(path, "xb") as file:
        for _ in range(size // len(piece)):
            file.write(piece)
def files(folder, count, size):
    for number in range(int(count)):
        write(f"{folder}/{number}", int(size))
def hold(size):
    global held
    held = [os.urandom(1 << 20) for _ in range(int(size) >> 20)]
def take(size):
    global said
    left = int(size) - len(said)
    said = b""
    while left > 0:
        more = os.read(0, min(left, 1 << 20))
        if not more:
            sys.exit(0)
        left -= len(more)
def give(size):
    left = memoryview(bytes(int(size)))
    while left:
        left = left[os.write(1, left):]
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"signal\n"))
while True:
    match line().split(" "):
        case ["call", times]:
            answer = median_of(times, os.getppid)
        case ["fork", times]:
            answer = median_of(times, fork)
        case ["open", path, times]:
            answer = median_of(times, lambda: os.close(os.open(path, os.O_RDONLY)))
        case ["files", folder, count, size]:
            answer = files(folder, count, size)
        case ["hold", size]:
            answer = hold(size)
        case ["take", size]:
            answer = take(size)
        case ["give", size]:
            answer = give(size)
    os.write(1, f"{answer}\n".encode())
"""


class Guest:
    """A program of mosrun, at home until it is moved.  *mount*: /mfs."""

    def __init__(self, mount: Path, program: list[str]) -> None:
        """Raises OSError."""
        self._mount = mount
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _MOSRUN, "-h", "-L", *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=0, start_new_session=True, cwd="/",
        )  # fmt: skip
        self._said = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends it, wherever it is; gently, unless something is wrong already."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_WITHIN_S if kind is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def move(self, node: int) -> tuple[float, Journey | None]:
        """How long it took, and the way; HOME is one.  Raises Refused."""
        began = time.perf_counter()
        try:
            controlfile.write(controlfile.of_process(self._mount, self._process.pid, "goto"), node)
        except OSError as error:
            why = migrate.why_it_failed(error, self._mount, self._process.pid, node)
            raise Refused(f"no program could be moved there and back: {why}") from None
        took_s = time.perf_counter() - began
        return took_s, journey.understood(self._file(journey.FILE))

    def _file(self, name: str) -> str:
        try:
            return controlfile.read(controlfile.of_process(self._mount, self._process.pid, name))
        except OSError:
            return ""

    def echo(self) -> float:
        """How long a byte takes there and back, of a program that gives back what it gets.  Raises Refused."""
        began = time.perf_counter()
        self.send(b"x")
        self.receive(1)
        return time.perf_counter() - began

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        left = memoryview(data)
        while left:
            if not select.select([], [self._process.stdin], [], ANSWER_WITHIN_S)[1]:
                raise Refused(self._silent())
            try:
                left = left[os.write(self._process.stdin.fileno(), left[: select.PIPE_BUF]) :]
            except OSError:
                raise Refused(self._ended()) from None

    def receive(self, size: int) -> bytes:
        """So much.  Raises Refused."""
        while len(self._said) < size:
            self._hear()
        data, self._said = self._said[:size], self._said[size:]
        return data

    def receive_line(self) -> str:
        """Raises Refused."""
        while b"\n" not in self._said:
            self._hear()
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_WITHIN_S)[0]:
            raise Refused(self._silent())
        more = os.read(self._process.stdout.fileno(), MIB)
        if not more:
            raise Refused(self._ended())
        self._said += more

    def signal(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def _silent(self) -> str:
        return f"the program that is measured has said nothing for {ANSWER_WITHIN_S:.0f} s"

    def _ended(self) -> str:
        """In mosrun's own words, if it has some."""
        assert self._process.stderr is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_WITHIN_S)
            if said := self._process.stderr.read().decode(errors="replace").strip():
                return said.splitlines()[-1]
        return "the program that is measured has ended"


class Prober(Guest):
    """One that runs PROBE."""

    def __init__(self, mount: Path) -> None:
        super().__init__(mount, [os.path.realpath(sys.executable), "-I", "-S", "-c", PROBE])

    def ask(self, *words: object) -> float:
        """What it has measured, 0 where it only had to do something.  Raises Refused."""
        self.send(" ".join(map(str, words)).encode() + b"\n")
        answer = self.receive_line()
        return float(answer) if answer != "None" else 0.0

    def give(self, size: int) -> float:
        """How long it takes until it has got so much.  Raises Refused."""
        data = bytes(size)
        began = time.perf_counter()
        self.send(f"take {size}\n".encode() + data)
        self.receive_line()
        return time.perf_counter() - began

    def take(self, size: int) -> float:
        """How long it takes to get so much of it.  Raises Refused."""
        began = time.perf_counter()
        self.send(f"give {size}\n".encode())
        self.receive(size)
        took_s = time.perf_counter() - began
        self.receive_line()
        return took_s

    def answer_to_signal(self) -> float:
        """Raises Refused."""
        began = time.perf_counter()
        self.signal()
        self.receive_line()
        return time.perf_counter() - began
