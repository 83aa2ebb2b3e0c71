"""What files of /proc/<pid> say: `stat`, `status` and `auxv` as bytes in, values out (proc(5)).

Pure: nothing is opened here.  A program chooses its own name, so it may contain anything, also parentheses, spaces and
newlines: `stat` is split behind the *last* parenthesis; in `status` the kernel escapes newlines.  Whatever does not
look as the kernel writes it is a ValueError.  Called by kernel/processes.py and kernel/callers.py.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

AT_RANDOM: Final = 25  # include/uapi/linux/auxvec.h: the address of 16 random bytes

# Behind the name, counted from the state: ppid is field 4 of stat, pgrp 5, tpgid 8, starttime 22, exit_signal 38.
_PARENT, _GROUP, _FOREGROUND, _START, _EXIT_SIGNAL = 1, 2, 5, 19, 35
_WIDE: Final = struct.Struct("=QQ")
_NARROW: Final = struct.Struct("=II")


class ProcessStat(NamedTuple):
    """Of one thread; /proc/<pid>/stat is that of the process's first thread, the leader.

    *parent*: process id, 0 where it has none or none that is shown.  *start_ticks*: since boot, in units of
    1 / sysconf(_SC_CLK_TCK) s, 10 ms; a thread's own, the leader's is the process's.  *leads*: whether it is a leader.
    """

    pid: int
    name: bytes
    state: str
    parent: int
    start_ticks: int
    leads: bool = True


class ProcessStatus(NamedTuple):
    """*uid* and *gid* are the effective ones.

    *namespace_pids*: the thread's number in each PID namespace, from that of this /proc to its own; empty where the
    kernel has no PID namespaces.
    """

    thread_group: int
    parent: int
    uid: int
    gid: int
    namespace_pids: tuple[int, ...]


def parse_stat(text: bytes) -> ProcessStat:
    """/proc/<pid>/stat, or .../task/<tid>/stat."""
    begin, end, fields = _stat_fields(text)
    return ProcessStat(
        int(text[:begin]), text[begin + 2 : end], fields[0].decode("ascii"), int(fields[_PARENT]), int(fields[_START]),
        int(fields[_EXIT_SIGNAL]) >= 0,  # thread_group_leader(), include/linux/sched/signal.h: other threads have -1
    )  # fmt: skip


def foreground_group(text: bytes) -> int:
    """Of /proc/<pid>/stat: the process group that its terminal is for; where it has no terminal, its own group."""
    fields = _stat_fields(text)[2]
    terminals = int(fields[_FOREGROUND])
    return terminals if terminals > 0 else int(fields[_GROUP])


def _stat_fields(text: bytes) -> tuple[int, int, list[bytes]]:
    """Where the name begins and ends, and the fields from the state on."""
    begin, end = text.find(b" ("), text.rfind(b") ")
    fields = text[end + 2 :].split(None, _EXIT_SIGNAL + 1)
    if begin < 0 or end < begin + 2 or len(fields) <= _EXIT_SIGNAL or len(fields[0]) != 1:
        raise ValueError(f"not a line of /proc/<pid>/stat: {text!r}")
    return begin, end, fields


def parse_status(text: bytes) -> ProcessStatus:
    """/proc/<pid>/status."""
    lines = dict(line.split(b":\t", 1) for line in text.split(b"\n") if b":\t" in line)
    try:
        return ProcessStatus(
            int(lines[b"Tgid"]),
            int(lines[b"PPid"]),
            int(lines[b"Uid"].split()[1]),
            int(lines[b"Gid"].split()[1]),
            tuple(map(int, lines.get(b"NSpid", b"").split())),
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"/proc/<pid>/status without its {error}") from None


def is_narrow(vector: bytes) -> bool:
    """Whether an auxv is that of a 32-bit program: then it is of 32-bit words, on a 64-bit kernel, too.

    Read in 64-bit words its types would have values in their upper halves.
    """
    return len(vector) % _WIDE.size > 0 or any(kind >> 32 for kind, _ in _WIDE.iter_unpack(vector))


def auxiliary(vector: bytes) -> dict[int, int]:
    """/proc/<pid>/auxv: what the kernel handed the program at its execve, by AT_... number (getauxval(3)).

    Empty for a kernel thread.
    """
    words = _NARROW if is_narrow(vector) else _WIDE
    if len(vector) % words.size:
        raise ValueError(f"an auxiliary vector of {len(vector)} bytes")
    pairs: dict[int, int] = dict(words.iter_unpack(vector))
    pairs.pop(0, None)  # AT_NULL, the end
    return pairs
