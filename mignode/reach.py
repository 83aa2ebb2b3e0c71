"""Whether what a restored tree has open, its user could open himself, now and by the same names; and its limits.

CRIU opens files as root, by the paths of the image, and follows whatever lies there by then: a link, or a directory
that the user has put in its place.  So when the tree is there and does not run yet, each file of it is looked for
again, as its user: it must be found by its name, be the same, and be one that he may open so.  What has no name any
more must be his, or open to him.  What he then has, he could have had without us.

Of a restart from a file, the limits and the priority of who restarts it hold for it too, where they are narrower.

For worker threads.  Called by receive.py and restarting.py, while CRIU holds the tree.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from mignode.birthright import Birthright
from omfs.errors import RemoteFailure
from omfs.kernel.credentials import Identity
from omfs.kernel.handles import mount_id_of
from omfs.kernel.processes import mounts_of, read_all, read_file
from omfs.kernel.procobjects import parse_fdinfo

_NAMELESS: Final = " (deleted)"
_MODES: Final = {os.O_RDONLY: os.R_OK, os.O_WRONLY: os.W_OK, os.O_RDWR: os.R_OK | os.W_OK}


class _Held(NamedTuple):
    """What a process has: *link* is its place in /proc of the node."""

    link: str
    mode: int


class _Looking(NamedTuple):
    """*root*: the guest's.  *mounts*: where what has a name must be found by it.

    *seen*: what was found good, by name, mode, device and inode.
    """

    root: int
    mounts: frozenset[int]
    user: Identity
    seen: set[tuple[str, int, int, int]]


def check_reach(init: int, processes: Iterable[int], user: Identity) -> None:
    """*init*: of the guest; pids are the node's.  Raises RemoteFailure(EACCES) with the name of the first file."""
    if user.uid == 0:
        return
    with contextlib.ExitStack() as opened:
        root = os.open(f"/proc/{init}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, root)
        looking = _Looking(root, _mounts_with_names(init), user, set())
        for process in processes:
            for held in _all_of(process):
                _check(held, looking)


def _mounts_with_names(init: int) -> frozenset[int]:
    """Mounts of the guest's tree; in its /proc names say nothing, and what CRIU has besides is on none of them."""
    mounts = mounts_of(init)
    return frozenset(number for number, line in mounts.items() if not (line.mountpoint + b"/").startswith(b"/proc/"))


def _all_of(process: int) -> Iterator[_Held]:
    yield _Held(f"/proc/{process}/cwd", os.X_OK)
    yield _Held(f"/proc/{process}/root", os.X_OK)
    for name in os.listdir(f"/proc/{process}/fd"):
        try:
            flags = parse_fdinfo(read_file(f"/proc/{process}/fdinfo/{name}")).flags
        except FileNotFoundError:  # one of CRIU's, closed meanwhile
            continue
        mode = os.F_OK if flags & os.O_PATH else _MODES.get(flags & os.O_ACCMODE, os.R_OK | os.W_OK)
        yield _Held(f"/proc/{process}/fd/{name}", mode)
    for line in read_all(f"/proc/{process}/maps").splitlines():
        range_, permissions, _, _, inode = line.split()[:5]
        if inode != b"0":
            is_written = permissions.endswith(b"s") and b"w" in permissions
            mode = os.R_OK | os.W_OK if is_written else os.R_OK
            yield _Held(f"/proc/{process}/map_files/{_plain(range_)}", mode)


def _plain(range_: bytes) -> str:
    """map_files names a range without the leading zeros that maps has."""
    return "-".join(f"{int(bound, 16):x}" for bound in range_.split(b"-"))


def _check(held: _Held, looking: _Looking) -> None:
    try:
        name = os.readlink(held.link)
    except FileNotFoundError:
        return
    if not name.startswith("/"):
        return  # a pipe, a socket: of the tree itself
    there = os.open(held.link, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(there)
        if (key := (name, held.mode, status.st_dev, status.st_ino)) in looking.seen:
            return
        is_allowed = status.st_uid == looking.user.uid or _may(there, held.mode, looking.user)
        has_name = not name.endswith(_NAMELESS) and mount_id_of(there) in looking.mounts
        if not is_allowed or (has_name and not _finds(name, status, looking)):
            raise RemoteFailure(errno.EACCES, f"it had {name} open, which its user may not open (any more)")
        looking.seen.add(key)
    finally:
        os.close(there)


def _may(there: int, mode: int, user: Identity) -> bool:
    """By the rights of the file itself."""
    with user:
        return os.access(f"/proc/self/fd/{there}", mode, effective_ids=True)


def _finds(name: str, status: os.stat_result, looking: _Looking) -> bool:
    """By its name, through directories that he may pass."""
    with looking.user:
        try:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            found = os.open(name.lstrip("/") or ".", flags, dir_fd=looking.root)
        except OSError:
            return False
    try:
        return os.path.samestat(os.fstat(found), status)
    finally:
        os.close(found)


def hold_to(right: Birthright, processes: Iterable[int]) -> None:
    """Nobody gets more than who restarts it has.  Raises RemoteFailure where that can't be seen to."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            if os.getpriority(os.PRIO_PROCESS, process) < right.nice:
                os.setpriority(os.PRIO_PROCESS, process, right.nice)
            for number, (_, most) in enumerate(right.limits):
                _limit(process, number, most)


def _limit(process: int, number: int, most: int) -> None:
    soft, hard = resource.prlimit(process, number)
    if _narrower(hard, most) == hard:
        return
    try:
        resource.prlimit(process, number, (_narrower(soft, most), most))
    except (PermissionError, ValueError):
        raise RemoteFailure(errno.EPERM, "it had wider limits (ulimit -H) than you have now") from None


def _narrower(one: int, other: int) -> int:
    if resource.RLIM_INFINITY in (one, other):
        return other if one == resource.RLIM_INFINITY else one
    return min(one, other)
