"""A program on a terminal of 80x24 of its own, for the tests of what is live."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from typing import Final

SHOWN_LENGTH: Final = 2000
ATTEMPTS: Final = 6


class Screen:
    """The other end of its terminal."""

    def __init__(self, command: Sequence[str], rows: int = 24, columns: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm-256color"},
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._seen = ""

    def wait_for(self, text: str, within_s: float = 60) -> None:
        """Until it has been shown, from now on."""
        assert self.shows(text, within_s), f"no {text!r} in what it showed, at last {self._seen[-SHOWN_LENGTH:]!r}"

    def shows(self, text: str, within_s: float) -> bool:
        """Whether it does, from now on and before the time is over."""
        deadline = time.monotonic() + within_s
        while text not in self._seen:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            assert self._read_more(left), f"ended, without {text!r}: {self._seen[-SHOWN_LENGTH:]!r}"
        self._seen = self._seen.partition(text)[2]
        return True

    def _read_more(self, within_s: float) -> bool:
        """False: it has ended."""
        if not select.select([self._ours], [], [], within_s)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        self._seen += data.decode(errors="replace")
        return True

    def resize(self, rows: int, columns: int, text: str) -> None:
        """As somebody who drags a window's edge, to and fro by a column until it shows *text*.

        The kernel tells who is in the foreground of a terminal; we tell whoever has no such.
        """
        for attempt in range(ATTEMPTS):
            fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns + attempt % 2, 0, 0))
            self._process.send_signal(signal.SIGWINCH)
            if self.shows(text, 60 / ATTEMPTS):
                return
        raise AssertionError(f"no {text!r} after {ATTEMPTS} new sizes")

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def wait_end(self, within_s: float = 60) -> int:
        """Its status; what it shows meanwhile is read, or it could not end."""
        deadline = time.monotonic() + within_s
        while self._read_more(max(deadline - time.monotonic(), 0.0)):
            assert time.monotonic() < deadline, "it does not end"
        return self._process.wait(within_s)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        os.close(self._ours)
