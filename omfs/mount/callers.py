"""Who asks: the credentials that travel with a request.

FUSE tells uid, gid and the thread; the supplementary groups come from /proc/<thread>/status.  uid 0 needs none: the
owner's kernel lets it pass anyway.  Reading them costs about 25 us, so they are kept for KEPT_S per (thread, uid,
gid).  That is safe because only a process with CAP_SETGID can change its groups: setgroups is followed by setuid
(login, su), which makes another key, and newgrp changes the gid; thread ids are not reused for another user's
process of the same uid and gid within that second in any way that gives it more than that user had.
Needs a /proc of the daemon's own PID namespace; a thread that is not visible from there (number 0) has no groups.
Called by operations*.py and session.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from omfs.wire import Caller

KEPT_S: Final = 1.0
_KEPT_MAX: Final = 4096
_SIGKILL_BIT: Final = 1 << (signal.SIGKILL - 1)

ROOT: Final = Caller(0, 0)


class Context(Protocol):
    """pyfuse3.RequestContext."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...


class Callers:
    """Credentials of calling threads, remembered for a moment."""

    def __init__(self, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._clock = clock
        self._kept: dict[tuple[int, int, int], tuple[float, Caller]] = {}

    def caller(self, context: Context) -> Caller:
        """The credentials of the thread that made a request."""
        uid, gid, thread = context.uid, context.gid, context.pid
        if uid == 0:
            return ROOT if gid == 0 else Caller(0, gid)
        key = (thread, uid, gid)
        now = self._clock()
        kept = self._kept.get(key)
        if kept is not None and now - kept[0] < KEPT_S:
            return kept[1]
        caller = Caller(uid, gid, self._groups(thread))
        if len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        self._kept[key] = (now, caller)
        return caller

    def _groups(self, thread: int) -> tuple[int, ...]:
        return tuple(int(group) for group in self._status(thread, b"Groups:").split())

    def _status(self, thread: int, field: bytes) -> bytes:
        if thread == 0:
            return b""
        try:
            with open(f"{self._proc}/{thread}/status", "rb", buffering=0) as file:
                text = file.read()
        except OSError:  # it ended meanwhile
            return b""
        start = text.find(b"\n" + field)
        if start < 0:
            return b""
        start += 1 + len(field)
        return text[start : text.find(b"\n", start)]

    def is_being_killed(self, thread: int) -> bool:
        """Whether SIGKILL is pending for the thread (it waits in our call and can't end before it is answered)."""
        if thread == 0:
            return False
        pending = int(self._status(thread, b"SigPnd:") or b"0", 16) | int(self._status(thread, b"ShdPnd:") or b"0", 16)
        return bool(pending & _SIGKILL_BIT)
