"""What a program has from who starts it: read of the process that asked (mosrun), given to the guest at its beginning.

A guest has what its user's shell would have given it, and no more: ids, groups, capabilities, limits, umask,
priorities, processors, ignored and blocked signals, and so on.  All is read from /proc as root, nothing is believed
from a message.

Who could gain something by having its program started by us is refused (PermissionError): one in other namespaces or
another root (a container), below a system call filter, or under another security label (LSM), which we would not pass
on.  Limits that we may not raise (without CAP_SYS_RESOURCE) stay where ours are, lower.

Known to differ: the cgroup, which is mignode's; the session keyring, which is a new one; securebits, which /proc does
not tell, but that of "root is a user like any other" shows in the capabilities.  mosrun is a Python, which ignores
SIGPIPE and SIGXFSZ for itself, so a guest never has them ignored, whoever started mosrun.

`read` may wait for the process (kernel/processes.py), so it is for worker threads.  `apply` is for the child of a
guest's init, with one thread.  Called by mignode where it answers mosrun, and by bodychild.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from pathlib import Path
from typing import Final

import msgspec

from omfs.kernel import carried
from omfs.kernel.handles import mount_id_of
from omfs.kernel.processes import identify, owner_of

_NAMESPACES: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
_UNLIMITED: Final = "unlimited"
_LIMIT_NAME_WIDTH: Final = 26  # fs/proc/base.c: "%-25s %-20s %-20s %-10s", one for each, by their numbers
_PYTHON_IGNORES: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
_NOT_OURS_TO_SET: Final = frozenset({signal.SIGKILL, signal.SIGSTOP, 32, 33})  # the last two are glibc's
_NO_LOGIN: Final = "4294967295"


class Birthright(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*uids*, *gids*: real, effective, saved.  *limits*: (soft, hard) by number, -1 for none.  Capabilities: bit masks.

    *affinity*: processors.  *no_root*: uid 0 gives it no capabilities.
    """

    uids: tuple[int, int, int]
    gids: tuple[int, int, int]
    groups: tuple[int, ...]
    umask: int
    limits: tuple[tuple[int, int], ...]
    nice: int
    io_priority: int
    policy: int
    priority: int
    affinity: tuple[int, ...]
    ignored: tuple[int, ...]
    blocked: tuple[int, ...]
    bounding: int
    permitted: int
    inheritable: int
    ambient: int
    no_root: bool
    no_new_privileges: bool
    oom_score_adj: int
    personality: int
    timer_slack_ns: int
    dumped: int
    """/proc/<pid>/coredump_filter."""
    login_uid: str
    """/proc/<pid>/loginuid; "" where the kernel has no auditing."""


# ---------------------------------------------------------------- reading it


def read(pid: int, uid: int, gid: int) -> Birthright:
    """Of the process *pid*, whose effective ids were *uid* and *gid* when it connected (SO_PEERCRED).

    Raises PermissionError with the reason, ProcessLookupError.
    """
    identity = identify(pid)
    if identity is None:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended")
    status = status_lines(_text(pid, "status"))
    _refuse_who_could_gain(pid, status)
    found = _birthright(pid, status)
    # the last to be asked: all of it was about this process
    if owner_of(identity) != (uid, gid) or (found.uids[1], found.gids[1]) != (uid, gid):
        raise PermissionError(errno.EPERM, f"process {pid} is another user's by now")
    return found


def _birthright(pid: int, status: dict[str, str]) -> Birthright:
    uids, gids = (tuple(map(int, status[name].split()[:3])) for name in ("Uid", "Gid"))
    masks = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapBnd", "CapAmb", "SigIgn", "SigBlk")}
    return Birthright(
        uids=(uids[0], uids[1], uids[2]),
        gids=(gids[0], gids[1], gids[2]),
        groups=tuple(map(int, status["Groups"].split())),
        umask=int(status["Umask"], 8),
        limits=parse_limits(_text(pid, "limits")),
        nice=os.getpriority(os.PRIO_PROCESS, pid),
        io_priority=carried.io_priority(pid),
        policy=os.sched_getscheduler(pid),
        priority=os.sched_getparam(pid).sched_priority,
        affinity=tuple(sorted(os.sched_getaffinity(pid))),
        ignored=tuple(sorted(signals_of(masks["SigIgn"]) - _PYTHON_IGNORES)),
        blocked=tuple(sorted(signals_of(masks["SigBlk"]))),
        bounding=masks["CapBnd"],
        permitted=masks["CapPrm"],
        inheritable=masks["CapInh"],
        ambient=masks["CapAmb"],
        # an execve gives root all in the bounding set, and mosrun gives nothing back (capabilities(7))
        no_root=0 in uids[:2] and masks["CapBnd"] & ~masks["CapPrm"] != 0,
        no_new_privileges=status.get("NoNewPrivs", "0") != "0",
        oom_score_adj=int(_text(pid, "oom_score_adj")),
        personality=int(_text(pid, "personality"), 16),
        timer_slack_ns=int(_text(pid, "timerslack_ns")),
        dumped=int(_optional(pid, "coredump_filter") or "33", 16),
        login_uid=_optional(pid, "loginuid").replace(_NO_LOGIN, ""),
    )


def status_lines(text: str) -> dict[str, str]:
    """/proc/<pid>/status by name; the program's own name is escaped, so it makes no line."""
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in text.split("\n")) if colon}


def parse_limits(text: str) -> tuple[tuple[int, int], ...]:
    """/proc/<pid>/limits, in the order of their numbers."""
    lines = (line[_LIMIT_NAME_WIDTH:].split() for line in text.split("\n")[1:] if line)
    return tuple((_limit(soft), _limit(hard)) for soft, hard, *_ in lines)


def _limit(text: str) -> int:
    return resource.RLIM_INFINITY if text == _UNLIMITED else int(text)


def signals_of(mask: int) -> set[int]:
    """The signals of SigIgn and the like."""
    return {number + 1 for number in range(64) if mask >> number & 1}


def _refuse_who_could_gain(pid: int, status: dict[str, str]) -> None:
    own = status_lines(Path("/proc/self/status").read_text())  # in a container all have some
    if any(status.get(name) != own.get(name) for name in ("Seccomp", "Seccomp_filters")):
        raise PermissionError(errno.EPERM, "its system calls are filtered: as a guest they would not be")
    for kind in _NAMESPACES:
        if _namespace(str(pid), kind) != _namespace("self", kind):
            raise PermissionError(errno.EPERM, f"it is in another {kind} namespace than mignode")
    if _root(str(pid)) != _root("self"):
        raise PermissionError(errno.EPERM, "it has another root directory than mignode")
    label = _label(str(pid))
    if label != _label("self") and label != "unconfined":
        raise PermissionError(errno.EPERM, f"it runs under the security label {label}")


def _namespace(of: str, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{of}/ns/{kind}")
    except FileNotFoundError:  # the kernel has none of that kind
        if not os.path.exists(f"/proc/{of}"):
            raise ProcessLookupError(errno.ESRCH, f"process {of} has ended") from None
        return ""


def _root(of: str) -> tuple[int, int]:
    """Mount, which is enough to compare only in the same mount namespace, and inode."""
    root = os.open(f"/proc/{of}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_id_of(root), os.fstat(root).st_ino
    finally:
        os.close(root)


def _label(of: str) -> str:
    try:
        return Path(f"/proc/{of}/attr/current").read_text().strip("\0\n")
    except OSError:  # no such security module
        return ""


def _text(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended") from None


def _optional(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text().strip()
    except OSError:  # not in this kernel
        return ""


# ---------------------------------------------------------------- giving it


def apply(of: Birthright) -> None:
    """Take it on, for good; the next thing is an execve.  Raises OSError.

    In this order: what needs root's rights, then the ids, then what is left of capabilities, then what might be in
    the way of us.
    """
    _apply_as_root(of)
    carried.set_capabilities(*carried.capabilities()[:2], of.inheritable)
    carried.bound_capabilities(of.bounding)
    if of.no_root:
        carried.take_root_no_capabilities()
    carried.keep_capabilities(True)
    os.setgroups(of.groups)
    os.setresgid(*of.gids)
    os.setresuid(*of.uids)
    carried.begin_session_keyring()
    permitted = of.permitted & carried.capabilities()[1]
    carried.set_capabilities(permitted, permitted, of.inheritable)
    carried.set_ambient(of.ambient)
    carried.keep_capabilities(False)
    os.umask(of.umask)
    if of.no_new_privileges:
        carried.gain_nothing_new()


def _apply_as_root(of: Birthright) -> None:
    _write_own("coredump_filter", f"{of.dumped:#x}")
    if of.login_uid:
        _write_own("loginuid", of.login_uid)
    # raising it is for everybody, lowering it below what we have for CAP_SYS_RESOURCE
    _write_own("oom_score_adj", str(of.oom_score_adj))
    carried.set_personality(of.personality)
    carried.set_timer_slack(of.timer_slack_ns)
    os.setpriority(os.PRIO_PROCESS, 0, of.nice)
    carried.set_io_priority(of.io_priority)
    os.sched_setscheduler(0, of.policy, os.sched_param(of.priority))
    with contextlib.suppress(OSError):  # none of these processors is on this node
        os.sched_setaffinity(0, of.affinity)
    for number, (soft, hard) in enumerate(of.limits):
        _limit_self(number, soft, hard)


def _write_own(name: str, value: str) -> None:
    """Into /proc/self: what the kernel here does not have or allow stays as it is."""
    with contextlib.suppress(OSError):
        Path(f"/proc/self/{name}").write_text(value)


def _limit_self(number: int, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(number, (soft, hard))
    except ValueError:  # it says so of EPERM too
        _, most = resource.getrlimit(number)
        resource.setrlimit(number, (_lower(soft, most), _lower(hard, most)))


def _lower(one: int, other: int) -> int:
    if resource.RLIM_INFINITY in (one, other):
        return other if one == resource.RLIM_INFINITY else one
    return min(one, other)


def set_signals(of: Birthright) -> None:
    """Its ignored and blocked signals, all others as at the beginning of a program; to be done last."""
    for number in range(1, signal.NSIG):
        if number not in _NOT_OURS_TO_SET:
            signal.signal(number, signal.SIG_IGN if number in of.ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, of.blocked)
