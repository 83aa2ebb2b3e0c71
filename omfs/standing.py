"""What both daemons begin with: who this node is in its cluster, signals, and how the process is set up.

The map says who we are, the identity who may talk to us.  SIGHUP reads both again; a refused map changes nothing.
What it does not do: build a daemon (daemon.py, the caller).
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import trio

from omfs.config import SOFTWARE, Settings
from omfs.errors import ConfigError
from omfs.net.hello import LocalNode
from omfs.net.nodemap import NodeMap, own_node, read_map
from omfs.net.tls import LocalIdentity, load_identity
from omfs.notify import READY, STOPPING, tell_reloading, tell_service_manager

Reload: TypeAlias = Callable[[], Awaitable[None]]

log = logging.getLogger(__name__)


class Standing:
    """Who this node is in its cluster, as read from map and certificates; read again on SIGHUP."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError (MapError included)."""
        self._settings = settings
        self._dfsa = settings.dfsa
        self.reloads = 0
        self.node_map: NodeMap
        self.local: LocalNode
        self.identity: LocalIdentity
        self.read()

    def read(self) -> None:
        """Raises ConfigError and changes nothing where anything is wrong."""
        settings = self._settings
        node_map = read_map(Path(settings.map) if settings.map else None)
        node_id = own_node(node_map, settings.address)
        identity = load_identity(Path(settings.config_dir), settings.sec, node_id)
        self.node_map, self.identity = node_map, identity
        self.local = LocalNode(node_id, self._dfsa, node_map.digest, SOFTWARE)

    def mounted_with(self, dfsa: bool) -> None:
        """For a daemon beside the mount: what that was mounted with, which fstab may say and omfs.toml not."""
        self._dfsa = dfsa
        self.local = replace(self.local, dfsa=dfsa)

    def reload(self) -> bool:
        """As `read`, for SIGHUP: a fault is logged and what held goes on holding."""
        before = self.local.node_id
        try:
            self.read()
        except ConfigError as error:
            log.error("nothing changed: %s", error)
            return False
        finally:
            self.reloads += 1
        if self.local.node_id != before:
            log.error("the map now says that this is node %d; mount again to become it", self.local.node_id)
            self.local = replace(self.local, node_id=before)
        log.info("read %s again: %d nodes", self.node_map.path, len(self.node_map.nodes))
        return True


async def heed_signals(reload: Reload, stop: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    """SIGHUP reloads; SIGTERM and SIGINT cancel *stop*; systemd hears of both."""
    with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                tell_reloading()
                await reload()
                tell_service_manager(READY)
            else:
                log.info("%s: ending", signal.Signals(number).name)
                tell_service_manager(STOPPING)
                stop.cancel()


def prepare_process() -> None:
    """SIGUSR2 writes all stacks to stderr; the garbage collector leaves alone what lives as long as the daemon."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)  # messages are gc=False; cycles are rare here, scanning them is not free


@contextlib.contextmanager
def errors_unwrapped() -> Iterator[None]:
    """A nursery wraps what a task raises; whoever started the daemon wants the one error."""
    try:
        yield
    except BaseExceptionGroup as group:
        single: BaseException = group
        while isinstance(single, BaseExceptionGroup):
            single = single.exceptions[0]
        if isinstance(single, (ConfigError, OSError)):
            raise single from None
        raise
