"""The two nodes that everything is measured between: a lab of its own, named "bench".

Node 1 is where the programs run, node 2 is where files are served from; each has an ext4 disk of its own, mounted at
DISK without the overlay that the lab's roots have.  All contenders run inside these nodes (network, mount and PID
namespaces), so taking the lab down ends their daemons and mounts too, also after a failure.  Called by run.py and
by the contenders.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from omfs.lab import topology

NAME: Final = "bench"
CLIENT: Final = 1
SERVER: Final = 2
DISK: Final = "/bench"
WORKLOADS: Final = str(Path(__file__).with_name("workloads.py"))
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


def up() -> None:
    """Two fresh nodes with sec=tls and their disks at DISK; what an earlier run left is taken down first."""
    down()
    run([_LAB, "up", "-n", "2", "--name", NAME])
    for node in (CLIENT, SERVER):
        image = topology.LabPaths(NAME).node(node).disk
        on(node, "sh", "-c", _MOUNT_DISK, "mount-disk", str(image), DISK)


def down() -> None:
    """Remove the lab with everything in it; nothing to do is fine."""
    subprocess.run([_LAB, "down", "--name", NAME], capture_output=True, check=False)


def address(node: int) -> str:
    return topology.address(NAME, node)


def workloads(node: int, action: str, directory: str, files: int, big_mib: int) -> str:
    """Run workloads.py inside a node."""
    return on(
        node, sys.executable, "-I", WORKLOADS, action, directory, "--files", str(files), "--big-mib", str(big_mib)
    )


def write(node: int, path: str, text: str) -> None:
    """Make a file inside a node, readable by root only."""
    on(node, "sh", "-c", 'mkdir -p "${1%/*}"; umask 077; cat > "$1"', "write", path, text=text)
