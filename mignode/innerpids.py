"""Which numbers processes get in a guest's PID namespace, so that none of the guest's is taken where it comes to.

The guest's own start above what the kernel keeps free when numbers begin anew (RESERVED_PIDS, kernel/pid.c: 300), but
for its root, which has its deputy's.  What we start in there to restore it, CRIU and what CRIU starts, gets lower ones:
a restore fails when a number of the guest's is in use.  A dump may take numbers of the guest's own kind, since all that
has them is gone when it has ended.

Pure.  Called by door.py and receive.py.
"""

from __future__ import annotations

from typing import Final

_RESERVED: Final = 300
_COMMANDS: Final = (2, 150)  # each has room enough for what CRIU starts


def last_before_guest(highest: int) -> int:
    """For ns_last_pid, before the guest itself makes processes.  *highest*: of those that it has."""
    return max(_RESERVED, highest)


def last_before_restore(root: int) -> int:
    """For ns_last_pid, before CRIU is started to restore the guest with the root *root*."""
    low, high = _COMMANDS
    return high if root < high else low
