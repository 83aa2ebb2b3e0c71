"""Whether two threads share their descriptors and directories, as those of pthreads do, or one open file (kcmp(2)).

A thread may have its own (unshare(2) with CLONE_FILES or CLONE_FS), which no file of /proc tells.  Called by
mignode/cantmove.py and openlocks.py.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Final

from omfs.kernel.libc import call_number, check, system_call

_OPEN_FILE: Final = 0
_FILES: Final = 2
_DIRECTORIES: Final = 3  # KCMP_FS: working directory, root and umask


def share_files(one: int, other: int) -> bool:
    """True also where one of them has ended, or the kernel can't tell (it was built without CONFIG_KCMP)."""
    try:
        return not any(
            check(system_call(ctypes.c_long(call_number("kcmp")), one, other, what, 0, 0))
            for what in (_FILES, _DIRECTORIES)
        )
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.ENOSYS):
            return True
        raise


def are_one_open_file(pid: int, number: int, other: int, other_number: int) -> bool:
    """Whether a descriptor of *pid* and one of *other* are copies of each other.  Raises OSError."""
    of_each = (ctypes.c_ulong(number), ctypes.c_ulong(other_number))
    return check(system_call(ctypes.c_long(call_number("kcmp")), pid, other, _OPEN_FILE, *of_each)) == 0
