"""Builds omdiscd's objects and opens its one nursery: who we are, where we look, a control socket, signals.

With sec=tls the certificate says which node this is; with sec=none it is told, or the low 16 bits of the address are
the id, as in openMosix.  SIGHUP reads the certificate again, SIGTERM leaves the cluster's map.  What it does not do:
parse words, write the map (cli).  Called by cli/omdiscd.py, which turns a ConfigError into one line.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from mignode.discovery import Nodes, Roll
from mignode.discoveryport import DiscoveryPort, Multicast, Publish, first_serial
from mignode.gossipseal import DISCOVERY, load_seal
from omfs.config import Settings
from omfs.errors import ConfigError, ControlError
from omfs.kernel.interfaces import address_of, chosen_interfaces
from omfs.net import control, tls
from omfs.net.nodemap import id_of_address
from omfs.notify import READY, tell_service_manager
from omfs.standing import errors_unwrapped, heed_signals, prepare_process

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of the command line.  *node*: 0 = as the certificate or the address says."""

    interfaces: tuple[str, ...] = ()
    ttl: int = 1
    node: int = 0


def run_omdiscd(
    settings: Settings, wanted: Wanted, put_in_force: Callable[[Nodes], None], report_ready: Callable[[], None]
) -> None:
    """Until SIGTERM.  *put_in_force* may block.  *report_ready*: the first map is in force.  Raises ConfigError."""

    async def publish(nodes: Nodes) -> None:
        await trio.to_thread.run_sync(put_in_force, nodes)

    with errors_unwrapped():
        trio.run(_run, settings, wanted, publish, report_ready)


async def _run(settings: Settings, wanted: Wanted, publish: Publish, report_ready: Callable[[], None]) -> None:
    def addresses() -> tuple[str, ...]:
        return own_addresses(settings, wanted)

    found = addresses()
    node = node_id(settings, wanted.node, found[0])
    word = settings.discovery_word if settings.sec == "none" else ""
    roll = Roll(
        node, found, first_serial(), trio.current_time(), word=word, refused=settings.discovery_refused,
        forget_after_s=settings.discovery_forget_after_s,
    )  # fmt: skip
    seal = load_seal(Path(settings.config_dir), settings.sec, DISCOVERY)
    ether = Multicast(settings.discovery_port, wanted.ttl)
    port = DiscoveryPort(roll, seal, ether, Path(settings.state_dir), addresses, publish)
    port.recall(trio.current_time())
    if settings.sec == "none":
        log.warning("sec=none: whoever can send to udp port %d says which nodes there are", settings.discovery_port)

    async def reload() -> None:
        try:
            node_id(settings, node, found[0])
            port.seal = load_seal(Path(settings.config_dir), settings.sec, DISCOVERY)
        except ConfigError as error:
            log.error("nothing changed: %s", error)

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, Path(settings.run_dir) / "omdiscd.sock", _handlers(port))
            until_told = trio.CancelScope()
            with until_told:
                await nursery.start(heed_signals, reload, until_told)
                log.info("node %d at %s looks for the others", node, ", ".join(found))
                async with trio.open_nursery() as inner:  # ends, and says so to the others, while we can still be asked
                    await inner.start(port.run)
                    prepare_process()
                    report_ready()
                    tell_service_manager(READY, f"STATUS=node {node}")
            nursery.cancel_scope.cancel()
    finally:
        ether.close()


def own_addresses(settings: Settings, wanted: Wanted) -> tuple[str, ...]:
    """What the others are to find this node at: first what omfs.toml says, else the first interface's.

    Raises ConfigError.
    """
    named = chosen_interfaces(wanted.interfaces or settings.discovery_interfaces)
    found = [address_of(interface) for interface in named]
    loopback = next((one for one in found if ipaddress.IPv4Address(one).is_loopback), None)
    if loopback:
        raise ConfigError(f"{loopback} is no address at which others could find this node; name another interface")
    if settings.address and settings.address not in found:
        raise ConfigError(
            f"address = {settings.address} (omfs.toml) is on none of {', '.join(named)}; name its interface"
        )
    if settings.address:
        found.insert(0, settings.address)
    return tuple(dict.fromkeys(found))


def node_id(settings: Settings, wanted: int, address: str) -> int:
    """Who this node is.  Raises ConfigError."""
    if settings.sec == "none":
        return wanted or id_of_address(address)
    config_dir = Path(settings.config_dir)
    _, certified = tls.certified_identity(tls.check_credentials(config_dir), config_dir / tls.NODE_FILE)
    if wanted not in (0, certified):
        raise ConfigError(f"this machine has the certificate of node {certified}, not of node {wanted}")
    return certified


def _handlers(port: DiscoveryPort) -> dict[str, control.Handler]:
    async def status(_: control.Arguments) -> dict[str, Any]:
        return {"pid": os.getpid(), **port.describe()}

    async def forget(arguments: control.Arguments) -> dict[str, Any]:
        node = arguments.get("node")
        outgoing = port.roll.forget(node, trio.current_time()) if isinstance(node, int) else []
        if not outgoing:
            raise ControlError(f"node {node} is not among the others; showmap shows who is")
        await port.say(outgoing)
        return {}

    return {"status": status, "forget": forget}
