"""Makes sure that a dumped tree can't go on by itself: the BAR and THAW of handover.py, in the kernel's terms.

While CRIU holds a tree, each of its threads is in a ptrace stop.  A SIGSTOP that comes now waits behind it, and takes
effect when the tracer lets go, whether it was told to or was killed: before the thread executes any instruction of its
own (kernel/signal.c: a thread that leaves a ptrace stop looks for signals first).  It came after the dump, so it is not
in the images.  SIGCONT takes it back; while the tree is still held nobody sees either, but for a program with a handler
for SIGCONT, which gets that one.  What a bar can't stand is a SIGCONT by somebody else: the guest's own processes are
all held, and the deputy's signals wait in the relay; root of the node may do it, and then has two.

Processes are named by the pids of this process's namespace, parents first.  Called by migrate.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Sequence

from omfs.kernel.processes import read_file


def bar(processes: Sequence[int]) -> None:
    """They stop as soon as nobody holds them; ask `is_held` afterwards.  Raises OSError."""
    for process in processes:
        _signal(process, signal.SIGSTOP)


def lift_bar(processes: Sequence[int], stopped: Collection[int] = ()) -> None:
    """They may go on, but for those that were *stopped* before anybody dumped them.  Raises OSError.

    Children first: a shell that goes on before them would see that they were stopped.
    """
    for process in reversed(processes):
        if process not in stopped:
            _signal(process, signal.SIGCONT)


def is_held(processes: Sequence[int]) -> bool:
    """Whether every thread of all of them is held by one and the same tracer: none has run since.  Zombies never do."""
    tracers = set()
    try:
        for process in processes:
            for thread in os.listdir(f"/proc/{process}/task"):
                tracers.add(_tracer(f"/proc/{process}/task/{thread}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return len(tracers - {None}) == 1 and 0 not in tracers


def stopped_among(processes: Sequence[int]) -> tuple[int, ...]:
    """Those that are stopped, as by SIGSTOP; to be asked before the dump, as a held one does not show it."""
    found = []
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if read_file(f"/proc/{process}/stat").rpartition(b")")[2].split()[0] == b"T":
                found.append(process)
    return tuple(found)


def _tracer(path: str) -> int | None:
    """proc(5), status, TracerPid; None: it has ended, and can't run whoever holds it."""
    for line in read_file(path).splitlines():
        if line.startswith(b"State:") and line.split()[1] in (b"Z", b"X"):
            return None
        if line.startswith(b"TracerPid:"):
            return int(line.split()[1])
    return 0


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
