"""`omfs` and `mount.fuse.omfs`: mount the cluster's tree.

    omfs [-f] [-d] SPEC DIRECTORY [-o OPTIONS]       -f: stay in the foreground, log to stderr
    mount.fuse.omfs SPEC DIRECTORY [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]       as mount(8) calls it

Forks before anything heavy is loaded; the parent waits until the mount answers and ends with 0, or prints the one
line that the child reports and ends with 32, mount(8)'s status for a failed mount (1: wrong usage).  A remount is done
here, without a daemon: only the kernel's own flags can change.
"""

from __future__ import annotations

import contextlib
import getopt
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from omfs.cli.daemonlog import log_behind, log_nowhere, log_to_stderr
from omfs.config import SOFTWARE, Settings
from omfs.errors import ConfigError, OmfsError
from omfs.mount.options import MountOptions, parse, settings_for

USAGE = "usage: omfs [-f] [-d] SPEC DIRECTORY [-o OPTIONS]   (for instance: omfs mfs_mnt /mfs -o dfsa=1)"
_FAILED = 32
_USAGE_ERROR = 1
_READY = b"ready\n"

log = logging.getLogger(__name__)


def main() -> int:
    """Entry point; returns the exit status."""
    is_helper = os.path.basename(sys.argv[0]).startswith("mount.")
    try:
        said, words = getopt.gnu_getopt(sys.argv[1:], "fdo:snvN:t:hV", ["help", "version"])
    except getopt.GetoptError as error:
        print(f"omfs: {error}\n{USAGE}", file=sys.stderr)
        return _USAGE_ERROR
    flags = {name for name, _ in said}
    if flags & {"-h", "--help"}:
        print(USAGE)
        return 0
    if flags & {"-V", "--version"}:
        print(SOFTWARE)
        return 0
    if len(words) != 2:
        print(USAGE, file=sys.stderr)
        return _USAGE_ERROR
    try:
        options = parse(
            words[0],
            os.path.abspath(words[1]),
            [value for name, value in said if name == "-o"],
            foreground="-f" in flags and not is_helper,
            debug="-d" in flags,
            sloppy="-s" in flags,
        )
        settings = settings_for(options)
        if "-f" in flags and is_helper:  # mount -f: everything but the mount
            return 0
        for name, value in said:
            if name == "-N":
                _enter(value)
        if os.geteuid() != 0:
            raise ConfigError("must run as root: it mounts for all users")
        if options.remount:
            _remount(options, settings)
            return 0
        return _run_here(options, settings) if options.foreground else _run_behind(options, settings)
    except OmfsError as error:
        print(f"omfs: {error}", file=sys.stderr)
        return _FAILED


def _enter(namespace: str) -> None:
    """mount -N: work in another mount namespace."""
    from omfs.kernel.namespaces import CLONE_NEWNS, set_namespace

    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        set_namespace(fd, CLONE_NEWNS)
        os.close(fd)
    except OSError as error:
        raise ConfigError(f"cannot enter the mount namespace {namespace}: {error.strerror}") from None


def _remount(options: MountOptions, settings: Settings) -> None:
    from omfs.mount.remount import remount

    remount(options, Path(settings.run_dir))


def _run(options: MountOptions, settings: Settings, report_ready: Callable[[], None]) -> None:
    from omfs.daemon import run_mount

    run_mount(options, settings, report_ready)


def _run_here(options: MountOptions, settings: Settings) -> int:
    log_to_stderr(options.debug)
    _run(options, settings, lambda: log.info("%s is mounted", options.mountpoint))
    return 0


def _run_behind(options: MountOptions, settings: Settings) -> int:
    receiving, sending = os.pipe()
    child = os.fork()
    if child:
        os.close(sending)
        return _wait_until_mounted(receiving, child)
    status = _FAILED
    try:
        os.close(receiving)
        os.setsid()
        os.chdir("/")
        log_nowhere()
        status = _serve(options, settings, sending)
    finally:
        os._exit(status)


def _wait_until_mounted(receiving: int, child: int) -> int:
    told = b""
    try:
        while part := os.read(receiving, 4096):
            told += part
            if told == _READY:
                return 0
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        return _FAILED
    print(
        f"omfs: {told.decode(errors='replace').strip() or 'the daemon ended before the mount answered'}",
        file=sys.stderr,
    )
    return _FAILED


def _serve(options: MountOptions, settings: Settings, sending: int) -> int:
    """The child: a daemon that tells the waiting parent one thing."""

    def tell(message: bytes) -> None:
        nonlocal sending
        if sending >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(sending, message)
            os.close(sending)
            sending = -1

    try:
        log_behind("omfs", Path(settings.run_dir), options.debug)
        _run(options, settings, lambda: tell(_READY))
    except OmfsError as error:
        log.error("%s", error)
        tell(str(error).encode())
        return _FAILED
    except BaseException as error:
        log.critical("the daemon ended", exc_info=error)
        tell(f"the daemon ended: {error!r}; see its log".encode())
        return _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
