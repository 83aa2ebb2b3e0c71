"""Take turns with other nodes at a counter in a shared mapping: mmapturns.py FILE SLOT anew|remapped|kept|unsynced|watched.

Each line on standard input is one turn: the counter, and this program's own slot beside it on the same page, become one
more.  The answer is the counter as it was found.  anew: opened and mapped for each turn; remapped: opened once; kept:
mapped once; all these msync before they answer.  unsynced: mapped once, and no msync.  watched: mapped once, only to
be read; the counter stays as it is.
"""

import mmap
import os
import struct
import sys

LENGTH = 4096
COUNTER = 2040  # in the middle of the page; the slots are behind it


def increment(mapping: mmap.mmap, slot: int) -> int:
    (found,) = struct.unpack_from("<q", mapping, COUNTER)
    struct.pack_into("<q", mapping, COUNTER, found + 1)
    at = COUNTER + 8 * (1 + slot)
    struct.pack_into("<q", mapping, at, struct.unpack_from("<q", mapping, at)[0] + 1)
    return found


def watch(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    mapping = mmap.mmap(fd, LENGTH, prot=mmap.PROT_READ)
    for _ in sys.stdin:
        print(*struct.unpack_from("<q", mapping, COUNTER), flush=True)


def main() -> None:
    path, slot, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if how == "watched":
        watch(path)
        return
    fd = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(fd, LENGTH)
    for _ in sys.stdin:
        if how == "anew":
            os.close(fd)
            fd = os.open(path, os.O_RDWR)
        if how in ("anew", "remapped"):
            mapping.close()
            mapping = mmap.mmap(fd, LENGTH)
        found = increment(mapping, slot)
        if how != "unsynced":
            mapping.flush()
        print(found, flush=True)


main()
