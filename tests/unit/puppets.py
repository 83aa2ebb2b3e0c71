"""Real processes that do what a test says: fork, and end.

Each listens on a datagram socket named by its pid, so that any of a tree can be told something, whoever its parent is
by now.  An answer comes when it is done: after `fork` the child listens already.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator

DEADLINE_S = 60.0

PROGRAM = r"""
import os, signal, socket, sys
TOKEN = sys.argv[1]
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them, so they are gone when they end
def listen():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(f"\0{TOKEN}-{os.getpid()}")
    return sock
def fork(sock, between):
    # *between*: the child forks in turn and ends at once; the grandchild answers when it is an orphan
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        pid = os.read(reader, 20)
        os.close(reader)
        return sock, pid
    if between:
        parent = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == parent:
            os.sched_yield()
    sock.close()
    sock = listen()
    os.write(writer, b"%d" % os.getpid())
    os.close(reader)
    os.close(writer)
    return sock, None
sock = listen()
print(os.getpid(), flush=True)
while True:
    command, sender = sock.recvfrom(100)
    answer = b"done"
    if command in (b"fork", b"orphan"):
        sock, answer = fork(sock, command == b"orphan")
    if answer is not None:
        sock.sendto(answer, sender)
    if command == b"exit":
        os._exit(0)
"""


class Puppets:
    """A tree of processes; all end with it."""

    def __init__(self) -> None:
        self._token = uuid.uuid4().hex
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE_S)
        self._socket.bind("")  # a name of the kernel's choice
        command = [sys.executable, "-S", "-c", PROGRAM, self._token]
        self._first = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._first.stdout is not None
        self.first = int(self._first.stdout.readline())
        self._alive = {self.first}

    def fork(self, pid: int) -> int:
        """The child's pid."""
        return self._made(self._tell(pid, b"fork"))

    def orphan(self, pid: int) -> int:
        """A grandchild whose parent has ended already."""
        return self._made(self._tell(pid, b"orphan"))

    def end(self, pid: int) -> None:
        """Returns when it has ended."""
        pidfd = os.pidfd_open(pid)
        try:
            self._tell(pid, b"exit")
            _wait_ended(pidfd)
        finally:
            os.close(pidfd)
        self._alive.discard(pid)

    def close(self) -> None:
        """End all that are left."""
        for pid in sorted(self._alive):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    _wait_ended(pidfd)
                finally:
                    os.close(pidfd)
        self._first.wait()
        assert self._first.stdout is not None
        self._first.stdout.close()
        self._socket.close()

    def _made(self, answer: bytes) -> int:
        self._alive.add(int(answer))
        return int(answer)

    def _tell(self, pid: int, command: bytes) -> bytes:
        self._socket.sendto(command, f"\0{self._token}-{pid}")
        return self._socket.recv(100)


def _wait_ended(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), "it does not end"


@contextlib.contextmanager
def puppets() -> Iterator[Puppets]:
    tree = Puppets()
    try:
        yield tree
    finally:
        tree.close()
