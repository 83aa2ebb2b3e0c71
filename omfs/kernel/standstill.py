"""Nobody else touches a file's locks for a moment: who has it open is stopped, who opens it waits.

For the moment in which a lock goes over from a process of this machine to another holder: the kernel can't do that
in one step.  Openers are kept by a fanotify mark (FAN_OPEN_PERM) on the file.  Whoever has it open already is seized
by ptrace(2) and interrupted, which it can't notice: one that waits for a lock leaves the queue, and asks again when it
goes on.  A thread that can't be interrupted now (it is in an uninterruptible sleep) counts as stopped if it is in
another system call than fcntl(2) or flock(2): it was told to stop before it executes anything of its program.

Everybody goes on when this thread or process dies: a tracer's death detaches, a closed fanotify group lets openers go.
Files are recognized by their inode number in /proc/<pid>/fdinfo alone, as nothing else is answered by this kernel in
any case; so now and then somebody stands still for nothing.  Not found: a descriptor that is on its way in a unix
socket, and processes that our /proc does not show.  Called by export/movinglocks.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final

from omfs.errors import StandstillFailed
from omfs.kernel.libc import check, libc
from omfs.kernel.processes import processes, read_file
from omfs.kernel.procobjects import parse_fdinfo

_SEIZE: Final = 0x4206  # include/uapi/linux/ptrace.h
_INTERRUPT: Final = 0x4207
_DETACH: Final = 17
_EVENT_STOP: Final = 128
_WALL: Final = 0x40000000  # include/uapi/linux/wait.h

_CLASS_CONTENT: Final = 0x4  # include/uapi/linux/fanotify.h
_CLOEXEC: Final = 1
_NONBLOCK: Final = 2
_MARK_ADD: Final = 1
_OPEN_PERM: Final = 0x10000
_ALLOW: Final = 1
_EVENT: Final = struct.Struct("=IBBHQii")
_RESPONSE: Final = struct.Struct("=iI")
_AT_FDCWD: Final = -100

# Calls in which a sleeping thread does not count as stopped: those that lock or make processes, which would run.
_X86_64: Final = frozenset({b"72", b"73", b"56", b"57", b"58", b"435"})  # fcntl flock clone fork vfork clone3
_GENERIC: Final = frozenset({b"25", b"32", b"220", b"435"})  # fcntl flock clone clone3
_NARROW: Final = frozenset({b"55", b"221", b"143", b"120", b"190"})  # of 32-bit programs: and fcntl64
_COUNTS: Final = (_X86_64 if platform.machine() == "x86_64" else _GENERIC) | _NARROW | {b"running"}
_ENDED: Final = (b"Z", b"X", b"")  # such a thread has no descriptors any more, and can't be seized
_LOOK_AGAIN_S: Final = 0.0005
_GONE: Final = (FileNotFoundError, ProcessLookupError)

libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Standstill:
    """*files*: descriptors (O_PATH is enough).  *spared*: the PID namespace whose processes stand still already."""

    def __init__(self, files: Iterable[int], spared: int) -> None:
        self._files = tuple(files)
        self._spared = f"pid:[{spared}]"
        self._inodes = frozenset(_inode_of("self", fd) for fd in self._files)
        self._stopped: dict[int, int] = {}  # threads, and the signal that each is owed
        self._is_over = threading.Event()
        self._has_begun = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def begin(self, within_s: float) -> None:
        """Everybody stands still when this returns.  Raises StandstillFailed, OSError: nobody does.  Not for trio's
        thread."""
        self._thread = threading.Thread(target=self._run, args=(time.monotonic() + within_s,), daemon=True)
        self._thread.start()
        self._has_begun.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def end(self) -> None:
        """Let everybody go on.  Safe to repeat."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Whether it could be done now, as far as can be said without doing it.  Raises StandstillFailed, OSError."""
        with _gate(self._files):
            pass
        for thread in self._users():
            with contextlib.suppress(*_GONE):
                status = read_file(f"/proc/{thread}/status")
                if b"\nTracerPid:\t0\n" not in status:
                    raise StandstillFailed(f"process {thread}, which has the file open, is being traced")

    # ------------------------------------------------------------ its thread

    def _run(self, deadline_s: float) -> None:
        try:
            with _gate(self._files) as gate:
                try:
                    self._stop_all(gate, deadline_s)
                    self._has_begun.set()
                    while not self._is_over.is_set():
                        _let_ourselves_open(gate, 0.005)
                finally:
                    self._let_go()
        except (StandstillFailed, OSError) as error:
            self._failure = error
        finally:
            self._has_begun.set()

    def _stop_all(self, gate: int, deadline_s: float) -> None:
        """Until a look finds nobody who does not stand still: whoever does gives the file to nobody."""
        while strangers := [thread for thread in self._users() if thread not in self._stopped]:
            if time.monotonic() > deadline_s:
                raise StandstillFailed("too many processes come and go that have the file open")
            for thread in strangers:
                self._seize(thread)
            for thread in strangers:
                while thread in self._stopped and not self._stands(thread):
                    _let_ourselves_open(gate, _LOOK_AGAIN_S)
                    if time.monotonic() > deadline_s:
                        raise StandstillFailed(f"process {thread}, which has the file open, can't be stopped")

    def _users(self) -> list[int]:
        """Threads that have one of the files open, but for ours and those that are spared."""
        found = []
        for pid in processes():
            with contextlib.suppress(*_GONE, PermissionError):
                if pid == os.getpid() or os.readlink(f"/proc/{pid}/ns/pid") == self._spared:
                    continue
                threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
                if any(self._uses(pid, thread) for thread in threads):
                    found += threads
        return found

    def _uses(self, pid: int, thread: int) -> bool:
        of = f"{pid}/task/{thread}"
        for name in os.listdir(f"/proc/{of}/fdinfo"):
            with contextlib.suppress(*_GONE):
                if _inode_of(of, int(name)) in self._inodes:
                    return True
        return False

    def _seize(self, thread: int) -> None:
        try:
            check(libc.ptrace(_SEIZE, thread, None, None))
        except ProcessLookupError:
            return
        except PermissionError:
            if _state_of(thread) in _ENDED:
                self._stopped[thread] = 0
                return
            raise StandstillFailed(f"process {thread}, which has the file open, can't be traced") from None
        self._stopped[thread] = 0
        with contextlib.suppress(ProcessLookupError):
            check(libc.ptrace(_INTERRUPT, thread, None, None))

    def _stands(self, thread: int) -> bool:
        try:
            pid, status = os.waitpid(thread, os.WNOHANG | _WALL)
        except ChildProcessError:
            pid, status = thread, 0
        if pid == 0:
            return self._is_asleep(thread)
        if os.WIFSTOPPED(status):
            self._stopped[thread] = os.WSTOPSIG(status) if status >> 16 == 0 else 0
        else:
            del self._stopped[thread]
        return True

    def _is_asleep(self, thread: int) -> bool:
        with contextlib.suppress(*_GONE):
            if _state_of(thread) == b"D":
                return read_file(f"/proc/{thread}/syscall").split(b" ", 1)[0].strip() not in _COUNTS
        return False

    def _let_go(self) -> None:
        """A thread that is not stopped can't be detached; it is when it comes out of its sleep, or by our end."""
        for thread, number in self._stopped.items():
            while True:
                try:
                    check(libc.ptrace(_DETACH, thread, None, ctypes.c_void_p(number)))
                except ProcessLookupError:  # not stopped yet, or gone
                    if self._has_stopped_late(thread):
                        number = self._stopped[thread]
                        continue
                break
        self._stopped.clear()

    def _has_stopped_late(self, thread: int) -> bool:
        try:
            pid, status = os.waitpid(thread, os.WNOHANG | _WALL)
        except ChildProcessError:
            return False
        if pid and os.WIFSTOPPED(status):
            self._stopped[thread] = os.WSTOPSIG(status) if status >> 16 == 0 else 0
            return True
        return False


# ---------------------------------------------------------------- who opens it


@contextlib.contextmanager
def _gate(files: Iterable[int]) -> Iterator[int]:
    """A fanotify group that keeps openers waiting."""
    flags = ctypes.c_uint(_CLASS_CONTENT | _CLOEXEC | _NONBLOCK)
    gate = check(libc.fanotify_init(flags, ctypes.c_uint(os.O_RDONLY | os.O_CLOEXEC)))
    try:
        for fd in files:
            path = os.fsencode(f"/proc/self/fd/{fd}")
            check(libc.fanotify_mark(gate, ctypes.c_uint(_MARK_ADD), ctypes.c_uint64(_OPEN_PERM), _AT_FDCWD, path))
        yield gate
    finally:
        os.close(gate)  # those who wait may


def _let_ourselves_open(gate: int, wait_s: float) -> None:
    """Our own process must not wait for itself; it knows what it does."""
    if not select.select([gate], [], [], wait_s)[0]:
        return
    with contextlib.suppress(BlockingIOError):
        records = os.read(gate, 4096)
        at = 0
        while at < len(records):
            length, _, _, _, _, fd, pid = _EVENT.unpack_from(records, at)
            if fd >= 0:
                try:
                    if pid == os.getpid():
                        os.write(gate, _RESPONSE.pack(fd, _ALLOW))
                finally:
                    os.close(fd)
            at += length


def _state_of(thread: int) -> bytes:
    try:
        return read_file(f"/proc/{thread}/stat").rpartition(b") ")[2][:1]
    except OSError:
        return b""


def _inode_of(of: str, fd: int) -> int:
    return parse_fdinfo(read_file(f"/proc/{of}/fdinfo/{fd}")).inode
