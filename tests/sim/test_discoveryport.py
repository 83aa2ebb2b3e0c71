"""omdiscd's port on a network in memory, under a clock that jumps: what is signed, what is kept, who is believed."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from mignode import discoverywords
from mignode.discovery import LEAVE_GRACE_S, Nodes, Roll
from mignode.discoveryport import CHECKED_MAX, FILE, DiscoveryPort
from mignode.discoverywords import VERSION, Kind, Said
from mignode.gossipseal import DISCOVERY, load_seal
from omfs.errors import ConfigError
from omfs.net.authority import Authority, install_credentials, make_authority

pytestmark = pytest.mark.usefixtures("threads_take_no_time")


class Wire:
    """Carries datagrams.  *carried*: all there were, for who would say them again."""

    def __init__(self) -> None:
        self.ends: dict[str, End] = {}
        self.carried: list[bytes] = []

    def carry(self, source: str, to: str, data: bytes) -> None:
        self.carried.append(data)
        for address, end in self.ends.items():
            if address != source and to in ("", address) and not end.is_cut:
                with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                    end.come_in.send_nowait((data, source))


class End:
    """An Ether.  *fails*: so does the next one who listens or sends.  *is_cut*: nothing comes and nothing goes."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.address = ""
        self.fails: OSError | None = None
        self.is_cut = False
        self.come_in, self._come = trio.open_memory_channel[tuple[bytes, str]](2000)

    def follow(self, addresses: tuple[str, ...]) -> None:
        if self.fails is not None:
            raise self.fails
        self._wire.ends.pop(self.address, None)
        self.address = addresses[0]
        self._wire.ends[self.address] = self

    async def send(self, data: bytes, to: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        if not self.is_cut:
            self._wire.carry(self.address, to, data)

    async def receive(self) -> tuple[bytes, str]:
        if self.fails is not None:
            await trio.lowlevel.checkpoint()
            raise self.fails
        return await self._come.receive()


class Node:
    """A running one.  *map*: in force.  *refuses*: what putting the next one in force says."""

    def __init__(self, room: Room, number: int, place: Path) -> None:
        self.addresses: tuple[str, ...] = (f"10.0.0.{number}",)
        self.map: Nodes = {}
        self.refuses = ""
        self.end = End(room.wire)
        self.scope = trio.CancelScope()
        self.has_ended = trio.Event()
        now = trio.current_time()
        self.roll = Roll(number, self.addresses, room.serial(), now, chance=random.Random(number))
        seal = load_seal(place, room.sec, DISCOVERY)
        self.port = DiscoveryPort(self.roll, seal, self.end, place, lambda: self.addresses, self._put)
        self.port.recall(now)

    async def _put(self, nodes: Nodes) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise ConfigError(self.refuses)
        self.map = nodes

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self.scope:
                await self.port.run(task_status=task_status)
        finally:
            self._leave_wire()
            self.has_ended.set()

    def _leave_wire(self) -> None:
        self.end._wire.ends.pop(self.end.address, None)

    def say(self, said: Said, source: str) -> None:
        """Hear it from somebody who has this node's key."""
        self.port.take(self.port.seal.close(discoverywords.encode(said)), source)


class Room:
    """Nodes of one cluster on one wire."""

    def __init__(self, place: Path, sec: str, nursery: trio.Nursery) -> None:
        self._place, self.sec, self._nursery = place, sec, nursery
        self.wire = Wire()
        self.authority: Authority = make_authority(place / "ca")
        self._serial = 100

    def serial(self) -> int:
        self._serial += 10
        return self._serial

    def make(self, number: int, authority: Authority | None = None, name: str = "") -> Node:
        place = self._place / (name or str(number))
        if not place.exists():
            install_credentials(place, (authority or self.authority).issue(number))
        return Node(self, number, place)

    async def start(self, number: int) -> Node:
        node = self.make(number)
        await self._nursery.start(node.run)
        return node


@contextlib.asynccontextmanager
async def room(place: Path, sec: str = "tls") -> AsyncIterator[Room]:
    async with trio.open_nursery() as nursery:
        yield Room(place, sec, nursery)
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for comes by itself, in the clock's time
            await trio.sleep(0.1)


def nodes(*numbers: int) -> Nodes:
    return {number: (f"10.0.0.{number}",) for number in numbers}


@pytest.mark.parametrize("sec", ["tls", "none"])
async def test_they_find_each_other(tmp_path: Path, autojump_clock: trio.testing.MockClock, sec: str) -> None:
    async with room(tmp_path, sec) as network:
        one = await network.start(1)
        assert one.map == nodes(1), "started when the first map is in force"
        two = await network.start(2)
        await until(lambda: one.map == two.map == nodes(1, 2))
        two.scope.cancel()
        await two.has_ended.wait()
        await until(lambda: one.map == nodes(1))


async def test_another_cluster_on_the_same_network(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with room(tmp_path) as network:
        one = await network.start(1)
        stranger = network.make(2, make_authority(tmp_path / "other"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stranger.run)
            await trio.sleep(30)
            nursery.cancel_scope.cancel()
        assert (one.map, stranger.map) == (nodes(1), nodes(2))
        assert one.port.counts["forged"] >= 5
        told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert sum("10.0.0.2" in line and "not signed by the CA" in line for line in told) == 1, "one line, not many"


async def test_nobody_says_where_another_one_is(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Node 2 has a certificate, and says with it that it is node 3; or says what it likes, without a seal."""
    async with room(tmp_path) as network:
        one, two, three = [await network.start(number) for number in (1, 2, 3)]
        await until(lambda: one.map == nodes(1, 2, 3))
        lie = Said(VERSION, Kind.HERE, 3, 3, 2**40, addresses=("10.0.0.2",))
        before = one.port.counts["forged"]
        one.port.take(two.port.seal.close(discoverywords.encode(lie)), "10.0.0.2")
        one.port.take(b"og\0\0\0" + discoverywords.encode(lie), "10.0.0.2")
        one.port.take(load_seal(tmp_path / "3", "tls").close(discoverywords.encode(lie)), "10.0.0.2")
        assert one.port.counts["forged"] == before + 3, "the last one has the right key, which signed it as gossip"
        await trio.sleep(30)
        assert one.map == two.map == three.map == nodes(1, 2, 3)


async def test_what_was_true_once_is_not_believed_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path) as network:
        one, two = [await network.start(number) for number in (1, 2)]
        await until(lambda: one.map == two.map == nodes(1, 2))
        before = list(network.wire.carried)
        two.addresses = ("10.0.0.77",)
        await until(lambda: one.map == two.map == {**nodes(1), 2: ("10.0.0.77",)})
        for datagram in before:
            one.port.take(datagram, "10.0.0.2")
        await trio.sleep(10)
        assert one.map == two.map == {**nodes(1), 2: ("10.0.0.77",)}


async def test_what_is_kept_is_known_the_next_time(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Node 2 is away when node 1 comes back alone; and nothing of it is believed that somebody wrote into the file."""
    async with room(tmp_path) as network:
        one, two = [await network.start(number) for number in (1, 2)]
        await until(lambda: one.map == two.map == nodes(1, 2))
        two.end.is_cut = True
        one.scope.cancel()
        await one.has_ended.wait()
        again = await network.start(1)
        assert again.map == nodes(1, 2)
        assert again.roll.serial > one.roll.serial
        again.scope.cancel()
        await again.has_ended.wait()
        kept = tmp_path / "1" / FILE
        data = bytearray(kept.read_bytes())
        data[-1] ^= 1
        kept.write_bytes(data)
        assert network.make(1).roll.kept() == []
        kept.write_bytes(b"none")
        assert network.make(1).roll.kept() == []


async def test_another_machine_with_our_certificate(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path) as network:
        one, two = [await network.start(number) for number in (1, 2)]
        clone = network.make(2, name="clone")
        clone.addresses = clone.roll.addresses = ("10.0.0.99",)
        with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="10.0.0.2 is node 2 already")):
            await clone.run()
        await trio.sleep(20)
        assert one.map == two.map == nodes(1, 2)
        assert clone.map == {}


async def test_a_rival_a_refused_node_and_two_at_one_address_are_told_of_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with room(tmp_path, "none") as network:
        one, _ = [await network.start(number) for number in (1, 2)]
        one.roll._refused = frozenset({7})
        await until(lambda: one.map == nodes(1, 2))
        for _ in range(3):
            one.say(Said(VERSION, Kind.HERE, 2, 2, 9000, addresses=("10.0.0.88",)), "10.0.0.88")
            one.say(Said(VERSION, Kind.HERE, 7, 7, 9000, addresses=("10.0.0.7",)), "10.0.0.7")
        for number in (8, 9):
            one.say(Said(VERSION, Kind.HERE, number, number, 9000 + number, addresses=("10.0.0.8",)), "10.0.0.8")
        await until(lambda: 9 in one.map)
        await trio.sleep(20)
        told = [record.message for record in caplog.records]
        assert sum("says it is node 2, as which another machine is here" in line for line in told) == 1
        assert sum("which discovery_refused names" in line for line in told) == 1
        out = sum("node 8 says it has 10.0.0.8" in line and "out of the map" in line for line in told)
        assert out in (1, 2), "once on each node that has heard of it"
        assert one.map == {**nodes(1, 2), 9: ("10.0.0.8",)}
        described = one.port.describe()
        assert (described["node_id"], described["here"], len(described["conflicts"])) == (1, True, 1)


async def test_a_map_that_is_refused_is_tried_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path, "none") as network:
        one = await network.start(1)
        one.refuses = "the disk is full"
        await network.start(2)
        await trio.sleep(30)
        assert one.map == nodes(1), "what was in force still is"
        one.refuses = ""
        await until(lambda: one.map == nodes(1, 2))
        first = network.make(3)
        first.refuses = "no"
        with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="no")):
            await first.run()


async def test_a_flood_is_not_looked_at(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path) as network:
        one = await network.start(1)
        for _ in range(CHECKED_MAX + 100):
            one.port.take(b"rubbish", "10.0.0.66")
        assert one.port.counts["unchecked"] >= 100
        two = await network.start(2)
        await until(lambda: one.map == two.map == nodes(1, 2))


async def test_faults_of_the_network_end_nothing(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path) as network:
        one, two = [await network.start(number) for number in (1, 2)]
        two.end.fails = OSError(errno.ENETDOWN, "the network is down")
        await trio.sleep(60)
        assert two.port.counts["unsent"] > 1
        two.end.fails = None
        await until(lambda: one.map == two.map == nodes(1, 2))
        broken = network.make(3)
        broken.end.fails = OSError(errno.ENODEV, "No such device")
        with pytest.raises(ConfigError, match=r"multicast on 10\.0\.0\.3: No such device"):
            await broken.run()


async def test_a_disk_that_hangs_makes_nobody_silent(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio.to_thread, "run_sync", hang)
    async with room(tmp_path) as network:
        one, two = [await network.start(number) for number in (1, 2)]
        await until(lambda: one.map == two.map == nodes(1, 2))
        await trio.sleep(60)
        assert one.port.describe()["silent"] == two.port.describe()["silent"] == []


async def test_an_interface_that_is_back_is_in_the_group_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with room(tmp_path) as network:
        one, two = [await network.start(number) for number in (1, 2)]
        two._leave_wire()
        three = await network.start(3)
        await until(lambda: one.map == two.map == three.map == nodes(1, 2, 3))


async def test_an_address_that_cannot_be_followed_yet_is_followed_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with room(tmp_path) as network:
        one, two = [await network.start(number) for number in (1, 2)]
        await until(lambda: one.map == two.map == nodes(1, 2))
        two.addresses = ("10.0.0.77",)
        two.end.fails = OSError(errno.ENODEV, "No such device")
        await trio.sleep(12)
        two.end.fails = None
        await until(lambda: one.map == two.map == {**nodes(1), 2: ("10.0.0.77",)})


async def test_an_address_that_goes_for_a_moment_is_kept(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with room(tmp_path) as network:
        one = await network.start(1)

        def gone() -> tuple[str, ...]:
            raise ConfigError("eth0 has no address")

        one.port._addresses = gone
        await trio.sleep(30)
        assert one.map == nodes(1)
        told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert told == ["eth0 has no address; this node stays at 10.0.0.1 for now"], "once"


async def test_an_administrator_takes_a_node_out(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path) as network:
        one, two, three = [await network.start(number) for number in (1, 2, 3)]
        await until(lambda: one.map == two.map == three.map == nodes(1, 2, 3))
        three.end.is_cut = True
        await one.port.say(one.roll.forget(3, trio.current_time()))
        await trio.sleep(LEAVE_GRACE_S + 5)
        assert one.map == two.map == nodes(1, 2)
