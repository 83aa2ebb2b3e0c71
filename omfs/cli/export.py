"""`omfs-export`: serve this node's tree to the cluster; started by the mount or by its systemd unit.

    omfs-export [--config FILE] [--foreground]

Without --foreground it goes behind and the command ends with 0 once the tree is served, or prints the one line that
says why it can't be and ends with 1.  --report-fd and --settings-json are the mount's: the same report to a
descriptor, and settings that the mount's options changed.  What a process needs to serve others (root, descriptors,
no privilege that passes quotas) is arranged here, before any thread exists.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from omfs.cli.behind import READY, Report, serve_behind, serving
from omfs.cli.daemonlog import log_behind, log_to_stderr
from omfs.config import DEFAULT_CONFIG, Settings, load_settings
from omfs.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omfs-export", description="Serve this node's tree to the cluster.")
    parser.add_argument("--config", metavar="FILE", type=Path, help=f"settings (default {DEFAULT_CONFIG})")
    parser.add_argument("--foreground", action="store_true", help="do not go behind; log to stderr")
    parser.add_argument("--report-fd", metavar="N", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--settings-json", metavar="JSON", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args()
    if arguments.settings_json is not None:  # a mount's is no service: it must not speak in the name of the mount's
        os.environ.pop("NOTIFY_SOCKET", None)
    report = Report(arguments.report_fd)
    if arguments.foreground and arguments.report_fd < 0:
        log_to_stderr()
    if arguments.foreground:
        return _serve(arguments, report)
    return serve_behind("omfs-export", lambda told: _serve(arguments, told), report)


def _settings(arguments: argparse.Namespace) -> Settings:
    if arguments.settings_json is None:
        return load_settings(arguments.config or DEFAULT_CONFIG)
    try:
        return msgspec.json.decode(arguments.settings_json, type=Settings)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--settings-json: {error}") from None


def _serve(arguments: argparse.Namespace, report: Report) -> int:
    """Serve until SIGTERM; the exit status."""
    return serving("omfs-export", lambda: _run(arguments, report), report)


def _run(arguments: argparse.Namespace, report: Report) -> None:
    """Raises ConfigError."""
    settings = _settings(arguments)
    if os.geteuid() != 0:
        raise ConfigError("must run as root: it does what the users of other nodes may")
    if report.is_awaited:
        log_behind("omfs-export", Path(settings.run_dir))
    run_export = _load()
    run_export(settings, lambda: report.tell(READY), by_mount=arguments.settings_json is not None)


def _load() -> Callable[..., None]:
    """Everything heavy, after the words were understood."""
    from omfs.daemon import run_export
    from omfs.export.service import prepare_process

    prepare_process()
    os.umask(0o022)
    return run_export


if __name__ == "__main__":
    sys.exit(main())
