"""This node's daemons as a whole: on, off, and told to read the map again.

    on    /mfs is mounted, as fstab says (which brings omfs-export), then mignode runs
    off   /mfs is unmounted, then mignode and an omfs-export of its own have ended

Where systemd runs and has our units, it starts and stops what it knows, or it would start again what ends.  Everything
waited for has a deadline.  What it does not do: send guests home (openmosix.py), write the map (setpe.py), print.
Called by both; as root.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from mignode.cli import controlfile
from mignode.record import records
from omfs.config import DEFAULT_CONFIG, Settings
from omfs.errors import ConfigError, NotRunning, RemoteFailure
from omfs.kernel.mounttable import OMFS_TYPE
from omfs.kernel.processes import identify
from omfs.net import control
from omfs.net.nodemap import parse_map

FSTAB: Final = Path("/etc/fstab")
SYSTEMD: Final = Path("/run/systemd/system")  # sd_booted(3)
_TYPE: Final = os.fsdecode(OMFS_TYPE)
ADVISED_LINE: Final = f"mfs_mnt /mfs {_TYPE} dfsa=1,_netdev 0 0"
END_WITHIN_S: Final = 30.0
COMMAND_WITHIN_S: Final = 120.0  # a mount waits for an earlier export to end
READ_WITHIN_S: Final = 20.0
SENDING_WITHIN_S: Final = control.HANDLER_DEADLINE_S  # mignode gives up sooner
LOOK_EVERY_S: Final = 0.05
_SOCKETS: Final = ("mount", "export", "mignode")


class Daemon(NamedTuple):
    """One that answers; *reloads*: how often it has read the map again."""

    pid: int
    reloads: int


def explained(error: BaseException) -> str:
    """For who asked, whatever happened on the way to a daemon."""
    if isinstance(error, OSError):
        match error.errno:
            case errno.EACCES | errno.EPERM:
                return "only root may do that"
            case errno.ENOTCONN:
                return controlfile.MIGNODE_IS_OFF
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    return str(error)


# ---------------------------------------------------------------- who runs


def running(settings: Settings) -> dict[str, Daemon]:
    """By name: mount, export, mignode.  Raises ControlError where one is silent."""
    found = {}
    for name in _SOCKETS:
        try:
            status = _ask(settings, name, "status")
        except NotRunning:
            continue
        found[name] = Daemon(int(status["pid"]), int(status["reloads"]))
    return found


def is_discovering(settings: Settings) -> bool:
    """Whether omdiscd looks after the map."""
    try:
        _ask(settings, "omdiscd", "status")
    except NotRunning:
        return False
    return True


def _ask(settings: Settings, name: str, command: str, **arguments: Any) -> dict[str, Any]:
    path = Path(settings.run_dir) / f"{name}.sock"
    return dict(trio.run(partial(control.ask, path, command, **arguments)))


def programs_at_home(settings: Settings) -> list[int]:
    """The pids of mosruns of this node that live, wherever their programs run: these end with mignode."""
    alive = []
    for guest, _ in records(Path(settings.run_dir)).all():
        _, pid, start_ticks = map(int, guest.split("."))
        if identify(pid) == (pid, start_ticks):
            alive.append(pid)
    return alive


# ---------------------------------------------------------------- the map


def read_again(settings: Settings, digest: bytes) -> list[str]:
    """Have the daemons that run read the map, whose digest is *digest*; their names.

    Returns when each has.  Raises ConfigError where one goes on with what it had.
    """
    before = running(settings)
    for daemon in before.values():
        os.kill(daemon.pid, signal.SIGHUP)
    pending = dict(before)
    deadline = time.monotonic() + READ_WITHIN_S
    while pending:
        now = running(settings)
        pending = {name: was for name, was in pending.items() if name in now and now[name].reloads <= was.reloads}
        if pending and time.monotonic() > deadline:
            raise ConfigError(f"{', '.join(pending)} did not read the map within {READ_WITHIN_S:g} s; see their logs")
        if pending:
            time.sleep(LOOK_EVERY_S)
    if "mignode" in before:
        told = _answered(_ask(settings, "mignode", "read_control", scope="hpc", file="admin/config", uid=0))
        if parse_map(told, "the map in force").digest != digest:
            raise ConfigError("the map is written, but the daemons go on with the one they had; their logs say why")
    return list(before)


# ---------------------------------------------------------------- off


def refuse_loss(settings: Settings) -> None:
    """Raises ConfigError where programs would end with mignode."""
    if programs := programs_at_home(settings):
        raise ConfigError(f"programs that mosrun started here would be lost: end {_listed(programs)} first")


def turn_off(settings: Settings, mount: Path | None) -> bool:
    """Whether anything ran.  Raises ConfigError, and then all that is needed runs on, or ControlError."""
    was_on = _unmount(mount)
    for name, unit in (("mignode", "mignode.service"), ("export", "omfs-export.service")):
        daemon = running(settings).get(name)
        if daemon is not None:
            was_on = True
            if not (_systemd_knows(unit) and _run("systemctl", "stop", unit)):
                _end(name, daemon.pid)
    return was_on


def _listed(pids: Sequence[int]) -> str:
    shown = ", ".join(map(str, pids[:8]))
    return f"{shown} and {len(pids) - 8} more" if len(pids) > 8 else shown


def _unmount(mount: Path | None) -> bool:
    try:
        place = controlfile.find_mount(mount)
    except NotRunning:
        dead = [place for place in controlfile.mounted() if mount in (None, place)]
        if not dead:
            return False
        place = dead[0]
    try:
        return _run("umount", str(place))
    except ConfigError as error:
        raise ConfigError(f"{error}; fuser -vm {place} shows who uses it") from None


def _end(name: str, pid: int) -> None:
    """SIGTERM, and wait."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], END_WITHIN_S)[0]:
            raise ConfigError(f"{name} (pid {pid}) does not end within {END_WITHIN_S:g} s; its log may say why")
    except ProcessLookupError:
        pass
    finally:
        os.close(process)


# ---------------------------------------------------------------- on


def turn_on(settings: Settings, config: Path = DEFAULT_CONFIG) -> None:
    """Safe to repeat.  Raises ConfigError."""
    runs = running(settings)
    if "mount" not in runs:
        _run("mount", str(_place_in_fstab()))
    if "mignode" not in runs and not (_systemd_knows("mignode.service") and _run("systemctl", "start", "mignode")):
        _run(sys.executable, "-P", "-m", "mignode.cli.mignode", "--config", str(config))


def _place_in_fstab() -> Path:
    for line in FSTAB.read_text().splitlines() if FSTAB.exists() else ():
        fields = line.partition("#")[0].split()
        if len(fields) >= 3 and fields[2] == _TYPE:
            return Path(fields[1])
    raise ConfigError(f"{FSTAB} has no line for the cluster's files; write there: {ADVISED_LINE}")


def _systemd_knows(unit: str) -> bool:
    return SYSTEMD.is_dir() and _status("systemctl", "cat", unit) == 0


def _status(*command: str) -> int:
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMMAND_WITHIN_S, check=False)
    except FileNotFoundError:
        return -1
    return done.returncode


def _run(*command: str) -> bool:
    """True.  Raises ConfigError with what it said."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_WITHIN_S, check=False
        )
    except FileNotFoundError:
        raise ConfigError(f"{command[0]}: there is no such command on this machine") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{' '.join(command)} takes more than {COMMAND_WITHIN_S:g} s; given up") from None
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError(said or f"{' '.join(command)} ended with {done.returncode}")
    return True


# ---------------------------------------------------------------- what the administrator set


def read_flag(settings: Settings, name: str) -> bool:
    """hpc/admin/*name*.  Raises ControlError, RemoteFailure."""
    return _answered(_ask(settings, "mignode", "read_control", scope="hpc", file=f"admin/{name}", uid=0)) == "1\n"


def write_flag(settings: Settings, name: str, value: bool) -> None:
    """Returns when it holds; expel and bring take long.  Raises ControlError, RemoteFailure."""
    arguments = {"scope": "hpc", "file": f"admin/{name}", "uid": 0, "text": f"{value:d}\n"}
    _answered(_ask(settings, "mignode", "write_control", deadline_s=SENDING_WITHIN_S, **arguments))


def _answered(answer: dict[str, Any]) -> str:
    if number := answer.get("errno"):
        raise RemoteFailure(int(number), str(answer.get("reason", "")))
    return str(answer.get("text", ""))
