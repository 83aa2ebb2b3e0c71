"""The procfs of this process by a descriptor, where no path may lead through /proc: in a guest's init, which serves the
view that lies over it (dfsa/procview.py) and would wait for itself.  Elsewhere it is /proc.

Called by guestinit.py, which says where it is, and by its rooms for the standard files.
"""

from __future__ import annotations

import os
from typing import Final

_READ_BYTES: Final = 4096


class OwnProc:
    """*directory*: a descriptor of procfs; -1: /proc is one."""

    def __init__(self) -> None:
        self.directory = -1

    def open(self, path: str, flags: int) -> int:
        """*path*: below /proc.  Raises OSError."""
        if self.directory < 0:
            return os.open(f"/proc/{path}", flags | os.O_CLOEXEC)
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=self.directory)

    def open_again(self, descriptor: int, flags: int) -> int:
        """Another description of what this descriptor is of."""
        return self.open(f"self/fd/{descriptor}", flags)

    def read(self, path: str) -> bytes:
        """A file that is shorter than 4 KiB."""
        descriptor = self.open(path, os.O_RDONLY)
        try:
            return os.read(descriptor, _READ_BYTES)
        finally:
            os.close(descriptor)

    def write(self, path: str, data: bytes) -> None:
        descriptor = self.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


own_proc: Final = OwnProc()
"""Of this process, so there is one."""
