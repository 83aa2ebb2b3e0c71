"""Lines between mignodes over loopback sockets: who is let in, what is said, and everything that is no line of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import types
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from mignode import line as line_module, words
from mignode.line import Line, dial_line, serve_lines
from mignode.words import Begin, Begun, Commit, Discard, FirstWord, Greet, Located, RelayFrame, Restored, StillHere
from omfs.config import Settings
from omfs.errors import HelloRefused, NodeDown, WireError
from omfs.net import transport
from omfs.net.authority import install_credentials, make_authority
from omfs.net.frames import Buffer, encode
from omfs.net.hello import LocalNode
from omfs.net.tls import LocalIdentity, load_identity
from omfs.net.transport import memory_transports

DEADLINE_S = 60.0
GUEST = "1.4242.998877"
ADDRESSES = {1: ("127.0.0.1",), 2: ("127.0.0.1",)}

Handler = Callable[[Line, FirstWord, Buffer], Awaitable[None]]


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalIdentity]:
    """Nodes 1 and 2 of our cluster, and node 1 of another."""
    directory = tmp_path_factory.mktemp("nodes")
    ours, others = make_authority(directory / "ca"), make_authority(directory / "otherca")
    made = {"none": LocalIdentity(0, "none", None, None)}
    for name, authority, node_id in (("one", ours, 1), ("two", ours, 2), ("stranger", others, 1)):
        install_credentials(directory / name, authority.issue(node_id))
        made[name] = load_identity(directory / name, "tls", node_id)
    return made


def standing(node_id: int, identity: LocalIdentity, **different: Any) -> Any:
    """Who a node is; *different* in what it says of itself."""
    local = dataclasses.replace(LocalNode(node_id, True, b"digest", "omfs test"), **different)
    return types.SimpleNamespace(local=local, identity=identity, node_map=types.SimpleNamespace(nodes=dict(ADDRESSES)))


class Room:
    """Node 2 listens, node 1 dials."""

    def __init__(self, nursery: trio.Nursery, one: LocalIdentity, two: LocalIdentity) -> None:
        self._nursery = nursery
        self.one, self.two = one, two
        self.port = 0

    async def serve(self, handler: Handler) -> None:
        settings = Settings(migration_port=0)
        self.port = await self._nursery.start(serve_lines, standing(2, self.two), settings, handler)

    async def dial(self, node_id: int = 2, **different: Any) -> Line:
        here = standing(different.pop("node", 1), different.pop("identity", self.one), **different)
        return await dial_line(here, Settings(migration_port=self.port), node_id, DEADLINE_S)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@pytest.fixture(params=["tls", "plain"])
def room(request: pytest.FixtureRequest, nursery: trio.Nursery, identities: dict[str, LocalIdentity]) -> Room:
    none = identities["none"]
    return Room(nursery, *((identities["one"], identities["two"]) if request.param == "tls" else (none, none)))


@pytest.fixture
def tls_room(nursery: trio.Nursery, identities: dict[str, LocalIdentity]) -> Room:
    return Room(nursery, identities["one"], identities["two"])


async def answering(line: Line, word: FirstWord, _: Buffer) -> None:
    """Home, which issues attempts until nobody asks any more; and an echo."""
    said: Any = word
    bulk: Buffer = b""
    while True:
        match said:
            case Begin():
                await line.send(Begun(said.epoch + 1, said.destination), deadline_s=DEADLINE_S)
            case RelayFrame():
                await line.send(said, bulk, deadline_s=DEADLINE_S)
            case Commit():
                raise RuntimeError("a mistake of ours")
            case _:
                await line.send(Located(said.attempt, 1, line.node_id, True), deadline_s=DEADLINE_S)
        said, bulk = await line.receive(DEADLINE_S)


async def check_answers(line: Line) -> None:
    await line.send(Begin(GUEST, 4, 3), deadline_s=DEADLINE_S)
    assert await line.receive(DEADLINE_S) == (Begun(5, 3), b"")


async def test_both_ends_know_each_other_and_talk(room: Room) -> None:
    await room.serve(answering)
    line = await room.dial()
    assert line.node_id == 2
    await check_answers(line)
    await line.send(StillHere(), deadline_s=DEADLINE_S)  # nobody hears of it
    frame = bytes(range(256)) * 256
    await line.send(RelayFrame(), frame, deadline_s=DEADLINE_S)
    assert await line.receive(DEADLINE_S) == (RelayFrame(), frame)
    await line.send(words.WhereIs(GUEST, 7), deadline_s=DEADLINE_S)
    assert await line.receive(DEADLINE_S) == (Located(7, 1, 1, True), b"")
    assert line.bytes_in > len(frame)
    assert line.bytes_out > len(frame)
    line.close()


@pytest.mark.parametrize(
    ("different", "reason"),
    [
        ({"dfsa": False}, "use the same on all nodes"),
        ({"map_digest": b"other"}, "the cluster maps of node 2 and node 1 differ"),
        ({"node": 3}, r"the certificate is node 1's|node 3 is not in the map of node 2"),
    ],
)
async def test_who_does_not_fit_is_told_why(room: Room, different: dict[str, Any], reason: str) -> None:
    await room.serve(answering)
    with pytest.raises(HelloRefused, match=reason):
        await room.dial(**different)
    line = await room.dial()
    await check_answers(line)
    line.close()


async def test_another_version_is_told_so(room: Room) -> None:
    await room.serve(answering)
    line = Line(await transport.dial("127.0.0.1", room.port, room.one.client_context, DEADLINE_S))
    await line.send(Greet(words.VERSION + 1, "omfs 9", 1, 2, True, b"digest"), deadline_s=DEADLINE_S)
    answer, _ = await line.receive(DEADLINE_S)
    assert isinstance(answer, words.NotWelcome)
    assert "install the same version on both" in answer.reason
    line.close()


@pytest.mark.parametrize("answer", [words.Greeted(words.VERSION + 1, "", 2), words.Greeted(words.VERSION, "", 3)])
async def test_who_is_another_than_we_wanted(answer: words.Greeted) -> None:
    ours, theirs = memory_transports()

    async def dial(*_: Any) -> Any:
        assert theirs.send_now(encode(0, answer))
        return ours

    here = standing(1, LocalIdentity(0, "none", None, None))
    with pytest.raises(HelloRefused, match="node 2 answered our greeting with Greeted"):
        await dial_line(here, Settings(), 2, DEADLINE_S, dial)


async def test_the_address_of_another_node(tls_room: Room) -> None:
    await tls_room.serve(answering)
    with pytest.raises(HelloRefused, match="wanted node 1, but the certificate there is node 2's"):
        await tls_room.dial(1)


async def test_a_node_of_another_cluster(tls_room: Room, identities: dict[str, LocalIdentity]) -> None:
    await tls_room.serve(answering)
    with pytest.raises(HelloRefused, match="its certificate is not one of this cluster"):
        await tls_room.dial(identity=identities["stranger"])


async def test_plain_and_tls_do_not_meet(tls_room: Room, identities: dict[str, LocalIdentity]) -> None:
    await tls_room.serve(answering)
    with pytest.raises(NodeDown):
        await tls_room.dial(identity=identities["none"])


async def test_nobody_is_there(room: Room) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        room.port = taken.getsockname()[1]
    with pytest.raises(NodeDown, match="refused"):
        await room.dial()
    with pytest.raises(NodeDown, match="not in the map"):
        await room.dial(7)


async def test_an_error_of_ours_ends_one_line_only(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    await room.serve(answering)
    first, second = await room.dial(), await room.dial()
    await check_answers(second)
    await first.send(Commit(GUEST, 1), deadline_s=DEADLINE_S)
    with pytest.raises(OSError, match=r"closed|EOF"):
        await first.receive(DEADLINE_S)
    assert "a mistake of ours" in caplog.text
    await check_answers(second)
    first.close()
    second.close()


@pytest.mark.parametrize("first", [Restored(), StillHere(), Discard("")], ids=lambda word: type(word).__name__)
async def test_a_line_begins_with_what_it_is_for(room: Room, first: Any) -> None:
    await room.serve(answering)
    line = await room.dial()
    await line.send(first, deadline_s=DEADLINE_S)
    if isinstance(first, StillHere):
        await line.send(Restored(), deadline_s=DEADLINE_S)
    with pytest.raises(OSError, match=r"closed|EOF"):
        await line.receive(DEADLINE_S)


GARBAGE = [
    b"GET / HTTP/1.0\r\n\r\n",
    b"\x16\x03\x01\xff\xff",
    b"\xff" * 64,
    bytes(encode(0, Restored())),
    bytes(encode(5, Greet(1, "x", 1, 2, True, b"digest"))),
    bytes(encode(0, Greet(1, "x", 1, 2, True, b"digest"), 3)) + b"abc",
]


@pytest.mark.parametrize("data", GARBAGE)
async def test_strangers_disturb_nobody(room: Room, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await room.serve(answering)
    async with await room.connect() as stream:
        await stream.send_all(data)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_eof()
        with trio.fail_after(DEADLINE_S), contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    line = await room.dial()
    await check_answers(line)
    line.close()


async def test_not_too_many_strangers(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "STRANGERS_MAX", 1)
    await room.serve(answering)
    async with await room.connect() as idle:
        async with await room.connect() as turned_away:
            with trio.fail_after(DEADLINE_S), contextlib.suppress(trio.BrokenResourceError):
                assert await turned_away.receive_some() == b""
        await idle.aclose()
    with trio.fail_after(DEADLINE_S):
        while True:
            with contextlib.suppress(NodeDown):
                line = await room.dial()
                break
    await check_answers(line)
    line.close()


async def test_a_stranger_who_says_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "GREET_TIMEOUT_S", 0.05)
    await room.serve(answering)
    async with await room.connect() as silent:
        with trio.fail_after(DEADLINE_S), contextlib.suppress(trio.BrokenResourceError):
            assert await silent.receive_some() == b""


# ---------------------------------------------------------------- one end, over memory


@pytest.fixture
async def ends() -> tuple[Line, Any]:
    """A line that is admitted, and the raw other end."""
    ours, theirs = memory_transports()
    line = Line(ours)
    line.admit()
    return line, theirs


async def test_silence_ends_a_line(ends: tuple[Line, Any], autojump_clock: Any) -> None:
    line, _ = ends
    with pytest.raises(TimeoutError, match="nothing from server for 7 s"):
        await line.receive(7)
    with pytest.raises(OSError, match="closed"):
        await line.send(Restored(), deadline_s=1)


async def test_who_takes_nothing_ends_a_line(ends: tuple[Line, Any], autojump_clock: Any) -> None:
    line, _ = ends
    with pytest.raises(TimeoutError, match="server took nothing for 7 s"):
        await line.send(words.State(), bytes(words.STATE_MAX_BYTES), deadline_s=7)


async def test_a_line_is_kept_alive(ends: tuple[Line, Any], autojump_clock: Any, nursery: trio.Nursery) -> None:
    line, theirs = ends
    other = Line(theirs)
    nursery.start_soon(other.keep_alive)

    async def say_later() -> None:
        await trio.sleep(1000)
        await other.send(Restored(), deadline_s=1)

    nursery.start_soon(say_later)
    with pytest.raises(TimeoutError):
        await Line(memory_transports()[0]).receive(20)
    assert await line.receive(1001) == (Restored(), b"")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("frame", "bulk"),
    [
        (encode(1, Restored()), b""),
        (encode(0, Restored(), 1), b"x"),
        (encode(0, RelayFrame(), words.RELAY_MAX_BYTES + 1), bytes(words.RELAY_MAX_BYTES + 1)),
        (encode(0, StillHere(), 1), b"x"),
    ],
)
async def test_frames_that_no_line_has(ends: tuple[Line, Any], frame: bytearray, bulk: bytes, nursery: Any) -> None:
    line, theirs = ends

    async def send() -> None:
        data = memoryview(bytes(frame) + bulk)
        while data:
            data = data[theirs.send_now(data) :]
            await trio.lowlevel.checkpoint()

    nursery.start_soon(send)
    with pytest.raises(WireError, match="as no line has it"):
        await line.receive(DEADLINE_S)
    nursery.cancel_scope.cancel()
