"""The mount's omfs-export: started unless one runs, restarted when it dies, ended with the mount that started it.

Serving others is a process of its own so that it never stalls local calls (DESIGN "Processes on a node").
Where a systemd unit runs it, this does nothing but check that both have the same settings.  Not here: what the
export does.  Invariant: an export is ended only by who started it, by its pid.  Called by daemon.py.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from omfs.config import Settings
from omfs.errors import ConfigError, ControlError, NotRunning
from omfs.net import control

START_DEADLINE_S: Final = 20.0  # an export that does not listen by then won't
STOP_DEADLINE_S: Final = 5.0  # to close opens and locks; then it is killed
RESTART_PAUSE_S: Final = 0.5  # a crash loop must not eat a CPU
READY: Final = b"ready\n"  # what a daemon writes to --report-fd; anything else is its one line of complaint

log = logging.getLogger(__name__)


class ExportProcess:
    """Keeps an omfs-export running for this node while `run` runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._socket = Path(settings.run_dir) / "export.sock"
        self._process: trio.Process | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it running until cancelled; started once an export answers.

        Raises ConfigError when the first start fails (its one line is in the text) or when the export that
        runs already does not fit this mount's settings.
        """
        running = await self._find_running()
        if running is not None:
            log.info("an omfs-export runs already, pid %d; using it", running["pid"])
            task_status.started()
            if not running["by_mount"]:  # a unit of its own: whoever runs that decides
                await trio.sleep_forever()
            await _wait_gone(running["pid"])  # another mount's: when that ends it, one of ours follows
        try:
            if running is None:
                await self._start()
                task_status.started()
            while True:
                await self._wait_ended()
                log.error("omfs-export ended with status %s; starting it again", self._status())
                await trio.sleep(RESTART_PAUSE_S)
                try:
                    await self._start()
                except ConfigError as error:
                    log.error("%s", error)
        finally:
            with trio.CancelScope(shield=True):
                await self._stop()

    def reload(self) -> None:
        """Pass a SIGHUP on."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)

    async def _find_running(self) -> dict[str, Any] | None:
        """The status of an export that runs here.  Raises ConfigError if it does not fit."""
        try:
            status = await control.ask(self._socket, "status", deadline_s=START_DEADLINE_S)
        except NotRunning:
            return None
        except ControlError:  # it answers no more: it is ending just now
            return None
        for name, mine in (("dfsa", self._settings.dfsa), ("port", self._settings.port)):
            if status[name] != mine:
                raise ConfigError(
                    f"the omfs-export that runs already (pid {status['pid']}) has {name}={int(status[name])}, this "
                    f"mount {int(mine)}; mount with the same, or change omfs.toml and end it"
                )
        return status

    async def _start(self) -> None:
        """Start it and wait for its report; raises ConfigError with its own line when it can't."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        command = [sys.executable, "-m", "omfs.cli.export", "--foreground", f"--report-fd={writer}"]
        command.append("--settings-json=" + msgspec.json.encode(self._settings).decode())
        try:
            self._process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, pass_fds=(writer,))
        finally:
            os.close(writer)
        report = b""
        async with trio.lowlevel.FdStream(reader) as stream:
            with trio.move_on_after(START_DEADLINE_S):
                async for chunk in stream:  # ends when the child closes its end, also by dying
                    report += chunk
        if report.startswith(READY):
            log.info("omfs-export runs with pid %d", self._process.pid)
            return
        await self._stop()
        raise ConfigError(report.decode(errors="replace").strip() or f"omfs-export ended with status {self._status()}")

    async def _wait_ended(self) -> None:
        if self._process is not None:
            await self._process.wait()

    def _status(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    async def _stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        with trio.move_on_after(STOP_DEADLINE_S):
            await self._wait_ended()
        if self._process.poll() is None:
            log.warning("omfs-export does not end; killing it")
            self._process.kill()
            await self._wait_ended()


async def _wait_gone(pid: int) -> None:
    """Until the process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
