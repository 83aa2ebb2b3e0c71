"""Counts in a file under its lock until its input ends: underlock.py FILE flock|ofd.  Says its pid, then how often.

Every third time it gives the lock up by closing the file.
"""

import fcntl
import os
import select
import struct
import sys


def lock(file: int, kind: str, is_wanted: bool) -> None:
    if kind == "flock":
        fcntl.flock(file, fcntl.LOCK_EX if is_wanted else fcntl.LOCK_UN)
    else:
        what = fcntl.F_WRLCK if is_wanted else fcntl.F_UNLCK
        fcntl.fcntl(file, 38, struct.pack("hhqqi", what, 0, 0, 10, 0))  # F_OFD_SETLKW


def main() -> None:
    path, kind = sys.argv[1:]
    print(os.getpid(), flush=True)
    file = os.open(path, os.O_RDWR)
    count = 0
    while not select.select([0], [], [], 0)[0]:
        lock(file, kind, True)
        value = int(os.pread(file, 20, 0) or b"0")
        os.pwrite(file, b"%020d" % (value + 1), 0)
        count += 1
        if count % 3:
            lock(file, kind, False)
        else:
            os.close(file)
            file = os.open(path, os.O_RDWR)
    print(count, flush=True)


main()
