"""What a thread that waits for an answer of a file system is doing: the system call it is in.

From /proc/<tid>/syscall (proc(5)), which root may read and which tells the call of a thread that sleeps in it.
A 32-bit program has call numbers of its own; it is known by its addresses, which all are below 4 GiB.

Reading that file may wait for a process that does an execve, which may wait for a FUSE mount (kernel/processes.py).  A
thread that waits in its own call does not, nor do others while they wait for it; but it may be killed by the execve of
another thread, which then has the number of the process's first one.  So `creates` is for worker threads.

Called by mount/recall.py and by what answers for the magic names.
"""

from __future__ import annotations

import os
import platform
import struct
import time
from typing import Final, NamedTuple

from omfs.kernel.processes import read_file, read_memory
from omfs.kernel.procfs import is_narrow

ASLEEP_WITHIN_S: Final = 0.05  # a thread whose request we have read is about to sleep; it may have to get a core first


class _Numbers(NamedTuple):
    """Of calls that look at names and keep no directory locked while they ask for attributes; of those that open, with
    the place of their flags; of creat; of those that move directories, and ask about them with others locked; of those
    that ask for extended attributes.

    Source: arch/x86/entry/syscalls/syscall_64.tbl and syscall_32.tbl, include/uapi/asm-generic/unistd.h,
    arch/arm/tools/syscall.tbl.
    """

    looking: frozenset[int]
    opening: dict[int, int]
    creat: int | None
    renaming: frozenset[int]
    xattrs: frozenset[int]


_OPENAT2: Final = 437  # everywhere
_IO_URING_ENTER: Final = 426
_X86_64: Final = _Numbers(
    frozenset({4, 5, 6, 21, 59, 80, 89, 137, 191, 192, 193, 194, 195, 196, 262, 267, 269, 322, 332, 439}),
    {2: 2, 257: 3},
    85,
    frozenset({82, 264, 316}),
    frozenset({191, 192, 193, 194, 195, 196, 464, 465}),
)
_GENERIC: Final = _Numbers(
    frozenset({8, 9, 10, 11, 12, 13, 43, 48, 49, 78, 79, 80, 221, 281, 291, 439}),
    {56: 3},
    None,
    frozenset({38, 276}),
    frozenset({8, 9, 10, 11, 12, 13, 464, 465}),
)
_XATTRS_OLD: Final = frozenset({229, 230, 231, 232, 233, 234, 464, 465})
_I386: Final = _Numbers(frozenset(), {5: 2, 295: 3}, 8, frozenset({38, 302, 353}), _XATTRS_OLD)
_ARM: Final = _Numbers(frozenset(), {5: 2, 322: 3}, 8, frozenset({38, 329, 382}), _XATTRS_OLD)
_NONE: Final = _Numbers(frozenset(), {}, None, frozenset(), frozenset())
_BY_MACHINE: Final = {
    "x86_64": (_X86_64, _I386),
    "aarch64": (_GENERIC, _ARM),
    "riscv64": (_GENERIC, _NONE),
    "loongarch64": (_GENERIC, _NONE),
}
_WIDE, _NARROW = _BY_MACHINE.get(platform.machine(), (_NONE, _NONE))


class _Call(NamedTuple):
    numbers: _Numbers
    words: list[int]  # its number and its six arguments

    @property
    def open_flags(self) -> int | None:
        """Of open and openat."""
        place = self.numbers.opening.get(self.words[0])
        return None if place is None else self.words[place]


def only_looks(thread: int) -> bool:
    """Whether the thread is certainly in a call that changes nothing: stat, access, open without O_CREAT ...

    False where that can't be told.
    """
    try:
        call = _call_of(thread, read_file(f"/proc/{thread}/syscall"))
    except (OSError, ValueError):
        return False  # it has ended, runs, or is not shown to us
    flags = call.open_flags
    return call.words[0] in call.numbers.looking if flags is None else not flags & os.O_CREAT


def may_rename(thread: int) -> bool:
    """Whether the thread may be in a rename.  True where that can't be told."""
    try:
        call = _call_of(thread, _when_asleep(f"/proc/{thread}/syscall"))
    except (OSError, ValueError):
        return True  # it has ended, runs, or is not shown to us
    return not call.numbers.renaming or call.words[0] in {*call.numbers.renaming, _IO_URING_ENTER}


def asks_xattrs(thread: int) -> bool:
    """Whether the thread is in getxattr(2), listxattr(2) or one of their kind; False where that can't be told.

    Else it walks a path, for which the kernel asks for the ACLs of directories.
    """
    try:
        call = _call_of(thread, _when_asleep(f"/proc/{thread}/syscall"))
    except (OSError, ValueError):
        return False  # it has ended, or is not shown to us
    return call.words[0] in call.numbers.xattrs


def creates(thread: int) -> bool:
    """Whether the thread is in creat, or in an open with O_CREAT or O_TMPFILE; False where that can't be told.

    To be asked while it waits for our answer, so that it sleeps or is about to; for the latter this waits, at most
    ASLEEP_WITHIN_S.  The flags of openat2 are read where the program has them in memory.
    """
    try:
        call = _call_of(thread, _when_asleep(f"/proc/{thread}/syscall"))
        if call.words[0] == _OPENAT2 and call.numbers.opening:
            flags = struct.unpack("=Q", read_memory(str(thread), call.words[3], 8))[
                0
            ]  # struct open_how begins with them
        else:
            flags = call.open_flags
    except (OSError, ValueError, struct.error):
        return False  # it has ended, or is not shown to us
    if flags is None:
        return call.words[0] == call.numbers.creat
    if flags & os.O_PATH:  # then open ignores the others
        return False
    return bool(flags & os.O_CREAT) or flags & os.O_TMPFILE == os.O_TMPFILE


def _when_asleep(path: str) -> bytes:
    deadline = None
    while (text := read_file(path)) == b"running\n":
        now = time.monotonic()
        deadline = deadline or now + ASLEEP_WITHIN_S
        if now > deadline:
            break
        os.sched_yield()
    return text


def _call_of(thread: int, text: bytes) -> _Call:
    """Raises ValueError where it is in no call."""
    number, *words = text.split()
    *arguments, stack, code = (int(word, 16) for word in words)
    if len(arguments) != 6:
        raise ValueError("in no system call")  # -1: it waits in a page fault
    narrow = max(stack, code) >> 32 == 0 and is_narrow(read_file(f"/proc/{thread}/auxv"))
    return _Call(_NARROW if narrow else _WIDE, [int(number), *arguments])
