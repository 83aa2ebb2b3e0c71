"""Guests for tests: a Python program below a filter, in a PID namespace if wanted, and its listener in this process.

The program is a text that runs after the filter was installed, with `call(name or number, *arguments)`, which gives
what the system call returns or minus its errno, and `say(value)`, a line of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import trio

from dfsa.guestfilter import filter_for
from dfsa.router import Router
from omfs.kernel.seccomp import Listener

MACHINE: Final = os.uname().machine
ROOT: Final = Path(__file__).parent.parent.parent

_PROGRAM: Final = """
import ctypes, json, os, platform, signal, socket, sys, threading, time
from dfsa.callnumbers import NUMBERS
from omfs.kernel.libc import libc, system_call
from omfs.kernel.namespaces import *
from omfs.kernel.seccomp import install

def call(what, *arguments):
    number = NUMBERS[platform.machine()][what] if isinstance(what, str) else what
    given = [each if isinstance(each, bytes) or hasattr(each, "_type_") else ctypes.c_long(each) for each in arguments]
    result = system_call(ctypes.c_long(number), *given)
    return -ctypes.get_errno() if result == -1 else result

def say(value):
    os.write(1, json.dumps(value).encode() + b"\\n")

way = socket.socket(fileno=int(sys.argv[1]))
has_namespace = sys.argv[3] == "namespace"
given = []
unshare(CLONE_NEWUTS)  # whatever gets through by mistake finds no host name of the machine's
if has_namespace:
    unshare(CLONE_NEWPID | CLONE_NEWNS)
    stub = os.fork()
    if stub:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(stub, 0)[1]) % 256)
    set_parent_death_signal(signal.SIGKILL)
    mount("/", "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc")
    given.append(os.open("/proc", os.O_RDONLY))
    guest = os.fork()
    if guest:
        os.closerange(0, 3)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(guest, 0)[1]) % 256)
    os.setsid()
given.insert(0, install(bytes.fromhex(sys.argv[2])))
socket.send_fds(way, [b"installed"], given)
way.close()
os.closerange(3, 64)
exec(sys.argv[4])
"""


class Guest:
    """Runs until its program ends; to be used with `with`, which kills what is left of it."""

    def __init__(self, program: str, *, filter_: bytes | None = None, namespace: bool = False) -> None:
        ours, theirs = socket.socketpair()
        whole = filter_for(MACHINE) if filter_ is None else filter_
        command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), whole.hex()]
        self.process = subprocess.Popen(
            [*command, "namespace" if namespace else "", program],
            pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        with ours:
            message, given, _, _ = socket.recv_fds(ours, 16, 2)
        assert message == b"installed"
        self.descriptor = given[0]
        self.proc = given[1] if namespace else -1

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        if self.proc >= 0:
            os.close(self.proc)

    def listener(self) -> Listener:
        return Listener(self.descriptor)

    def tell(self) -> None:
        """Let it go on, where it reads from its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def said(self) -> list[Any]:
        """All that it says until it ends, which it must do by itself and in peace."""
        assert self.process.stdout is not None
        lines = [json.loads(line) for line in self.process.stdout]
        assert self.process.wait() == 0
        return lines

    def heard(self) -> Any:
        """The next thing that it says."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


async def served(guest: Guest, router: Router) -> list[Any]:
    """What the guest says while the router serves it, which ends with it."""
    said: list[Any] = []

    async def hear() -> None:
        said.extend(await trio.to_thread.run_sync(guest.said))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        await router.serve()
    return said
