"""A node's root: an overlay over the machine's own root, with a disk of the node's own on top.

Runs inside the node's mount namespace, as its PID 1, before anything else does; the host's mount table never sees
any of it.  The upper layer lies on an ext4 image, so that a node can run out of space, keeps its files over `kill`
and `start`, and has file handles that survive (index=on, nfs_export=on) and inode numbers that stay (xino=on: without
it directories get new ones whenever the kernel forgets them).  The machine's other file systems (/home on a disk of
its own, say) are not part of a node; only what the lab itself needs to run is bound in, read-only.  A node's users get
to it, also where the machine's could not: a checkout is often in somebody's own directory.
Called by init.py.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import omfs
from omfs.kernel import namespaces as ns
from omfs.lab import limits, topology
from omfs.lab.state import LabError
from omfs.lab.topology import LabPaths, LabPlan, NodePaths

OVERLAY_OPTIONS: Final = "index=on,nfs_export=on,xino=on,metacopy=off,redirect_dir=off"
_EMPTY: Final = {"/tmp": 0o1777, "/run": 0o755, "/etc/omfs": 0o755, "/var/lib/omfs": 0o755}
_SEARCHED: Final = 0o111
_HELPERS: Final = "/sbin"  # where mount(8) and umount(8) look
_COMMANDS: Final = "/usr/local/bin"
_DEVICES: Final = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0),
    "fuse": (10, 229),
}  # fmt: skip
_DEVICE_LINKS: Final = {
    "ptmx": "pts/ptmx", "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
}  # fmt: skip


def make_disk(node: NodePaths, size_bytes: int) -> None:
    """A sparse ext4 image, made in a few milliseconds.  Raises LabError.

    The inode tables are left to the holes of the sparse file (and never zeroed: noinit_itable at the mount).
    """
    fresh = node.disk.with_suffix(".new")
    with fresh.open("wb") as image:
        os.truncate(image.fileno(), size_bytes)
    _run(
        "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", str(fresh),
        package="e2fsprogs",
    )  # fmt: skip
    fresh.rename(node.disk)


def enter(paths: LabPaths, plan: LabPlan, node: int) -> None:
    """Make the node's root and enter it; /proc, /sys, /dev and /run are its own.  Raises LabError, OSError."""
    own = paths.node(node)
    ns.mount("none", "/", None, ns.MS_REC | ns.MS_PRIVATE)
    own.layers.mkdir(exist_ok=True)
    own.root.mkdir(exist_ok=True)
    _run("mount", "-n", "-t", "ext4", "-o", "loop,noinit_itable", str(own.disk), str(own.layers), package="mount")
    upper, work, ready = own.layers / "upper", own.layers / "work", own.layers / "ready"
    if not ready.exists():
        _lay_out(upper, work, paths.base)
    _mount_overlay(upper, work, own.root)
    if not ready.exists():
        _populate(own.root, own, plan, node)
        ready.touch()
    for path in _needed_from_host(paths.base):
        _bind_read_only(path, own.root)
    _let_through(own.root)
    groups = limits.directories(paths, node) if plan.is_limited else {}  # before our /sys is another one
    _mount_kernel_trees(own.root)
    _show_groups(groups, f"{own.root}/sys/fs/cgroup")
    ns.pivot_root(str(own.root))


def _run(*argv: str, package: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is missing; install {package}") from None
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {' '.join(done.stderr.split())}")


# ---------------------------------------------------------------- the overlay


def _lay_out(upper: Path, work: Path, base: Path) -> None:
    """Directories of the machine that a node must not see are there from the start, empty and opaque."""
    shutil.rmtree(upper, ignore_errors=True)  # of a first boot that was cut short
    upper.mkdir(mode=0o755)
    work.mkdir(exist_ok=True)
    for hidden, mode in {**_EMPTY, str(base): 0o700}.items():
        _make_like_host(upper, Path(hidden).parent)
        directory = upper / hidden.lstrip("/")
        directory.mkdir(exist_ok=True)
        directory.chmod(mode)
        os.setxattr(directory, "trusted.overlay.opaque", b"y")


def _make_like_host(upper: Path, path: Path) -> None:
    """mkdir -p, with the owner and mode that the machine's directories have."""
    for host in [*reversed(path.parents), path]:
        copy = upper / str(host).lstrip("/")
        if not copy.exists():
            copy.mkdir()
            if host.exists():
                status = host.stat()
                os.chown(copy, status.st_uid, status.st_gid)
                copy.chmod(stat.S_IMODE(status.st_mode))


def _mount_overlay(upper: Path, work: Path, root: Path) -> None:
    options = f"lowerdir=/,upperdir={upper},workdir={work},{OVERLAY_OPTIONS}"
    try:
        ns.mount("overlay", str(root), "overlay", 0, options)
    except OSError as error:
        raise LabError(f"an overlay over / can't be mounted here ({error.strerror}); see: dmesg | tail") from None
    mounted = Path("/proc/self/mountinfo").read_text().strip().splitlines()[-1]
    for option in ("index=on", "nfs_export=on"):
        if option not in mounted.rsplit(" ", 1)[1].split(","):
            kind = _root_file_system()
            raise LabError(f"an overlay over / does not get {option} here: / is {kind}, and the lab needs ext4 or xfs")


def _root_file_system() -> str:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == "/":
            kind = fields[fields.index("-") + 1]
    return kind


# ---------------------------------------------------------------- what is in it


def _populate(root: Path, own: NodePaths, plan: LabPlan, node: int) -> None:
    (root / "mfs").mkdir(exist_ok=True)
    etc = root / "etc"
    texts = {
        "hostname": topology.hostname(node) + "\n",
        "hosts": topology.hosts_text(plan),
        "fstab": topology.fstab_text(plan),
        "openmosix.map": topology.map_text(plan),
        "omfs/omfs.toml": topology.settings_text(plan),
    }
    for name, text in texts.items():
        path = etc / name
        path.unlink(missing_ok=True)  # it may be a symbolic link on the machine
        path.write_text(text)
    if own.etc.is_dir():
        shutil.copytree(own.etc, etc / "omfs", dirs_exist_ok=True)
    (etc / "mtab").unlink(missing_ok=True)
    (etc / "mtab").symlink_to("../proc/self/mounts")
    for command in importlib.metadata.distribution("omfs").entry_points.names:
        directory = _HELPERS if command.startswith(("mount.", "umount.")) else _COMMANDS
        link = root / directory.lstrip("/") / command
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(sys.prefix) / "bin" / command)


def _places() -> list[Path]:
    """Of Python, its virtual environment, the project and /usr."""
    wanted = [Path("/usr"), Path(sys.base_prefix), Path(sys.prefix), Path(omfs.__file__).parent.parent]
    wanted.append(Path(os.path.realpath(sys.executable)).parent.parent)
    return [place for path in wanted for place in dict.fromkeys((path, path.resolve()))]


def _needed_from_host(base: Path) -> list[Path]:
    """Those of `_places` that the overlay does not show anyway."""
    machine = os.stat("/").st_dev
    hidden = [*_EMPTY, str(base), "/dev", "/sys", "/proc"]
    needed: list[Path] = []
    for place in _places():
        covered = any(place.is_relative_to(done) for done in needed)
        unseen = place.stat().st_dev != machine or any(place.is_relative_to(directory) for directory in hidden)
        if unseen and not covered:
            needed.append(place)
    return needed


def _let_through(root: Path) -> None:
    """Everybody may pass the directories above, in this node; what is in them says for itself who may read it.

    By their real names: a link on the way would lead to the machine's own.
    """
    reals = {above.resolve() for place in _places() for above in place.parents}
    for directory in {above for real in reals for above in (real, *real.parents)}:
        here = root / str(directory).lstrip("/")
        try:
            mode = stat.S_IMODE(here.lstat().st_mode)
            if mode & _SEARCHED != _SEARCHED:
                here.chmod(mode | _SEARCHED)
        except OSError as error:  # not shown to the node, or bound into it: that is the machine's own as well
            if error.errno not in (errno.ENOENT, errno.EROFS):
                raise


def _bind_read_only(path: Path, root: Path) -> None:
    target = root / str(path).lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    ns.mount(str(path), str(target), None, ns.MS_BIND)
    ns.mount("none", str(target), None, ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY)


def _mount_kernel_trees(root: Path) -> None:
    ns.mount("proc", f"{root}/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    _mount_sys(f"{root}/sys")
    ns.mount("run", f"{root}/run", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=755")
    (root / "run/lock").mkdir(mode=0o1777)
    (root / "run/lock").chmod(0o1777)
    dev = root / "dev"
    ns.mount("dev", str(dev), "tmpfs", ns.MS_NOSUID, "mode=755")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(dev / name, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        (dev / name).chmod(0o666)
    for name, target in _DEVICE_LINKS.items():
        (dev / name).symlink_to(target)
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    ns.mount("devpts", f"{dev}/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    ns.mount("shm", f"{dev}/shm", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")


def _mount_sys(target: str) -> None:
    """/sys, read-only; but a mount must be able to set its read-ahead, and FUSE connections can be aborted."""
    careful = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
    ns.mount("sysfs", target, "sysfs", careful)
    bdi = f"{target}/devices/virtual/bdi"
    ns.mount(bdi, bdi, None, ns.MS_BIND)
    ns.mount("none", target, None, ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY | careful)
    with contextlib.suppress(OSError):  # FUSE may not be loaded yet; then there is nothing to abort
        ns.mount("fusectl", f"{target}/fs/fuse/connections", "fusectl")


def _show_groups(groups: Mapping[str, Path], target: str) -> None:
    """A node sees its own limits, as a container does."""
    if groups:
        ns.mount("cgroup", target, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC, "mode=755")
    for controller, group in groups.items():
        place = f"{target}/{controller}"
        os.mkdir(place)
        ns.mount(str(group), place, None, ns.MS_BIND)
        ns.mount("none", place, None, ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY)
