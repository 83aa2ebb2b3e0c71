"""Increment the number in a file under a lock on another: lockedcounter.py FILE LOCK COUNT flock|posix.

It is read through a descriptor that is open for reading only, kept or new by turns, so that it may come from a cache;
with its size asked for as well.
"""

import fcntl
import os
import sys


def main() -> None:
    path, count, kind = sys.argv[1], int(sys.argv[3]), sys.argv[4]
    guard = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o666)
    lock = fcntl.flock if kind == "flock" else fcntl.lockf
    kept = os.open(path, os.O_RDONLY)
    for turn in range(count):
        lock(guard, fcntl.LOCK_EX)
        reader = kept if turn % 2 else os.open(path, os.O_RDONLY)
        size, text = os.stat(path).st_size, os.pread(reader, 100, 0)
        if size != len(text):
            raise SystemExit(f"turn {turn}: {size} bytes by stat, {text!r} by read")
        if reader != kept:
            os.close(reader)
        writer = os.open(path, os.O_WRONLY)
        os.pwrite(writer, b"%d" % (int(text) + 1), 0)
        os.close(writer)
        lock(guard, fcntl.LOCK_UN)


main()
