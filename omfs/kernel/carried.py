"""What a process carries through execve(2) that Python has no call for: capabilities, securebits, I/O priority ...

Capabilities are bit masks, as /proc/<pid>/status shows them (capabilities(7)).  All of it is set for the calling
thread, so it is for processes with one thread.  Raises OSError.  No policy: who may have what is known to
mignode/birthright.py.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Final

from omfs.kernel.libc import call_number, check, libc, raise_errno, system_call

_CAPABILITY_VERSION_3: Final = 0x20080522

_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_GET_SECUREBITS: Final = 27
_PR_SET_SECUREBITS: Final = 28
_PR_SET_TIMERSLACK: Final = 29
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_AMBIENT_RAISE: Final = 2
_AMBIENT_CLEAR: Final = 4
_NO_ROOT_FOR_EVER: Final = 0b11  # SECBIT_NOROOT and its lock
_CAPABILITIES_MAX: Final = 64
_SELF: Final = 1  # IOPRIO_WHO_PROCESS
_JOIN_SESSION_KEYRING: Final = 1


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def capabilities() -> tuple[int, int, int]:
    """Effective, permitted and inheritable."""
    data = (_Data * 2)()
    check(libc.capget(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), data))
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """What is inheritable beyond the permitted ones needs CAP_SETPCAP, and has to be in the bounding set."""
    data = (_Data * 2)()
    for index, half in enumerate(data):
        half.effective, half.permitted, half.inheritable = (
            each >> 32 * index & 0xFFFFFFFF for each in (effective, permitted, inheritable)
        )
    check(libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), data))


def bound_capabilities(kept: int) -> None:
    """Take all but *kept* out of the bounding set, for good."""
    for number in range(_CAPABILITIES_MAX):
        if _prctl(_PR_CAPBSET_READ, number) < 0:
            return  # the kernel knows no more
        if not kept >> number & 1:
            check(_prctl(_PR_CAPBSET_DROP, number))


def set_ambient(wanted: int) -> None:
    """Exactly these, each of which has to be permitted and inheritable."""
    check(_prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR))
    for number in range(_CAPABILITIES_MAX):
        if wanted >> number & 1:
            check(_prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number))


def keep_capabilities(kept: bool) -> None:
    """Whether the permitted ones stay when no uid is 0 any more; until the next execve."""
    check(_prctl(_PR_SET_KEEPCAPS, int(kept)))


def take_root_no_capabilities() -> None:
    """From the next execve on uid 0 is a user like any other (SECBIT_NOROOT); for good."""
    check(_prctl(_PR_SET_SECUREBITS, _prctl(_PR_GET_SECUREBITS) | _NO_ROOT_FOR_EVER))


def gain_nothing_new() -> None:
    """No execve gives any right more (no_new_privs); for good."""
    check(_prctl(_PR_SET_NO_NEW_PRIVS, 1))


def set_timer_slack(nanoseconds: int) -> None:
    """How much later a timer may be."""
    check(_prctl(_PR_SET_TIMERSLACK, nanoseconds))


def io_priority(pid: int) -> int:
    """Class and level in one number, as ioprio_get(2) has it."""
    return check(system_call(ctypes.c_long(call_number("ioprio_get")), _SELF, pid))


def set_io_priority(value: int, thread: int = 0) -> None:
    """Of a thread, or ours.  EPERM: classes above best effort are for root."""
    check(system_call(ctypes.c_long(call_number("ioprio_set")), _SELF, thread, value))


def set_personality(value: int) -> None:
    """personality(2): addresses not drawn at random, and so on."""
    check(libc.personality(ctypes.c_ulong(value)))


def begin_session_keyring() -> None:
    """Have an empty one of our own instead of that of whoever forked us, whose keys we could use."""
    result = system_call(ctypes.c_long(call_number("keyctl")), _JOIN_SESSION_KEYRING, ctypes.c_void_p(None))
    if result < 0 and ctypes.get_errno() != errno.ENOSYS:  # a kernel that keeps no keys has none of others
        raise_errno()


def _prctl(what: int, *arguments: int) -> int:
    given = [ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]
    result: int = libc.prctl(what, *given)
    return result
