"""What CRIU 4.2 does not keep of a program, put right in its images; without it a move can be seen.

- A timer of timerfd_create(2) with an interval that had expired when it was dumped: the kernel says that no time is
  left (it winds it up when it is read), CRIU restores that as a timer that does not run.  It is made to expire at once.
- A system call that the kernel goes on with by restart_syscall(2): poll, nanosleep, clock_nanosleep, futex with a
  time-out.  What it needs for that is lost, so CRIU has them fail with EINTR, which a program without handlers of
  signals never sees otherwise: sleep(3) ends early, script(1) ends.  The thread is made to ask again.  The sleeps do so
  for the rest, which the kernel has written where the caller wanted it; the others with the time that they had first.

Of one that was restarted before (by a stop, or a dump that failed) only restart_syscall is to be seen: EINTR stays.
Registers are x86-64's; other machines keep CRIU's EINTR.  Images: CRIU's core.proto, core-x86.proto, fdinfo.proto and
timerfd.proto (4.2; seen in real images).

Pure: bytes in, bytes out; WireError for what is no image.  Called by stripping.py.
"""

from __future__ import annotations

import errno
from typing import Final

from mignode.criuimages import (
    MAGIC_BYTES,
    Change,
    as_bytes,
    as_number,
    changed,
    fields_of,
    image_of,
    message_of,
    messages_of,
    only_message,
)

# Numbers of fields.
_TIMER: Final = 12  # of file_entry
_TICKS, _SECONDS, _NANOSECONDS = 5, 7, 8  # of timerfd_entry
_INTERVAL: Final = (9, 10)
_MACHINE: Final = 1  # of core_entry
_THREAD_INFO: Final = 2
_REGISTERS: Final = 2  # of thread_info_x86
_R10, _AX, _DX, _SI, _DI, _ORIG_AX, _IP, _CS = 8, 11, 13, 14, 15, 16, 17, 18  # of user_x86_regs_entry

_X86_64: Final = 1
_LONG_MODE: Final = 0x33  # the code segment of 64-bit programs
_INTERRUPTED: Final = (1 << 64) - errno.EINTR
_SYSCALL_BYTES: Final = 2  # of the instruction
_AGAIN: Final = {7: (), 35: (_DI, _SI), 202: (), 230: (_DX, _R10)}
"""System calls: poll, nanosleep, futex, clock_nanosleep.  Where there are two registers, the first says how long, the
second where the rest was written, if anywhere."""


def timers_wound_up(files: bytes) -> bytes:
    """files.img."""
    return image_of(files[:MAGIC_BYTES], (changed(entry, {_TIMER: _wound_up}) for entry in messages_of(files)))


def calls_restarted(core: bytes) -> bytes:
    """core-<thread>.img."""
    message = only_message(core)
    if _numbers(message).get(_MACHINE) != _X86_64:
        return core
    return core[:MAGIC_BYTES] + message_of(
        changed(message, {_THREAD_INFO: lambda info: changed(as_bytes(info), {_REGISTERS: _restarted})})
    )


def _wound_up(timer: int | bytes) -> bytes:
    timer = as_bytes(timer)
    has = _numbers(timer)
    if not has[_TICKS] or has[_SECONDS] or has[_NANOSECONDS] or not any(has[number] for number in _INTERVAL):
        return timer
    return changed(timer, {_TICKS: lambda _: has[_TICKS] - 1, _NANOSECONDS: lambda _: 1})


def _restarted(registers: int | bytes) -> bytes:
    registers = as_bytes(registers)
    has = _numbers(registers)
    call = has[_ORIG_AX]
    if has[_AX] != _INTERRUPTED or has[_CS] != _LONG_MODE or call not in _AGAIN:
        return registers
    changes: dict[int, Change] = {_AX: lambda _: call, _IP: lambda ip: as_number(ip) - _SYSCALL_BYTES}
    if (where := _AGAIN[call]) and has[where[1]]:
        changes[where[0]] = lambda _: has[where[1]]
    return changed(registers, changes)


def _numbers(message: bytes) -> dict[int, int]:
    return {field.number: field.value for field in fields_of(message) if isinstance(field.value, int)}
