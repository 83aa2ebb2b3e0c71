"""The mount's omfs-export: started unless one runs, restarted when it dies, ended with the mount that started it.

Serving others is a process of its own so that it never stalls local calls (DESIGN "Processes on a node").
Where a systemd unit runs it, this does nothing but check that both have the same settings.  One that another mount
started is adopted: told to reload, and ended at our end if its own mount did not live to do that.  Not here: what
the export does.  Invariant: an export is ended by who started it, or as an orphan, by its pid.  Called by daemon.py.
"""

from __future__ import annotations

import contextlib
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
from omfs.errors import ConfigError, ControlError, NotRunning, OmfsError
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
        self._adopted: _Adopted | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it running until cancelled; started once an export answers.

        Raises ConfigError when the first start fails (its one line is in the text) or when the export that
        runs already does not fit this mount's settings.
        """
        try:
            if not await self._adopt():
                await self._start()
            task_status.started()
            while True:
                await self._wait_ended()
                await trio.sleep(RESTART_PAUSE_S)
                try:
                    if not await self._adopt():
                        await self._start()
                except ConfigError as error:
                    log.error("%s", error)
        finally:
            with trio.CancelScope(shield=True):
                await self._stop()
                await self._end_orphan()

    def reload(self) -> None:
        """Pass a SIGHUP on; one of a unit's own gets it from whoever runs that."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)
        elif self._adopted is not None and self._adopted.by_mount:
            self._adopted.send(signal.SIGHUP)

    async def _adopt(self) -> bool:
        """Use the export that runs already, if one does.  Raises ConfigError."""
        running = await self._find_running()
        if running is None:
            return False
        log.info("an omfs-export runs already, pid %d; using it", running["pid"])
        try:
            self._adopted = _Adopted(running["pid"], running["by_mount"])
        except ProcessLookupError:
            return False
        return True

    async def _find_running(self) -> dict[str, Any] | None:
        """The status of an export that runs here.  Raises ConfigError if it does not fit."""
        try:
            status = await control.ask(self._socket, "status", deadline_s=START_DEADLINE_S)
        except NotRunning:
            return None
        except ControlError:  # it answers no more: it is ending just now
            return None
        for name in ("dfsa", "port", "sec", "map"):
            its, mine = status.get(name), getattr(self._settings, name)
            if its != mine:
                raise ConfigError(
                    f"the omfs-export that runs already (pid {status['pid']}) has {name}={_shown(its)}, this "
                    f"mount {_shown(mine)}; mount with the same, or change omfs.toml and end it"
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
        """Until the export that is used has ended; says so in the log."""
        if self._adopted is not None:
            pid = self._adopted.pid
            if not self._adopted.by_mount:
                await trio.sleep_forever()  # a unit's: whoever runs that decides
            await self._adopted.wait()
            self._adopted.close()
            self._adopted = None
            log.warning("the omfs-export that ran already, pid %d, has ended", pid)
        elif self._process is not None:
            await self._process.wait()
            log.error("omfs-export ended with status %s; starting it again", self._status())

    def _status(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    async def _stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        with trio.move_on_after(STOP_DEADLINE_S):
            await self._process.wait()
        if self._process.poll() is None:
            log.warning("omfs-export does not end; killing it")
            self._process.kill()
            await self._process.wait()

    async def _end_orphan(self) -> None:
        """End the adopted export unless the mount that started it lives."""
        if self._adopted is None:
            return
        try:
            status = await control.ask(self._socket, "status", deadline_s=STOP_DEADLINE_S)
            is_orphan = status["pid"] == self._adopted.pid and status.get("orphan")
        except OmfsError:
            is_orphan = False  # it ends already, or does not answer: then it is not known to be ours to end
        if is_orphan:
            log.info("ending omfs-export, pid %d, whose mount is gone", self._adopted.pid)
            self._adopted.send(signal.SIGTERM)
            with trio.move_on_after(STOP_DEADLINE_S):
                await self._adopted.wait()
        self._adopted.close()
        self._adopted = None


class _Adopted:
    """A process that is not our child; the descriptor means it and no later one with its number."""

    def __init__(self, pid: int, by_mount: bool) -> None:
        """*by_mount*: another mount started it.  Raises ProcessLookupError."""
        self.pid = pid
        self.by_mount = by_mount
        self._descriptor = os.pidfd_open(pid)

    async def wait(self) -> None:
        """Until it has ended."""
        await trio.lowlevel.wait_readable(self._descriptor)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        os.close(self._descriptor)


def _shown(setting: object) -> object:
    return int(setting) if isinstance(setting, bool) else setting or "none"
