"""Standard files for tests of a guest's init: pipes or a terminal, and their bytes go to and fro as frames.

A frame to the program is data for its standard input, b"" its end; b"!<number>" is a signal, b"!g<number>" one for the
foreground.  A frame from it is what it wrote, b"e" and a status its end, b"s" and a signal or b"c" a stop and a
continuation.  A state is the pipes' keys and what was not read.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import termios
from collections.abc import Callable, Iterable, Mapping

import msgspec

from mignode.bodyends import Act

PIECE_BYTES = 1 << 16


class _State(msgspec.Struct):
    keys: list[str]
    unread: bytes
    unsent: list[bytes]


def pipe_key(fd: int) -> str:
    return f"pipe:[{os.fstat(fd).st_ino}]"


class PlainFiles:
    """mignode.bodyends.Files."""

    external: tuple[str, ...] = ()

    def __init__(
        self,
        plan: bytes,
        send: Callable[[bytes], None],
        act: Act,
        state: bytes = b"",
        owner: tuple[int, int] | None = None,
    ) -> None:
        self.has_terminal = plan == b"terminal"
        self._act = act
        self._send_now = send
        self._is_open = False
        self._unsent: list[bytes] = []
        self._old_keys: list[str] = []
        if self.has_terminal:
            self._from, self._stdin = os.openpty()
            self._to, self._stdout = os.dup(self._from), os.dup(self._stdin)
            fcntl.ioctl(self._stdin, termios.TIOCSCTTY, 0)  # as bodyfiles does: until the program takes it
        else:
            self._stdin, self._to = os.pipe()
            self._from, self._stdout = os.pipe()
        for fd in (self._to, self._from):
            os.set_blocking(fd, False)
        self.guest_ends: Mapping[int, int] = {0: self._stdin, 1: self._stdout, 2: self._stdout}
        if state:
            old = msgspec.msgpack.decode(state, type=_State)
            self._old_keys = old.keys
            os.write(self._to, old.unread)
            self._unsent = old.unsent

    @property
    def is_finished(self) -> bool:
        return self._from < 0 and not self._unsent

    def inherited(self) -> Mapping[str, int]:
        return dict(zip(self._old_keys, (self._stdin, self._stdout), strict=True))

    def given(self) -> None:
        self._keys = [pipe_key(self._stdin), pipe_key(self._stdout)]
        os.close(self._stdout)
        if self.has_terminal:
            os.close(self._stdin)

    def descriptors(self) -> Iterable[tuple[int, int]]:
        return [(self._from, selectors.EVENT_READ)] if self._from >= 0 else []

    def ready(self, fd: int, events: int) -> None:
        self._drain()

    def _drain(self) -> None:
        while self._from >= 0:
            try:
                data = os.read(self._from, PIECE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # EIO: nobody has the terminal any more
                data = b""
            if not data:
                os.close(self._from)
                self._from = -1
            self._send(data)

    def received(self, frame: bytes) -> None:
        if frame.startswith(b"!g"):
            self._act.signal(int(frame[2:]), group=True)
        elif frame.startswith(b"!"):
            self._act.signal(int(frame[1:]), group=False)
        elif frame:
            os.write(self._to, frame)
        else:
            os.close(self._to)

    def connected(self) -> None:
        self._is_open = True
        unsent, self._unsent = self._unsent, []
        for frame in unsent:
            self._send_now(frame)

    def disconnected(self) -> None:
        self._is_open = False

    def _send(self, frame: bytes) -> None:
        if self._is_open:
            self._send_now(frame)
        else:
            self._unsent.append(frame)

    def freeze(self) -> bytes:
        self._drain()
        os.set_blocking(self._stdin, False)
        try:
            unread = os.read(self._stdin, PIECE_BYTES)
        except BlockingIOError:
            unread = b""
        os.set_blocking(self._stdin, True)
        self._taken = unread
        return msgspec.msgpack.encode(_State(self._keys, unread, self._unsent))

    def thaw(self) -> None:
        os.write(self._to, self._taken)

    def ended(self, status: int) -> None:
        self._drain()
        self._send(b"e%d" % status)

    def close(self) -> None:
        for fd in (self._stdin, self._to, self._from, self._stdout):
            os.close(fd)

    def deputy_stopped(self) -> None:
        self._act.signal(signal.SIGSTOP, group=False)

    def stopped(self, number: int) -> None:
        self._send(b"s%d" % number)

    def continued(self) -> None:
        self._send(b"c")
