"""Real processes that hold something, in namespaces as mosrun makes them, for asking whether they could move.

A holder's program runs first in PID, mount, UTS and IPC namespaces of its own and leads a session; its standard input
and outputs are pipes that the test holds, as a deputy would.  It says `ready()` when it holds what it shall, and then
waits until the test is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from mignode.cantmove import why
from mignode.reasons import Kind, Reason
from omfs.kernel import processes
from omfs.kernel.processes import Identity

NAMESPACES = ("--pid", "--mount", "--uts", "--ipc")

PROLOGUE = r"""
import ctypes, fcntl, mmap, os, select, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    libc.syscall.restype = ctypes.c_long
    made = libc.syscall(ctypes.c_long(number), *arguments)
    if made < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return made
def mapped(descriptor, size):
    # mmap.mmap would keep a copy of the descriptor
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), 1, 1, descriptor, ctypes.c_size_t(0))  # PROT_READ, MAP_SHARED
    assert address != 2**64 - 1
def forked(inside):
    # answers when *inside* has been done in the child, which waits then
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            inside()
            os.close(reader)
            os.write(writer, b".")
            os.close(writer)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1)
    os.close(reader)
    return pid
def ready(*said):
    print("ready", *said, flush=True)
    sys.stdin.readline()
    os._exit(0)
"""


class Holder:
    """A process; *said* is what it told `ready`."""

    def __init__(self, process: subprocess.Popen[str], identity: Identity, said: list[str]) -> None:
        self.process = process
        self.identity = identity
        self.said = said

    def relayed(self) -> list[str]:
        ends = [end for end in (self.process.stdin, self.process.stdout) if end is not None]
        return [os.readlink(f"/proc/self/fd/{end.fileno()}") for end in ends]

    def why(self, own_filters: int = 0) -> list[Reason]:
        return why(self.identity, self.relayed(), own_filters)

    def kinds(self) -> set[Kind]:
        return {one.kind for one in self.why()}

    def texts(self) -> list[str]:
        return [one.text for one in self.why()]


@contextlib.contextmanager
def holding(
    program: str,
    *arguments: str,
    pass_fds: Sequence[int] = (),
    namespaces: Sequence[str] = NAMESPACES,
    leads: bool = True,
) -> Iterator[Holder]:
    """Until the block ends.  *leads*: whether it leads a session of its own."""
    command = ["unshare", *namespaces, "--fork", "--kill-child", "--mount-proc"]
    command += [sys.executable, "-S", "-c", PROLOGUE + "os.setsid()\n" * leads + program, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, pass_fds=pass_fds
    ) as process:
        outer = processes.identify(process.pid)
        assert outer is not None
        try:
            assert process.stdout is not None
            said = process.stdout.readline().split()
            assert said[:1] == ["ready"], (said, process.stdout.read())
            (inner,) = processes.children_of(outer)
            yield Holder(process, inner, said[1:])
        finally:
            # The first of its PID namespace takes all others along, and has ended when they have; so does unshare then.
            for one in processes.children_of(outer):
                os.kill(one.pid, signal.SIGKILL)
