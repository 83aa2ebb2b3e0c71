"""A node's PID 1: it builds the node around itself, starts what fstab says, and reaps.

Run as a program by node.py:
    python -m omfs.lab.init build BASE LAB NODE LOCK_FD REPORT_FD     still on the host
    python -m omfs.lab.init supervise REPORT_FD MOUNT                 as PID 1, inside the node's root
"build" records itself, leaves the host's namespaces, connects the network and forks PID 1, which records itself,
enters the node's root and becomes "supervise" (a new program, so that nothing of the host's tree stays open).
It reports lines to *REPORT_FD*: "stage ...", then "up" or "failed ..."; whoever listens may be gone.
Its stdout and stderr are the node's log, and it is the node's syslog: what daemons say there comes into the same file.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

from omfs.kernel import namespaces as ns
from omfs.lab import limits, network, rootfs, state, topology
from omfs.lab.topology import LabPaths

MOUNT_COMMAND: Final = ("mount", "/mfs")  # through fstab and mount(8): the road a user takes
MIGNODE_COMMAND: Final = ("mignode",)  # as its unit would, but it goes behind: then it has said that it is ready
_PYTHON_IGNORES: Final = (signal.SIGPIPE, signal.SIGXFSZ)
_SYSLOG_HEADER: Final = re.compile(r"<[0-9]+>([A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8} )?")  # priority, glibc's time
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
}


def build(base: str, name: str, number: str, lock: str, report: str) -> None:
    """Make the node and its PID 1; returns in the process that stays behind on the host."""
    paths, node, lock_fd, report_fd = LabPaths(name, Path(base)), int(number), int(lock), int(report)
    own = paths.node(node)
    state.record_self(own.boot)
    plan = state.load_plan(paths)
    if not own.disk.exists():
        _report(report_fd, "stage disk")
        rootfs.make_disk(own, plan.size_bytes)
    if plan.is_limited:
        limits.enter(limits.make(paths, plan, node))
    _report(report_fd, "stage network")
    ns.unshare(ns.CLONE_NEWNET | ns.CLONE_NEWNS | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC)
    _set_network_parameters()
    network.connect_node(paths, node, os.getpid())
    ns.unshare(ns.CLONE_NEWPID)
    if os.fork():
        return
    state.record_self(own.init)
    own.boot.unlink(missing_ok=True)
    os.close(lock_fd)
    _report(report_fd, "stage root")
    rootfs.enter(paths, plan, node)
    socket.sethostname(topology.hostname(node))
    os.set_inheritable(report_fd, True)
    os.execve(
        sys.executable,
        [sys.executable, "-P", "-m", "omfs.lab.init", "supervise", str(report_fd), str(int(plan.mount))],
        _ENVIRONMENT,
    )


def supervise(report_fd: int, mount: bool) -> NoReturn:
    """PID 1's life: start mignode, mount /mfs, say so, reap and log for ever.  Ends only by SIGKILL from outside."""
    os.set_inheritable(report_fd, False)
    syslog, woken = _open_syslog(), _wake_at_child_end()
    _log("init: booted")
    awaited: dict[int, tuple[str, ...]] = {}
    if mount:
        _report(report_fd, "stage mount")
        for command in (MIGNODE_COMMAND, MOUNT_COMMAND):  # in any order: each finds the other
            awaited[os.posix_spawnp(command[0], command, os.environ, setsigdef=_PYTHON_IGNORES)] = command
    else:
        _report(report_fd, "up")
    is_up = True
    with selectors.DefaultSelector() as selector:
        selector.register(syslog, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            selector.select()
            _log_all(syslog)
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            for pid, status in _reap():
                if pid in awaited:
                    is_up = _has_started(awaited.pop(pid), status) and is_up
                    if not awaited:
                        _report(report_fd, "up" if is_up else "failed")


def _wake_at_child_end() -> socket.socket:
    """Readable after a SIGCHLD, so that one `select` waits for everything."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    return reader


def _open_syslog() -> socket.socket:
    """/dev/log: what the daemons say goes to the node's log, on the host."""
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    syslog.bind("/dev/log")
    os.chmod("/dev/log", 0o666)
    return syslog


def _log_all(syslog: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            text = syslog.recv(65536).decode(errors="backslashreplace").rstrip("\0\n")
            _log(_SYSLOG_HEADER.sub("", text, count=1))


def _has_started(command: tuple[str, ...], status: int) -> bool:
    code = os.waitstatus_to_exitcode(status)
    if command == MOUNT_COMMAND and code == 0:
        if not os.path.ismount("/mfs"):
            _log("init: mount ended with 0, but /mfs is not mounted")
            return False
        _log("init: mounted /mfs")
    elif code:
        _log(f"init: '{' '.join(command)}' ended with {code}")
    return code == 0


def _reap() -> list[tuple[int, int]]:
    """Everything that has ended since the last time; PID 1 inherits every orphan of the node."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (got := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(got)
    return ended


def _set_network_parameters() -> None:
    """IPv4 only, as a cut must not leave a way round; and room for what daemons log before PID 1 has read it.

    /proc/sys/net shows the network namespace of whoever looks.
    """
    for name, value in {
        "ipv6/conf/all/disable_ipv6": "1",
        "ipv6/conf/default/disable_ipv6": "1",
        "unix/max_dgram_qlen": "512",
    }.items():
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            Path("/proc/sys/net", name).write_text(value)


def _report(fd: int, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(fd, line.encode() + b"\n")


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    if arguments[0] == "supervise":
        supervise(int(arguments[1]), arguments[2] == "1")
    report_fd = int(arguments[5])
    try:
        build(*arguments[1:])
    except (state.LabError, OSError, subprocess.SubprocessError) as error:
        _log(f"init: {error}")
        _report(report_fd, f"failed {error}")
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
