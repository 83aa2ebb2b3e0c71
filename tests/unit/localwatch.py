"""What the tests of the watch over native programs stand on: such programs, and daemons to be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omfs.export.leasekeeper import LeaseKeeper
from omfs.export.localchanges import Change, LocalChanges
from omfs.export.mounts import Mount, Mounts
from omfs.kernel.filelease import block_signals
from omfs.kernel.handles import HandleReader, open_handle, prepare_handle

block_signals()  # at the import: threads that tests start later inherit it

ROOT = Path(__file__).parents[2]
READER = HandleReader()
WRITE = "os.open(PATH, os.O_WRONLY)"
OPENER = "import os,sys; fd = eval(sys.argv[2]); print('in', flush=True); sys.stdin.read()"


class Program:
    """A program that does something with *path* in which it may be blocked."""

    def __init__(self, path: Path, action: str) -> None:
        command = [sys.executable, "-I", "-S", "-c", OPENER, str(path), action.replace("PATH", "sys.argv[1]")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @property
    def is_in(self) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def wait_blocked(self) -> None:
        """Until it waits for a lease.  In a PID namespace /proc/locks lacks those whose taker has ended."""
        while "break_lease" not in Path(f"/proc/{self.process.pid}/wchan").read_text():
            assert not self.is_in
            time.sleep(0.001)

    def wait_in(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"in\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def program(path: Path, action: str) -> Iterator[Program]:
    running = Program(path, action)
    try:
        yield running
    finally:
        running.end()


class Watch:
    """A LocalChanges for a directory, and what it told."""

    def __init__(self, top: Path, run_dir: Path, guards_max: int = 1000, linger_s: float = 20.0) -> None:
        self.top = top
        self.told: list[Change] = []
        self.cached: set[bytes] = set()
        self.mounts = Mounts()
        self.keeper = LeaseKeeper(run_dir, linger_s)
        self.changes = LocalChanges(self.told.append, self.cached.__contains__, self.keeper, guards_max)
        self.mount = self.mount_of(top)
        assert self.changes.watch_mount(self.mount, self.mounts.descriptor(self.mount))

    def mount_of(self, path: Path) -> Mount:
        fd = os.open(path, os.O_PATH)
        try:
            mount = self.mounts.by_kernel_id(READER.read(fd)[2])
        finally:
            os.close(fd)
        assert mount is not None
        return mount

    def prepared(self, name: str) -> bytes:
        fd = os.open(self.top / name, os.O_PATH | os.O_NOFOLLOW)
        try:
            return prepare_handle(*READER.read(fd)[:2])
        finally:
            os.close(fd)

    def cache(self, name: str) -> bytes:
        """Have the object be of interest; its key."""
        key = self.changes.key(self.mount, self.prepared(name))
        self.cached.add(key)
        return key

    def opener(self, name: str) -> Callable[[int], int]:
        prepared = self.prepared(name)
        return lambda flags: open_handle(self.mounts.descriptor(self.mount), prepared, flags)

    def guard(self, name: str) -> bytes:
        key = self.changes.key(self.mount, self.prepared(name))
        assert self.changes.guard_data(key, self.opener(name))
        return key

    def descriptor_of(self, key: bytes) -> int:
        """The guard's."""
        return self.changes._guards[key].fd

    def drained(self) -> list[Change]:
        self.changes.drain()
        told = list(self.told)
        self.told.clear()
        return told

    def wait_told(self) -> list[Change]:
        while not (told := self.drained()):
            pass
        return told

    def run(self, code: str) -> None:
        subprocess.run([sys.executable, "-I", "-S", "-c", "import os\n" + code], cwd=self.top, check=True)

    def close(self) -> None:
        self.changes.close()
        self.mounts.close()


# ---------------------------------------------------------------- a watch in another process

DAEMON = """
import sys, time
from pathlib import Path
from omfs.kernel.filelease import block_signals
block_signals()
from tests.unit.localwatch import Watch
watch = Watch(Path(sys.argv[1]), Path(sys.argv[2]), linger_s=float(sys.argv[3]))
for name in sys.argv[4:]:
    watch.guard(name)
import json
keeper = watch.keeper._process
print(json.dumps(keeper.pid if keeper else None), flush=True)
time.sleep(1000)
"""


class Daemon:
    """Another process that watches, to be killed."""

    def __init__(self, top: Path, run_dir: Path, *guarded: str, linger_s: float = 20.0) -> None:
        command = [sys.executable, "-c", DAEMON, str(top), str(run_dir), str(linger_s), *guarded]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert self.process.stdout is not None
        self.keeper_pid: int | None = json.loads(self.process.stdout.readline())
        self.keeper_fd = os.pidfd_open(self.keeper_pid) if self.keeper_pid else -1

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()

    def wait_keeper_ended(self) -> None:
        select.select([self.keeper_fd], [], [])

    def end(self) -> None:
        self.kill()
        if self.keeper_fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.keeper_fd, signal.SIGKILL)
            self.wait_keeper_ended()
            os.close(self.keeper_fd)
