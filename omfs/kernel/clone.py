"""fork(2) with what clone3(2) can do besides: new namespaces for the child, and the pid that it is to have.

For processes with one thread only.  As os.fork it runs Python's own preparations before and after, so the child is a
Python that goes on; it keeps the interpreter's lock meanwhile.  What glibc's fork does besides (pthread_atfork, its own
note of the thread's number) is for threads, and for a thread's number that nobody asks glibc for.

Called by mignode/hatchery.py and mignode/guestinit.py.
"""

from __future__ import annotations

import ctypes
import signal
from typing import Final

from omfs.kernel.libc import call_number, raise_errno

_system_call: Final = ctypes.PyDLL(None, use_errno=True).syscall
_system_call.restype = ctypes.c_long


class _Arguments(ctypes.Structure):
    """struct clone_args, include/uapi/linux/sched.h; set_tid since Linux 5.5."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size",
        )
    )  # fmt: skip


def fork(namespaces: int = 0, pid: int = 0) -> int:
    """The child's pid; 0 in the child.

    *namespaces*: CLONE_NEW... (kernel/namespaces.py), with CLONE_NEWPID it is process 1 of a new PID namespace.  *pid*:
    in our PID namespace, 0 for any.  Raises OSError: EEXIST where somebody has that pid, EPERM without CAP_SYS_ADMIN.
    """
    wanted = (ctypes.c_int * 1)(pid)
    arguments = _Arguments(flags=namespaces, exit_signal=signal.SIGCHLD)
    if pid:
        arguments.set_tid, arguments.set_tid_size = ctypes.addressof(wanted), 1
    ctypes.pythonapi.PyOS_BeforeFork()
    child: int = _system_call(ctypes.c_long(call_number("clone3")), ctypes.byref(arguments), ctypes.sizeof(arguments))
    if child == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if child < 0:
        raise_errno()
    return child
