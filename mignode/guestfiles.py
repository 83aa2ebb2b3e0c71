"""The values of /mfs/proc/hpc/remote/<pid>/: what can be told of the processes here that are at home elsewhere.

Each process of such a guest has a directory, by the pid that it has on this node.  from, statm, stats and identity are
read from its /proc as it is now; numbers in identity are its home's.  A write to goto has the guest moved.
What it does not do: parse, format, or look who may (controls.py).  Called by hpcfiles.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

import trio

from mignode.guest import Guest
from mignode.guests import Guests
from mignode.moves import BEST, Moves
from mignode.registry import Registry
from omfs.errors import BodyLost, RemoteFailure
from omfs.kernel import processes
from omfs.kernel.processes import Identity
from omfs.magic.controlfiles import Value

_BALANCE: Final = -1
_STATS: Final = {
    "utime": 13, "cutime": 15, "nice": 18, "state": 2, "vsize": 22, "rss": 23, "nswap": 35, "cnswap": 36,
}  # fmt: skip
"""Where proc(5) has them in stat, from 0."""


class GuestFiles:
    """Of this node; *address_of*: a node's, in the map."""

    def __init__(self, guests: Guests, moves: Moves, registry: Registry, address_of: Callable[[int], str]) -> None:
        self._guests = guests
        self._moves = moves
        self._registry = registry
        self._address_of = address_of

    async def pids(self) -> list[int]:
        """Of all processes here that are at home elsewhere."""
        found: list[int] = []
        for guest in self._strangers():
            try:
                found += (await guest.body.all_pids()).values()
            except BodyLost:
                continue
        return sorted(found)

    async def read(self, pid: int, name: str) -> Value:
        """Raises RemoteFailure."""
        process, guest = self._find(pid)
        if name == "goto":
            return 0
        if name == "from":
            return f"{guest.traits.home} {self._address_of(guest.traits.home)}"
        try:
            text = await trio.to_thread.run_sync(self._read, process, name, abandon_on_cancel=True)
        except (FileNotFoundError, ProcessLookupError):
            raise RemoteFailure(errno.ENOENT) from None
        if name != "identity":
            return text
        return text + f"\nnmigs={self._registry.entry_of(process).settings.nmigs}\ncommand={_command_of(pid)}"

    async def write(self, pid: int, node: int, by: int) -> None:
        """goto: 0 is home, -1 lets balancing choose.  Raises OmfsError, OSError."""
        process, guest = self._find(pid)
        await self._moves.move(process, BEST if node == _BALANCE else node or guest.traits.home, by)

    def _strangers(self) -> list[Guest]:
        return [guest for guest in self._guests if guest.traits.home != self._registry.own_id]

    def _find(self, pid: int) -> tuple[Identity, Guest]:
        process = processes.identify(pid)
        guest = self._guests.of(process) if process is not None and process.pid == pid else None
        if process is None or guest is None or guest.traits.home == self._registry.own_id or pid == guest.body.pid:
            raise RemoteFailure(errno.ENOENT)
        return process, guest

    @staticmethod
    def _read(process: Identity, name: str) -> str:
        """For worker threads."""
        if name == "statm":
            return processes.read_file(f"/proc/{process.pid}/statm").decode().strip()
        if name == "stats":
            text = processes.read_file(f"/proc/{process.pid}/stat").decode(errors="replace")
            fields = ["", "", *text[text.rindex(")") + 1 :].split()]
            return "\n".join(f"{what}={fields[at]}" for what, at in _STATS.items())
        status = _status_of(process.pid)
        uid, gid = status["Uid"].split()[0], status["Gid"].split()[0]
        pid, group, session = (status[f"NS{what}"].split()[-1] for what in ("pid", "pgid", "sid"))
        return f"uid={uid}\ngid={gid}\npid={pid}\npgrp={group}\nsession={session}"


def _status_of(pid: int) -> dict[str, str]:
    text = processes.read_file(f"/proc/{pid}/status").decode(errors="replace")
    return {name: value for name, _, value in (line.partition(":\t") for line in text.split("\n"))}


def _command_of(pid: int) -> str:
    try:
        return _status_of(pid)["Name"]  # what can't be printed is escaped
    except OSError:
        raise RemoteFailure(errno.ENOENT) from None
