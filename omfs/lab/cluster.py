"""A whole lab: up, down and what it looks like.

`up` either succeeds or takes everything down again.  `down` needs no plan and no cooperation: it goes by the
process records, the loop devices and the mounts it finds, so it also clears what a killed `up` left half built.
Called by the command line, the demo and the tests' fixtures.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from omfs.lab import faults, limits, network, node, state, topology
from omfs.lab.state import LabError
from omfs.lab.topology import LabPaths, LabPlan

DOWN_TIMEOUT_S: Final = 30.0
_TOOLS: Final = {"ip": "iproute2", "mkfs.ext4": "e2fsprogs", "nsenter": "util-linux", "mount": "mount"}


class NodeStatus(msgspec.Struct, frozen=True):
    """One node as seen from the host."""

    node: int
    address: str
    hostname: str
    running: bool
    mounted: bool  # its /mfs
    pid: int | None  # of its PID 1, on the host
    processes: int
    disk_used_bytes: int
    cut_from: tuple[int, ...]


def up(plan: LabPlan, paths: LabPaths, on_change: Callable[[node.Boot], None] = lambda boot: None) -> None:
    """Make the lab and wait until every node is up.  Raises LabError; then nothing is left.

    *on_change* is told of each stage of each node.
    """
    plan.check()
    _check_machine()
    paths.base.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        paths.directory.mkdir(mode=0o700)
    except FileExistsError:
        raise LabError(f"there is a lab {plan.name!r} already; see omfs-lab status, or omfs-lab down first") from None
    try:
        with state.hold_lock(paths) as lock_fd:
            state.save(paths.plan, plan)
            if plan.sec == "tls":
                _make_certificates(plan, paths)
            network.start_switch(paths, lock_fd)
            boots = [node.start(paths, number, lock_fd) for number in range(1, plan.nodes + 1)]
            node.wait_up(boots, on_change)
    except BaseException:
        take_down(paths)
        raise


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise LabError("omfs-lab needs root: it makes namespaces and mounts (try: sudo omfs-lab ...)")
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is missing; install it with: apt install {package}")
    if not Path("/dev/fuse").exists():
        raise LabError("/dev/fuse is missing; load it with: modprobe fuse")
    with open("/proc/filesystems") as known:
        if "overlay" not in known.read() and subprocess.run(["modprobe", "overlay"], check=False).returncode:
            raise LabError("this kernel has no overlay file system")


def _make_certificates(plan: LabPlan, paths: LabPaths) -> None:
    from omfs.net import authority  # cryptography takes 100 ms to load, and only `up` needs it

    signer = authority.make_authority(paths.authority)
    for number in range(1, plan.nodes + 1):
        own = paths.node(number)
        own.directory.mkdir()
        authority.install_credentials(own.etc, signer.issue(number))


def down(paths: LabPaths) -> bool:
    """Remove everything of this lab and wait until it is gone; False where there was nothing.

    Raises LabError where something stays, naming it.  Control groups that stay are told: they hold nothing.
    """
    if not paths.directory.exists():
        _remove_limits(paths)  # what an earlier `down` could not
        return False
    with state.hold_lock(paths):
        _kill_all(paths)
        if not state.wait_until(lambda: not _remains(paths), DOWN_TIMEOUT_S):
            _abort_fuse(paths)
            if not state.wait_until(lambda: not _remains(paths), DOWN_TIMEOUT_S):
                raise LabError(f"lab {paths.name!r} does not go away: {'; '.join(_remains(paths))}")
        _remove_limits(paths)
        shutil.rmtree(paths.directory)
    if not state.existing_labs(paths.base):
        try:
            paths.base.rmdir()
        except OSError:
            return True  # another lab was made this moment
    return True


def _remove_limits(paths: LabPaths) -> None:
    for group in limits.remove(paths):
        print(
            f"omfs-lab: control group {group} is left: processes that are not the lab's are in it; when they have "
            f"ended, omfs-lab down --name {paths.name} removes it",
            file=sys.stderr,
        )


def take_down(paths: LabPaths) -> None:
    """`down` that a second Ctrl-C does not cut short."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        down(paths)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_all(paths: LabPaths) -> None:
    for record in _records(paths):
        record.kill()
    # What follows is for a machine where somebody mounted or set up things by hand; our own go with the processes.
    for target in reversed(_host_mounts(paths.directory)):
        subprocess.run(["umount", "-l", target], check=False)


def _records(paths: LabPaths) -> list[state.ProcessRecord]:
    """All recorded processes that are alive; nodes first, the switch last."""
    files = [*paths.directory.glob("node*/*.process"), paths.switch]
    return [record for path in files if (record := state.alive(path))]


def _remains(paths: LabPaths) -> list[str]:
    remains = [f"process {record.pid}" for record in _records(paths)]
    remains += [f"loop device {device}" for device in node.loop_devices(paths.directory)]
    return remains + [f"mount {target}" for target in _host_mounts(paths.directory)]


def _host_mounts(below: Path) -> list[str]:
    """Mount points below a directory in this mount namespace, outer ones first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [target for target in targets if Path(target).is_relative_to(below)]


def _abort_fuse(paths: LabPaths) -> None:
    """The last resort for a node that hangs in its own FUSE mounts: abort them (kernel: fuse.rst, "fusectl")."""
    for record in _records(paths):
        for pid in state.processes_inside(record):
            with contextlib.suppress(OSError):
                process = Path(f"/proc/{pid}")
                for line in process.joinpath("mountinfo").read_text().splitlines():
                    if " - fuse." in line:
                        minor = line.split()[2].partition(":")[2]
                        process.joinpath(f"root/sys/fs/fuse/connections/{minor}/abort").write_text("1")


def status(paths: LabPaths) -> list[NodeStatus]:
    """All nodes of the lab.  Raises LabError where there is none."""
    plan = state.load_plan(paths)
    cuts = faults.load_cuts(paths)
    return [_node_status(paths, number, cuts) for number in range(1, plan.nodes + 1)]


def _node_status(paths: LabPaths, number: int, cuts: list[faults.Pair]) -> NodeStatus:
    own = paths.node(number)
    init = state.alive(own.init)
    return NodeStatus(
        node=number,
        address=topology.address(paths.name, number),
        hostname=topology.hostname(number),
        running=init is not None,
        mounted=init is not None and _has_mfs(init.pid),
        pid=init.pid if init else None,
        processes=len(state.processes_inside(init)) if init else 0,
        disk_used_bytes=own.disk.stat().st_blocks * 512 if own.disk.exists() else 0,
        cut_from=tuple(sorted(pair[0] + pair[1] - number for pair in cuts if number in pair)),
    )


def _has_mfs(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[4] == "/mfs" for line in lines)
