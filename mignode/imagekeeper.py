"""Keeps the image of a program in a file, for mosrun: asks mignode for one now and then, and writes it as the user.

It is a thread of mosrun, beside the one poll of the deputy: writing some hundred MB to another node may take long, and
must not hold up what the program says.  Each image goes to `FILE.new` first, which takes FILE's place when it is whole
and on disk, so FILE is always the last good one.  A file that somebody else has put there is left alone.  What goes
wrong is said once, until it goes well again; then the next time is waited for.

Called by deputyloop.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from mignode.deputywords import ImageBytes, ImageTaken, NotKept, Refused, TakeImage, Words, pack
from omfs.config import BULK_MAX_BYTES
from omfs.errors import ConfigError

_FRESH: Final = b".new"
_WORD_MAX_BYTES: Final = BULK_MAX_BYTES + 4096
_READ_BYTES: Final = 1 << 20
_SILENCE_S: Final = 300.0  # a dump of some GB, and mignode says nothing while CRIU is at it
_AGAIN_S: Final = 2.0  # the program was on its way to another node
_AGAIN_TIMES: Final = 10
_ENDING_S: Final = 5.0  # for a piece that is being written
_REASON_MAX: Final = 400

Place = tuple[int, int]
"""Of a file: device and inode."""


class ImageKeeper:
    """Every *every_s* of *guest* into *file*, from `start` to `stop`."""

    def __init__(
        self, mignode: Path, guest: str, file: bytes, every_s: int, say: Callable[[str], None],
        own: Place | None = None,
    ) -> None:  # fmt: skip
        """*mignode*: its socket.  *say*: gets a line for the user.  *own*: the image that is there and may go."""
        self._mignode = mignode
        self._guest = guest
        self._file = file
        self._fresh = file + _FRESH
        self._every_s = every_s
        self._say = say
        self._own = own
        self._is_over = threading.Event()
        self._line: socket.socket | None = None
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="image", daemon=True)
        self.kept: Callable[[], None] = lambda: None
        """Is called when a new image is there."""
        self.pause_s: float = every_s

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, is_needed: bool) -> None:
        """The program has ended; *is_needed*: but not by itself, so somebody may want to go on with the image."""
        self._is_over.set()
        line = self._line
        if line is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._thread.join(_ENDING_S)
        with contextlib.suppress(OSError):
            os.unlink(self._fresh)
        if not is_needed and self._own is not None and self._own == _place_of(self._file):
            with contextlib.suppress(OSError):
                os.unlink(self._file)

    def _run(self) -> None:
        if not self._every_s:
            return
        next_s = time.monotonic() + self.pause_s
        while not self._is_over.wait(max(0.0, next_s - time.monotonic())):
            next_s = time.monotonic() + self.pause_s
            try:
                self._take()
                self._has_failed = False
                self.kept()
            except _Refusal as error:
                self._complain(error.reason)
            except OSError as error:
                self._complain(error.strerror or str(error))

    def _complain(self, reason: str) -> None:
        if not self._has_failed and not self._is_over.is_set():
            self._say(f"no checkpoint: {reason}; tried again every {self._every_s} s")
        self._has_failed = True

    def _take(self) -> None:
        """Raises OSError, _Refusal."""
        for left in reversed(range(_AGAIN_TIMES)):
            try:
                self._take_once()
                return
            except _Refusal as error:
                if error.errno != errno.EAGAIN or not left or self._is_over.wait(_AGAIN_S):
                    raise

    def _take_once(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(_SILENCE_S)
            try:
                line.connect(os.fspath(self._mignode))
            except OSError as error:
                raise _Refusal(errno.ENOTCONN, f"mignode: {error.strerror}") from None
            self._line = line
            try:
                line.sendall(pack(TakeImage(self._guest, self._every_s)))
                self._write_all(line)
            except _FileError as error:
                reason = f"{os.fsdecode(self._file)}: {error.strerror}"
                with contextlib.suppress(OSError):
                    line.sendall(pack(NotKept(reason[:_REASON_MAX])))
                raise _Refusal(errno.EIO, reason) from None
            finally:
                self._line = None

    def _write_all(self, line: socket.socket) -> None:
        """Raises _FileError, _Refusal, OSError."""
        words = Words(_WORD_MAX_BYTES)
        fd = -1
        try:
            while data := line.recv(_READ_BYTES):
                for word in words.arrived(data):
                    if isinstance(word, Refused):
                        raise _Refusal(word.errno, word.reason)
                    with _of_file():
                        fd = open_fresh(self._fresh) if fd < 0 else fd
                        if isinstance(word, ImageTaken):
                            self._put_in_place(fd)
                            return
                        if isinstance(word, ImageBytes):
                            _write(fd, word.data)
            raise _Refusal(errno.ECONNRESET, "mignode has ended")
        except BaseException:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.unlink(self._fresh)
            raise
        finally:
            if fd >= 0:
                os.close(fd)

    def _put_in_place(self, fd: int) -> None:
        os.fsync(fd)
        if _place_of(self._file) not in (None, self._own):
            raise FileExistsError(errno.EEXIST, "somebody else has put a file there")
        own = place(os.fstat(fd))
        os.rename(self._fresh, self._file)
        self._own = own
        with contextlib.suppress(OSError):  # some file systems can't
            directory = os.open(os.path.dirname(self._file) or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


class _Refusal(Exception):
    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.errno, self.reason = number, reason


class _FileError(OSError):
    """Of the file, not of the way to mignode."""


@contextlib.contextmanager
def _of_file() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _FileError(error.errno, error.strerror) from None


def place(status: os.stat_result) -> Place:
    return status.st_dev, status.st_ino


def _place_of(file: bytes) -> Place | None:
    """None: there is none."""
    try:
        return place(os.lstat(file))
    except FileNotFoundError:
        return None


def check_place(file: bytes) -> None:
    """For a new image.  Raises ConfigError where none can be kept: better now than after an hour."""
    name = os.fsdecode(file)
    if _place_of(file) is not None:
        raise ConfigError(f"{name} exists: if it is an image (mosrun --show), restart it; or remove it")
    try:
        os.close(open_fresh(file + _FRESH))
        os.unlink(file + _FRESH)
    except OSError as error:
        raise ConfigError(f"{name}: no image can be kept there: {error.strerror}") from None


def open_fresh(file: bytes) -> int:
    """A new file for its owner alone, in the place of what an earlier one has left.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISREG(os.lstat(file).st_mode):
            os.unlink(file)
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
