"""Append records that can be checked: appender.py FILE WHO COUNT.

A record is a line `WHO NUMBER LENGTH xxxx...`; lengths straddle page borders.
"""

import os
import random
import sys


def main() -> None:
    path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rng = random.Random(who)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in range(count):
        length = rng.choice((1, 40, 4095, 4096, 4097, rng.randrange(1, 20000)))
        record = f"{who} {number} {length} ".encode() + who.encode() * length + b"\n"
        if os.write(fd, record) != len(record):
            raise SystemExit("a short write")
    os.close(fd)


main()
