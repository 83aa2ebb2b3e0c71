"""The tree that a guest lives in, the same at home and away: home's files, and what is a guest's own.

| path | what is there |
| --- | --- |
| / | at home the node's own tree; away home's, /mfs/<home> |
| /mfs | the node's: so what lies on the node where the guest runs is reached through that node's own bind |
| /run | the node's where it runs: the sockets of its services, among them those for names; a tmpfs, as CRIU wants |
| /sys | the node's where it runs, read-only |
| /proc | its own PID namespace; a view of it, with openMosix's names (procview.py), which the init lays over it |
| /dev | its own: what does no harm, terminals and POSIX memory of its own |

What is mounted at the node later is seen inside if the node's mounts are shared, as systemd makes them; nothing that is
mounted inside is seen outside.  The host name is home's.

Away, / is a small read-only tmpfs into which each entry of home's / is bound.  Home's / itself would not do: /mfs shows
nobody's /proc, /sys and /mfs, so there is nothing to mount on, and a mount that lies on a name of a FUSE file system is
taken away when that name is invalidated.  So an entry that home's / gets later is seen when the guest moves again, and
nothing can be made in / itself (EROFS).

No path leads to the old root, which is unmounted; descriptors of it are the caller's business.  A guest that is root
is root on the node where it runs, without a user namespace in between: it may look into process 1, make device nodes,
write to /proc/sys.  An ordinary user's guest can do nothing of that: process 1 is root's, and /proc lets only root look
in.

Called by a guest's init, as process 1 of new mount, UTS, IPC and PID namespaces (mignode/guestinit.py).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Final

import msgspec

from omfs.kernel import namespaces as ns

_DEVICES: Final = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0),
}  # fmt: skip
_LINKS: Final = {
    "ptmx": "pts/ptmx", "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
}  # fmt: skip
_OF_THE_NODE: Final = ("run", "sys")
_OWN: Final = ("proc", "dev")
_CAREFUL: Final = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
_HIDDEN: Final = (errno.ENOENT, errno.EREMOTE)  # an entry that has gone, and one that /mfs does not lead into


class World(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*home*, *here*: node ids.  *root*: "/" at home, home's tree below /mfs away.  *mfs*: where the mount is.

    *has_procview*: its init lays a view over /proc (procview.py).
    """

    home: int
    here: int
    root: str
    mfs: str
    hostname: str
    has_procview: bool = False


def enter(world: World, place: str) -> None:
    """Make that tree, on the directory *place*, and enter it.  Raises OSError; then the caller had better end."""
    ns.mount("none", "/", None, ns.MS_REC | ns.MS_SLAVE)
    if world.root == "/":
        ns.mount("/", place, None, ns.MS_BIND | ns.MS_REC)
        for name in _OWN:
            _uncover(f"{place}/{name}")
    else:
        _gather(world, place)
    ns.make_read_only(f"{place}/sys")
    ns.mount("proc", f"{place}/proc", "proc", _CAREFUL)
    _make_devices(f"{place}/dev")
    if world.root != "/":
        ns.mount("none", place, None, ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY | ns.MS_NOSUID | ns.MS_NODEV)
    ns.pivot_root(place)
    socket.sethostname(world.hostname)


def _uncover(target: str) -> None:
    """Take the copies of the node's mounts away, so that none lies below ours."""
    while True:
        try:
            ns.unmount(target, ns.MNT_DETACH)
        except OSError as error:
            if error.errno == errno.EINVAL:  # no mount, any more
                return
            raise


def _gather(world: World, place: str) -> None:
    """Home's / on a tmpfs, entry by entry; directories for what is the node's or the guest's own."""
    ns.mount("guest", place, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=755,size=1m")
    ns.mount("none", place, None, ns.MS_UNBINDABLE)  # *place* is in /run, which is bound in with all that is below
    mfs = world.mfs.strip("/")
    for name in _OWN:
        os.mkdir(f"{place}/{name}")
    for name in (*_OF_THE_NODE, mfs):
        os.makedirs(f"{place}/{name}")
        ns.mount(f"/{name}", f"{place}/{name}", None, ns.MS_BIND | ns.MS_REC)
    with os.scandir(world.root) as entries:
        for entry in entries:
            if entry.name not in (*_OWN, *_OF_THE_NODE, mfs):
                _bind(entry, f"{place}/{entry.name}")


def _bind(entry: os.DirEntry[str], target: str) -> None:
    try:
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif entry.is_dir(follow_symlinks=False):
            os.mkdir(target)
            ns.mount(entry.path, target, None, ns.MS_BIND | ns.MS_REC)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            ns.mount(entry.path, target, None, ns.MS_BIND)
    except OSError as error:
        if error.errno not in _HIDDEN:
            raise


def _make_devices(dev: str) -> None:
    ns.mount("dev", dev, "tmpfs", ns.MS_NOSUID, "mode=755,size=1m")  # programs map /dev/zero to execute in it
    for name, numbers in _DEVICES.items():
        _make_device(f"{dev}/{name}", numbers)
    for name, target in _LINKS.items():
        os.symlink(target, f"{dev}/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"{dev}/{name}")
    # gid 5 is tty's everywhere; with a mode for others, writing to a terminal would not be the group's alone
    ns.mount("devpts", f"{dev}/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    ns.mount("shm", f"{dev}/shm", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")
    ns.mount("mqueue", f"{dev}/mqueue", "mqueue", _CAREFUL)


def _make_device(path: str, numbers: tuple[int, int]) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
        os.chmod(path, 0o666)  # whatever the umask
    except PermissionError:  # in a container; then the node's own, which is still reached as such
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        ns.mount(f"/dev/{os.path.basename(path)}", path, None, ns.MS_BIND)
