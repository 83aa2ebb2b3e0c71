"""What this node is and how busy it is: processors, memory, speed; from /proc, in openMosix's units.

The parsers are pure (text in, number out, ValueError on what is no such file).  Units: bytes, percent, and speed in
openMosix's: 10000 is a Pentium III of 1 GHz.  What it does not do: count what runs (load.py), or
keep what the administrator set (adminvalues).  Called by load.py.

What a control group may not use is not there (omfs/kernel/controlgroups.py): guests are in mignode's.  Half a
processor is one of half the speed.

Sources: proc(5) for /proc/{meminfo,stat,cpuinfo}; openmosix-interfaces.md "Control files" for the units.
"""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from omfs.kernel import controlgroups
from omfs.kernel.controlgroups import Hierarchy, Room

SPEED_MAX: Final = 65535
SPEED_OF_UNKNOWN: Final = 10000  # no clock rate is shown (arm64, for one): as fast as the yardstick of the original
_PER_MHZ: Final = 10  # a Pentium III's 1000 MHz are 10000
_SAMPLE_S: Final = 1.0  # utilisation is taken over at least that long: the ticks are 10 ms
_CLOCK: Final = re.compile(r"^cpu MHz\s*:\s*([0-9.]+)\s*$", re.MULTILINE)
_SUM: Final = re.compile(r"^cpu +([0-9]+(?: [0-9]+){7,9})$", re.MULTILINE)

_MEMORY: Final = re.compile(r"^(MemTotal|MemFree|MemAvailable): +([0-9]+) kB$", re.MULTILINE)

PROC: Final = Path("/proc")
CLOCK_RATE: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")  # kHz


class Memory(NamedTuple):
    """Bytes."""

    total: int
    free: int  # as Linux sees it: used for nothing at all
    available: int  # what programs could get without swapping: caches that may go count


class Ticks(NamedTuple):
    """CPU time since the boot, of all processors together, in clock ticks."""

    total: int
    lost: int  # waiting for a disk, or taken by the hypervisor


def parse_memory(text: str) -> Memory:
    """From /proc/meminfo."""
    values = {name: int(number) * 1024 for name, number in _MEMORY.findall(text)}
    if len(values) != 3:
        _refuse("meminfo")
    return Memory(values["MemTotal"], values["MemFree"], values["MemAvailable"])


def parse_ticks(text: str) -> Ticks:
    """From the first line of /proc/stat.  guest and guest_nice are within user and nice."""
    found = _SUM.search(text)
    if found is None:
        _refuse("stat")
    numbers = [int(number) for number in found[1].split()][:8]  # user nice system idle iowait irq softirq steal
    return Ticks(sum(numbers), numbers[4] + numbers[7])


def parse_clock_rate(text: str) -> int:
    """MHz of the first processor in /proc/cpuinfo; 0 where it is not told."""
    found = _CLOCK.search(text)
    return round(float(found[1])) if found else 0


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"/proc/{name} is not as proc(5) says")


# ---------------------------------------------------------------- derived


def speed_of(clock_rate_mhz: int) -> int:
    """openMosix's: ten times the clock rate.

    It says little about a processor of today, but it is what the tools expect, the same on equal machines, and whoever
    knows better writes admin/speed.
    """
    return max(1, min(SPEED_MAX, _PER_MHZ * clock_rate_mhz)) if clock_rate_mhz else SPEED_OF_UNKNOWN


def load_of(running: float, speed: int, standard_speed: int) -> int:
    """100 = work that keeps one standard CPU fully busy: the faster the node, the less the same work is."""
    return round(100 * running * standard_speed / speed)


# ---------------------------------------------------------------- read


class Allowed:
    """What this process and its descendants may use of the machine; where its groups are is found once."""

    def __init__(self) -> None:
        self._memory = _seen(controlgroups.MEMORY)
        self._cpu = _seen(controlgroups.CPU)

    def processors(self) -> tuple[int, float]:
        """How many, and which part of each one's time."""
        count = os.cpu_count() or 1
        share = controlgroups.processor_share(self._cpu) if self._cpu else None
        return whole_processors(count if share is None else min(count, share))

    def memory(self) -> Memory:
        room = controlgroups.memory_room(self._memory) if self._memory else None
        return within(machine_memory(), room)


def _seen(controller: str) -> Hierarchy | None:
    try:
        return controlgroups.hierarchy(controller)
    except (OSError, ValueError):
        return None


def whole_processors(allowed: float) -> tuple[int, float]:
    """So many, and which part of each one's time."""
    count = max(1, math.ceil(allowed))
    return count, allowed / count


def within(memory: Memory, room: Room | None) -> Memory:
    """What is left of the machine's where a group has *room* for so much."""
    if room is None:
        return memory
    available = min(memory.available, room.available)
    return Memory(min(memory.total, room.limit), min(memory.free, available), available)


def machine_memory() -> Memory:
    return parse_memory((PROC / "meminfo").read_text())


def measured_speed() -> int:
    """From the highest clock rate that the kernel knows, or else the present one."""
    try:
        return speed_of(int(CLOCK_RATE.read_text()) // 1000)
    except (OSError, ValueError):
        return speed_of(parse_clock_rate((PROC / "cpuinfo").read_text(errors="replace")))


class Utilisation:
    """How much of the processors' time could be used, in percent: less than 100 where work waits for disks, or where
    the hypervisor gave the time to others ("utilizability" of the original's tools [I]).
    """

    def __init__(self) -> None:
        self._percent = 100
        self._then, self._then_s = parse_ticks((PROC / "stat").read_text()), time.monotonic()

    def percent(self) -> int:
        """Over the time since it was last asked; the same answer again within a second."""
        now_s = time.monotonic()
        if now_s - self._then_s >= _SAMPLE_S:
            self._percent = self.advance(parse_ticks((PROC / "stat").read_text()))
            self._then_s = now_s
        return self._percent

    def advance(self, now: Ticks) -> int:
        """Percent from the last sample to *now*.  (iowait may go backwards: proc(5).)"""
        total, lost = now.total - self._then.total, now.lost - self._then.lost
        self._then = now
        return max(0, min(100, 100 - round(100 * lost / total))) if total > 0 else self._percent
