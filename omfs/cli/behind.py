"""A daemon that goes behind: the command waits until it is ready, or says the one line why it can't be.

`serve_behind` forks before anything heavy is loaded or any thread exists; the child tells its Report once.  `serving`
is what all daemons do with what ends them.  What it does not do: logging (daemonlog), the daemon itself.
Called by cli/export.py, mignode/cli/mignode.py and mignode/cli/omdiscd.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

from omfs.cli.daemonlog import log_nowhere
from omfs.errors import ConfigError

READY: Final = b"ready\n"
FAILED: Final = 1

log: Final = logging.getLogger(__name__)


class Report:
    """Tells one thing, once, to whoever started us: READY or a line of complaint."""

    def __init__(self, fd: int) -> None:
        """*fd*: where to; -1 = nowhere."""
        self._fd = fd
        if fd >= 0:
            os.set_inheritable(fd, False)

    @property
    def is_awaited(self) -> bool:
        """Somebody waits for the report, so this process is a daemon in the background."""
        return self._fd >= 0

    def tell(self, message: bytes) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # nobody listens any more
                os.write(self._fd, message)
            os.close(self._fd)
            self._fd = -1


def serve_behind(name: str, serve: Callable[[Report], int], report: Report) -> int:
    """Fork, run *serve* in the child, and wait for its report, which *report* passes on; the exit status."""
    receiving, sending = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(sending)
        try:
            with open(receiving, "rb") as pipe:
                told = pipe.readline()
        except KeyboardInterrupt:  # which does not reach the child: it has a session of its own
            os.kill(child, signal.SIGTERM)
            return FAILED
        report.tell(told)
        if told == READY:
            return 0
        print(f"{name}: {told.decode(errors='replace').strip() or 'it ended before it served'}", file=sys.stderr)
        return FAILED
    status = FAILED
    try:
        os.close(receiving)
        os.setsid()
        os.chdir("/")
        log_nowhere()
        status = serve(Report(sending))
    finally:
        os._exit(status)


def serving(name: str, serve: Callable[[], None], report: Report) -> int:
    """*serve*, until it ends; the exit status.  Why it can't is told to who waits, or printed."""
    is_behind = report.is_awaited
    try:
        serve()
    except ConfigError as error:
        if is_behind:
            log.error("%s ends: %s", name, error)
        else:
            print(f"{name}: {error}", file=sys.stderr)
        report.tell(f"{error}\n".encode())
        return FAILED
    except Exception as error:
        log.exception("%s ends", name)
        report.tell(f"{name} failed: {error!r}\n".encode())
        return FAILED
    return 0
