"""The signals that mosrun gets, as something to poll: each with where it came from.

All that can be caught and means something for the program are blocked, and a thread takes them one by one with
sigwaitinfo(2), which tells whether the kernel sent it (the terminal's driver, to everybody in the foreground) or a
process, to us.  A kill(2) of a whole process group looks like one of us alone: the kernel does not tell them apart.

Not taken: SIGCHLD, which is about children of ours; and what can't be caught.  Blocked signals stay so across execve
and fork: who executes or forks sets the mask that was there before (`before`).
"""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

_RECORD: Final = struct.Struct("=ii")
_FROM_KERNEL: Final = 0x80  # SI_KERNEL, include/uapi/asm-generic/siginfo.h
FORWARDED: Final = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}


class Received(NamedTuple):
    number: int
    is_from_kernel: bool


class SignalSource:
    """To be made before there are other threads: they inherit what is blocked."""

    def __init__(self) -> None:
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        self._readable, self._writable = os.pipe()
        threading.Thread(target=self._take, daemon=True).start()

    def fileno(self) -> int:
        return self._readable

    def received(self) -> Iterator[Received]:
        """Those that came; call it when the descriptor is readable."""
        data = os.read(self._readable, 64 * _RECORD.size)
        for number, code in _RECORD.iter_unpack(data):
            yield Received(number, code == _FROM_KERNEL)

    def _take(self) -> None:
        while True:
            info = signal.sigwaitinfo(FORWARDED)
            os.write(self._writable, _RECORD.pack(info.si_signo, info.si_code))
