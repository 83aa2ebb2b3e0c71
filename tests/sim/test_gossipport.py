"""The gossip of real daemons over datagrams in memory, under a clock that jumps: who hears whom, and who is not."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from mignode import gossipport, metrics
from mignode.gossipport import Address, GossipPort, open_socket
from mignode.nodeinfo import CONFIGURED, UP, NodeInfo
from omfs.config import Settings
from omfs.errors import ConfigError
from omfs.metrics import text_of
from omfs.net.authority import install_credentials, make_authority
from omfs.standing import Standing

MAP = "1 127.0.0.1 3\n"
ADDRESSES = {node: f"127.0.0.{node}" for node in (1, 2, 3)}


class Wire:
    """Carries datagrams between addresses.  *carried*: all there were, for who would say them again."""

    def __init__(self) -> None:
        self.ends: dict[str, trio.MemorySendChannel[tuple[bytes, Address]]] = {}
        self.carried: list[tuple[str, str, bytes]] = []
        self.cut: set[str] = set()
        self.cut_pairs: set[tuple[str, str]] = set()

    def carry(self, source: str, to: str, data: bytes) -> None:
        self.carried.append((source, to, data))
        if to in self.ends and not {source, to} & self.cut and (source, to) not in self.cut_pairs:
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                self.ends[to].send_nowait((data, (source, 5428)))


class End:
    """A socket on the wire.  *fails*: the next one who listens or sends gets that error."""

    def __init__(self, wire: Wire, address: str) -> None:
        self._wire = wire
        self._address = address
        self.fails: OSError | None = None
        wire.ends[address], self._come = trio.open_memory_channel[tuple[bytes, Address]](100)

    async def sendto(self, data: bytes, address: Address, /) -> int:
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        assert address[1] == 5428
        self._wire.carry(self._address, address[0], data)
        return len(data)

    async def recvfrom(self, size: int, /) -> tuple[bytes, Address]:
        if self.fails is not None:
            await trio.lowlevel.checkpoint()
            raise self.fails
        data, source = await self._come.receive()
        return data[:size], source


@dataclass
class Node:
    """A running one."""

    port: GossipPort
    end: End
    standing: Standing
    scope: trio.CancelScope
    load: list[int]
    has_ended: trio.Event

    def load_of(self, node: int) -> int | None:
        info = self.port.of(node)
        return info.load if info is not None and info.is_up else None


class Room:
    """Three nodes of one cluster, on one wire."""

    def __init__(self, place: Path, sec: str, nursery: trio.Nursery) -> None:
        self._place = place
        self._sec = sec
        self._nursery = nursery
        self.wire = Wire()
        if sec == "tls":
            self._authority = make_authority(place / "ca")

    async def start(self, number: int, text: str = MAP) -> Node:
        place = self._place / str(number)
        if not place.exists() and self._sec == "tls":
            install_credentials(place, self._authority.issue(number))
        place.mkdir(exist_ok=True)
        (place / "map").write_text(text)
        settings = Settings(
            map=str(place / "map"), address=ADDRESSES[number], sec=self._sec, config_dir=str(place),
            state_dir=str(place), run_dir=str(place),
        )  # fmt: skip
        standing, load = Standing(settings), [100 * number]

        async def tell() -> NodeInfo:
            return NodeInfo(node=number, incarnation=0, seq=0, load=load[0])

        end = End(self.wire, ADDRESSES[number])
        port = GossipPort(standing, settings, tell, random.Random(number))
        node = Node(port, end, standing, trio.CancelScope(), load, trio.Event())

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with node.scope:
                await port.run(end, task_status=task_status)
            node.has_ended.set()

        await self._nursery.start(run)
        return node

    def kill(self, number: int) -> None:
        """A power cut: it says nothing any more."""
        self.wire.cut.add(ADDRESSES[number])


@contextlib.asynccontextmanager
async def room(place: Path, sec: str = "tls") -> AsyncIterator[Room]:
    async with trio.open_nursery() as nursery:
        yield Room(place, sec, nursery)
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> float:
    """How long it took, in the clock's seconds."""
    began_s = trio.current_time()
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for comes by itself, in the clock's time
            await trio.sleep(0.1)
    return trio.current_time() - began_s


@pytest.mark.parametrize("sec", ["tls", "none"])
async def test_three_know_each_other_and_what_becomes_of_them(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, sec: str
) -> None:
    async with room(tmp_path, sec) as here:
        nodes = {number: await here.start(number) for number in (1, 2, 3)}
        pairs = [(one, other) for one in nodes for other in nodes if one != other]
        await until(lambda: all(nodes[one].load_of(other) == 100 * other for one, other in pairs))
        nodes[2].load[0] = 777
        await until(lambda: nodes[1].load_of(2) == nodes[3].load_of(2) == 777)

        here.kill(3)
        assert await until(lambda: nodes[1].load_of(3) is nodes[2].load_of(3) is None) > 5
        here.wire.cut.clear()
        await until(lambda: nodes[1].load_of(3) == nodes[2].load_of(3) == 300)

        nodes[3].scope.cancel()
        assert await until(lambda: nodes[1].load_of(3) is nodes[2].load_of(3) is None) < 5  # it said goodbye
        again = await here.start(3)
        await until(lambda: nodes[1].load_of(3) == 300 and again.load_of(1) == 100)
        assert {info.node: info.is_up for info in again.port.known()} == {1: True, 2: True}


async def test_two_that_hear_of_each_other_by_a_third_are_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with room(tmp_path) as here:
        nodes = {number: await here.start(number) for number in (1, 2, 3)}
        here.wire.cut_pairs = {(ADDRESSES[1], ADDRESSES[2]), (ADDRESSES[2], ADDRESSES[1])}
        await until(lambda: nodes[1].load_of(2) == 200 and nodes[2].load_of(1) == 100)
        for _ in range(300):
            await trio.sleep(1)
            assert (nodes[1].load_of(2), nodes[2].load_of(1), nodes[3].load_of(1)) == (200, 100, 100)


async def test_what_nobody_of_the_cluster_sealed_changes_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with room(tmp_path) as here:
        one, two = await here.start(1), await here.start(2)
        await until(lambda: one.load_of(2) == 200 and two.load_of(1) == 100)
        two.scope.cancel()
        await until(lambda: one.load_of(2) is None)
        to_one = [data for source, to, data in here.wire.carried if to == ADDRESSES[1]]
        await trio.sleep(0.5)
        before = dict(one.port.counts)
        for data in (b"", b"hello", b"og" + bytes(600), to_one[-1][:-1] + b"\x00", to_one[-1] + b"more"):
            here.wire.carry("127.0.0.9", ADDRESSES[1], data)
        for data in to_one:
            here.wire.carry("127.0.0.9", ADDRESSES[1], data)
        await trio.sleep(0.2)
        assert one.load_of(2) is None
        assert one.port.counts["forged"] == before.get("forged", 0) + 5
        assert one.port.counts["replayed"] == before.get("replayed", 0) + before["believed"]
        assert one.port.counts["believed"] == before["believed"]
        assert caplog.text.count("gossip from 127.0.0.9") == 1


async def test_what_was_meant_for_an_earlier_life_is_not_believed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with room(tmp_path) as here:
        one, two = await here.start(1), await here.start(2)
        await until(lambda: one.load_of(2) == 200 and two.load_of(1) == 100)
        for node in (one, two):
            node.scope.cancel()
        await trio.sleep(5)
        to_one = [data for _, to, data in here.wire.carried if to == ADDRESSES[1]]
        one = await here.start(1)
        for data in to_one:
            here.wire.carry(ADDRESSES[2], ADDRESSES[1], data)
        await until(lambda: one.port.counts["early"] == len(to_one))
        assert one.port.of(2) is None


async def test_who_may_speak_for_whom(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A node that says it is another one, one that is not in the map, and one that babbles."""
    async with room(tmp_path) as here:
        one, two = await here.start(1), await here.start(2)
        await until(lambda: one.load_of(2) == 200)
        two.standing.local = None  # type: ignore[assignment]
        data = two.port._seal.close(b"\x93\x01\x02\x03")
        assert one.port.take(data, ADDRESSES[2]) is None
        assert one.port.counts["malformed"] == 1
        two.port._board._own = 3
        (message,) = two.port._board.goodbye(0.0) or [None]
        assert message is None or message.sender == 3
        spoken = two.port._board._message(1, False, 0.0)
        packed = gossipport.gossipwords.encode(spoken._replace(sender=2), 891)
        assert one.port.take(two.port._seal.close(packed), ADDRESSES[2]) is None
        before = one.port.counts["forged"]
        info = NodeInfo(node=3, incarnation=1, seq=1)
        message = spoken._replace(sender=3, records=(gossipport.gossipwords.Said(info, 0.0),))
        one.port.take(two.port._seal.close(gossipport.gossipwords.encode(message, 891)), ADDRESSES[2])
        assert one.port.counts["forged"] == before + 1
        assert one.port.of(3) is None


async def test_a_flood_costs_only_so_much(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path) as here:
        one = await here.start(1)
        await trio.sleep(3)
        for _ in range(gossipport.CHECKED_MAX + 50):
            one.port.take(b"og\x01\x00\x10" + bytes(100), "127.0.0.9")
        assert one.port.counts["unchecked"] == 50
        two = await here.start(2)
        await until(lambda: one.load_of(2) == 200 and two.load_of(1) == 100)


async def test_a_new_map_and_a_new_certificate_are_taken_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with room(tmp_path) as here:
        one, two = await here.start(1), await here.start(2)
        await until(lambda: one.load_of(2) == 200)
        (tmp_path / "1" / "map").write_text("1 127.0.0.1 1\n3 127.0.0.3 1\n")
        install_credentials(tmp_path / "1", here._authority.issue(1))
        assert one.standing.reload()
        await until(lambda: one.port.of(2) is None)
        await until(lambda: one.port.counts["stranger"] > 0)
        (tmp_path / "1" / "map").write_text(MAP)
        assert one.standing.reload()
        await until(lambda: one.load_of(2) == 200)
        (tmp_path / "1" / "map").write_text("1 127.0.0.1 2\n")
        assert one.standing.reload()
        (tmp_path / "1" / "node.key").unlink()
        await until(lambda: "gossip goes on with the certificate that it has" in caplog.text)
        await until(lambda: two.load_of(1) == 100)


async def test_a_life_that_was_forgotten_is_outlived(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with room(tmp_path) as here:
        one, two = await here.start(1), await here.start(2)
        await until(lambda: one.load_of(2) == 200 and two.load_of(1) == 100)
        here.kill(2)
        two.scope.cancel()
        await until(lambda: one.load_of(2) is None)
        (tmp_path / "2" / "mignode.incarnation").unlink()
        monkeypatch.setattr(gossipport.time, "time", lambda: 86400.0)
        here.wire.cut.clear()
        two = await here.start(2)
        await until(lambda: one.load_of(2) == 200 and two.load_of(1) == 100)
        two.scope.cancel()
        await two.has_ended.wait()
        assert int((tmp_path / "2" / "mignode.incarnation").read_text()) > 86400


async def test_a_network_that_fails_ends_nothing(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path) as here:
        one, two = await here.start(1), await here.start(2)
        await until(lambda: one.load_of(2) == 200)
        one.end.fails = OSError(errno.ENETUNREACH, "no network")
        await until(lambda: one.port.counts["unsent"] > 3)
        await until(lambda: one.load_of(2) is None)
        one.end.fails = None
        await until(lambda: one.load_of(2) == 200 and two.load_of(1) == 100)


async def test_names_in_the_map_are_looked_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's second address is used when the first one is silent; a name that is not known costs nothing."""

    async def lookup(name: str, *_: object) -> list[tuple[object, ...]]:
        await trio.lowlevel.checkpoint()
        if name == "node2":
            return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.0.2", 0))]
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    text = "1 127.0.0.1 1\n2 127.0.0.7 1\n2 node2 ALIAS\n3 nowhere 1\n"
    async with room(tmp_path) as here:
        monkeypatch.setattr(trio.socket, "getaddrinfo", lookup)
        one = await here.start(1, text)
        await trio.sleep(5)
        two = await here.start(2)
        await until(lambda: one.load_of(2) == 200 and two.load_of(1) == 100)
        assert {to for source, to, _ in here.wire.carried if source == ADDRESSES[1]} >= {"127.0.0.7", "127.0.0.2"}
        assert one.port.counts["unsent"] > 0


async def test_what_the_metrics_say(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with room(tmp_path) as here:
        one, _ = await here.start(1), await here.start(2)
        await until(lambda: one.load_of(2) == 200)
        text = text_of(list(metrics.families(1, one.port, {}))).decode()
        for line in ('omfs_node_up{node="2"} 1.0', 'omfs_node_load{node="2"} 200.0', 'fate="forged"} 0.0'):
            assert line in text
        assert one.port.describe()["sent"] == one.port.counts["sent"] > 0
        here.kill(2)
        await until(lambda: one.load_of(2) is None)
        text = text_of(list(metrics.families(1, one.port, {"mount": 3}))).decode()
        assert 'omfs_node_up{node="2"} 0.0' in text
        assert "omfs_node_load{" not in text
        assert 'omfs_guest_refused_calls_total{call="mount"} 3.0' in text


async def test_the_socket_itself(tmp_path: Path) -> None:
    with trio.socket.from_stdlib_socket(open_socket("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        await sock.sendto(b"hello", ("127.0.0.1", port))
        with trio.fail_after(60):
            assert (await sock.recvfrom(100))[0] == b"hello"
        with pytest.raises(ConfigError, match=f"gossip on 127.0.0.1 udp port {port}: Address already in use; change"):
            open_socket("127.0.0.1", port)


def test_a_node_says_that_it_is_up() -> None:
    assert NodeInfo(node=1, incarnation=1, seq=1).status == CONFIGURED | UP
