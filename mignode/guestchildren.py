"""The children of a guest's init: forks them, sees whether they could execute, and waits for whatever ends.

What has happened is said in events; what that means is for guestinit.py, which calls this and polls `channels` and
SIGCHLD.  Nothing here waits, but for a child that has said its last word.  Orphans of the guest become children too.

A command leads a process group: when it was killed, what it had started in that group is killed with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn, TypeAlias

from mignode.bodychild import Outcome
from omfs.kernel import clone


class Born(NamedTuple):
    """It has executed.  *listener*: of its filter, the receiver's to close; -1: it has none."""

    pid: int
    listener: int


class NotBorn(NamedTuple):
    """It could not, and is waited for."""

    pid: int
    error: OSError


class Ended(NamedTuple):
    """*status* as waitpid(2) has it."""

    pid: int
    status: int


class Stopped(NamedTuple):
    number: int


class Continued(NamedTuple):
    pass


Event: TypeAlias = Born | NotBorn | Ended


class Children:
    """All that the init has to wait for."""

    def __init__(self) -> None:
        self._unborn: dict[int, Outcome] = {}  # by pid: what has not executed anything yet
        self.commands: set[int] = set()

    def fork(self, become: Callable[[socket.socket], NoReturn], *, pid: int = 0, is_command: bool = False) -> int:
        """A child that does *become* with a channel; Born or NotBorn follows.  Raises OSError."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            child = clone.fork(pid=pid)
            if child == 0:
                become(its)
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        self._unborn[child] = Outcome(ours)
        if is_command:
            self.commands.add(child)
        return child

    def channels(self) -> list[socket.socket]:
        """Readable when `births` has something."""
        return [outcome.channel for outcome in self._unborn.values()]

    def births(self) -> Iterator[Event]:
        """What is known by now."""
        for pid in list(self._unborn):
            yield from self._birth(pid)

    def _birth(self, pid: int) -> Iterator[Event]:
        outcome = self._unborn[pid]
        if not outcome.is_known():
            return
        del self._unborn[pid]
        if outcome.error is None:
            yield Born(pid, outcome.listener)
            return
        os.waitpid(pid, 0)  # it has said its last word; then its number is free for another
        self.commands.discard(pid)
        if outcome.listener >= 0:
            os.close(outcome.listener)
        yield NotBorn(pid, outcome.error)

    def ends(self) -> Iterator[Event]:
        """After SIGCHLD: who has ended, and births that were not seen before."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                pid = ended.si_pid
                if pid in self._unborn:  # what it said is there when its end is
                    yield from self._birth(pid)
                    continue
                if ended.si_code != os.CLD_EXITED:
                    self.kill_command(pid)  # as long as it is not waited for, its number is nobody else's
                yield Ended(pid, os.waitpid(pid, 0)[1])

    def are_none(self) -> bool:
        """Neither living ones nor any to wait for: then nobody is left in the namespace."""
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    @staticmethod
    def stops(pid: int) -> Iterator[Stopped | Continued]:
        """After SIGCHLD: what has happened to this child."""
        with contextlib.suppress(ChildProcessError):
            while (seen := os.waitid(os.P_PID, pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)) is not None:
                if seen.si_code == os.CLD_STOPPED:
                    yield Stopped(seen.si_status)
                elif seen.si_code == os.CLD_CONTINUED:
                    yield Continued()

    def kill_command(self, pid: int) -> None:
        """With its group; nothing if it is none."""
        if pid in self.commands:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
