"""How busy this node is, and all that it says of itself: what its own control files show and gossip tells.

The load is the number of threads that run or want to, looked at once a second and smoothed: what began four seconds ago
counts two thirds.  (The kernel's own average is over a minute: too late for who decides every second.)  In a PID
namespace of its own (a container, a lab's node) the kernel's count is the whole machine's; there the processes that the
node can see are counted one by one.

The parsers are pure.  What it does not do: know other nodes (gossip.py), or ask the export about nomfs.
Called by hpcfiles.py and gossipport.py.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from typing import Final

from mignode import nodefacts
from mignode.adminvalues import AdminStore
from mignode.nodeinfo import CONFIGURED, STANDARD_SPEED, SWITCHES, UP, NodeInfo
from omfs.config import SOFTWARE
from omfs.kernel import processes

SMOOTHED_OVER_S: Final = 4.0
_INITIAL_PIDS: Final = 0xEFFFFFFC  # include/linux/proc_ns.h: PROC_PID_INIT_INO
_RUNNING: Final = re.compile(r"^[0-9.]+ [0-9.]+ [0-9.]+ ([0-9]+)/[0-9]+ ")
_THREADS: Final = 17  # of /proc/<pid>/stat, counted from the state, which is 0


def parse_running(text: str) -> int:
    """From /proc/loadavg: threads that run or want to, who reads it among them."""
    found = _RUNNING.match(text)
    if found is None:
        raise ValueError("/proc/loadavg is not as proc(5) says")
    return int(found[1])


def parse_runnable(text: bytes) -> tuple[bool, int]:
    """From /proc/<pid>/stat: whether its first thread runs or wants to, and how many threads it has."""
    fields = text[text.rfind(b")") + 1 :].split(None, _THREADS + 1)
    if len(fields) <= _THREADS:
        raise ValueError("/proc/<pid>/stat is not as proc(5) says")
    return fields[0] == b"R", int(fields[_THREADS])


class Smoothed:
    """A number that is looked at now and then; what was seen long ago counts less."""

    def __init__(self) -> None:
        self.value = 0.0
        self._then_s: float | None = None

    def look(self, seen: float, now_s: float) -> None:
        if self._then_s is None:
            self.value = seen
        else:
            self.value += (seen - self.value) * (1 - math.exp(-max(0.0, now_s - self._then_s) / SMOOTHED_OVER_S))
        self._then_s = now_s


def count_running(is_whole_machine: bool | None = None) -> int:
    """Threads of this node that run or want to, without ours."""
    if is_whole_machine is None:
        is_whole_machine = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PIDS
    if is_whole_machine:
        return max(0, parse_running((nodefacts.PROC / "loadavg").read_text()) - 1)
    own = os.getpid()
    return sum(_running_of(pid) for pid in processes.processes() if pid != own)


def _running_of(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        runs, threads = parse_runnable(processes.read_file(f"/proc/{pid}/stat"))
        if threads == 1:
            return int(runs)
        states = 0
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError):
                states += parse_runnable(processes.read_file(f"/proc/{pid}/task/{thread}/stat"))[0]
        return states
    return 0  # it has ended


class OwnState:
    """Of this node, now."""

    def __init__(self, node: int, store: AdminStore) -> None:
        self._node = node
        self._store = store
        self._running, self._frozen = Smoothed(), Smoothed()
        self._utilisation = nodefacts.Utilisation()
        self._measured_speed = nodefacts.measured_speed()
        self._allowed = nodefacts.Allowed()

    def look(self, now_s: float, frozen: float = 0.0) -> None:
        """To be called every second.  *frozen*: threads that would run, of guests that stand still."""
        self._running.look(count_running(), now_s)
        self._frozen.look(frozen, now_s)

    @property
    def speed(self) -> int:
        """As it was set, or else as it was measured at the start; less where its processors are not all ours."""
        return self._store.values.speed or max(1, round(self._measured_speed * self._allowed.processors()[1]))

    def info(self, refuses_files: bool) -> NodeInfo:
        """*refuses_files*: nomfs.  Incarnation and seq are for gossip to fill in."""
        values = self._store.values
        memory = self._allowed.memory()
        refused = {"nomfs": refuses_files}
        bits = (
            CONFIGURED | UP | sum(bit for name, bit in SWITCHES.items() if refused.get(name, getattr(values, name, 0)))
        )
        return NodeInfo(
            node=self._node, incarnation=0, seq=0,
            load=nodefacts.load_of(self._running.value, self.speed, STANDARD_SPEED), speed=self.speed,
            frozen=nodefacts.load_of(self._frozen.value, self.speed, STANDARD_SPEED),
            cpus=self._allowed.processors()[0], mem_free=memory.available, mem_raw_free=memory.free,
            mem_total=memory.total, util=self._utilisation.percent(), status=bits,
            version=SOFTWARE.rpartition(" ")[2],
        )  # fmt: skip
