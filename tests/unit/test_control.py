"""The control socket: one line each way, limits, deadlines, and whose socket file it is."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from omfs.config import Settings
from omfs.errors import ConfigError, ControlError, NotRunning, RemoteFailure
from omfs.net import control
from omfs.net.control import Arguments, Handler, NodeStatus, StatusReply, ask, open_listener, peer_status, serve
from omfs.net.hello import LocalNode
from omfs.net.peer import Peer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "mount.sock"


@contextlib.asynccontextmanager
async def daemon(path: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, path, handlers)
        yield
        nursery.cancel_scope.cancel()


async def echo(arguments: Arguments) -> object:
    return {"got": arguments}


async def talk(path: Path, data: bytes, *, end: bool = False) -> bytes:
    """Send raw bytes, return everything that comes back."""
    async with await trio.open_unix_socket(path) as stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(data)
            if end:
                await stream.send_eof()
        answer = b""
        with contextlib.suppress(trio.BrokenResourceError):
            async for chunk in stream:
                answer += chunk
        return answer


async def test_ask_and_answer(path: Path) -> None:
    async with daemon(path, {"echo": echo}):
        assert await ask(path, "echo", node=3, text="ä\n") == {"got": {"node": 3, "text": "ä\n"}}
        assert await ask(path, "echo") == {"got": {}}


async def test_structs_survive_the_way(path: Path) -> None:
    node = NodeStatus(node_id=2, addresses=("10.0.0.2",), state="down", reason="silent for 20 s")
    status = StatusReply(node_id=1, nodes=(node,))

    async def answer(_: Arguments) -> object:
        return status

    async with daemon(path, {"status": answer}):
        assert msgspec.convert(await ask(path, "status"), StatusReply) == status


async def test_askers_do_not_wait_for_each_other(path: Path) -> None:
    turn = trio.Event()

    async def first(_: Arguments) -> object:
        await turn.wait()
        return {"first": True}

    async def second(_: Arguments) -> object:
        turn.set()
        return {}

    async with daemon(path, {"first": first, "second": second}), trio.open_nursery() as nursery:
        nursery.start_soon(ask, path, "first")
        await ask(path, "second")


async def test_only_the_owner_may_ask_and_the_file_goes_at_the_end(path: Path) -> None:
    old = os.umask(0)
    try:
        async with daemon(path, {}):
            status = os.stat(path)
            assert stat.S_ISSOCK(status.st_mode)
            assert stat.S_IMODE(status.st_mode) == 0o600
    finally:
        os.umask(old)
    assert list(path.parent.iterdir()) == []


async def test_errors_are_answers(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(_: Arguments) -> object:
        raise RemoteFailure(2, "no such node")

    async def crash(_: Arguments) -> object:
        raise ZeroDivisionError

    async def unwritable(_: Arguments) -> object:
        return {"path": "\udcff"}

    async with daemon(path, {"refuse": refuse, "crash": crash, "unwritable": unwritable, "echo": echo}):
        with pytest.raises(ControlError, match=r"^no such node$"):
            await ask(path, "refuse")
        with pytest.raises(ControlError, match="crash failed inside the daemon"):
            await ask(path, "crash")
        with pytest.raises(ControlError, match="can't be written as JSON"):
            await ask(path, "unwritable")
        with pytest.raises(ControlError, match='unknown command "nonsense"; this daemon knows crash, echo, refuse'):
            await ask(path, "nonsense")
        assert await ask(path, "echo") == {"got": {}}
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]


@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        (b"hello\n", b"bad request"),
        (b"[]\n", b"bad request"),
        (b'{"command":7}\n', b"bad request"),
        (b"\n", b"bad request"),
        (b"\xff\n", b"bad request"),
        (b"[" * 60000 + b"\n", b"bad request"),
        (b"x" * (control.REQUEST_MAX_BYTES + 1), b"longer than"),
        (b'{"command":"echo"', b"cut off"),
    ],
)
async def test_bad_requests_disturb_nobody(path: Path, request_line: bytes, answer: bytes) -> None:
    async with daemon(path, {"echo": echo}):
        assert answer in await talk(path, request_line, end=True)
        assert await ask(path, "echo") == {"got": {}}


async def test_a_silent_asker_is_dropped(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Without this a forgotten connection would hold a task for ever."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control._answer, {}, theirs)
        assert await ours.receive_some() == b""
        assert trio.current_time() >= control.REQUEST_DEADLINE_S


async def test_a_handler_that_hangs_is_ended(autojump_clock: trio.testing.MockClock) -> None:
    async def hang(_: Arguments) -> object:
        return await trio.sleep_forever()

    reply = await control._reply({"hang": hang}, b'{"command":"hang"}')
    assert reply == {"error": "hang did not finish within 120 s"}


async def test_an_asker_that_left_disturbs_nobody(path: Path) -> None:
    gone = trio.Event()

    async def late(_: Arguments) -> object:
        await gone.wait()
        return {"text": "x" * 4_000_000}

    async with daemon(path, {"late": late, "echo": echo}):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"command":"late"}\n')
        gone.set()
        assert await ask(path, "echo") == {"got": {}}


async def test_a_large_reply_arrives_whole(path: Path) -> None:
    async def large(_: Arguments) -> object:
        return {"text": "x" * 4_000_000}

    async with daemon(path, {"large": large}):
        assert len((await ask(path, "large"))["text"]) == 4_000_000


# ---------------------------------------------------------------- the asker's side


async def test_nobody_listens(path: Path) -> None:
    with pytest.raises(NotRunning, match="nobody listens here"):
        await ask(path, "status")
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunning):
        await ask(path, "status")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"", "cut off"),
        (b'{"nodes":', "cut off"),
        (b"hello\n", "not a JSON object"),
        (b"[1]\n", "not a JSON object"),
        (b"x" * 2000 + b"\n", "longer than"),
    ],
)
async def test_bad_answers(path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, fault: str) -> None:
    monkeypatch.setattr(control, "REPLY_MAX_BYTES", 1000)

    async def babble(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(open_listener(path))
        await nursery.start(trio.serve_listeners, babble, [listener])
        with pytest.raises(ControlError, match=fault):
            await ask(path, "status")
        nursery.cancel_scope.cancel()


async def test_a_silent_daemon_is_given_up(path: Path) -> None:
    listener = open_listener(path)  # connects, but nobody ever accepts
    with pytest.raises(ControlError, match=r"no answer within 0\.05 s"):
        await ask(path, "status", deadline_s=0.05)
    listener.close()


# ---------------------------------------------------------------- the socket file


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    open_listener(path).close()  # as after kill -9: the file stays
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    async with daemon(path, {"echo": echo}):
        assert await ask(path, "echo") == {"got": {}}


async def test_a_living_daemon_keeps_its_socket(path: Path) -> None:
    async with daemon(path, {"echo": echo}):
        with pytest.raises(ConfigError, match="another daemon is running"):
            await serve(path, {})
        assert await ask(path, "echo") == {"got": {}}


async def test_a_busy_daemon_counts_as_living(path: Path, many_files: None) -> None:
    listener = open_listener(path)
    waiting = []
    try:
        while True:  # fill the queue of connections nobody accepts
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            if waiting[-1].connect_ex(str(path)) != 0:
                break
        with pytest.raises(ConfigError, match="another daemon is running"):
            open_listener(path)
    finally:
        for one in waiting:
            one.close()
        listener.close()


async def test_another_daemons_socket_is_not_removed(path: Path) -> None:
    async with daemon(path, {}):
        os.unlink(path)
        successor = open_listener(path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    successor.close()


def test_places_where_no_socket_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        open_listener(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(ConfigError, match="can't listen here"):
        open_listener(tmp_path / "file" / "sock")
    with pytest.raises(ConfigError, match="can't listen here: AF_UNIX path too long"):
        open_listener(tmp_path / ("x" * 120))


# ---------------------------------------------------------------- the shape of a node

DESCRIBED = {
    "node": 2, "state": "up", "address": "10.0.0.2", "software": "omfs 0.1.0", "refusal": "", "epoch": 1,
    "round_trip_us": 125, "silent_s": 0.5, "lapses": 3, "requests": 10, "in_flight": 1,
    "bytes_in": 100, "bytes_out": 200,
}  # fmt: skip


def test_the_status_of_a_peer_that_is_up() -> None:
    status = peer_status(DESCRIBED, ["10.0.0.2", "front"], [control.ExportStatus("/", read_only=True)], leases=7)
    assert status == NodeStatus(
        node_id=2, addresses=("10.0.0.2", "front"), address="10.0.0.2", state="up", software="omfs 0.1.0",
        round_trip_s=0.000125, silent_s=0.5, exports=(control.ExportStatus("/", read_only=True),),
        requests=10, in_flight=1, bytes_in=100, bytes_out=200, epoch=1, lapses=3, leases=7,
    )  # fmt: skip


def test_the_status_of_peers_that_are_away() -> None:
    down = peer_status(DESCRIBED | {"state": "down", "silent_s": 21.3}, ["10.0.0.2"])
    assert (down.state, down.reason, down.round_trip_s) == ("down", "silent for 21 s", None)
    refused = peer_status(DESCRIBED | {"state": "connecting", "refusal": "the maps differ"}, ["10.0.0.2"])
    assert (refused.state, refused.reason) == ("refused", "the maps differ")
    new = peer_status(DESCRIBED | {"state": "connecting", "round_trip_us": 0}, ["10.0.0.2"])
    assert (new.state, new.reason, new.round_trip_s) == ("connecting", "", None)


async def test_the_shape_fits_the_real_peer() -> None:
    peer = Peer(2, ["10.0.0.2"], 723, LocalNode(1, True, b"", "omfs"), Settings())
    assert peer_status(peer.describe(), peer.addresses).state == "connecting"
