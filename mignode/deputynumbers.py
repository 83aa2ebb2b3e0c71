"""What a guest may know of the processes at its home without waking its deputy: its parent, groups and sessions.

To look them up takes nobody's rights, so mignode does it, with the numbers that it has itself.  Called by deputies.py.
"""

from __future__ import annotations

import errno
import os

from omfs.kernel.processes import read_file
from omfs.kernel.procfs import parse_status


def number_told(deputy: int, call: str, arguments: tuple[int, ...]) -> int:
    """What the call would return to process *deputy*.  Raises OSError as the call would; ENOSYS for another call."""
    try:
        match call, arguments:
            case "getppid", ():
                return parse_status(read_file(f"/proc/{deputy}/status")).parent
            case "getpgid", (target,):
                return os.getpgid(target or deputy)
            case "getsid", (target,):
                return os.getsid(target or deputy)
    except (OverflowError, FileNotFoundError):  # no pid is as large; the deputy has ended
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
