"""mount(2) and umount2(2), on bytes paths.  Raises OSError.

No policy: which mounts there are and should be is known to mount/session.py, mount/selfbind.py and cli/umount.py.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from omfs.kernel.libc import check, libc, system_call
from omfs.kernel.mounttable import MountLine, parse_mountinfo

MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2

_OPEN_TREE: Final = 428  # the same number on all machines
_MOVE_MOUNT: Final = 429
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_FDCWD: Final = -100


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int) -> None:
    """mount(2) without data."""
    check(libc.mount(source, target, kind, ctypes.c_ulong(flags), None))


def unmount(target: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    check(libc.umount2(target, flags))


def mounts() -> list[MountLine]:
    """The mounts of this process's namespace, oldest first."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def mount_at(target: bytes) -> MountLine | None:
    """The topmost mount at exactly this place."""
    found = [line for line in mounts() if line.mountpoint == target]
    return found[-1] if found else None


class SavedMount:
    """A copy of one mount that is attached nowhere, to put it back (open_tree(2), move_mount(2), Linux 5.2)."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._fd = check(system_call(_OPEN_TREE, _AT_FDCWD, path, ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)))

    def put_back(self) -> None:
        """Attach it where it was."""
        arguments = (self._fd, b"", _AT_FDCWD, self.path, ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH))
        check(system_call(_MOVE_MOUNT, *arguments))

    def close(self) -> None:
        """Give the copy up; harmless after put_back."""
        os.close(self._fd)
