"""What a thread that waits for an answer of a file system is doing: the system call it is in.

From /proc/<tid>/syscall (proc(5)), which root may read and which tells the call of a thread that sleeps in it.
Called by mount/recall.py.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

# Calls that look at names and keep no directory locked while they ask for attributes; and those that open, with the
# place of their flags.  Source: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
_X86_64: Final = (
    frozenset({4, 5, 6, 21, 59, 80, 89, 137, 191, 192, 193, 194, 195, 196, 262, 267, 269, 322, 332, 439}),
    {2: 2, 257: 3},
)
_GENERIC: Final = (frozenset({8, 9, 10, 11, 12, 13, 43, 48, 49, 78, 79, 80, 221, 281, 291, 439}), {56: 3})
_BY_MACHINE: Final = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC, "loongarch64": _GENERIC}
_LOOKING, _OPENING = _BY_MACHINE.get(platform.machine(), (frozenset(), {}))


def only_looks(thread: int) -> bool:
    """Whether the thread is certainly in a call that changes nothing: stat, access, open without O_CREAT ...

    False where that can't be told.
    """
    try:
        words = Path(f"/proc/{thread}/syscall").read_text().split()
        number = int(words[0])
        if number in _OPENING:
            return not int(words[_OPENING[number]], 16) & os.O_CREAT
    except (OSError, ValueError, IndexError):
        return False  # it has ended, runs, or is not shown to us
    return number in _LOOKING
