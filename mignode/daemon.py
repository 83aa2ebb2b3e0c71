"""Builds mignode's objects and opens its one nursery.

The map says who we are (omfs/standing.py, as for the other daemons); SIGHUP reads it again, SIGTERM and SIGINT end it.
The control socket comes first, as it is what keeps a second mignode away; its commands are answered when the registry
knows what was known before.  What it does not do: parse words (cli), anything with processes (registry.py).
Called by cli/mignode.py, which turns a ConfigError into one line and an exit status.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from mignode.adminvalues import AdminStore
from mignode.controls import Controls
from mignode.gossipport import GossipPort
from mignode.guesthouse import Guesthouse
from mignode.hatchery import Hatchery
from mignode.hpcfiles import HpcFiles
from mignode.nodeinfo import NodeInfo
from mignode.processfiles import ProcessFiles
from mignode.registry import Registry
from omfs.config import SOFTWARE, Settings
from omfs.errors import ControlError
from omfs.net import control, metricsport
from omfs.notify import READY, tell_service_manager
from omfs.standing import Standing, errors_unwrapped, heed_signals, prepare_process

log = logging.getLogger(__name__)


def run_mignode(settings: Settings, hatchery: Hatchery, report_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM.  *report_ready* is called when it answers.  Raises ConfigError."""
    standing = Standing(settings)
    store = AdminStore(Path(settings.state_dir))
    with errors_unwrapped():
        trio.run(_Mignode(settings, standing, store, hatchery, report_ready).run)


class _Process(msgspec.Struct):
    """Names a process in "resolve" and "created"."""

    pid: int
    start_ticks: int
    node: int = 0


class _Mignode:
    """All of the daemon."""

    def __init__(
        self, settings: Settings, standing: Standing, store: AdminStore, hatchery: Hatchery,
        report_ready: Callable[[], None],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._hatchery = hatchery
        self._run_dir = Path(settings.run_dir)
        self._standing = standing
        self._report_ready = report_ready
        self._registry = Registry(standing.local.node_id, self._run_dir)
        self._is_complete = trio.Event()  # what was known before we started is known again
        self._of_processes = of_processes = ProcessFiles(self._registry, lambda: standing.node_map.nodes.keys())
        self._store = store
        self._of_node = HpcFiles(standing, store, self._run_dir)
        self._controls = Controls(of_processes, self._of_node)
        self._gossip = GossipPort(standing, settings, self._of_node.tell)
        self._begun_s = time.monotonic()

    async def run(self) -> None:
        """Until SIGTERM."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(control.serve, self._run_dir / "mignode.sock", self._handlers())
                await nursery.start(self._registry.run)
                self._note_mount(self._registry.dfsa_of_mount)
                self._is_complete.set()
                journeys = self._of_processes.journeys
                house = Guesthouse(
                    self._standing, self._settings, self._hatchery, self._registry, journeys, self._store, nursery
                )
                await nursery.start(house.run)
                self._of_processes.moves = house.moves
                self._of_node.strangers, self._of_node.leaving = house.strangers, house.leaving
                await nursery.start(self._gossip.run)
                self._of_node.others = self._gossip.of
                house.balance.news = self._news
                self._of_node.frozen = house.balance.frozen
                await self._serve_metrics(nursery, house)
                until_told = trio.CancelScope()
                with until_told:
                    await nursery.start(heed_signals, self._reload, until_told)
                    prepare_process()
                    log.info("node %d: mignode runs", self._standing.local.node_id)
                    self._report_ready()
                    tell_service_manager(READY, f"STATUS=node {self._standing.local.node_id}")
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()
        finally:
            self._registry.close()

    async def _news(self) -> list[NodeInfo]:
        """What is known of all nodes, for decisions."""
        return [await self._of_node.own(), *self._gossip.known()]

    async def _serve_metrics(self, nursery: trio.Nursery, house: Guesthouse) -> None:
        sock = metricsport.open_listener(self._settings.metrics_address, self._settings.metrics_port_mignode)
        if sock is not None:
            from mignode import metrics  # only where they are wanted: it costs 3 MB

            await nursery.start(metrics.serve, sock, self._standing, self._gossip, house.refused_calls)

    async def _reload(self) -> None:
        self._standing.reload()

    # ------------------------------------------------------------ commands

    def _handlers(self) -> dict[str, control.Handler]:
        """Each waits until the registry is complete: half of what is known would be a wrong answer."""
        handlers: dict[str, control.Handler] = {
            "places": self._places, "resolve": self._resolve, "created": self._created, "status": self._status,
            **self._controls.handlers,
        }  # fmt: skip
        return {command: self._when_complete(handler) for command, handler in handlers.items()}

    def _when_complete(self, handler: control.Handler) -> control.Handler:
        async def answer(arguments: control.Arguments) -> object:
            await self._is_complete.wait()
            return await handler(arguments)

        return answer

    def _note_mount(self, dfsa: object) -> None:
        """What fits together is decided by how /mfs is mounted; None: that is not known (yet)."""
        if isinstance(dfsa, bool):
            self._standing.mounted_with(dfsa)

    async def _places(self, arguments: control.Arguments) -> dict[str, Any]:
        self._note_mount(arguments.get("dfsa"))
        self._registry.tell_mount_everything()
        return {"places": self._registry.places(), "fork_events": self._registry.has_fork_events}

    async def _resolve(self, arguments: control.Arguments) -> dict[str, Any]:
        one = _process(arguments)
        return {"place": self._registry.resolve((one.pid, one.start_ticks))}

    async def _created(self, arguments: control.Arguments) -> dict[str, Any]:
        one = _process(arguments)
        await self._registry.created((one.pid, one.start_ticks), one.node)
        return {}

    async def _status(self, _: control.Arguments) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "node_id": self._standing.local.node_id,
            "software": SOFTWARE,
            "seconds": round(time.monotonic() - self._begun_s, 3),
            "reloads": self._standing.reloads,
            "memory_bytes": _resident_bytes(),
            "gossip": self._gossip.describe(),
            **self._registry.describe(),
        }


def _process(arguments: control.Arguments) -> _Process:
    try:
        return msgspec.convert(arguments, _Process)
    except msgspec.ValidationError as error:
        raise ControlError(f"bad request: {error}") from None


def _resident_bytes() -> int:
    """proc(5), statm: the second number, in pages."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
