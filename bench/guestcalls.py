"""What a guest's filter costs: single system calls below it against the same calls outside, in turn.

`python -m bench.guestcalls [--rounds N]`, as root; needs a C compiler.  The last two rows are calls that the router
answers: one that goes to a handler (which answers at once: home itself is not in it), and one that is refused.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import trio

from dfsa.guestfilter import filter_for
from dfsa.router import Answer, Call, Router, Value
from omfs.kernel.seccomp import Listener, install

SOURCE: Final = Path(__file__).with_suffix(".c")
ROUNDS, CALLS, ANSWERED_CALLS = 300, 2_000, 20  # many short rounds: the least is one that nobody disturbed

Costs = dict[str, float]  # ns by name of the call


def measured(program: Path, file: Path) -> Costs:
    command = [str(program), str(file), str(ROUNDS), str(CALLS), str(ANSWERED_CALLS)]
    return parsed(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parsed(said: str) -> Costs:
    return {name: float(cost) for name, cost in (line.split() for line in said.splitlines())}


def measured_below(program: Path, file: Path) -> Costs:
    """The same below a guest's filter, with a router."""
    ours, theirs = socket.socketpair()
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(into, 1)
            socket.send_fds(theirs, [b"."], [install(filter_for(platform.machine()))])
            os.execv(program, [str(program), str(file), str(ROUNDS), str(CALLS), str(ANSWERED_CALLS)])
        finally:
            os._exit(1)
    os.close(into)
    _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    ours.close()
    theirs.close()

    async def parent(_: Call) -> Answer:
        return Value(1)

    trio.run(Router(Listener(descriptor), {"getppid": parent}).serve)
    with open(out) as said:
        found = parsed(said.read())
    os.waitpid(child, 0)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3, help="measure this many times, in turn; the least counts")
    wanted = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program, file = Path(folder, "guestcalls"), Path(folder, "file")
        file.write_bytes(b"x")
        compiler = shutil.which("cc") or "gcc"
        subprocess.run([compiler, "-O2", "-pthread", "-o", program, SOURCE], check=True)
        outside: list[Costs] = []
        below: list[Costs] = []
        for _ in range(wanted.rounds):
            outside.append(measured(program, file))
            below.append(measured_below(program, file))
    print(f"{'call':12}{'outside':>12}{'as a guest':>12}")
    for name in outside[0]:
        least, least_below = (min(one[name] for one in found) for found in (outside, below))
        print(f"{name:12}{least:>9.0f} ns{least_below:>9.0f} ns{100 * (least_below / least - 1):>+8.1f} %")


if __name__ == "__main__":
    main()
