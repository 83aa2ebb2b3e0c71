"""The lab's network: a bridge in a network namespace of its own, and a veth pair to each node.

The namespaces are held by processes (the switch, each node's PID 1), not by names in /run/netns: the host's network
and mount table stay untouched, and killing the processes removes everything.  Run as a program
(`python -m omfs.lab.network BASE LAB LOCK_FD`) it is the switch.  Called by node.py, init.py and faults.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from omfs.kernel import namespaces
from omfs.lab import state, topology
from omfs.lab.state import LabError
from omfs.lab.topology import LabPaths


def ip(commands: list[str], pid: int | None = None) -> None:
    """Run a batch of ip(8) commands, in the network namespace of process *pid*.  Raises LabError."""
    argv = ["ip", "-batch", "-"]
    if pid is not None:
        argv = ["nsenter", f"--net=/proc/{pid}/ns/net", *argv]
    try:
        done = subprocess.run(argv, input="\n".join(commands) + "\n", capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{error.filename} is missing; install iproute2 and util-linux") from None
    if done.returncode:
        raise LabError(f"ip: {' '.join(done.stderr.split())} (of: {'; '.join(commands)})")


def start_switch(paths: LabPaths, lock_fd: int) -> None:
    """Start the process that holds the lab's network namespace, with the bridge in it.  Raises LabError."""
    with paths.log.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "omfs.lab.network", str(paths.base), paths.name, str(lock_fd)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            pass_fds=(lock_fd,), start_new_session=True, cwd="/",
        )  # fmt: skip
    assert child.stdout is not None
    with child.stdout:
        answer = child.stdout.read()  # ends when the switch has become sleep(1), or died
    if answer != b"ready\n":
        child.wait()
        raise LabError(f"the lab's network can't be made: {last_line(paths.log)}")
    child.returncode = 0  # it lives on; Popen need not warn


def connect_node(paths: LabPaths, node: int, pid: int) -> None:
    """Give the network namespace of *pid* the node's interface: eth0, its address, a port at the switch.

    Raises LabError, also where the switch is gone.
    """
    switch = switch_pid(paths)
    port = topology.port_name(node)
    ip(
        [
            f"link add {port} type veth peer name eth0 address {topology.mac(node)} netns {pid}",
            f"link set {port} master bridge up",
        ],
        switch,
    )
    ip(["link set lo up", f"addr add {topology.address(paths.name, node)}/24 dev eth0", "link set eth0 up"], pid)


def disconnect_node(paths: LabPaths, node: int) -> None:
    """Pull the plug: both ends of the node's cable are gone at once, and nothing is told to anybody."""
    port = topology.port_name(node)
    switch = switch_pid(paths)
    listed = subprocess.run(
        ["nsenter", f"--net=/proc/{switch}/ns/net", "ip", "link", "show", port], capture_output=True, check=False
    )
    if listed.returncode == 0:
        ip([f"link del {port}"], switch)


def switch_pid(paths: LabPaths) -> int:
    record = state.alive(paths.switch)
    if record is None:
        raise LabError(f"the network of lab {paths.name!r} is gone; take it down with: omfs-lab down")
    return record.pid


def last_line(log: Path) -> str:
    """What a log says last, for an error message."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return lines[-1].strip() if lines else f"see {log}"


def _be_the_switch(base: str, name: str, lock_fd: int) -> None:
    paths = LabPaths(name, Path(base))
    state.record_self(paths.switch)
    namespaces.unshare(namespaces.CLONE_NEWNET)
    # No bridge filtering or IPv6 chatter is wanted; a cut works on IPv4 neighbours.
    ip(["link add bridge type bridge stp_state 0 mcast_snooping 0", "link set lo up", "link set bridge up"])
    os.write(1, b"ready\n")
    os.close(lock_fd)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.execvp("sleep", ["sleep", "infinity"])


if __name__ == "__main__":
    try:
        _be_the_switch(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except (LabError, OSError) as error:
        sys.exit(f"switch: {error}")
