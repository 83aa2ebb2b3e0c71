"""What the host remembers about a lab: its plan, its lock, its processes, its cuts.

A process that holds something of a lab writes its own record before it acquires anything, under the lab's lock (the
file descriptor is inherited), so whoever gets the lock later finds every process that a dead `omfs-lab` left behind.
A record is pid, start time and boot id: a pid used again by somebody else is never taken for ours.
Called by all of omfs/lab.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from omfs.errors import ConfigError
from omfs.lab.topology import BASE_DIR, LabPaths, LabPlan

POLL_INTERVAL_S: Final = 0.02
LOCK_TIMEOUT_S: Final = 240.0  # `up` holds it until its nodes are up


class LabError(ConfigError):
    """A lab command that can't be carried out; the text is for the user."""


def load_plan(paths: LabPaths) -> LabPlan:
    """The plan of a lab that `up` made.  Raises LabError where there is none."""
    try:
        return msgspec.json.decode(paths.plan.read_bytes(), type=LabPlan)
    except FileNotFoundError:
        hint = "; what is there is half built: omfs-lab down" if paths.directory.exists() else ""
        raise LabError(f"there is no lab {paths.name!r}{hint or '; make it with: omfs-lab up'}") from None
    except msgspec.DecodeError as error:
        raise LabError(f"{paths.plan}: {error}; take the lab down with: omfs-lab down") from None


def save(path: Path, value: object) -> None:
    """Replace a small JSON file at once."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(msgspec.json.encode(value))
    fresh.rename(path)


def existing_labs(base: Path = BASE_DIR) -> list[str]:
    """Names of all labs on this machine, half-built ones too."""
    try:
        return sorted(entry.name for entry in base.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


# ---------------------------------------------------------------- the lock


@contextlib.contextmanager
def hold_lock(paths: LabPaths, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[int]:
    """Be the only one who changes this lab; gives the descriptor for processes that are to record themselves.

    Raises LabError when the lab is not there or somebody else keeps the lock for *timeout_s*.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise LabError(f"there is no lab {paths.name!r}; make it with: omfs-lab up") from None
        try:
            if not _lock_until(fd, deadline):
                raise LabError(f"another omfs-lab is at work on lab {paths.name!r} since more than {timeout_s:.0f} s")
            if _is_still(fd, paths.lock):
                yield fd
                return
        finally:
            os.close(fd)


def _lock_until(fd: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_INTERVAL_S)
        else:
            return True


def _is_still(fd: int, path: Path) -> bool:
    """Whether the locked file is the lab's: `down` removes it, and the next `up` makes another."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------- processes


class ProcessRecord(msgspec.Struct, frozen=True):
    """One process of a lab, as the host's /proc numbers it."""

    pid: int
    start_ticks: int
    boot_id: str

    def is_alive(self) -> bool:
        """A zombie counts as gone: it holds nothing any more."""
        return self.boot_id == _boot_id() and _start_ticks(self.pid) == self.start_ticks

    def kill(self) -> None:
        """SIGKILL, through a pidfd, so that it can't hit a later process with the same number."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_alive():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)


def record_self(path: Path) -> None:
    """Write who I am; works as long as the host's /proc is visible, also from inside a new PID namespace."""
    pid = int(os.readlink("/proc/self"))
    ticks = _start_ticks(pid)
    if ticks is None:
        raise LabError(f"/proc/{pid}/stat can't be read")
    save(path, ProcessRecord(pid, ticks, _boot_id()))


def read_record(path: Path) -> ProcessRecord | None:
    """None where no process was recorded."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def alive(path: Path) -> ProcessRecord | None:
    """The recorded process where it is still running."""
    record = read_record(path)
    return record if record is not None and record.is_alive() else None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat (proc(5)), None where the process is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def processes_inside(init: ProcessRecord) -> list[int]:
    """Host pids of everything in the PID namespace of *init*; nothing where that is the host's own."""
    try:
        namespace = os.readlink(f"/proc/{init.pid}/ns/pid")
    except OSError:
        return []
    if namespace == os.readlink("/proc/self/ns/pid"):
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                    found.append(int(entry))
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll *condition*; False when it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True
