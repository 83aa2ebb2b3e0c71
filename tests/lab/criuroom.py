"""A room of its own for a test of CRIU: new PID, mount, network, IPC and UTS namespaces, with a tmpfs as /run.

`run_inside(function)` runs an async function of some module in there, as pid 1, with trio; what it asserts fails the
test.  Inside, `Puppet` is a program to be dumped and restored: it gets lines and answers each with one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from mignode.checkpoint import Criu
from mignode.criukeys import pipe_key
from mignode.criutalk import Start, start_here
from omfs.kernel.criuprogram import find_criu
from tests.lab.cluster import wait_until

ROOT: Final = Path(__file__).parent.parent.parent
IMAGES: Final = Path("/run/images")
DEADLINE_S: Final = 60.0

Inside = Callable[[], Awaitable[None]]


def run_inside(function: Inside, *arguments: str) -> None:
    """Fails as *function* does, which has *arguments* in sys.argv[3:].

    Whatever it leaves behind dies with the namespaces.
    """
    namespaces = ["unshare", "--pid", "--mount", "--net", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
    command = [*namespaces, sys.executable, "-m", __name__, function.__module__, function.__qualname__, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"in the room:\n{done.stdout}"


def criu(start: Start = start_here) -> Criu:
    return Criu(find_criu(), start)


def images(name: str = "images") -> int:
    """A descriptor of a new directory."""
    path = IMAGES / name
    path.mkdir(parents=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def wait_childless() -> None:
    """Until nobody is left but us, pid 1."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


class Puppet:
    """A program whose standard input and output are pipes of ours."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: int | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = True,
    ) -> None:
        """*output*: where its standard error goes, if not into the pipe too."""
        self._open_pipes()
        self.process = subprocess.Popen(
            command, stdin=self._its_input, stdout=self._its_output, stderr=output or self._its_output,
            pass_fds=pass_fds, start_new_session=start_new_session,
        )  # fmt: skip
        self.pid = self.process.pid
        self.given()
        self.is_dumped()

    def _open_pipes(self) -> None:
        self._its_input, self._to = os.pipe()
        self._from, self._its_output = os.pipe()

    def is_dumped(self) -> None:
        """Its images name the pipes that it has now."""
        self._keys = [pipe_key(self._to), pipe_key(self._from)]

    def say(self, line: str) -> None:
        os.write(self._to, line.encode() + b"\n")

    async def ask(self, line: str) -> str:
        """Its answer; "" where it has ended."""
        self.say(line)
        return await self.hear()

    async def hear(self) -> str:
        heard = b""
        with trio.fail_after(DEADLINE_S):
            while not heard.endswith(b"\n"):
                await trio.lowlevel.wait_readable(self._from)
                if not (byte := os.read(self._from, 1)):
                    break
                heard += byte
        return heard.decode().strip()

    def reap(self) -> int:
        """Wait for its end, as waitpid(2) has it, and for that of its children, who become ours then."""
        status = os.waitpid(self.pid, 0)[1]
        wait_childless()
        return status

    def state(self) -> str:
        """As ps shows it: S sleeping, T stopped, t held by a tracer; "" where it is gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return ""

    def wait_state(self, state: str) -> None:
        """It may still run when its answer is here, and when CRIU says that it is done."""
        wait_until(lambda: self.state() == state, f"process {self.pid} is in state {state}", DEADLINE_S)

    def kill(self) -> None:
        """With its children, unless they have groups of their own."""
        os.killpg(os.getpgid(self.pid), signal.SIGKILL)
        self.reap()

    def new_pipes(self) -> dict[str, int]:
        """What a restore is to give it instead of the pipes that it had; `given` when it has them."""
        os.close(self._to)
        os.close(self._from)
        self._open_pipes()
        return dict(zip(self._keys, (self._its_input, self._its_output), strict=True))

    def given(self) -> None:
        os.close(self._its_input)
        os.close(self._its_output)


def _main() -> None:
    module, name = sys.argv[1:3]
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    IMAGES.mkdir()
    run("ip", "link", "set", "lo", "up")
    trio.run(getattr(importlib.import_module(module), name))


if __name__ == "__main__":
    _main()
