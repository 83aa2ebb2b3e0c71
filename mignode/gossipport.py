"""Gossip on udp/5428: each second this node asks another, and whoever asks is answered; all of it sealed.

The rules are gossip.py's; here are the socket, the clock, and what keeps a stranger from costing us anything: only so
many datagrams a second are looked at, and what is not sealed by a node of the map changes nothing and is counted.  An
answer goes to an address that the map has for its node, wherever the question came from.
Invariant: nothing that comes in, and no fault of the network, ends the task.  Called by daemon.py.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from mignode import gossipwords
from mignode.gossip import PERIOD_S, Board, Message
from mignode.gossipseal import load_seal
from mignode.incarnation import keep_incarnation, next_incarnation
from mignode.nodeinfo import NodeInfo
from omfs.config import Settings
from omfs.errors import ConfigError, WireError
from omfs.net.tls import LocalIdentity
from omfs.standing import Standing

CHECKED_MAX: Final = 400  # datagrams a period; each costs 0.2 ms.  Two a period are usual, whatever the cluster's size
SEND_WITHIN_S: Final = 0.5
RESOLVE_WITHIN_S: Final = 2.0
RESOLVED_FOR_S: Final = 60.0
PAUSE_S: Final = 0.1  # after a fault of the socket
_ROOM_BYTES: Final = 2048  # more than a datagram may have

Describe = Callable[[], Awaitable[NodeInfo]]
Address = tuple[str, int]

log = logging.getLogger(__name__)


class Datagrams(Protocol):
    """A socket, or what stands for one in a test."""

    async def sendto(self, data: bytes, address: Address, /) -> int: ...
    def recvfrom(self, size: int, /) -> Awaitable[tuple[bytes, Any]]: ...


def open_socket(address: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno or errno.EINVAL)
        raise ConfigError(
            f"gossip on {address or '*'} udp port {port}: {reason}; change gossip_port in omfs.toml on all nodes"
        ) from None
    return sock


class GossipPort:
    """This node among the others.  *counts*: for metrics.md."""

    def __init__(
        self, standing: Standing, settings: Settings, describe: Describe, chance: random.Random | None = None
    ) -> None:
        """Raises ConfigError."""
        self._standing = standing
        self._settings = settings
        self._describe = describe
        self._chance = chance or random.Random()
        self._state_dir = Path(settings.state_dir)
        self._seal = load_seal(Path(settings.config_dir), settings.sec)
        self._read_with: tuple[LocalIdentity, object] = (standing.identity, standing.node_map)
        incarnation = next_incarnation(self._state_dir, time.time())
        self._kept = incarnation
        self._board = Board(standing.local.node_id, incarnation, standing.node_map.nodes, self._chance)
        self._looked_up: dict[str, tuple[str, float]] = {}
        self._checked = 0
        self._complained: set[str] = set()
        self.counts: Counter[str] = Counter()

    # ------------------------------------------------------------ what is known

    def of(self, node: int) -> NodeInfo | None:
        """Another node; None where it was never heard of."""
        return self._board.of(node, trio.current_time())

    def known(self) -> list[NodeInfo]:
        """All others that were ever heard of, those that are down, too."""
        return list(self._board.known(trio.current_time()))

    def describe(self) -> dict[str, object]:
        """For `status` and the metrics."""
        return {"incarnation": self._board.incarnation, "tries": self._board.tries, **self.counts}

    # ------------------------------------------------------------ the task

    async def run(
        self, datagrams: Datagrams | None = None, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until cancelled; then a few others are told.  Raises ConfigError where the port is taken."""
        if datagrams is not None:
            await self._run_on(datagrams, task_status)
            return
        with trio.socket.from_stdlib_socket(open_socket(self._settings.address, self._settings.gossip_port)) as sock:
            await self._run_on(sock, task_status)

    async def _run_on(self, datagrams: Datagrams, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, datagrams)
                nursery.start_soon(self._ask, datagrams)
                task_status.started()
        finally:
            with trio.move_on_after(SEND_WITHIN_S, shield=True):
                for message in self._board.goodbye(trio.current_time()):
                    await self._send(datagrams, message)

    async def _ask(self, datagrams: Datagrams) -> None:
        while True:
            began_s = trio.current_time()
            self._checked = 0
            self._reread()
            info = await self._describe()
            for message in self._board.tick(info, trio.current_time()):
                await self._send(datagrams, message)
            await self._keep()
            # Not all at the same moment, or all would hear what is a period old.
            await trio.sleep_until(began_s + PERIOD_S * self._chance.uniform(0.9, 1.1))

    def _reread(self) -> None:
        """SIGHUP may have brought another map, and a renewed certificate."""
        standing = self._standing
        if self._read_with == (standing.identity, standing.node_map):
            return
        self._read_with = (standing.identity, standing.node_map)
        self._looked_up.clear()
        self._complained.clear()
        self._board.set_map(standing.node_map.nodes)
        try:
            self._seal = load_seal(Path(self._settings.config_dir), self._settings.sec)
        except ConfigError as error:
            log.error("gossip goes on with the certificate that it has: %s", error)

    async def _keep(self) -> None:
        if self._board.incarnation != self._kept:
            self._kept = self._board.incarnation
            log.warning("others know a later life of this node (was its state lost?); from now on it is %d", self._kept)
            await trio.to_thread.run_sync(keep_incarnation, self._state_dir, self._kept)

    # ------------------------------------------------------------ sending

    async def _send(self, datagrams: Datagrams, message: Message, came_from: str = "") -> None:
        address = await self._address_of(message, came_from)
        if not address:
            self.counts["unsent"] += 1
            return
        datagram = self._seal.close(gossipwords.encode(message, self._seal.room_bytes))
        try:
            with trio.fail_after(SEND_WITHIN_S):
                await datagrams.sendto(datagram, (address, self._settings.gossip_port))
        except (OSError, trio.TooSlowError) as error:
            self.counts["unsent"] += 1
            log.debug("node %d: %s", message.to, error)
            return
        self.counts["sent"] += 1
        self.counts["sent_bytes"] += len(datagram)

    async def _address_of(self, message: Message, came_from: str) -> str:
        """Another one of the node's after each try that was not answered; "" where no name is known."""
        addresses = [await self._resolve(name) for name in self._standing.node_map.nodes.get(message.to, ())]
        if came_from in addresses:
            return came_from
        return addresses[self._board.unanswered(message.to) % len(addresses)] if addresses else ""

    async def _resolve(self, name: str) -> str:
        if name.replace(".", "").isdigit():
            return name  # an IPv4 address, as the map has them
        found, until_s = self._looked_up.get(name, ("", 0.0))
        if trio.current_time() < until_s:
            return found
        with trio.move_on_after(RESOLVE_WITHIN_S):
            try:
                found = str((await trio.socket.getaddrinfo(name, None, socket.AF_INET))[0][4][0])
            except OSError as error:
                log.debug("%s: %s", name, error)
        self._looked_up[name] = (found, trio.current_time() + RESOLVED_FOR_S)
        return found

    # ------------------------------------------------------------ hearing

    async def _hear(self, datagrams: Datagrams) -> None:
        while True:
            try:
                data, came_from = await datagrams.recvfrom(_ROOM_BYTES)
            except OSError as error:  # an ICMP error of what was sent
                log.debug("gossip: %s", error)
                await trio.sleep(PAUSE_S)
                continue
            answer = self.take(data, str(came_from[0]))
            if answer is not None:
                await self._send(datagrams, answer, str(came_from[0]))

    def take(self, data: bytes, came_from: str) -> Message | None:
        """The answer to send.  Whatever it is, it is counted."""
        self.counts["received"] += 1
        self.counts["received_bytes"] += len(data)
        self._checked += 1
        if self._checked > CHECKED_MAX:
            self.counts["unchecked"] += 1
            return None
        try:
            sealed_by, packed = self._seal.open(data)
        except WireError as error:
            self._refuse("forged", came_from, str(error))
            return None
        try:
            message = gossipwords.decode(packed)
        except WireError as error:
            self._refuse("malformed", came_from, str(error))
            return None
        if sealed_by not in (0, message.sender):
            self._refuse("forged", came_from, f"node {sealed_by} says it is node {message.sender}")
            return None
        verdict, answer = self._board.receive(message, trio.current_time())
        self.counts[verdict.value] += 1
        return answer

    def _refuse(self, why: str, came_from: str, reason: str) -> None:
        """A line for each address, until the map is read again; the rest is counted."""
        self.counts[why] += 1
        if came_from not in self._complained and len(self._complained) < 2 * len(self._standing.node_map.nodes):
            self._complained.add(came_from)
            log.warning("gossip from %s: %s; ignored", came_from, reason)
