"""Programs that move, measured: what runs in node 1 for bench/moves.py, with the standard library only.

`python moved.py moves FILE_AT_DATA SIZES MOVES` prints one JSON object: row -> the figures of each time.  FILE_AT_DATA
is a large one on node 2, by its path through /mfs.  `python moved.py said NODE COMMAND` prints what COMMAND prints as a
guest that has moved to NODE, or that is at home (0).
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import time

ROUTE = (2, 3, 0)
HERE = "mosrun"
STARTS = 10
MIB = 1 << 20

# Notes every time in which it did not run: other programs may take the processor, a move takes longer.
FROZEN = """
import sys, time
memory = bytearray(b"not zero" * 131072 * int(sys.argv[1]))
print("begun", flush=True)
last, gaps = time.monotonic(), []
import os, select
while not select.select([0], [], [], 0)[0]:
    now = time.monotonic()
    gaps.append(now - last)
    last = now
    if len(gaps) > 100000:
        gaps = sorted(gaps)[-100:]
print(*sorted(gaps)[-int(sys.argv[2]):])
"""
READ = """
import sys, time
sys.stdin.readline()
begin, size = time.monotonic(), 0
with open(sys.argv[1], "rb", buffering=0) as file:
    while piece := file.read(1 << 20):
        size += len(piece)
print(size / (time.monotonic() - begin) / 1e6)
"""
BEGUN = 'echo begun; exec "$@"'
AFTER_A_LINE = 'read -r line; exec "$@"'


def started(*command: str) -> subprocess.Popen[str]:
    """A guest that runs; it is killed where we fail."""
    argv = [HERE, "/bin/sh", "-c", BEGUN, "sh", *command]
    guest = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(guest.kill)
    assert guest.stdout is not None
    guest.stdout.readline()
    return guest


def moved(guest: subprocess.Popen[str], node: int) -> float:
    """Milliseconds until it runs there."""
    begin = time.monotonic()
    with open(f"/mfs/proc/{guest.pid}/goto", "w") as goto:
        goto.write(str(node))
    return 1000 * (time.monotonic() - begin)


def frozen_ms(mib: int, moves: int) -> list[float]:
    guest = started(sys.executable, "-c", FROZEN, str(mib), str(moves))
    assert guest.stdout is not None
    guest.stdout.readline()
    for number in range(moves):
        moved(guest, ROUTE[number % len(ROUTE)])
    said, _ = guest.communicate("\n")
    return [1000 * float(gap) for gap in said.split()]


def empty_ms(moves: int) -> list[float]:
    guest = started("/bin/sleep", "1000")
    found = [moved(guest, ROUTE[number % len(ROUTE)]) for number in range(moves)]
    guest.kill()
    guest.wait()
    return found


def starts_ms(command: list[str]) -> list[float]:
    found = []
    for _ in range(STARTS):
        begin = time.monotonic()
        subprocess.run(command, check=True)
        found.append(1000 * (time.monotonic() - begin))
    return found


def said_at(node: int, *command: str) -> str:
    """What a guest prints that begins to work at *node*."""
    guest = started("/bin/sh", "-c", AFTER_A_LINE, "sh", *command)
    if node:
        moved(guest, node)
    return guest.communicate("\n")[0]


def measured(at_data: str, sizes: str, moves: str) -> dict[str, list[float]]:
    count = int(moves)
    found = {"empty": empty_ms(count), "start_native": starts_ms(["true"]), "start": starts_ms([HERE, "true"])}
    for mib in map(int, sizes.split(",")):
        found[f"frozen_{mib}"] = frozen_ms(mib, min(count, 3) if mib > 50 else count)
    remote = subprocess.run(
        [sys.executable, "-c", READ, at_data], check=True, input="\n", text=True, stdout=subprocess.PIPE
    )
    found["read_remote"] = [float(remote.stdout)]
    found["read_there"] = [float(said_at(2, sys.executable, "-c", READ, at_data + ".2").split()[0])]
    return found


if __name__ == "__main__":
    if sys.argv[1] == "said":
        print(said_at(int(sys.argv[2]), *sys.argv[3:]), end="")
    else:
        print(json.dumps(measured(*sys.argv[2:])))
