"""Acting as the user who asked, and giving up what no request needs.

An `Identity` is entered around a request's system calls, in whatever thread makes them, with no await in
between: the file system ids and groups of that one thread become the caller's, and with a foreign fsuid the
kernel takes away the capabilities that override file permissions (credentials(7), capabilities(7)).  The calls
are raw: glibc's setgroups would change every thread.  What is already right is not set again, so the group and
group list stay behind until somebody needs others; the fsuid never does.

Invariant: outside `with identity`, fsuid is 0.  Capabilities that a foreign fsuid does not drop (CAP_SYS_ADMIN,
CAP_SETFCAP: trusted.* and security.* attributes) are refused by export/metadata.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from types import TracebackType
from typing import Final

from omfs.kernel.libc import call_number, check, libc, raise_errno, system_call

ID_MAX: Final = (1 << 32) - 2  # 2**32-1 is "no id" to the kernel and would change nothing
GROUPS_MAX: Final = 65536  # NGROUPS_MAX
CAP_SYS_RESOURCE: Final = 24

_SETGROUPS: Final = call_number("setgroups")
_SETFSUID: Final = call_number("setfsuid")
_SETFSGID: Final = call_number("setfsgid")
_NOBODY_ASKS: Final = ctypes.c_uint(0xFFFFFFFF)  # setfsuid(-1) changes nothing and tells the present id
_CAPABILITY_VERSION_3: Final = 0x20080522


class _Thread(threading.local):
    """What this thread's fsgid and groups are, where we know."""

    gid: int = -1
    groups: tuple[int, ...] | None = None


_thread: Final = _Thread()


class Identity:
    """Credentials to act under: ``with identity: system calls``.  Not to be held over an await."""

    __slots__ = ("_array", "_gid", "_proven", "_uid", "gid", "groups", "uid")

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
        """OSError EINVAL for ids that the kernel would misunderstand."""
        if len(groups) > GROUPS_MAX or not all(0 <= number <= ID_MAX for number in (uid, gid, *groups)):
            raise OSError(errno.EINVAL, "user or group id out of range")
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self._uid = ctypes.c_uint(uid)
        self._gid = ctypes.c_uint(gid)
        self._array = (ctypes.c_uint32 * len(groups))(*groups)
        self._proven = False

    def __enter__(self) -> None:
        state = _thread
        if state.gid != self.gid:
            state.gid = -1
            system_call(_SETFSGID, self._gid)
            state.gid = self.gid
        if self.uid == 0:
            return  # root's capabilities do not ask for its groups
        if state.groups != self.groups:
            state.groups = None
            if system_call(_SETGROUPS, len(self.groups), self._array) < 0:
                raise_errno()
            state.groups = self.groups
        system_call(_SETFSUID, self._uid)
        if not self._proven:
            self._prove()

    def _prove(self) -> None:
        """setfsuid and setfsgid report no error: an id that this user namespace lacks would leave us root."""
        uid = system_call(_SETFSUID, _NOBODY_ASKS) & 0xFFFFFFFF
        gid = system_call(_SETFSGID, _NOBODY_ASKS) & 0xFFFFFFFF
        if uid != self.uid or gid != self.gid:
            system_call(_SETFSUID, 0)
            _thread.gid = -1
            raise OSError(errno.EPERM, f"cannot act as uid {self.uid} gid {self.gid} here")
        self._proven = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.uid != 0:
            system_call(_SETFSUID, 0)


ROOT: Final = Identity(0, 0)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_effective_capability(number: int) -> None:
    """Take one capability out of this thread's effective set; threads started later inherit that.

    The owner drops CAP_SYS_RESOURCE, which would let everybody's writes pass quotas and reserved blocks.
    """
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    check(libc.capget(ctypes.byref(header), data))
    data[number // 32].effective &= ~(1 << number % 32) & 0xFFFFFFFF
    check(libc.capset(ctypes.byref(header), data))


def require_root() -> None:
    """OSError EPERM unless this process may act as others and open by handle."""
    if os.geteuid() != 0:
        raise OSError(errno.EPERM, "the owner's side must run as root")
