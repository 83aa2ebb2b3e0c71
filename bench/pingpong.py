"""Two programs in two nodes take turns on one file: what runs inside them for `make bench ARGS=--pingpong`.

The turn passes by the programs' stdin and stdout, which bench/nodes.py connects crosswise; a turn is the read of what
the other side has just written, and a write.  Whoever reads anything else ends with STALE_STATUS, so a stale answer
is never timed.  The first program prints milliseconds a turn on stderr.  Standard library only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable

SIZE = 4096
TOKEN = b"."
WARM_UP = 20  # rounds, untimed
STALE_STATUS = 3

# name -> (what it is, unit); the order of the table
PINGPONG = {
    "turn_open": ("write-read in turns, opened each turn", "ms"),
    "turn_kept": ("write-read in turns, kept open", "ms"),
    "turn_create": ("create, stat there, in turns", "ms"),
    "turn_owner": ("opened each turn, owner takes part", "ms"),
}


class StaleError(Exception):
    """What was read is not what was written."""


Turn = Callable[[int], None]  # does one turn; the number grows by one a turn, over both programs


def content(number: int) -> bytes:
    return b"%08d" % number * (SIZE // 8)


def check(got: bytes, number: int) -> None:
    if got != content(number):
        raise StaleError(f"turn {number + 1}: read {got[:8]!r} of {len(got)} bytes instead of {number:08}")


def by_opening(path: str) -> Turn:
    def turn(number: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        check(os.read(fd, SIZE + 1), number - 1)
        os.close(fd)
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, content(number))
        os.close(fd)

    return turn


def kept_open(path: str) -> Turn:
    fd = os.open(path, os.O_RDWR)

    def turn(number: int) -> None:
        check(os.pread(fd, SIZE + 1, 0), number - 1)
        os.pwrite(fd, content(number), 0)

    return turn


def by_creating(directory: str) -> Turn:
    """See the other's new file, know that the next name is missing (the other makes it later), create the one after."""

    def turn(number: int) -> None:
        if number > 1 and not os.path.exists(f"{directory}/{number - 1}"):
            raise StaleError(f"turn {number}: {number - 1} is missing")
        if os.path.exists(f"{directory}/{number + 1}"):
            raise StaleError(f"turn {number}: {number + 1} is there already")
        os.close(os.open(f"{directory}/{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    return turn


def prepare(directory: str) -> None:
    os.makedirs(f"{directory}/names")
    with open(f"{directory}/file", "wb") as file:
        file.write(content(0))


def wait_token() -> None:
    if os.read(0, 1) != TOKEN:
        raise EOFError("the other program has ended")


def pass_token() -> None:
    os.write(1, TOKEN)


def lead(turn: Turn, rounds: int) -> float:
    """Milliseconds a turn; this side does the odd ones."""
    wait_token()  # the other one is ready
    start = 0
    for number in range(WARM_UP + rounds):
        if number == WARM_UP:
            start = time.perf_counter_ns()
        turn(2 * number + 1)
        pass_token()
        wait_token()
    return (time.perf_counter_ns() - start) / rounds / 2e6


def follow(turn: Turn, rounds: int) -> None:
    pass_token()
    for number in range(WARM_UP + rounds):
        wait_token()
        turn(2 * number + 2)
        pass_token()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("prepare", "lead", "follow"))
    parser.add_argument("directory")
    parser.add_argument("--turn", choices=sorted(PINGPONG), default="turn_open")
    parser.add_argument("--rounds", type=int, default=500)
    arguments = parser.parse_args()
    if arguments.action == "prepare":
        prepare(arguments.directory)
        return
    gc.disable()
    file, names = f"{arguments.directory}/file", f"{arguments.directory}/names"
    try:
        if arguments.turn == "turn_kept":
            turn = kept_open(file)
        elif arguments.turn == "turn_create":
            turn = by_creating(names)
        else:
            turn = by_opening(file)
        if arguments.action == "lead":
            print(json.dumps(lead(turn, arguments.rounds)), file=sys.stderr)
        else:
            follow(turn, arguments.rounds)
    except (StaleError, EOFError, OSError) as error:
        print(f"{arguments.action}: {error}", file=sys.stderr)
        sys.exit(STALE_STATUS if isinstance(error, StaleError) else 1)


if __name__ == "__main__":
    main()
