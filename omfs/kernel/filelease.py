"""Leases of the kernel on open files: fcntl(2) F_SETLEASE; a signalfd tells which of them are being broken.

A read lease on a file (F_RDLCK) means: whoever opens it for writing, or truncates it by its path, is blocked in the
kernel until the lease is given back, or /proc/sys/fs/lease-break-time (45 s) has passed.  A write lease (F_WRLCK): so
is whoever opens it at all; the kernel gives it only while the file is open nowhere but through this descriptor and its
duplicates (O_PATH does not count), through which it may be read, written and truncated.  This process is no exception:
it blocks itself, or gets EWOULDBLOCK with O_NONBLOCK.  F_SETSIG makes the kernel queue a real-time signal that carries
the number of the descriptor.  When the queue is full (RLIMIT_SIGPENDING) it sends a plain SIGIO instead, which says
nothing: then every lease is asked with F_GETLEASE.  The same question sorts out signals that came late, for a
descriptor that was closed.

The lease belongs to the open file description: descriptors of it in another process keep it alive, and there is one
receiver of the signal and one descriptor number to be told (F_SETOWN; the number is that of the last F_SETLEASE).

Invariant: both signals are blocked in all threads, else one of them would end the process; `block_signals` comes first
thing in the main thread, threads inherit it.  One FileLeases per process: a signalfd takes the signals of all.
What a lease is for is known to export/localchanges.py, the caller.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from omfs.kernel.libc import check, libc

LEASE_SIGNAL: Final = signal.SIGRTMIN + 5
OVERFLOW_SIGNAL: Final = signal.SIGIO  # what the kernel falls back to

_F_SETSIG: Final = 10
_SFD_NONBLOCK: Final = os.O_NONBLOCK
_SFD_CLOEXEC: Final = os.O_CLOEXEC
_SIGSET_BYTES: Final = 128
_RECORD_BYTES: Final = 128  # struct signalfd_siginfo
_SIGNO_AND_FD: Final = struct.Struct("=I16xi")  # its first field and its sixth
_RECORDS_AT_ONCE: Final = 64


def block_signals() -> None:
    """To be called in the main thread before any other exists.  Programs that are started inherit it, too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (LEASE_SIGNAL, OVERFLOW_SIGNAL))


def _check_blocked() -> None:
    wanted = 1 << (LEASE_SIGNAL - 1) | 1 << (OVERFLOW_SIGNAL - 1)
    for task in Path("/proc/self/task").iterdir():
        try:
            status = (task / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
        blocked = int(status.partition("\nSigBlk:")[2].split(None, 1)[0], 16)
        if blocked & wanted != wanted:
            raise RuntimeError(f"thread {task.name} does not block the lease signals: call block_signals() earlier")


class LeaseState(enum.Enum):
    """What the kernel has of a lease; GONE: it was not given back in time, so the kernel let the others in."""

    ACTIVE = "active"
    BREAKING = "being broken"
    GONE = "gone"


def state_of(fd: int) -> LeaseState:
    """Of the lease on this descriptor (proc(5), fdinfo), also where F_GETLEASE tells what it is being broken to."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"lock:") and b" LEASE " in line:
                return LeaseState.BREAKING if b" BREAKING " in line else LeaseState.ACTIVE
    return LeaseState.GONE


class FileLeases:
    """The leases that this process has, by descriptor."""

    def __init__(self) -> None:
        """Raises OSError; RuntimeError when a thread does not block the signals."""
        _check_blocked()
        self._kinds: dict[int, int] = {}  # F_RDLCK or F_WRLCK by descriptor
        mask = bytearray(_SIGSET_BYTES)
        for number in (LEASE_SIGNAL, OVERFLOW_SIGNAL):
            mask[(number - 1) // 8] |= 1 << ((number - 1) % 8)
        address = (ctypes.c_char * _SIGSET_BYTES).from_buffer(mask)
        self.descriptor = check(libc.signalfd(-1, address, _SFD_NONBLOCK | _SFD_CLOEXEC))
        """Readable when `broken` has something to say."""

    def close(self) -> None:
        """Give all leases back; the descriptors stay open."""
        for fd in list(self._kinds):
            self.release(fd)
        os.close(self.descriptor)

    def take(self, fd: int, kind: int = fcntl.F_RDLCK) -> bool:
        """A lease on the file, F_RDLCK (opened O_RDONLY) or F_WRLCK; False when somebody has it open for writing

        (F_WRLCK: has it open) or has a lease.

        Raises OSError: EINVAL where the file or its file system has no leases.
        """
        # By itself the kernel would note the calling thread, which gets no signal unless it is the main one.
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, _F_SETSIG, LEASE_SIGNAL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            raise
        self._kinds[fd] = kind
        return True

    def take_over(self, fd: int) -> bool:
        """Become the one who is told of this lease, which another process took; False when it is broken already.

        *fd* is then to be released nevertheless: somebody may wait for it in open(2).
        """
        is_read_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        kind = self._kinds[fd] = fcntl.F_RDLCK if is_read_only else fcntl.F_WRLCK
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, _F_SETSIG, LEASE_SIGNAL)
        if not self.is_whole(fd):
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)  # from now on our number of the descriptor is told
        except OSError as error:
            if error.errno == errno.EAGAIN:  # broken since the question
                return False
            raise
        return self.is_whole(fd)

    def release(self, fd: int) -> None:
        """Give the lease back: who waits for it goes on.  The descriptor stays open."""
        self._kinds.pop(fd, None)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            if error.errno != errno.EAGAIN:  # there is none: it was not given back in time, so the kernel took it
                raise

    def is_whole(self, fd: int) -> bool:
        """Whether nobody is breaking the lease, and the kernel did not take it away."""
        return fcntl.fcntl(fd, fcntl.F_GETLEASE) == self._kinds.get(fd)

    def may_be_read(self, fd: int) -> bool:
        """Whether who breaks the lease only wants to read.  (A writer may come while he waits.)"""
        return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK

    def broken(self) -> list[int]:
        """The descriptors whose leases are being broken and were not told yet; never blocks."""
        told: set[int] = set()
        while True:
            try:
                records = os.read(self.descriptor, _RECORD_BYTES * _RECORDS_AT_ONCE)
            except BlockingIOError:
                break
            told |= self._named_in(records)
        return self._really_broken(told)

    def _named_in(self, records: bytes) -> set[int]:
        told: set[int] = set()
        for at in range(0, len(records), _RECORD_BYTES):
            number, fd = _SIGNO_AND_FD.unpack_from(records, at)
            if number == OVERFLOW_SIGNAL:
                told |= self._kinds.keys()
            else:
                told.add(fd)
        return told

    def _really_broken(self, fds: Iterable[int]) -> list[int]:
        return [fd for fd in fds if fd in self._kinds and not self.is_whole(fd)]
