"""Append records that can be checked, or read them while they come: records.py append FILE WHO COUNT | tail FILE COUNT.

A record is `WHO NUMBER LENGTH ` and x up to LENGTH bytes with a newline; the lengths straddle the borders of pages.
tail reads through a new descriptor each time until it has COUNT records: what it has read once must never change, each
one's records must come whole and in order.  It prints how often it looked.
"""

import os
import random
import sys

LENGTHS = (30, 100, 2000, 4090, 4095, 4096, 4097, 8192, 8193)


def append(path: str, who: str, count: int) -> None:
    rng = random.Random(who)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in range(count):
        length = rng.choice(LENGTHS)
        record = f"{who} {number} {length} ".encode().ljust(length - 1, b"x") + b"\n"
        if os.write(fd, record) != length:
            raise SystemExit("a short write")
    os.close(fd)


def tail(path: str, count: int) -> None:
    have = b""  # the last record that is not whole yet
    offset = looks = records = 0
    due: dict[str, int] = {}
    while records < count:
        looks += 1
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < offset:
                raise SystemExit(f"the file became shorter than {offset}")
            again = min(len(have), 5000)
            file.seek(offset - again)
            piece = file.read()
        if piece[:again] != have[len(have) - again :]:
            raise SystemExit(f"what was read before {offset} has changed")
        offset += len(piece) - again
        *whole, have = (have + piece[again:]).split(b"\n")
        records += len(whole)
        for record in whole:
            check(record, due)
    if have or os.stat(path).st_size != offset:
        raise SystemExit("there is more than was written")
    print(looks)


def check(record: bytes, due: dict[str, int]) -> None:
    who, number, length, rest = record.decode().split(" ", 3)
    if len(record) + 1 != int(length) or rest.strip("x"):
        raise SystemExit(f"record {who} {number} is torn")
    if due.get(who, 0) != int(number):
        raise SystemExit(f"{who}: record {number} where {due.get(who, 0)} was due")
    due[who] = int(number) + 1


def main() -> None:
    if sys.argv[1] == "append":
        append(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        tail(sys.argv[2], int(sys.argv[3]))


main()
