"""Namespaces and mounts: unshare, setns, mount, umount2, pivot_root and the parent-death signal, by ctypes.

Python has unshare and setns only from 3.12 on, the others not at all.  Every function raises OSError with the
kernel's errno.  Called by omfs/lab (a node is a set of namespaces), by the mount for the local node's bind mounts,
and later by dfsa for a guest's root.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from omfs.kernel.libc import call_number, libc, system_call

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19

MNT_DETACH: Final = 2

_PR_SET_PDEATHSIG: Final = 1
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_MOUNT_ATTR_RDONLY: Final = 1
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}


class _MountAttributes(ctypes.Structure):
    """struct mount_attr, include/uapi/linux/mount.h."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def _check(result: int, what: str | None = None) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (unshare(2)); CLONE_NEWPID holds for children only."""
    _check(libc.unshare(flags))


def set_namespace(fd: int, kind: int) -> None:
    """Enter the namespace behind *fd*, of *kind* CLONE_NEW...  (setns(2)); CLONE_NEWPID holds for children only."""
    _check(libc.setns(fd, kind))


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """mount(2).  *kind* is the file system type, None for binds, remounts and propagation changes."""
    _check(
        libc.mount(
            os.fsencode(source), os.fsencode(target), kind.encode() if kind else None, ctypes.c_ulong(flags),
            options.encode() if options else None,
        ),
        target,
    )  # fmt: skip


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(libc.umount2(os.fsencode(target), flags), target)


def make_read_only(target: str) -> None:
    """The mount at *target* and all below it, here and not where they came from (mount_setattr(2), Linux 5.12)."""
    wanted = _MountAttributes(attr_set=_MOUNT_ATTR_RDONLY)
    _check(
        system_call(
            ctypes.c_long(call_number("mount_setattr")), _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE,
            ctypes.byref(wanted), ctypes.sizeof(wanted),
        ),
        target,
    )  # fmt: skip


def pivot_root(new_root: str) -> None:
    """Make *new_root*, a mount point, the root of this mount namespace and let go of the old root.

    pivot_root(".", "."): the old root comes to lie over the new one and is detached from there (pivot_root(2), NOTES).
    """
    machine = os.uname().machine
    if machine not in _SYS_PIVOT_ROOT:
        raise OSError(0, f"pivot_root: system call number on {machine} is unknown")
    os.chdir(new_root)
    _check(system_call(ctypes.c_long(_SYS_PIVOT_ROOT[machine]), b".", b"."), new_root)
    unmount(".", MNT_DETACH)
    os.chdir("/")


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this process *number* when its parent ends (prctl(2)); a change of uid clears it."""
    _check(libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0))
