"""`mignode`: the daemon that knows this node's processes; its systemd unit starts it.

    mignode [--config FILE] [--foreground]

Without --foreground it goes behind and the command ends with 0 once it answers, or prints the one line that says why
it can't and ends with 1.  What the daemon does is in mignode/daemon.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import resource
import sys
from pathlib import Path
from typing import Final

from omfs.cli.behind import READY, Report, serve_behind, serving
from omfs.cli.daemonlog import log_behind, log_to_stderr
from omfs.config import DEFAULT_CONFIG, load_settings
from omfs.errors import ConfigError

_NICE: Final = -10  # nine times the weight of a program
_ABOUT: Final = """Remember where this node's processes run, what they selected and what else openMosix's control
files in /mfs/proc say of them.  Without it the magic names (/mfs/here, /mfs/home ...) still answer, for ordinary
processes."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mignode", description=_ABOUT)
    parser.add_argument("--config", metavar="FILE", type=Path, help=f"settings (default {DEFAULT_CONFIG})")
    parser.add_argument("--foreground", action="store_true", help="do not go behind; log to stderr")
    return parser


def main() -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args()
    serve = functools.partial(_serve, arguments.config or DEFAULT_CONFIG)
    if arguments.foreground:
        log_to_stderr()
        return serve(Report(-1))
    return serve_behind("mignode", serve, Report(-1))


def _serve(config: Path, report: Report) -> int:
    """Serve until SIGTERM; the exit status."""
    return serving("mignode", lambda: _run(config, report), report)


def _run(config: Path, report: Report) -> None:
    """Raises ConfigError."""
    settings = load_settings(config)
    if os.geteuid() != 0:
        raise ConfigError("must run as root: it watches everybody's processes")
    if report.is_awaited:
        log_behind("mignode", Path(settings.run_dir))
    _allow_many_descriptors()
    os.setgroups([])  # those of sudo, say: CRIU leaves them to a guest of root that has none
    _go_first()
    # everything heavy, after the words were understood
    from mignode.bodyfiles import made
    from mignode.hatchery import Hatchery

    hatchery = Hatchery(made)  # a fork, so before there are threads
    from mignode.daemon import run_mignode

    run_mignode(settings, hatchery, lambda: report.tell(READY))


def _allow_many_descriptors() -> None:
    """One for each process that has something to remember."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _go_first() -> None:
    """Before the programs of a crowded node, or nobody would get away from it in time; guests have their own priority.

    Whoever starts it with another nice value (systemd's Nice=) has chosen that.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) == 0:
        with contextlib.suppress(PermissionError):  # a container's root without CAP_SYS_NICE
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)


if __name__ == "__main__":
    sys.exit(main())
