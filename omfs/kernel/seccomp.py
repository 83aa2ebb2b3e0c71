"""seccomp(2) with user notification: a filter below which calls wait until another process answers them.

`install` puts a filter on the calling thread, and so on all it will fork and execute; it gives a descriptor, which goes
to the process that answers.  There it is a `Listener`: it receives what waits, and answers with a value, an error or a
descriptor of its own that the waiting thread then has.

What the kernel promises (seccomp_unotify(2), kernel/seccomp.c):

* a notification that nobody received is kept as long as its thread waits; a signal takes it back, and the call is done
  again.  Received, and with WAIT_KILLABLE_RECV (Linux 5.19), only death takes it back: so the effect of an answer
  happens once.  Before 5.19 a signal with a handler may make the thread call again;
* when the last descriptor of the listener is closed, what waits and what comes fails with ENOSYS;
* the descriptor is readable while something waits, and hangs up when no thread is below the filter any more.

Whoever answers PROCEED lets the kernel do the call with what is in the thread's memory *then*: never after a decision
that depends on memory, which another thread can change meanwhile.

One process receives at a time.  Nothing here waits.  What a call means is not known here (dfsa/verdict.py, router.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from typing import Any, Final, NamedTuple

from omfs.kernel.libc import call_number, check, libc, system_call

_SET_MODE_FILTER: Final = 1
_GET_NOTIF_SIZES: Final = 3
_SPEC_ALLOW: Final = 1 << 2  # or, before Linux 5.16, the guest would run without speculation past stores: slower
_NEW_LISTENER: Final = 1 << 3
_WAIT_KILLABLE: Final = 1 << 5

_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV and so on, include/uapi/linux/seccomp.h
_SEND: Final = 0xC0182101
_ID_VALID: Final = 0x40082102
_ADD_FD: Final = 0x40182103
_SET_FLAGS: Final = 0x40082104

_WAKE_IN_STEP: Final = 1  # SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, Linux 6.6: on this core, since we are about to sleep
_PROCEED: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_AT_NUMBER: Final = 1  # SECCOMP_ADDFD_FLAG_SETFD
_AND_ANSWER: Final = 2  # SECCOMP_ADDFD_FLAG_SEND, Linux 5.14

_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, and struct seccomp_data
_ANSWER: Final = struct.Struct("=QqiI")  # id, value, -errno, flags
_NEW_FD: Final = struct.Struct("=QIiII")  # id, flags, ours, theirs, its flags
_ID: Final = struct.Struct("=Q")
_SIZES: Final = struct.Struct("=HHH")

_ioctl: Final = libc.ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("instructions", ctypes.c_ushort), ("code", ctypes.c_char_p))


class Notification(NamedTuple):
    """A call that waits.

    *thread*: its number in the receiver's PID namespace, 0 where it has none; *architecture*: AUDIT_ARCH_...
    """

    id: int
    thread: int
    call: int
    architecture: int
    arguments: tuple[int, ...]


def install(program: bytes) -> int:
    """Put *program* (kernel/bpf.py) on this thread for good; the descriptor of its listener, close-on-exec.

    Other threads of the process go on without it.  OSError: EACCES without CAP_SYS_ADMIN, EBUSY where a filter with a
    listener is there already, EINVAL for a program that the kernel does not take.
    """
    call = call_number("seccomp")
    filter_ = _Program(len(program) // 8, program)
    flags = _NEW_LISTENER | _SPEC_ALLOW
    descriptor: int = system_call(call, _SET_MODE_FILTER, flags | _WAIT_KILLABLE, ctypes.byref(filter_))
    if descriptor < 0 and ctypes.get_errno() == errno.EINVAL:  # before Linux 5.19
        descriptor = system_call(call, _SET_MODE_FILTER, flags, ctypes.byref(filter_))
    return check(descriptor)


class Listener:
    """The descriptor of a filter's listener, which it owns from now on."""

    def __init__(self, descriptor: int) -> None:
        sizes = ctypes.create_string_buffer(_SIZES.size)
        check(system_call(call_number("seccomp"), _GET_NOTIF_SIZES, 0, sizes))
        notification_bytes, answer_bytes, _ = _SIZES.unpack(sizes.raw)  # a later kernel's may be longer
        self._received = ctypes.create_string_buffer(max(notification_bytes, _NOTIFICATION.size))
        self._answer = ctypes.create_string_buffer(max(answer_bytes, _ANSWER.size))
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.descriptor = descriptor
        """Readable when `receive` has something to say."""
        _ioctl(descriptor, _SET_FLAGS, _WAKE_IN_STEP)  # only faster, so an older kernel's EINVAL is no error

    def close(self) -> None:
        """What waits and what comes fails with ENOSYS, unless another process has the descriptor as well."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def is_deserted(self) -> bool:
        """Whether no thread is below the filter any more, so that nothing will come."""
        return any(events & select.POLLHUP for _, events in self._poll.poll(0))

    def receive(self) -> Notification | None:
        """The next call that waits; None: there is none (any more)."""
        # The kernel would wait where nothing is, so it is asked first.  What has gone since was counted and is no wait.
        if not any(events & select.POLLIN for _, events in self._poll.poll(0)):
            return None
        ctypes.memset(self._received, 0, len(self._received))  # as the kernel demands
        if not self._done(_RECEIVE, self._received):
            return None
        id_, thread, _, call, architecture, _, *arguments = _NOTIFICATION.unpack_from(self._received)
        return Notification(id_, thread, call, architecture, tuple(arguments))

    def waits(self, id_: int) -> bool:
        """Whether that thread still waits: what was read meanwhile from its memory, or by its number, was its own."""
        return self._done(_ID_VALID, ctypes.create_string_buffer(_ID.pack(id_), _ID.size))

    def answer(self, id_: int, value: int) -> bool:
        """The call returns *value*.  False, here and below: the thread waits no more."""
        return self._send(id_, value, 0, 0)

    def fail(self, id_: int, number: int) -> bool:
        """The call fails with that errno."""
        return self._send(id_, 0, -number, 0)

    def proceed(self, id_: int) -> bool:
        """The kernel does the call as if there were no filter."""
        return self._send(id_, 0, 0, _PROCEED)

    def hand_over(self, id_: int, descriptor: int, *, close_on_exec: bool) -> bool:
        """The thread gets a duplicate of our *descriptor*, and the call returns its number there, in one step."""
        return self._add(id_, descriptor, _AND_ANSWER, 0, close_on_exec)

    def put(self, id_: int, descriptor: int, at: int, *, close_on_exec: bool) -> bool:
        """The thread, which goes on waiting, gets a duplicate of our *descriptor* as its descriptor *at*."""
        return self._add(id_, descriptor, _AT_NUMBER, at, close_on_exec)

    def _send(self, id_: int, value: int, error: int, flags: int) -> bool:
        _ANSWER.pack_into(self._answer, 0, id_, value, error, flags)
        return self._done(_SEND, self._answer)

    def _add(self, id_: int, descriptor: int, how: int, at: int, close_on_exec: bool) -> bool:
        asked = _NEW_FD.pack(id_, how, descriptor, at, os.O_CLOEXEC if close_on_exec else 0)
        return self._done(_ADD_FD, ctypes.create_string_buffer(asked, len(asked)))

    def _done(self, request: int, argument: Any) -> bool:
        """OSError but for ENOENT: the thread waits no more, or (EINPROGRESS) had its answer already."""
        if _ioctl(self.descriptor, request, argument) >= 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.EINPROGRESS):
            return False
        raise OSError(number, os.strerror(number))
