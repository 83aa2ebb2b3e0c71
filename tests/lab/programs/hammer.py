"""Create, rename, link and unlink random names of one directory: hammer.py DIR SEED COUNT.

Prints JSON: how often each errno came.  Only what a local file system gives under such races is expected: a
name that another process took away (ENOENT) or made first (EEXIST).
"""

import errno
import json
import os
import random
import sys
from collections import Counter


def step(rng: random.Random, tag: str) -> None:
    name, other = f"n{rng.randrange(40)}", f"n{rng.randrange(40)}"
    what = rng.randrange(5)
    if what == 0:
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            os.write(fd, tag.encode())
        finally:
            os.close(fd)
    elif what == 1:
        os.rename(name, other)
    elif what == 2:
        os.link(name, other)
    elif what == 3:
        os.unlink(name)
    else:
        with open(name) as file:
            file.read()


def main() -> None:
    directory, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.chdir(directory)
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for number in range(count):
        try:
            step(rng, f"{seed}-{number}")
            outcomes["ok"] += 1
        except OSError as error:
            outcomes[errno.errorcode[error.errno or 0]] += 1
    print(json.dumps(outcomes))


main()
