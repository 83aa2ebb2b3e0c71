"""Increment the number in a file under a lock: counter.py FILE COUNT flock|posix."""

import fcntl
import os
import sys


def main() -> None:
    path, count, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    lock = fcntl.flock if kind == "flock" else fcntl.lockf
    for _ in range(count):
        lock(fd, fcntl.LOCK_EX)
        value = int(os.pread(fd, 20, 0) or b"0")
        os.pwrite(fd, b"%d" % (value + 1), 0)
        lock(fd, fcntl.LOCK_UN)
    os.close(fd)


main()
