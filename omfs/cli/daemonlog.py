"""Where a daemon's log goes: stderr in the foreground, else syslog (the journal), else a file in run_dir.

Called by cli/mount.py and cli/export.py, before the daemon's rooms are loaded.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
from pathlib import Path

from omfs.errors import ConfigError

SYSLOG_SOCKET = "/dev/log"


def start_logging(name: str, run_dir: Path, *, foreground: bool, debug: bool = False) -> None:
    """Log from here on; in the background stdin, stdout and stderr are given up.  Raises ConfigError."""
    handler = logging.StreamHandler() if foreground else _background_handler(name, run_dir)
    is_syslog = isinstance(handler, logging.handlers.SysLogHandler)
    handler.setFormatter(logging.Formatter("%(message)s" if is_syslog else "%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pyfuse3").setLevel(logging.INFO)  # it reports every idle worker
    if not foreground:
        _give_up_terminal(run_dir / f"{name}.stacks")


def _background_handler(name: str, run_dir: Path) -> logging.Handler:
    if os.path.exists(SYSLOG_SOCKET):
        with contextlib.suppress(OSError):
            handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_DAEMON)
            handler.ident = f"{name}[{os.getpid()}]: "
            return handler
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return logging.FileHandler(run_dir / f"{name}.log")
    except OSError as error:
        raise ConfigError(f"{run_dir}: {error.strerror}") from None


def _give_up_terminal(stacks: Path) -> None:
    """stderr becomes a file, as the stacks that SIGUSR2 or a crash of the interpreter write must go somewhere."""
    os.chdir("/")
    try:
        stacks.parent.mkdir(parents=True, exist_ok=True)
        error = os.open(stacks, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as fault:
        raise ConfigError(f"{stacks}: {fault.strerror}") from None
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for source, target in ((nothing, 0), (nothing, 1), (error, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(error)
