"""The nodes that everything is measured between: a lab of its own, named "bench".

Node 1 is where the programs run, node 2 is where files are served from; each has an ext4 disk of its own, mounted at
DISK without the overlay that the lab's roots have.  A third is there only where two nodes share what is on node 2.
All contenders run inside these nodes (network, mount and PID namespaces), so taking the lab down ends their daemons
and mounts too, also after a failure.  Called by run.py, suites.py and the contenders.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.pingpong import STALE_STATUS
from omfs.lab import topology

NAME: Final = "bench"
CLIENT: Final = 1
SERVER: Final = 2
THIRD: Final = 3
DISK: Final = "/bench"
PAIR_TIMEOUT_S: Final = 600
_LAB: Final = str(Path(sys.prefix) / "bin" / "omfs-lab")

# The node's disk is the ext4 image under its root's overlay; the same block device is mounted once more.
_MOUNT_DISK: Final = """
for loop in /sys/block/loop*; do
    [ "$(cat $loop/loop/backing_file 2>/dev/null)" = "$1" ] || continue
    mknod /dev/bench-disk b $(tr ':' ' ' < $loop/dev)
    mkdir -p "$2"
    exec mount -n -t ext4 -o noinit_itable /dev/bench-disk "$2"
done
echo "no loop device has $1" >&2
exit 1
"""


class BenchError(Exception):
    """A step that failed; the text is for the user."""


class StaleError(BenchError):
    """Of two programs that take turns one was shown what the other had already changed."""


def run(argv: list[str], text: str | None = None) -> str:
    """The output of a command on this machine.  Raises BenchError with what it said."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchError(f"{argv[0]} is missing: start this with `make bench`") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise BenchError(f"{' '.join(argv)[:200]} ended with {done.returncode}: {said[-2000:]}")
    return done.stdout


def on(node: int, *argv: str, text: str | None = None) -> str:
    """The output of a command inside a node."""
    return run([_LAB, "exec", "--name", NAME, str(node), "--", *argv], text)


def up(count: int = 2, *options: str) -> None:
    """Fresh nodes with sec=tls and their disks at DISK; what an earlier run left is taken down first."""
    down()
    run([_LAB, "up", "-n", str(count), "--name", NAME, *options])
    for node in (CLIENT, SERVER):
        image = topology.LabPaths(NAME).node(node).disk
        on(node, "sh", "-c", _MOUNT_DISK, "mount-disk", str(image), DISK)
        on(node, "sh", "-ec", "umount /mfs; mount /mfs")  # /mfs/<self> shows the mounts of its start


def down() -> None:
    """Remove the lab with everything in it; nothing to do is fine."""
    subprocess.run([_LAB, "down", "--name", NAME], capture_output=True, check=False)


def address(node: int) -> str:
    return topology.address(NAME, node)


def program(node: int, name: str, *argv: str) -> str:
    """The output of one of bench's own programs that run inside a node: workloads, programs, pingpong."""
    return on(node, *_program(name, argv))


def pair(name: str, first: tuple[int, list[str]], second: tuple[int, list[str]]) -> str:
    """Run one of bench's programs in two nodes at once, each one's stdout the other's stdin; the first one's stderr."""
    to_second, to_first = os.pipe(), os.pipe()
    started = []
    try:
        for (node, argv), stdin, stdout in ((first, to_first[0], to_second[1]), (second, to_second[0], to_first[1])):
            command = [_LAB, "exec", "--name", NAME, str(node), "--", *_program(name, argv)]
            started.append(subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True))
    finally:
        for fd in (*to_second, *to_first):
            os.close(fd)  # only the two have the ends, so each notices when the other ends
    try:
        said = [process.communicate(timeout=PAIR_TIMEOUT_S)[1] for process in started]
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name}: no end after {PAIR_TIMEOUT_S} s") from None
    finally:
        for process in started:
            process.kill()
            process.wait()
    statuses = [process.returncode for process in started]
    if STALE_STATUS in statuses:
        raise StaleError(said[statuses.index(STALE_STATUS)].strip())
    if any(statuses):
        raise BenchError(f"{name}: {' / '.join(text.strip() for text in said if text.strip())[-2000:]}")
    return said[0]


def _program(name: str, argv: Sequence[str]) -> list[str]:
    return [sys.executable, "-I", str(Path(__file__).with_name(f"{name}.py")), *argv]


def write(node: int, path: str, text: str) -> None:
    """Make a file inside a node, readable by root only."""
    on(node, "sh", "-c", 'mkdir -p "${1%/*}"; umask 077; cat > "$1"', "write", path, text=text)
