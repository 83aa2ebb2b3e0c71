"""What the guests of this node use, as the kernel and the mount count it: processors, memory, files; rates of one look.

All processes of a guest together, those that have ended too: their parents have what they used, the init what nobody
else has waited for.  `Meter` turns the totals of two looks into a Demand (weighing.py), with the files of other nodes
from the mount's counters (omfs/mount/usage.py) and what is left of /proc/<pid>/io for where it runs.
What it reads from pipes counts as data of this node: nobody tells them apart, and it errs on the side of staying.

Sources: proc(5) for stat, statm, io; Documentation/scheduler/sched-stats.rst for task/<tid>/schedstat.
Called by balance.py; `look` in a worker thread.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from dfsa.hints import Hints, Totals
from mignode.decay import Pace
from mignode.past import Past, told
from mignode.weighing import Amount, Demand
from omfs.errors import ControlError, NotRunning
from omfs.kernel.processes import read_file
from omfs.net import control
from omfs.net.control import UsageReply

ASK_WITHIN_S: Final = 2.0
LOCAL_CALL_BYTES: Final = 128 << 10  # what is read here would be asked for in pieces of that size elsewhere
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_NS_PER_S: Final = 1e9
_TIMES: Final = slice(11, 15)  # utime stime cutime cstime of /proc/<pid>/stat, counted from the state

Remote = Mapping[int, Totals]
"""By owner."""


class Used(NamedTuple):
    """Totals since the guest came: seconds, bytes.  *waited_s*: of threads that wanted a processor."""

    cpu_s: float
    waited_s: float
    io_bytes: int
    memory: int


def look(init: int, pids: Iterable[int]) -> Used:
    """For worker threads.  *init*: the guest's; *pids*: of all others."""
    cpu_s, waited_s, io_bytes, memory = _cpu_s(init, slice(13, 15)), 0.0, 0, 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
            cpu_s += _cpu_s(pid, _TIMES)
            waited_s += _waited_s(pid)
            io_bytes += _io_bytes(pid)
            memory += _memory(pid)
    return Used(cpu_s, waited_s, io_bytes, memory)


def _cpu_s(pid: int, times: slice) -> float:
    text = read_file(f"/proc/{pid}/stat")
    return sum(map(int, text[text.rindex(b")") + 2 :].split()[times])) / _TICKS_PER_S


def _waited_s(pid: int) -> float:
    folder, total = f"/proc/{pid}/task", 0
    for thread in os.listdir(folder):
        with contextlib.suppress(OSError):
            total += int(read_file(f"{folder}/{thread}/schedstat").split()[1])
    return total / _NS_PER_S


def _io_bytes(pid: int) -> int:
    fields = dict(line.split(b": ") for line in read_file(f"/proc/{pid}/io").splitlines())
    return int(fields[b"rchar"]) + int(fields[b"wchar"])


def _memory(pid: int) -> int:
    """What would have to be sent: without pages of files."""
    resident, shared = map(int, read_file(f"/proc/{pid}/statm").split()[1:3])
    return (resident - shared) * resource.getpagesize()


def namespace_of(init: int) -> int:
    """Its PID namespace, by which the mount counts.  Raises OSError."""
    return os.stat(f"/proc/{init}/ns/pid").st_ino


async def ask_mount(mount: Path) -> dict[int, dict[int, Totals]]:
    """By PID namespace and owner; nothing where no mount answers.  *mount*: its control socket."""
    try:
        reply = msgspec.convert(await control.ask(mount, "usage", deadline_s=ASK_WITHIN_S), UsageReply)
    except (NotRunning, ControlError, msgspec.ValidationError):
        return {}
    found: dict[int, dict[int, Totals]] = {}
    for namespace, owner, *totals in reply.counts:
        found.setdefault(namespace, {})[owner] = Totals(*totals)
    return found


class Meter:
    """Of one guest, as long as it is here.

    Only what it does with files fades: what it computes is that of the last look, as loads are, and how long it has
    worked says how long it will go on.
    """

    def __init__(self, here: int, speed: float, pace: Pace, past: Past | None = None) -> None:
        """*speed*: of this node, 1 the standard; *past*: what the node where it was has told of it."""
        past = past or Past()
        self._here = here
        self._speed = speed
        self._hints = Hints(*pace, past.remembered())
        self._last: tuple[float, Used] | None = None
        self._remote_bytes = self._local_bytes = 0
        self.worked_s = past.worked_s
        """How long it has done something, here and before."""

    def set_speed(self, speed: float) -> None:
        """Of this node, as it counts from now on."""
        self._speed = speed

    def set_pace(self, pace: Pace) -> None:
        """How fast it forgets from now on."""
        self._hints.set_pace(*pace)

    def past(self, unrest: float) -> Past:
        """For the next node."""
        return told(self.worked_s, unrest, self._hints.memory(), self._here)

    def advance(self, now_s: float, used: Used, remote: Remote) -> Demand | None:
        """None at the first look: a rate takes two."""
        last, self._last = self._last, (now_s, used)
        if last is None:
            self._note_files(now_s, 0, remote)
            return None
        passed_s, before = now_s - last[0], last[1]
        cpu_s, waited_s = max(0.0, used.cpu_s - before.cpu_s), max(0.0, used.waited_s - before.waited_s)
        self._note_files(now_s, used.io_bytes - before.io_bytes, remote)
        files = {
            node: Amount(rates.read_bytes + rates.written_bytes, rates.calls)
            for node, rates in self._hints.rates().items()
        }
        running = (cpu_s + waited_s) / passed_s
        is_busy = running + sum(amount.bytes for amount in files.values()) / LOCAL_CALL_BYTES
        self.worked_s += passed_s * min(1.0, is_busy)
        return Demand(cpu_s / passed_s * self._speed, running, used.memory, files)

    def _note_files(self, now_s: float, io_bytes: int, remote: Remote) -> None:
        """What was no other node's is this one's."""
        remote_bytes = sum(one.read_bytes + one.written_bytes for one in remote.values())
        self._local_bytes += max(0, io_bytes - max(0, remote_bytes - self._remote_bytes))
        self._remote_bytes = remote_bytes
        local = Totals(self._local_bytes, 0, self._local_bytes // LOCAL_CALL_BYTES)
        self._hints.look(now_s, {**remote, self._here: local})
