"""Kills the next CRIU of this node by SIGKILL, at a random moment of its first milliseconds."""

import os
import random
import signal
import time

WITHIN_S = 60.0
BUSY_S = 0.03  # of a dump of a small program


def find_criu() -> int:
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if b"criu: " in file.read():
                    return int(name)
        except OSError:
            continue
    return 0


def main() -> None:
    print("ready", flush=True)
    deadline = time.monotonic() + WITHIN_S
    while not (criu := find_criu()):
        assert time.monotonic() < deadline, "no criu"
    time.sleep(random.uniform(0, BUSY_S))
    try:
        os.kill(criu, signal.SIGKILL)
    except ProcessLookupError:
        print("late", flush=True)
    else:
        print("killed", flush=True)


main()
