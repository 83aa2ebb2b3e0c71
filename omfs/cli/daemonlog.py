"""Where a daemon's log goes: stderr in the foreground, else syslog (the journal), else a file in run_dir.

Called by cli/mount.py and by behind.py's daemons, before the daemon's rooms are loaded.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
from pathlib import Path
from typing import Final

from omfs.errors import ConfigError

SYSLOG_SOCKET: Final = "/dev/log"


def log_to_stderr(debug: bool = False) -> None:
    """For a daemon in the foreground."""
    _log_to(logging.StreamHandler(), "%(asctime)s %(levelname)s %(message)s", debug)


def log_nowhere() -> None:
    """For a daemon in the background that has no log yet: what it can't do it tells who waits, and once is enough."""
    logging.getLogger().addHandler(logging.NullHandler())


def log_behind(name: str, run_dir: Path, debug: bool = False) -> None:
    """For a daemon in the background: stdin, stdout and stderr are given up.  Raises ConfigError.

    stderr becomes run_dir/NAME.stacks: what SIGUSR2 or a crash of the interpreter writes must go somewhere.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if os.path.exists(SYSLOG_SOCKET):
            handler: logging.Handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET, "daemon")
            _log_to(handler, f"{name}[%(process)d]: %(message)s", debug)
        else:
            handler = logging.FileHandler(run_dir / f"{name}.log")
            _log_to(handler, "%(asctime)s %(levelname)s %(message)s", debug)
        with open(os.devnull, "r+b") as nothing, open(run_dir / f"{name}.stacks", "ab") as stacks:
            for source, target in ((nothing, 0), (nothing, 1), (stacks, 2)):
                os.dup2(source.fileno(), target)
    except OSError as error:
        raise ConfigError(f"{run_dir}: {error.strerror}") from None
    with contextlib.suppress(OSError):
        os.chdir("/")


def _log_to(handler: logging.Handler, layout: str, debug: bool) -> None:
    handler.setFormatter(logging.Formatter(layout))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pyfuse3").setLevel(logging.INFO)  # it reports every idle worker
