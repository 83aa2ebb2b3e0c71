"""A room for mosrun: a fake mignode with a fake init (fakeinit.py), and a user with a shell on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DEADLINE_S: Final = 60.0
MOSRUN: Final = f"{sys.executable} -m mignode.cli.mosrun"
PROMPT: Final = "shell> "


class Room:
    """A folder with a socket on which at most one guest is started."""

    def __init__(self, folder: Path, freeze_each_s: float = 0.0, cut_each: int = 0) -> None:
        self.folder = folder
        (folder / "omfs.toml").write_text(f'run_dir = "{folder}"\n')
        self.socket = folder / "guests.sock"
        self.init: subprocess.Popen[bytes] | None = None
        self.words = [str(freeze_each_s), str(cut_each)]
        command = folder / "mosrun"
        command.write_text(f'#!/bin/sh\nexec {MOSRUN} "$@"\n')
        command.chmod(0o755)
        self.environment = {
            **os.environ, "OMFS_CONFIG": str(folder / "omfs.toml"), "PYTHONPATH": str(ROOT),
            "PATH": f"{folder}:{os.environ['PATH']}",
        }  # fmt: skip

    def serve(self) -> None:
        self.end()
        self.socket.unlink(missing_ok=True)
        self.init = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.fakeinit", str(self.socket), *self.words],
            start_new_session=True, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self.socket.exists)

    def run(self, script: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """A shell script in which `mosrun` is ours."""
        self.serve()
        shell = subprocess.Popen(
            ["bash", "-c", f"{script}\nexit $?"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment, cwd=self.folder, start_new_session=True,
        )  # fmt: skip
        try:
            out, errors = shell.communicate(data, DEADLINE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate()
        return subprocess.CompletedProcess(script, shell.returncode, out, errors)

    def end(self) -> None:
        if self.init:
            self.init.kill()
            self.init.wait()
            self.init = None


@contextlib.contextmanager
def room(folder: Path, freeze_each_s: float = 0.0, cut_each: int = 0) -> Iterator[Room]:
    made = Room(folder, freeze_each_s, cut_each)
    try:
        yield made
    finally:
        made.end()


def wait_until(condition: object) -> None:
    """Until *condition* holds."""
    assert callable(condition)
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class User:
    """Somebody at a terminal with an interactive bash, in which `mosrun` is ours."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.master, slave = os.openpty()
        self.resize(24, 80)
        environment = {**room.environment, "PS1": PROMPT, "TERM": "dumb", "HISTFILE": ""}
        self.shell = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noprofile", "--noediting", "-i"],
            stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=room.folder,
        )  # fmt: skip
        self.slave = slave
        self.seen = ""
        self.reads(PROMPT)

    def types(self, text: str) -> None:
        os.write(self.master, text.encode())

    def reads(self, pattern: str) -> re.Match[str]:
        """The next on the screen that matches; what is before it is forgotten."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            is_there = left > 0 and select.select([self.master], [], [], left)[0]
            assert is_there, f"not seen: {pattern!r} in {self.seen!r}"
            self.seen = re.sub("\r+\n", "\n", self.seen + os.read(self.master, 65536).decode(errors="replace"))
        self.seen = self.seen[found.end() :]
        return found

    def says(self, line: str, pattern: str = PROMPT) -> re.Match[str]:
        self.types(line + "\n")
        return self.reads(pattern)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def hang_up(self) -> None:
        """As if the window were closed."""
        os.close(self.slave)
        os.close(self.master)
        self.master = -1

    def leave(self) -> None:
        groups = {self.shell.pid} | ({os.tcgetpgrp(self.master)} if self.master >= 0 else set())
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.shell.wait()
        if self.master >= 0:
            self.hang_up()


@contextlib.contextmanager
def user(room: Room) -> Iterator[User]:
    room.serve()
    somebody = User(room)
    try:
        yield somebody
    finally:
        somebody.leave()
