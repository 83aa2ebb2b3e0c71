"""TLS over a real socket: all that has come is given, in order, whatever the pieces it came in."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from omfs.net import authority, tls
from omfs.net.sockets import RECORDS_MAX_BYTES, TlsTransport, wait_tls

DEADLINE_S = 60.0
RECORD_BYTES = 16 << 10


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[tls.LocalIdentity, tls.LocalIdentity]:
    """Of two nodes of one cluster."""
    made = authority.make_authority(tmp_path_factory.mktemp("ca"))
    loaded = []
    for node_id in (1, 2):
        directory = tmp_path_factory.mktemp(str(node_id))
        authority.install_credentials(directory, made.issue(node_id))
        loaded.append(tls.load_identity(directory, "tls", node_id))
    return loaded[0], loaded[1]


def contexts(identities: tuple[tls.LocalIdentity, tls.LocalIdentity]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client, server = identities
    assert client.client_context is not None
    assert server.server_context is not None
    return client.client_context, server.server_context


@asynccontextmanager
async def connected(client: ssl.SSLContext, server: ssl.SSLContext) -> AsyncIterator[tuple[TlsTransport, TlsTransport]]:
    """Both ends, after the handshake."""
    ends: dict[str, TlsTransport] = {}

    async def shake(name: str, sock: socket.socket, context: ssl.SSLContext) -> None:
        ends[name] = await wait_tls(sock, name, context, server_side=name == "server")

    socks = socket.socketpair()
    for sock in socks:
        sock.setblocking(False)
    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shake, "client", socks[0], client)
                nursery.start_soon(shake, "server", socks[1], server)
            yield ends["client"], ends["server"]
    finally:
        for sock in socks:
            sock.close()


async def send_all(end: TlsTransport, data: memoryview) -> None:
    while data:
        sent = end.send_now(data)
        data = data[sent:]
        if not sent:
            await end.wait_writable()


async def receive_all(end: TlsTransport, size_bytes: int, step_bytes: int, fill: bool) -> bytes:
    received = bytearray()
    into = memoryview(bytearray(step_bytes))
    while len(received) < size_bytes:
        got = end.receive_now(into, fill)
        received += into[:got]
        if not got:
            await end.wait_readable()
    return bytes(received)


async def test_each_end_knows_the_other(identities: tuple[tls.LocalIdentity, tls.LocalIdentity]) -> None:
    async with connected(*contexts(identities)) as (client, server):
        assert (tls.peer_node_id(client.certificate), tls.peer_node_id(server.certificate)) == (2, 1)


@pytest.mark.parametrize("fill", [True, False], ids=["filling", "not filling"])
@pytest.mark.parametrize("step_bytes", [7777, 1 << 20])
async def test_what_is_sent_arrives(
    identities: tuple[tls.LocalIdentity, tls.LocalIdentity], step_bytes: int, fill: bool
) -> None:
    """More than any buffer on the way holds, so that both ends have to wait."""
    data = os.urandom((3 << 20) + 12345)
    async with connected(*contexts(identities)) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_all, client, memoryview(data))
        assert await receive_all(server, len(data), step_bytes, fill) == data


async def test_small_records_come_together(identities: tuple[tls.LocalIdentity, tls.LocalIdentity]) -> None:
    """What was received with others must not wait in memory for a socket that stays silent."""
    async with connected(*contexts(identities)) as (client, server):
        for number in range(10):
            assert client.send_now(bytes([number]) * 100) == 100
        await server.wait_readable()
        into = memoryview(bytearray(RECORD_BYTES))
        while not (got := server.receive_now(into)):
            await server.wait_readable()
        assert bytes(into[:got]) == b"".join(bytes([number]) * 100 for number in range(10))


async def test_what_had_no_room_needs_no_news(identities: tuple[tls.LocalIdentity, tls.LocalIdentity]) -> None:
    async with connected(*contexts(identities)) as (client, server):
        assert client.send_now(b"one" * 100) == 300
        assert client.send_now(b"two" * 100) == 300
        into = memoryview(bytearray(100))
        received = b""
        while len(received) < 600:
            await server.wait_readable()  # the socket had everything at once
            received += bytes(into[: server.receive_now(into)])
        assert received == b"one" * 100 + b"two" * 100
        assert server.receive_now(into) == 0


async def test_what_came_before_the_end_is_given_first(
    identities: tuple[tls.LocalIdentity, tls.LocalIdentity],
) -> None:
    async with connected(*contexts(identities)) as (client, server):
        assert client.send_now(b"last words") == 10
        client.close()
        into = memoryview(bytearray(RECORD_BYTES))
        while not (got := server.receive_now(into, True)):
            await server.wait_readable()
        assert bytes(into[:got]) == b"last words"
        with pytest.raises(ConnectionResetError):
            await receive_all(server, 1, RECORD_BYTES, False)


async def test_one_call_has_an_end(identities: tuple[tls.LocalIdentity, tls.LocalIdentity]) -> None:
    """However much there is, other tasks get their turn."""
    async with connected(*contexts(identities)) as (client, server):
        total = 2 * RECORDS_MAX_BYTES
        into = memoryview(bytearray(2 * total))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, memoryview(bytes(total)))
            left = total
            while left:
                got = server.receive_now(into, True)
                assert got <= RECORDS_MAX_BYTES
                left -= got
                if not got:
                    await server.wait_readable()


async def test_who_closes_wakes_who_waits(identities: tuple[tls.LocalIdentity, tls.LocalIdentity]) -> None:
    async with connected(*contexts(identities)) as (client, server):
        assert server.receive_now(memoryview(bytearray(10))) == 0

        async def wait() -> None:
            with pytest.raises(ConnectionAbortedError):
                await server.wait_readable()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            server.close()
        with pytest.raises(OSError, match="descriptor"):
            server.send_now(b"x")
        client.close()


async def test_who_is_refused_is_told_why(
    identities: tuple[tls.LocalIdentity, tls.LocalIdentity], tmp_path: Path
) -> None:
    authority.install_credentials(tmp_path, authority.make_authority(tmp_path / "ca").issue(1))
    stranger = tls.load_identity(tmp_path, "tls", 1)
    failures = {}

    async def shake(name: str, sock: socket.socket, context: ssl.SSLContext) -> None:
        try:
            await wait_tls(sock, name, context, server_side=name == "server")
        except OSError as error:
            failures[name] = error

    client, server = contexts((stranger, identities[1]))
    socks = socket.socketpair()
    for sock in socks:
        sock.setblocking(False)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake, "client", socks[0], client)
            nursery.start_soon(shake, "server", socks[1], server)
    assert isinstance(failures["client"], ssl.SSLCertVerificationError)
    assert isinstance(failures["server"], ssl.SSLError)
    assert "ALERT" in str(failures["server"]).upper()
    assert [sock.fileno() for sock in socks] == [-1, -1]
