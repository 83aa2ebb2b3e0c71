"""How CRIU calls a file that is not dumped, but is there or given at the other end (criu(8), --external).

The keys of the dump are those of the restore too, where they stand for another file.  Called by who holds the other
ends (bodyfiles, guestterminal), for Tree.external and `inherited` of checkpoint.py.
"""

from __future__ import annotations

import os


def pipe_key(fd: int) -> str:
    """The pipe behind *fd*, to have another one inherited in its place."""
    return f"pipe:[{os.fstat(fd).st_ino}]"


def tty_key(fd: int) -> str:
    """A terminal whose master is outside the tree."""
    return tty_key_of(os.fstat(fd))


def tty_key_of(status: os.stat_result) -> str:
    """The same, as stat(2) has it."""
    return f"tty[{status.st_rdev:x}:{status.st_dev:x}]"


def file_key(fd: int) -> str:
    """A file, by mount and inode."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        mount = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
    return f"file[{mount:x}:{os.fstat(fd).st_ino:x}]"
