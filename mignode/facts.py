"""What is known of a group of processes that shall move: the words between cantmove.py, which reads, and eligible.py.

A *group* is what would move together: a process and all its descendants.  Data only; sockets, descriptors and rights
are as omfs/kernel/procobjects.py and socketpeers.py have them.  Pids are those of the PID namespace of our /proc.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from omfs.kernel.mounttable import MountLine
from omfs.kernel.procobjects import DescriptorInfo, InetSocket, Rights, Standing
from omfs.kernel.socketpeers import UnixSocket


class OpenFile(NamedTuple):
    """A descriptor.

    *target*: where /proc/<pid>/fd/<number> leads.  *info*: None for sockets, of which it says nothing.  *mode* and
    *device*: as stat(2) has them, 0 where it was not asked.  *protocol* and *inode*: of a socket.
    """

    number: int
    target: str
    info: DescriptorInfo | None = None
    mode: int = 0
    device: tuple[int, int] = (0, 0)
    protocol: str = ""
    inode: int = 0

    @property
    def is_directory(self) -> bool:
        """Of one that was not asked, as far as it was opened as one."""
        flags = self.info.flags if self.info is not None else 0
        return stat.S_ISDIR(self.mode) or flags & os.O_TMPFILE == os.O_DIRECTORY  # all of it: a file without a name

    @property
    def is_device(self) -> bool:
        return stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode)


class Thread(NamedTuple):
    """*namespaces*: by kind ("net", "mnt" ...) what /proc/<pid>/ns/<kind> leads to.

    *shares*: its descriptors and directories with the first thread, as pthreads do.
    """

    number: int
    rights: Rights
    namespaces: Mapping[str, str]
    shares: bool = True


class Process(NamedTuple):
    """*state*: as in /proc/<pid>/stat.  *threads*: the first one first.  *mapped*: names, its program's among them.

    *is_executing*: it is in an execve that can't fail any more.  *is_running*: it was when all else had been read.
    """

    pid: int
    state: str
    standing: Standing
    threads: tuple[Thread, ...]
    lockable_bytes: int = 0
    files: tuple[OpenFile, ...] = ()
    mapped: tuple[str, ...] = ()
    directory: str = "/"
    is_executing: bool = False
    is_running: bool = False


class Facts(NamedTuple):
    """*processes*: whose move is asked for first; none where it has ended.

    *ours*: the namespaces of this daemon.  *mounts*: by id, as the first process sees them.  *relayed*: targets whose
    other end our deputy holds and takes along: the guest's pipes and terminal.  *fed_from_outside*: of pipes that have
    only one end in the group, those whose other end somebody holds.  *leaders_outside*: living processes that lead a
    session of the group and are not in it.  *own_filters*: how many seccomp filters a guest has from us.
    """

    processes: tuple[Process, ...]
    ours: Mapping[str, str]
    mounts: Mapping[int, MountLine]
    unix: Mapping[int, UnixSocket] = {}
    inet: Mapping[int, InetSocket] = {}
    relayed: frozenset[str] = frozenset()
    fed_from_outside: frozenset[str] = frozenset()
    leaders_outside: frozenset[int] = frozenset()
    own_filters: int = 0
