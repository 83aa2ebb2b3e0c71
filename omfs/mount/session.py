"""The FUSE session of one mount, from an empty directory to the unmount.

Checks the place first and says in one line what is wrong; takes a dead mount of an earlier run away; installs the
hook and the cheap loop, or says that it works without them.  What it does not do: peers, signals, the bind of the
local tree (selfbind.py).  One per process, because pyfuse3 has one session per process.  Called by daemon.py:
`open`, `run` (until unmounted), `close`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from omfs.errors import ConfigError
from omfs.kernel.fusenotify import Notifier
from omfs.kernel.mounting import MNT_DETACH, mount_at, unmount
from omfs.kernel.mounttable import OMFS_TYPE
from omfs.mount.deadmount import abort_if_dead
from omfs.mount.loop import Loop
from omfs.mount.lowlevel_abi import READ_AHEAD_BYTES
from omfs.mount.magiclinks import install_magic_links
from omfs.mount.operations import Operations
from omfs.mount.options import MountOptions
from omfs.mount.remount import remove_note, write_note
from omfs.mount.replica import Replica
from omfs.mount.takenlistings import Lister, install_listing_takers
from omfs.mount.takenops import install_takers
from omfs.mount.virtual import VirtualTree, install_virtual

log = logging.getLogger(__name__)

WORKERS_MAX: Final = 1024  # without the hook: requests that may wait at the same time
READ_AHEAD_KIB: Final = READ_AHEAD_BYTES >> 10  # what the kernel reads ahead of whoever reads through its page cache


def check_mountpoint(mountpoint: str, run_dir: Path) -> None:
    """Raise ConfigError with one clear line unless this process can mount there; a dead mount there is taken off."""
    if os.geteuid() != 0:
        raise ConfigError("only root can mount omfs (it serves all users); use sudo or fstab")
    if not os.path.exists("/dev/fuse"):
        raise ConfigError("/dev/fuse is missing: load the kernel module (modprobe fuse)")
    place = os.path.realpath(mountpoint)
    line = mount_at(os.fsencode(place))
    abort_if_dead(run_dir)  # or the next lines might wait for ever
    try:
        mode = os.stat(place).st_mode
        os.statvfs(place)  # a dead mount still answers stat from the kernel's cache
    except FileNotFoundError:
        raise ConfigError(f"{mountpoint}: no such directory; make it first") from None
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED) or line is None or line.fstype != OMFS_TYPE:
            raise ConfigError(f"{mountpoint}: {error.strerror}") from None
        log.warning("%s: taking off the mount of an omfs that died", mountpoint)
        unmount(os.fsencode(place), MNT_DETACH)
        check_mountpoint(mountpoint, run_dir)
        return
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"{mountpoint}: not a directory")
    if line is not None and line.fstype == OMFS_TYPE:
        raise ConfigError(f"{mountpoint}: omfs is mounted there already")


class Session:
    """One mount."""

    def __init__(
        self, options: MountOptions, operations: Operations, run_dir: Path, replica: Replica, virtual: VirtualTree
    ) -> None:
        """*operations* was made with the `Hook` that this session installs; *run_dir* takes the note for remounts.

        What depends on who asks is there only with the hook: *replica* knows where the magic names lead, *virtual* is
        /mfs/proc.
        """
        self._replica = replica
        self.options = options
        self._run_dir = run_dir
        self.mountpoint = os.path.realpath(options.mountpoint)
        self._operations = operations
        self._virtual = virtual
        self._is_open = False
        self._loop: Loop | None = None
        self._lister: Lister | None = None

    def open(self) -> None:
        """Mount.  Raises ConfigError.  From here on calls into the mountpoint wait for `run`."""
        check_mountpoint(self.options.mountpoint, self._run_dir)
        hook = self._operations.hook
        reason = hook.install()
        if reason:
            log.warning("no locks, fallocate and lseek in this mount: the hook can't be installed: %s", reason)
        try:
            pyfuse3.init(self._operations, self.mountpoint, self._fuse_options())
        except RuntimeError as error:
            raise ConfigError(f"{self.options.mountpoint}: cannot mount: {error}") from None
        self._is_open = True
        if hook.installed:
            hook.attach()
            loop = self._loop = Loop(hook, self._operations.interrupt)
            self._operations.recaller.attach(Notifier(hook.fd))
            install_takers(hook, self._operations)
            self._lister = install_listing_takers(hook, self._operations)
            install_magic_links(hook, self._replica, self._virtual.entry_of_top)
            install_virtual(hook, self._virtual)
            self._operations.watched_by(loop)
            pyfuse3._wait_fuse_readable = loop.wait  # type: ignore[attr-defined]
        self._set_read_ahead()
        try:
            write_note(self._run_dir, self.mountpoint, self.options)
        except OSError as error:
            log.warning("%s: %s; a remount will refuse all options of ours", self._run_dir, error)

    def _fuse_options(self) -> set[str]:
        name = self.options.spec.replace("\\", "\\\\").replace(",", "\\,")
        return {f"fsname={name}", "subtype=omfs", "allow_other", "default_permissions", *_last_words(self.options)}

    def _set_read_ahead(self) -> None:
        line = mount_at(os.fsencode(self.mountpoint))  # not by stat: nobody answers yet
        if line is None:
            return
        try:
            Path(f"/sys/class/bdi/{line.device.decode()}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
        except OSError as error:
            log.debug("read_ahead_kb: %s", error)

    async def run(self) -> None:
        """Answer the kernel until the mount is gone (umount) or this is cancelled.

        Our loop adds a worker whenever all others wait, without a bound of its own: each has a waiting thread of a
        program behind it, and were all taken by those that wait for one node, nobody would read unlocks, INTERRUPTs
        and what is for other nodes.
        """
        loop, lister = self._loop, self._lister
        if loop is None or lister is None:
            await pyfuse3.main(min_tasks=1, max_tasks=WORKERS_MAX)
            return
        unmounted = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            loop.add_worker = lambda: nursery.start_soon(pyfuse3._session_loop, nursery, 1, 1)  # type: ignore[attr-defined]
            nursery.start_soon(
                _until, unmounted, lister.tend, self._operations.recaller.run, self._operations.ahead.run
            )
            await pyfuse3.main(min_tasks=1, max_tasks=1)
            unmounted.cancel()

    def close(self) -> None:
        """Unmount, lazily if it is in use.  Nothing answers any more."""
        if self._is_open:
            self._is_open = False
            remove_note(self._run_dir)
            pyfuse3.close(unmount=True)


async def _until(scope: trio.CancelScope, *functions: Callable[[], Awaitable[None]]) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function)


def _last_words(options: MountOptions) -> set[str]:
    """The kernel's words, each contradiction settled by the last one said; what libfuse does not know left out."""
    known = {
        "ro", "rw", "suid", "nosuid", "nodev", "exec", "noexec", "async", "sync", "atime", "noatime", "diratime",
        "nodiratime",
    }  # fmt: skip
    words: dict[str, str] = {}
    for word in options.kernel_words:
        if word in known:
            words[word.removeprefix("no") if word != "ro" else "rw"] = word
    return set(words.values())


async def wait_until_answering(mountpoint: str) -> None:
    """Return when the mount answers a stat of its root."""
    await trio.to_thread.run_sync(os.stat, mountpoint)
