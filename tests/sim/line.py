"""A holder and an owner in one process: a real Peer and a real Server over memory transports, a scripted service.

With trio's autojump clock, silence of minutes takes no time.  `Line` draws the cable between the two: it can be cut,
refuse connections, or carry requests but no replies.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.config import Settings
from omfs.net.channel import Channel
from omfs.net.frames import REPLY_BIT, Buffer
from omfs.net.hello import hello_to
from omfs.net.peer import Peer
from omfs.net.server import Answer, LocalNode, Server, Session
from omfs.net.transport import MemoryTransport, Transport, memory_transports

CALLER = wire.Caller(uid=0, gid=0)
SETTINGS = Settings(timeo_s=15, ping_interval_s=3, session_timeout_s=60, reconnect_interval_s=1, lease_term_s=12)
HOLDER, OWNER = 1, 2
KEY = b"k" * 16  # of the session of a Client


def local_node(node_id: int, **changes: Any) -> LocalNode:
    settings: dict[str, Any] = {"dfsa": True, "map_digest": b"map", "software": f"test of {node_id}", **changes}
    return LocalNode(node_id=node_id, **settings)


def make_directory(name: bytes) -> wire.MakeDirectory:
    """A request that must be executed once only."""
    return wire.MakeDirectory(parent=b"root", name=name, mode=0o755, umask=0, caller=CALLER)


def look_up(name: bytes) -> wire.LookUp:
    return wire.LookUp(parent=b"root", name=name, caller=CALLER)


LARGE = wire.XattrGot(value=bytes(500_000))


class FakeService:
    """Executes requests the way their names say, and remembers which (*executed*), in order.

    Names: b"slow-..." waits for `release`, b"large" has a reply that no line takes at once, b"oserror" and b"bug"
    raise.  A lock that waits is never free.
    """

    def __init__(self) -> None:
        self.undone: list[wire.Message] = []
        self.executed: list[wire.Message] = []
        self.ended: list[Session] = []
        self.cancelled = 0
        self.release = trio.Event()
        self.bulk_bytes = 0

    def answer(self, session: Session, request: wire.Request, bulk: Buffer) -> Answer | Coroutine[Any, Any, Answer]:
        self.executed.append(request)
        self.bulk_bytes += len(bulk)
        match request:
            case wire.MakeDirectory(name=name) if name.startswith(b"slow"):
                return self._answer_slowly()
            case wire.LookUp(name=name) if name.startswith(b"slow"):
                return self._answer_slowly()
            case wire.LockFile(wait=True):
                return self._wait_for_lock()
            case wire.LookUp(name=b"oserror"):
                raise FileNotFoundError(2, "No such file or directory")
            case wire.LookUp(name=b"bug"):
                raise KeyError("a bug")
            case wire.LookUp(name=b"huge"):
                return wire.XattrGot(value=bytes(2 << 20)), b""
            case wire.LookUp(name=b"large"):
                return LARGE, b""
            case wire.OpenFile():
                return wire.FileOpened(open_id=5), b""
            case wire.CloseFile():
                return wire.Failed(errno=9, open_lost=True), b""
            case wire.ReadBlocks():
                return wire.BlocksRead(), bytes(request.size_bytes)
            case wire.WriteBlocks():
                return wire.BlocksWritten(size_bytes=len(bulk)), b""
            case _:
                return wire.Done(), b""

    async def _answer_slowly(self) -> Answer:
        await self.release.wait()
        return wire.Done(), b""

    async def _wait_for_lock(self) -> Answer:
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled += 1
        raise AssertionError("unreachable")

    def given_up(self, session: Session, reply: wire.Message) -> None:
        self.undone.append(reply)

    def session_ended(self, session: Session) -> None:
        self.ended.append(session)


class Line:
    """What the holder dials: *reachable* False is a connection that nobody answers, `refuse` one that is refused."""

    def __init__(self, nursery: trio.Nursery, server: Server) -> None:
        self.server: Server | None = server
        self.reachable = True
        self.dialled: list[str] = []
        self.transports: list[MemoryTransport] = []  # the holder's ends, small and bulk, newest last
        self._nursery = nursery

    async def dial(self, address: str, port: int, context: ssl.SSLContext | None, timeo_s: float) -> Transport:
        self.dialled.append(address)
        if not self.reachable:
            await trio.sleep_forever()
        if self.server is None:
            raise ConnectionRefusedError(111, "Connection refused")
        here, there = memory_transports("holder", "owner")
        self.transports.append(here)
        self._nursery.start_soon(self.server.serve, there)
        return here

    def cut(self) -> None:
        """Pull the cable: everything under way is lost, nobody is told, and nobody can connect."""
        self.reachable = False
        for transport in self.transports:
            transport.cut()

    def heal(self) -> None:
        self.reachable = True

    def reset(self) -> None:
        """Both connections break, and both ends notice."""
        for transport in self.transports[-2:]:
            transport.close()


class FakeMount:
    """What a mount does with recalls and lapses, and in which order (*told*): `gate` holds its handlers up."""

    def __init__(self, peer: Peer) -> None:
        self.told: list[object] = []
        self.handled: list[wire.Recall] = []
        self.gate = trio.Event()
        self.gate.set()
        self.drops_at_once = True
        self.lapsed_s: list[float] = []
        self._peer = peer
        peer.on_recall = self._recall
        peer.on_recall_seen = self.told.append
        peer.on_lapse = self._lapse

    async def _recall(self, request: wire.Recall) -> None:
        await self.gate.wait()
        self.handled.append(request)

    def _lapse(self, reason: str) -> None:
        self.lapsed_s.append(trio.current_time())
        self.told.append(reason)
        if self.drops_at_once:
            self._peer.lapse_handled()


class Pair:
    """One holder, one owner and the line between them."""

    def __init__(self, nursery: trio.Nursery, settings: Settings = SETTINGS, *, hard: bool = False) -> None:
        self.service = FakeService()
        self.settings = settings
        self.nursery = nursery
        self.server = Server(local_node(OWNER), settings, self.service)
        self.line = Line(nursery, self.server)
        self.peer = Peer(OWNER, ["a"], 723, local_node(HOLDER), settings, hard=hard, dial=self.line.dial)
        self._server_scope = trio.CancelScope()

    async def start(self) -> None:
        await self.start_server()
        self.nursery.start_soon(self.peer.run)

    async def start_server(self) -> None:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with self._server_scope:
                await self.server.run(task_status=task_status)

        await self.nursery.start(run)

    async def restart_server(self) -> None:
        """The owner's daemon dies and comes back: another instance, no sessions."""
        self.line.server = None
        self._server_scope.cancel()
        await trio.sleep(0.1)
        self._server_scope = trio.CancelScope()
        self.server = Server(local_node(OWNER), self.settings, self.service)
        await self.start_server()
        self.line.server = self.server

    async def ask(
        self, request: wire.Message, expect: type[wire.Message] = wire.Done, bulk: bytes = b""
    ) -> wire.Message:
        return await self.peer.call(request, expect, bulk)

    def names(self) -> list[bytes]:
        """The names of the requests that were executed."""
        return [getattr(request, "name", b"") for request in self.service.executed]

    @property
    def session(self) -> Session:
        [session] = self.server.sessions.values()
        return session


async def wait_until_blocked() -> None:
    """Until every task waits for something."""
    await trio.testing.wait_all_tasks_blocked()


RANDOM = os.urandom(1 << 20)


async def connected_pair(nursery: trio.Nursery, *, hard: bool = False) -> Pair:
    """A pair that is up; nothing was executed yet."""
    pair = Pair(nursery, hard=hard)
    await pair.start()
    await pair.ask(look_up(b"first"))
    pair.service.executed.clear()
    return pair


class Attempt:
    """A call in a task of its own, and what became of it."""

    def __init__(self, nursery: trio.Nursery, call: Callable[[], Awaitable[Any]]) -> None:
        self.result: Any = None
        self.ended_s = 0.0
        self.task: trio.lowlevel.Task | None = None
        self._over = trio.Event()
        nursery.start_soon(self._run, call)

    async def _run(self, call: Callable[[], Awaitable[Any]]) -> None:
        self.task = trio.lowlevel.current_task()
        try:
            self.result = await call()
        except Exception as error:
            self.result = error
        self.ended_s = trio.current_time()
        self._over.set()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    async def wait(self) -> Any:
        await self._over.wait()
        return self.result


def attempt(pair: Pair, request: wire.Message, expect: type[wire.Message] = wire.Done) -> Attempt:
    return Attempt(pair.nursery, lambda: pair.ask(request, expect))


class Client:
    """A holder made by hand: it says what a test wants it to say."""

    def __init__(self, pair: Pair) -> None:
        self.transport, there = memory_transports("holder", "owner")
        self.channel = Channel(self.transport, at_holder=True)
        self.channel.admit(wire.Lane.BULK)
        self._replies: dict[int, wire.Message] = {}
        pair.nursery.start_soon(pair.server.serve, there)

    async def ask(self, frame_id: int, request: wire.Message, bulk: bytes = b"") -> wire.Message:
        await self.channel.request(frame_id, request, bulk)
        return await self.reply_to(frame_id)

    async def reply_to(self, frame_id: int) -> wire.Message:
        while frame_id not in self._replies:
            for answered_id, reply, _ in await self.channel.receive():
                self._replies[answered_id ^ REPLY_BIT] = reply
        return self._replies.pop(frame_id)

    async def wait_closed(self) -> None:
        with pytest.raises(OSError, match="closed"):
            await self.channel.receive()


def hello(lane: wire.Lane = wire.Lane.SMALL, key: bytes = KEY, node_id: int = HOLDER, **changes: Any) -> wire.Hello:
    return hello_to(local_node(node_id, **changes), OWNER, key, lane)
