"""An image that is to be gone on with, for mosrun: opened as the user, locked, looked at, and given to mignode.

The lock (flock(2)) is kept until another image has taken the file's place, or mosrun ends: so nobody else begins with
the same one meanwhile.  Where there are no locks, mignode's own question whether the program runs is all.

What the program had as standard files it goes on having as such; `plan_for` says how mosrun's own take their place.

Called by mignode/cli/mosrun.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from typing import Final

import msgspec

from mignode.deputywords import ImageBytes, pack
from mignode.filewords import FilesPlan, Kind
from mignode.imagefile import HEAD_MAX_BYTES, Head, head_in
from mignode.imagekeeper import Place, place
from omfs.errors import ConfigError, ImagesDamaged

_PIECE_BYTES: Final = 64 << 10  # of a message to mignode; fits into RELAYED_MAX_BYTES
_SHOWN_AFTER_S: Final = 1.0
_NAMES: Final = ("input", "output", "errors")


class OpenImage:
    """Raises ConfigError where it can't be gone on with."""

    def __init__(self, file: str, *, is_locked: bool = True) -> None:
        self.file = file
        try:
            self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            if is_locked:
                self._lock()
            self.place: Place = place(os.fstat(self._fd))
            self.head: Head = head_in(os.pread(self._fd, HEAD_MAX_BYTES, 0))
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        except ImagesDamaged as error:
            raise ConfigError(f"{file}: {error}") from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self.file}: another mosrun goes on with it already (or did, on a node that was lost a moment ago)"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise

    def close(self) -> None:
        """Another may begin with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def give(self, line: socket.socket) -> None:
        """All of it; where mignode does not want it, its answer says why.  Raises ConfigError."""
        size, at, began_s, shown = os.fstat(self._fd).st_size, 0, time.monotonic(), -1
        while True:
            try:
                data = os.pread(self._fd, _PIECE_BYTES, at)
            except OSError as error:
                raise ConfigError(f"{self.file}: {error.strerror}") from None
            try:
                line.sendall(pack(ImageBytes(data)))
            except OSError:
                break
            if not data:
                break
            at += len(data)
            percent = at * 100 // max(size, 1)
            if percent != shown and time.monotonic() - began_s > _SHOWN_AFTER_S and sys.stderr.isatty():
                shown = percent
                sys.stderr.write(f"\rmosrun: {percent} % of {size >> 20} MiB")
                sys.stderr.flush()
        if shown >= 0:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def plan_for(head: Head, own: FilesPlan) -> FilesPlan:
    """How mosrun, which has *own*, stands for the standard files of the image's program.  Pure.  Raises ConfigError."""
    try:
        its = msgspec.msgpack.decode(head.plan, type=FilesPlan)
    except msgspec.MsgspecError:
        raise ConfigError("the image is damaged (its standard files)") from None
    kinds = [_stand_in(number, its.kinds[number], own.kinds[number]) for number in range(3)]
    return FilesPlan((kinds[0], kinds[1], kinds[2]), own.window, own.termios, its.is_joined)


def _stand_in(number: int, its: Kind, own: Kind) -> Kind:
    if its is Kind.TERMINAL and own is not Kind.TERMINAL:
        raise ConfigError(f"its program has a terminal as standard {_NAMES[number]}: restart it in a terminal")
    if its is Kind.PIPE:
        return Kind.PIPE if own in (Kind.PIPE, Kind.TERMINAL) else Kind.NULL
    return its
