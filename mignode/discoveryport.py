"""Discovery on the network: datagrams to openMosix's group 239.192.0.1 on one or several interfaces, all sealed.

The rules are discovery.py's; here are the socket, the clock, what is kept on disk, and what keeps a stranger from
costing us anything: only so many datagrams a second are looked at, and what no node of the cluster has signed changes
nothing and is counted.  With sec=none nobody signs, and whoever can reach the port says who is in the map.
What it does not do: write the map (it calls *publish*).  Called by discoverer.py.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import msgspec
import trio

from mignode import discoverywords
from mignode.adminvalues import replace_file
from mignode.discovery import Nodes, Outgoing, Roll, Verdict
from mignode.discoverywords import Kind, Said
from mignode.gossipseal import Seal
from omfs.errors import ConfigError, WireError
from omfs.kernel import interfaces

GROUP: Final = "239.192.0.1"
FILE: Final = "discovered"
TICK_S: Final = 0.25
CHECKED_MAX: Final = 400  # datagrams a second; each costs 0.2 ms
LOOK_AT_ADDRESSES_EVERY_S: Final = 5.0
TRY_AGAIN_S: Final = 10.0
SEND_WITHIN_S: Final = 0.5
PAUSE_S: Final = 0.1  # after a fault of the socket
COMPLAINTS_MAX: Final = 256
_ROOM_BYTES: Final = 2048  # more than a datagram may have

Publish: TypeAlias = Callable[[Nodes], Awaitable[None]]
Addresses: TypeAlias = Callable[[], tuple[str, ...]]

log = logging.getLogger(__name__)


class Kept(msgspec.Struct):
    """On disk."""

    serial: int
    datagrams: list[bytes]


class Ether(Protocol):
    """The network, or what stands for one in a test."""

    def follow(self, addresses: tuple[str, ...]) -> None: ...
    async def send(self, data: bytes, to: str) -> None: ...
    async def receive(self) -> tuple[bytes, str]: ...


class Multicast:
    """The socket.  Whatever goes to "" goes to the group, by each interface."""

    def __init__(self, port: int, ttl: int) -> None:
        """Raises ConfigError."""
        try:
            sock = interfaces.open_multicast(port, ttl)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ConfigError(f"discovery on udp port {port}: {reason}; is another omdiscd running?") from None
        self._port = port
        self._plain = sock
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._addresses: tuple[str, ...] = ()

    def follow(self, addresses: tuple[str, ...]) -> None:
        """Those of this machine's interfaces.  Raises OSError."""
        for address in addresses:
            interfaces.join_group(self._plain, GROUP, address)
        self._addresses = addresses

    async def send(self, data: bytes, to: str) -> None:
        """Raises OSError."""
        if to:
            await self._sock.sendto(data, (to, self._port))
            return
        failed: OSError | None = None
        for address in self._addresses:
            try:
                interfaces.send_from(self._plain, address)
                await self._sock.sendto(data, (GROUP, self._port))
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed

    async def receive(self) -> tuple[bytes, str]:
        data, source = await self._sock.recvfrom(_ROOM_BYTES)
        return data, str(source[0])

    def close(self) -> None:
        self._sock.close()


class DiscoveryPort:
    """This node among the others.  *seal* may be replaced while it runs."""

    def __init__(
        self, roll: Roll, seal: Seal, ether: Ether, state_dir: Path, addresses: Addresses, publish: Publish
    ) -> None:  # fmt: skip
        self.roll = roll
        self.seal = seal
        self._ether = ether
        self._file = state_dir / FILE
        self._addresses = addresses
        self._publish = publish
        self._kept: tuple[int, list[bytes]] = (0, [])
        self._checked = 0
        self._complained: set[str] = set()
        self._conflicts: list[str] = []
        self.counts: Counter[str] = Counter()

    # ------------------------------------------------------------ on disk

    def recall(self, now: float) -> None:
        """What was known before; every statement is looked at as if it came just now.  Before `run`."""
        try:
            kept = msgspec.msgpack.decode(self._file.read_bytes(), type=Kept)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.error("%s: %s; the other nodes will tell", self._file, error)
            return
        self.roll.serial = max(self.roll.serial, kept.serial + 1)
        for datagram in kept.datagrams:
            try:
                self.roll.recall(self._opened(datagram), datagram, now)
            except WireError as error:
                log.info("forgotten: %s", error)

    async def keep(self) -> None:
        """Where it can't be kept that is logged: the others know it all, too."""
        wanted = (self.roll.serial, self.roll.kept())
        if wanted == self._kept:
            return
        self._kept = wanted
        try:
            await trio.to_thread.run_sync(replace_file, self._file, msgspec.msgpack.encode(Kept(*wanted)))
        except OSError as error:
            log.error("%s: %s", self._file, error.strerror)

    # ------------------------------------------------------------ the tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then the others are told.  Started when the first map is published.

        Raises ConfigError: another machine is our node.
        """
        self._follow(self.roll.addresses)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear)
                nursery.start_soon(self._say)
                nursery.start_soon(self._keep)
                nursery.start_soon(self._watch_addresses)
                nursery.start_soon(self._put_in_force, task_status)
        finally:
            if self.roll.is_here and not self.roll.taken_by:
                with trio.move_on_after(SEND_WITHIN_S, shield=True):
                    await self.say(self.roll.leave(trio.current_time()))
                    await self.keep()

    async def _say(self) -> None:
        counted_s = trio.current_time()
        while True:
            now = trio.current_time()
            if now - counted_s >= 1.0:
                counted_s, self._checked = now, 0
            await self.say(self.roll.tick(now))
            await trio.sleep(TICK_S)

    async def _keep(self) -> None:
        """A task of its own: who waits for a slow disk must not fall silent."""
        while True:
            await self.keep()
            await trio.sleep(TICK_S)

    async def say(self, outgoing: Iterable[Outgoing]) -> None:
        """Seal and send; what we say of others holds for us, too."""
        for what, to in outgoing:
            datagram = what if isinstance(what, bytes) else self.seal.close(discoverywords.encode(what))
            if isinstance(what, Said) and what.node != self.roll.node:
                log.warning("node %d leaves the map: silent, or an administrator says so", what.node)
                self.roll.take(what, datagram, "", trio.current_time())
            try:
                with trio.fail_after(SEND_WITHIN_S):
                    await self._ether.send(datagram, to)
                self.counts["sent"] += 1
            except (OSError, trio.TooSlowError) as error:
                self.counts["unsent"] += 1
                log.debug("%s: %s", to or GROUP, error)

    async def _watch_addresses(self) -> None:
        """DHCP may give this machine another address; an interface that was out and is back has left the group."""
        told = ""
        while True:
            await trio.sleep(LOOK_AT_ADDRESSES_EVERY_S)
            try:
                found = self._addresses()
                self._follow(found)
            except ConfigError as error:
                if told != str(error):
                    log.warning("%s; this node stays at %s for now", error, self.roll.addresses[0])
                told = str(error)
                continue
            told = ""
            if found != self.roll.addresses:
                log.warning("this node is at %s now, no longer at %s", found[0], self.roll.addresses[0])
                await self.say(self.roll.move(found, trio.current_time()))

    def _follow(self, addresses: tuple[str, ...]) -> None:
        try:
            self._ether.follow(addresses)
        except OSError as error:
            raise ConfigError(f"multicast on {', '.join(addresses)}: {error.strerror}") from None

    async def _put_in_force(self, task_status: trio.TaskStatus[None]) -> None:
        """Raises ConfigError where that fails the first time: who starts us hears of it."""
        await self._publish(await self._wait_fresh_map())
        task_status.started()
        while True:
            nodes = await self._wait_fresh_map()
            while True:
                try:
                    await self._publish(nodes)
                    break
                except ConfigError as error:
                    log.error("%s", error)
                with trio.move_on_after(TRY_AGAIN_S):
                    nodes = await self._wait_fresh_map()

    async def _wait_fresh_map(self) -> Nodes:
        while True:
            now = trio.current_time()
            nodes = self.roll.fresh_map(now)
            if nodes is not None:
                self._tell_conflicts(now)
                return nodes
            await trio.sleep(TICK_S)

    def _tell_conflicts(self, now: float) -> None:
        conflicts = self.roll.conflicts(now)
        for line in conflicts:
            if line not in self._conflicts:
                log.error("%s; it is out of the map", line)
        self._conflicts = conflicts

    # ------------------------------------------------------------ hearing

    async def _hear(self) -> None:
        while True:
            try:
                data, source = await self._ether.receive()
            except OSError as error:  # an ICMP error of what was sent
                log.debug("discovery: %s", error)
                await trio.sleep(PAUSE_S)
                continue
            await self.say(self.take(data, source))
            if self.roll.taken_by:
                raise ConfigError(
                    f"{self.roll.taken_by} is node {self.roll.node} already: give each machine a certificate of its "
                    "own (omfs-admin join), or with sec=none another id (-p)"
                )

    def take(self, data: bytes, source: str) -> list[Outgoing]:
        """What to say to that.  Whatever it is, it is counted."""
        self.counts["received"] += 1
        self._checked += 1
        if self._checked > CHECKED_MAX:
            self.counts["unchecked"] += 1
            return []
        try:
            said = self._opened(data)
        except WireError as error:
            self.counts["forged"] += 1
            self._complain(source, f"{error}; ignored")
            return []
        verdict, outgoing = self.roll.take(said, data, source, trio.current_time())
        self.counts[verdict.value] += 1
        if verdict is Verdict.RIVAL:
            where = said.addresses[0]
            self._complain(where, f"says it is node {said.node}, as which another machine is here; ignored")
        elif verdict is Verdict.REFUSED:
            self._complain(source, f"is node {said.node}, which discovery_refused names; ignored")
        elif verdict is Verdict.NEWS:
            log.info("node %d %s", said.node, _described(said))
        return outgoing

    def _opened(self, data: bytes) -> Said:
        """Raises WireError."""
        sealed_by, message = self.seal.open(data)
        said = discoverywords.decode(message)
        if sealed_by not in (0, said.sender):
            raise WireError(f"node {sealed_by} says it is node {said.sender}")
        return said

    def _complain(self, source: str, reason: str) -> None:
        """A line for each; the rest is counted."""
        line = f"{source} {reason}"
        if line not in self._complained and len(self._complained) < COMPLAINTS_MAX:
            self._complained.add(line)
            log.warning("discovery: %s", line)

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        now = trio.current_time()
        roll = self.roll
        return {
            "node_id": roll.node, "addresses": list(roll.addresses), "serial": roll.serial, "here": roll.is_here,
            "silent": roll.silent(now), "conflicts": roll.conflicts(now), "counts": dict(self.counts),
        }  # fmt: skip


def _described(said: Said) -> str:
    return f"is at {', '.join(said.addresses)}" if said.kind is Kind.HERE else "has left"


def first_serial() -> int:
    """The time of day, so that it rises even where what was kept is lost."""
    return int(time.time())
