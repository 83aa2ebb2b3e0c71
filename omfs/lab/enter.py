"""Run a command inside a node, as if it had been typed there.

The command is a child of this process, in the node's namespaces and root; this process stays on the host and holds
nothing of the node, so a power cut takes the command too.  Exit status, signals, stops, stdio and the terminal pass
through in both directions.  Called by `omfs-lab exec` and `shell`, which become the command for whoever waits.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import msgspec

from omfs.errors import ConfigError
from omfs.kernel import namespaces as ns
from omfs.lab import limits, state
from omfs.lab.state import LabError
from omfs.lab.topology import LabPaths

NOT_EXECUTABLE: Final = 126  # as a shell has it
NOT_FOUND: Final = 127

_NAMESPACES: Final = {
    "pid": ns.CLONE_NEWPID, "net": ns.CLONE_NEWNET, "uts": ns.CLONE_NEWUTS, "ipc": ns.CLONE_NEWIPC,
    "mnt": ns.CLONE_NEWNS,
}  # fmt: skip
_FORWARDED: Final = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH,
}  # fmt: skip
_STD_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class User(msgspec.Struct, frozen=True):
    """--user UID[:GID[,GROUP...]], names or numbers; resolved inside the node."""

    uid: str = "0"
    gid: str = ""
    groups: tuple[str, ...] = ()


def parse_user(text: str) -> User:
    """Raises ConfigError where *text* is not UID[:GID[,GROUP...]]."""
    uid, _, rest = text.partition(":")
    gid, *groups = rest.split(",")
    if not uid or (groups and not all([gid, *groups])):
        raise ConfigError(f"{text!r} is not UID[:GID[,GROUP...]], as in 1000 or 1000:100,27")
    return User(uid, gid, tuple(groups))


def run(paths: LabPaths, node: int, argv: Sequence[str], user: User | None = None, *, home: bool = False) -> int:
    """Run *argv* in the node and wait; gives its exit status, or dies of the signal that it died of.

    With *home* it starts in the user's home directory, otherwise in /.  Raises LabError where the node is not running.
    """
    plan = state.load_plan(paths)
    plan.check_node(node)
    init = state.alive(paths.node(node).init)
    if init is None:
        raise LabError(f"node {node} is not running; start it with: omfs-lab start {node}")
    try:
        fds = {kind: os.open(f"/proc/{init.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in _NAMESPACES}
        doors = limits.doors(paths, node) if plan.is_limited else []
        ns.set_namespace(fds["pid"], ns.CLONE_NEWPID)
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD})
        sys.stdout.flush()
        child = os.fork()
    except (FileNotFoundError, ProcessLookupError, OSError) as error:
        raise LabError(f"node {node} went away ({error.strerror})") from None
    if child == 0:
        _become(fds, doors, argv, user, home)
    for fd in (*fds.values(), *doors):
        os.close(fd)  # an open one would keep a killed node's mounts
    return _wait_for(child)


# ---------------------------------------------------------------- the command's side


def _become(fds: dict[str, int], doors: Sequence[int], argv: Sequence[str], user: User | None, home: bool) -> NoReturn:
    try:
        for door in doors:
            os.write(door, b"0")
        for kind, flag in _NAMESPACES.items():
            if kind != "pid":
                ns.set_namespace(fds[kind], flag)
        os.chdir("/")
        if user is not None:
            _change_user(user)
        if home:
            with contextlib.suppress(OSError):
                os.chdir(os.environ.get("HOME", "/"))
        os.environ.setdefault("PATH", _STD_PATH)
        ns.set_parent_death_signal(signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execvp(argv[0], list(argv))
    except FileNotFoundError:
        _give_up(NOT_FOUND, f"{argv[0]}: not found")
    except (OSError, ConfigError) as error:
        _give_up(NOT_EXECUTABLE, f"{argv[0]}: {error}")
    except BaseException as error:
        _give_up(NOT_EXECUTABLE, f"{argv[0]}: {error!r}")


def _give_up(status: int, text: str) -> NoReturn:
    os.write(2, f"omfs-lab: {text}\n".encode(errors="replace"))
    os._exit(status)


def _change_user(user: User) -> None:
    entry = _passwd_entry(user.uid)
    uid = entry.pw_uid if entry else int(user.uid)
    gid = _group_id(user.gid) if user.gid else entry.pw_gid if entry else uid
    groups = [_group_id(group) for group in user.groups]
    if not user.gid and entry:
        groups = os.getgrouplist(entry.pw_name, gid)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.environ["HOME"] = entry.pw_dir if entry else "/tmp"
    os.environ["USER"] = os.environ["LOGNAME"] = entry.pw_name if entry else str(uid)


def _passwd_entry(uid: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(uid)) if uid.isdigit() else pwd.getpwnam(uid)
    except KeyError:
        if uid.isdigit():
            return None
        raise ConfigError(f"there is no user {uid!r} on this node") from None


def _group_id(gid: str) -> int:
    try:
        return int(gid) if gid.isdigit() else grp.getgrnam(gid).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {gid!r} on this node") from None


# ---------------------------------------------------------------- the side that waits


def _wait_for(child: int) -> int:
    while True:
        info = signal.sigwaitinfo({*_FORWARDED, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            _forward(child, info)
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)  # the whole pipeline stops, as the shell that started us expects
            os.kill(child, signal.SIGCONT)
        elif pid:
            _take_back_terminal()
            return _pass_on(status)


def _forward(child: int, info: signal.struct_siginfo) -> None:
    """What a terminal sent (si_code SI_KERNEL > 0) went to its whole foreground group, the command included."""
    if info.si_code <= 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, info.si_signo)


def _take_back_terminal() -> None:
    """A shell in the node made itself the foreground group, and from in there it can't name ours to give it back."""
    with contextlib.suppress(OSError):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        os.tcsetpgrp(0, os.getpgrp())


def _pass_on(status: int) -> int:
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.kill(os.getpid(), number)
    return 128 + number
