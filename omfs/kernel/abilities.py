"""What this kernel lets us do, found by trying: one small question per function, and nothing is changed by asking.

What would leave a trace (a mount, a namespace) is tried in a child that ends right after, in namespaces of its own.
Each function raises OSError where the kernel refuses; whether that matters is known to cli/probes.py, the caller.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import signal
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from omfs.kernel import namespaces as ns
from omfs.kernel.fanotify import Watcher
from omfs.kernel.libc import check, system_call

_ANSWER_S: Final = 5.0

# include/uapi/linux/fuse.h
FUSE_FLAGS: Final = {
    "explicit invalidation": 1 << 25, "killpriv v2": 1 << 28, "mmap of direct_io files": 1 << 36,
}  # fmt: skip
FUSE_PASSTHROUGH: Final = 1 << 37
_FUSE_INIT: Final = 26
_FUSE_INIT_EXT: Final = 1 << 30
_FUSE_REQUEST: Final = struct.Struct("=II32x")  # fuse_in_header: length, opcode
_FUSE_GREETING: Final = struct.Struct("=IIIII")  # fuse_init_in: major, minor, readahead, flags, the upper flags
_FUSE_READ_BYTES: Final = 1 << 16

# include/uapi/linux/seccomp.h
_SECCOMP: Final = {"x86_64": 317}
_SECCOMP_GENERIC: Final = 277
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_GET_NOTIF_SIZES: Final = 3
_SECCOMP_WAIT_KILLABLE: Final = 1 << 5
_SECCOMP_NEW_LISTENER: Final = 1 << 3

_USERFAULTFD: Final = {"x86_64": 323}
_USERFAULTFD_GENERIC: Final = 282

_PAGEMAP: Final = struct.Struct("=Q")
_PAGE_PRESENT: Final = 1 << 63  # Documentation/admin-guide/mm/pagemap.rst
_PAGE_SOFT_DIRTY: Final = 1 << 55

NAMESPACES: Final = {
    "mount": ns.CLONE_NEWNS, "pid": ns.CLONE_NEWPID, "network": ns.CLONE_NEWNET, "uts": ns.CLONE_NEWUTS,
    "ipc": ns.CLONE_NEWIPC,
}  # fmt: skip


class FuseGreeting(NamedTuple):
    """What the kernel offers a FUSE file system."""

    version: tuple[int, int]
    flags: int


def fuse_greeting() -> FuseGreeting:
    """The kernel's INIT request, read from a mount that nobody else sees."""
    return parse_fuse_greeting(_apart(_greet))


def _greet() -> bytes:
    ns.unshare(ns.CLONE_NEWNS)
    ns.mount("none", "/", None, ns.MS_REC | ns.MS_PRIVATE)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    ns.mount("omfs-doctor", tempfile.gettempdir(), "fuse", ns.MS_NOSUID | ns.MS_NODEV, options)
    return os.read(fd, _FUSE_READ_BYTES)


def parse_fuse_greeting(request: bytes) -> FuseGreeting:
    """Raises OSError EPROTO where it is no INIT."""
    if len(request) < _FUSE_REQUEST.size + _FUSE_GREETING.size or _FUSE_REQUEST.unpack_from(request)[1] != _FUSE_INIT:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    major, minor, _, flags, upper = _FUSE_GREETING.unpack_from(request, _FUSE_REQUEST.size)
    return FuseGreeting((major, minor), flags | (upper << 32 if flags & _FUSE_INIT_EXT else 0))


def try_namespace(kind: int) -> None:
    """Make a namespace of *kind*, CLONE_NEW...."""

    def unshare() -> bytes:
        ns.unshare(kind)
        return b""

    _apart(unshare)


def try_seccomp_notification() -> bool:
    """Whether waits can be made killable, too (Linux 5.19).  Raises OSError where there are no notifications at all."""
    number = ctypes.c_long(_SECCOMP.get(platform.machine(), _SECCOMP_GENERIC))
    sizes = (ctypes.c_uint16 * 3)()
    check(system_call(number, _SECCOMP_GET_NOTIF_SIZES, 0, sizes))
    # No filter is given, so none is installed: EFAULT where the flags are known, EINVAL where not.
    flags = ctypes.c_uint(_SECCOMP_NEW_LISTENER | _SECCOMP_WAIT_KILLABLE)
    return system_call(number, _SECCOMP_SET_MODE_FILTER, flags, None) < 0 and ctypes.get_errno() == errno.EFAULT


def try_userfaultfd() -> None:
    """Have page faults of user programs answered by another (userfaultfd(2))."""
    number = ctypes.c_long(_USERFAULTFD.get(platform.machine(), _USERFAULTFD_GENERIC))
    os.close(check(system_call(number, os.O_CLOEXEC)))


def try_fanotify() -> None:
    """Watch the file system of / with names and handles."""
    watcher = Watcher()
    try:
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            watcher.mark(root)
        finally:
            os.close(root)
    finally:
        watcher.close()


def try_file_lease(directory: Path) -> None:
    """Take a lease on a new file in *directory*."""
    with tempfile.NamedTemporaryFile(dir=directory) as file, open(file.name, "rb") as reader:
        file.file.close()
        fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def has_soft_dirty() -> bool:
    """Whether the kernel notes which pages were written: a page that was written just now has the mark, or never."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            entry: int = _PAGEMAP.unpack(os.pread(pages.fileno(), _PAGEMAP.size, address // mmap.PAGESIZE * 8))[0]
    return bool(entry & _PAGE_PRESENT and entry & _PAGE_SOFT_DIRTY)


def _apart(question: Callable[[], bytes]) -> bytes:
    """What *question* returns or raises (OSError) in a child.  TimeoutError where it takes too long."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        answer = b""
        try:
            answer = b"\0" + question()
        except OSError as error:
            answer = bytes([error.errno or errno.EIO])
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], _ANSWER_S)
        answer = os.read(reader, _FUSE_READ_BYTES) if ready else bytes([errno.ETIMEDOUT])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
    if answer[:1] != b"\0":
        number = answer[0] if answer else errno.EIO
        raise OSError(number, os.strerror(number))
    return answer[1:]
