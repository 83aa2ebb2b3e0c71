"""Wants the lock of a file all the time: rival.py FILE try|open|wait|sqlite [posix|flock|ofd].

Says "got" when it has it, and ends.
"""

import fcntl
import os
import sqlite3
import struct
import sys
import time

LOOK_AGAIN_S = 0.0005  # all the time, but leave others some of the processor


def lock(file: int, kind: str, is_waiting: bool) -> None:
    how = 0 if is_waiting else fcntl.LOCK_NB
    if kind == "flock":
        fcntl.flock(file, fcntl.LOCK_EX | how)
    elif kind == "ofd":
        fcntl.fcntl(file, 38 if is_waiting else 37, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 10, 0))  # F_OFD_SETLK(W)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | how, 10)


def has_tried(path: str, file: int, how: str, kind: str) -> bool:
    """Whether it had the lock."""
    if how == "sqlite":
        base = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            base.execute("begin immediate")
        finally:
            base.close()
    elif how == "open":
        other = os.open(path, os.O_RDWR)
        try:
            lock(other, kind, False)
        finally:
            os.close(other)
    else:
        lock(file, kind, how == "wait")
    return True


def main() -> None:
    path, how, kind = [*sys.argv[1:], "posix"][:3]
    file = os.open(path, os.O_RDWR)
    said = False
    while True:
        if how == "wait" and not said:
            print("begun", flush=True)
            said = True
        try:
            if has_tried(path, file, how, kind):
                break
        except (BlockingIOError, sqlite3.OperationalError):
            pass
        if not said:
            print("begun", flush=True)
            said = True
        time.sleep(LOOK_AGAIN_S)
    print("got", flush=True)


main()
