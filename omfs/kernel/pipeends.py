"""Whether somebody holds the other end of a pipe that one of another process's descriptors is an end of.

Asked through a copy of the descriptor: opening /proc/<pid>/fd/<number> would make a new end, and who waits for the last
one to be closed would wait longer.  The copy is closed at once; only if the process closes its own in that moment, the
pipe ends a moment later.  Called by mignode/cantmove.py.
"""

from __future__ import annotations

import os
import select

from omfs.kernel.descriptors import copied_from


def is_other_end_held(pid: int, number: int, inode: int) -> bool:
    """Of a descriptor that only reads: does anybody write?  Of one that only writes: does anybody read?

    *inode*: the pipe's; False where the descriptor is another's by now.  Raises OSError: ESRCH, EBADF where it is gone.
    """
    copy = copied_from(pid, number)
    try:
        if os.fstat(copy).st_ino != inode:
            return False
        poll = select.poll()
        poll.register(copy, 0)  # POLLHUP and POLLERR come unasked
        return not any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))
    finally:
        os.close(copy)
