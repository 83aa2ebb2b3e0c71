"""Real loopback sockets: TLS both ways, strangers of all kinds, bulk data, sendfile."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from omfs import wire
from omfs.config import BULK_MAX_BYTES, Settings
from omfs.errors import HelloRefused, NodeDown
from omfs.net import server as server_module
from omfs.net.accepting import listen
from omfs.net.authority import install_credentials, make_authority
from omfs.net.frames import Buffer
from omfs.net.peer import Peer
from omfs.net.server import STRANGERS_MAX, Answer, FileSlice, Server, Session
from omfs.net.tls import LocalIdentity, load_identity
from tests.sim.line import HOLDER, OWNER, FakeService, local_node, look_up

SETTINGS = Settings(timeo_s=60, ping_interval_s=0.3, reconnect_interval_s=0.05)
GIVES_UP_S = 5.0  # who is to hear that he can't be let in
NO_TLS = LocalIdentity(HOLDER, "none", None, None)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalIdentity]:
    """Nodes 1, 2 and 3 of our cluster, and node 1 of another."""
    directory = tmp_path_factory.mktemp("nodes")
    ours, others = make_authority(directory / "ca"), make_authority(directory / "otherca")
    made = {}
    for name, authority, node_id in [
        ("holder", ours, HOLDER),
        ("owner", ours, OWNER),
        ("third", ours, 3),
        ("stranger", others, HOLDER),
    ]:
        install_credentials(directory / name, authority.issue(node_id))
        made[name] = load_identity(directory / name, "tls", node_id)
    return made


class FileService(FakeService):
    """ReadBlocks is answered from a file, by descriptor."""

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__()
        path.write_bytes(data)
        self.fd = os.open(path, os.O_RDONLY)
        self.written = b""

    def answer(self, session: Session, request: wire.Request, bulk: Buffer) -> Answer | Coroutine[Any, Any, Answer]:
        match request:
            case wire.ReadBlocks(offset=offset, size_bytes=size_bytes):
                return wire.BlocksRead(), FileSlice(self.fd, offset, size_bytes)
            case wire.WriteBlocks():
                self.written = bytes(bulk)
        return super().answer(session, request, bulk)


class Owner:
    """A server on a real port, and holders that connect to it."""

    def __init__(self, nursery: trio.Nursery, service: FileService, identity: LocalIdentity) -> None:
        self.service = service
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.server = Server(local_node(OWNER), SETTINGS, service, identity.server_context)
        self._nursery = nursery

    async def start(self) -> None:
        await self._nursery.start(self.server.run, [self.listener])

    def holder(
        self, identity: LocalIdentity, *, node_id: int = HOLDER, wanted: int = OWNER, timeo_s: float = SETTINGS.timeo_s
    ) -> Peer:
        settings, context = msgspec.structs.replace(SETTINGS, timeo_s=timeo_s), identity.client_context
        peer = Peer(wanted, ["127.0.0.1"], self.port, local_node(node_id), settings, context)
        self._nursery.start_soon(peer.run)
        return peer


@pytest.fixture
def service(tmp_path: Path) -> Any:
    service = FileService(tmp_path / "file", os.urandom(BULK_MAX_BYTES + 1000))
    yield service
    os.close(service.fd)


@pytest.fixture
async def owner(nursery: trio.Nursery, service: FileService, identities: dict[str, LocalIdentity]) -> Owner:
    owner = Owner(nursery, service, identities["owner"])
    await owner.start()
    return owner


@pytest.fixture
async def plain_owner(nursery: trio.Nursery, service: FileService) -> Owner:
    owner = Owner(nursery, service, NO_TLS)
    await owner.start()
    return owner


async def check_transfers(owner: Owner, peer: Peer) -> None:
    data = os.pread(owner.service.fd, BULK_MAX_BYTES, 500)
    request = wire.ReadBlocks(open_id=1, offset=500, size_bytes=BULK_MAX_BYTES)
    _, bulk = await peer.call_for_bulk(request, wire.BlocksRead)
    assert bulk == data
    written = await peer.call(wire.WriteBlocks(open_id=1, offset=0), wire.BlocksWritten, data)
    assert written.size_bytes == BULK_MAX_BYTES
    assert owner.service.written == data


async def test_bulk_data_over_tls(owner: Owner, identities: dict[str, LocalIdentity]) -> None:
    peer = owner.holder(identities["holder"])
    await check_transfers(owner, peer)
    assert owner.server.bytes_out == peer.bytes_in > BULK_MAX_BYTES


async def test_bulk_data_over_a_plain_line_by_sendfile(plain_owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    sendfile = os.sendfile

    def note(out_fd: int, in_fd: int, offset: int, count: int) -> int:
        sent.append(sendfile(out_fd, in_fd, offset, count))
        return sent[-1]

    monkeypatch.setattr(os, "sendfile", note)
    await check_transfers(plain_owner, plain_owner.holder(NO_TLS))
    assert sum(sent) == BULK_MAX_BYTES


async def test_a_file_that_became_shorter_is_filled_up_with_zeros(plain_owner: Owner) -> None:
    """The header has promised the size already when sendfile meets the end."""
    peer = plain_owner.holder(NO_TLS)
    request = wire.ReadBlocks(open_id=1, offset=BULK_MAX_BYTES, size_bytes=200_000)
    _, bulk = await peer.call_for_bulk(request, wire.BlocksRead)
    assert bulk == os.pread(plain_owner.service.fd, 1000, BULK_MAX_BYTES) + bytes(199_000)
    assert await peer.call(look_up(b"x"), wire.Done) == wire.Done()


async def test_a_file_that_became_shorter_is_a_short_read_over_tls(
    owner: Owner, identities: dict[str, LocalIdentity]
) -> None:
    peer = owner.holder(identities["holder"])
    request = wire.ReadBlocks(open_id=1, offset=BULK_MAX_BYTES, size_bytes=200_000)
    _, bulk = await peer.call_for_bulk(request, wire.BlocksRead)
    assert len(bulk) == 1000


async def test_several_transfers_at_once(owner: Owner, identities: dict[str, LocalIdentity]) -> None:
    """Both directions full: nobody may wait for the other to read first."""
    peer = owner.holder(identities["holder"])

    async def transfer() -> None:
        for _ in range(3):
            await check_transfers(owner, peer)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(transfer)


async def test_an_owner_that_restarts_is_found_again(
    nursery: trio.Nursery, service: FileService, identities: dict[str, LocalIdentity]
) -> None:
    first = Owner(nursery, service, identities["owner"])
    async with trio.open_nursery() as inner:
        await inner.start(first.server.run, [first.listener])
        peer = first.holder(identities["holder"])
        await peer.call(look_up(b"x"), wire.Done)
        inner.cancel_scope.cancel()
    await nursery.start(first.server.run, [listen("127.0.0.1", first.port)])
    await peer.call(look_up(b"y"), wire.Done)
    assert peer.epoch == 1


# ---------------------------------------------------------------- who may not


class Told:
    """Warnings of the owner, the holder's left out."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    async def wait_line(self) -> str:
        """The first; the test's own deadline limits the wait."""
        while True:
            for record in self._caplog.records:
                if record.name in ("omfs.net.server", "omfs.net.accepting") and record.levelno >= logging.WARNING:
                    return record.message
            await trio.sleep(0.01)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return Told(caplog)


async def check_undisturbed(owner: Owner, friend: Peer) -> None:
    assert friend.epoch == 0
    await friend.call(look_up(b"undisturbed"), wire.Done)
    assert len(owner.server.sessions) == 1


@pytest.fixture
async def friend(owner: Owner, identities: dict[str, LocalIdentity]) -> Peer:
    friend = owner.holder(identities["holder"])
    await friend.call(look_up(b"x"), wire.Done)
    return friend


async def test_a_node_of_another_cluster(
    owner: Owner, friend: Peer, identities: dict[str, LocalIdentity], told: Told
) -> None:
    peer = owner.holder(identities["stranger"])
    with pytest.raises(HelloRefused, match=r"TLS: its certificate is not one of this cluster"):
        await peer.call(look_up(b"x"), wire.Done)
    assert "TLS handshake failed" in await told.wait_line()
    await check_undisturbed(owner, friend)


async def test_a_node_of_another_cluster_that_trusts_everybody(
    owner: Owner, friend: Peer, identities: dict[str, LocalIdentity], told: Told
) -> None:
    context = identities["stranger"].client_context
    assert context is not None
    careless = LocalIdentity(HOLDER, "tls", None, context)
    context.verify_mode = ssl.CERT_NONE
    peer = owner.holder(careless)
    with pytest.raises(HelloRefused):
        await peer.call(look_up(b"x"), wire.Done)
    assert "its certificate is not one of this cluster" in await told.wait_line()
    context.verify_mode = ssl.CERT_REQUIRED
    await check_undisturbed(owner, friend)


async def test_a_client_without_a_certificate(owner: Owner, friend: Peer, told: Told) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    peer = owner.holder(LocalIdentity(HOLDER, "tls", None, context))
    with pytest.raises(HelloRefused):
        await peer.call(look_up(b"x"), wire.Done)
    assert "it showed no certificate" in await told.wait_line()
    await check_undisturbed(owner, friend)


async def test_a_node_that_says_it_is_another(
    owner: Owner, friend: Peer, identities: dict[str, LocalIdentity], told: Told
) -> None:
    peer = owner.holder(identities["third"], node_id=HOLDER)
    with pytest.raises(HelloRefused, match="the certificate is node 3's but the caller says it is node 1"):
        await peer.call(look_up(b"x"), wire.Done)
    assert "refused: the certificate is node 3's" in await told.wait_line()
    await check_undisturbed(owner, friend)


async def test_an_owner_that_is_another(owner: Owner, friend: Peer, identities: dict[str, LocalIdentity]) -> None:
    peer = owner.holder(identities["third"], node_id=3, wanted=HOLDER)
    with pytest.raises(HelloRefused, match="wanted node 1, but the certificate there is node 2's"):
        await peer.call(look_up(b"x"), wire.Done)
    await check_undisturbed(owner, friend)


async def test_a_plain_client_of_a_tls_owner(owner: Owner, friend: Peer, told: Told) -> None:
    peer = owner.holder(NO_TLS, timeo_s=GIVES_UP_S)
    with pytest.raises(NodeDown):
        await peer.call(look_up(b"x"), wire.Done)
    assert "sec=" in str(peer.describe()["fault"])
    assert "it does not speak TLS 1.3 (is it sec=none there?)" in await told.wait_line()
    await check_undisturbed(owner, friend)


async def test_a_tls_client_of_a_plain_owner(
    plain_owner: Owner, identities: dict[str, LocalIdentity], told: Told
) -> None:
    friend = plain_owner.holder(NO_TLS)
    await friend.call(look_up(b"x"), wire.Done)
    peer = plain_owner.holder(identities["holder"], timeo_s=GIVES_UP_S)
    with pytest.raises(NodeDown):
        await peer.call(look_up(b"x"), wire.Done)
    assert "sec=" in str(peer.describe()["fault"])
    assert "it looks like TLS, so its sec= differs from ours" in await told.wait_line()
    await check_undisturbed(plain_owner, friend)


async def test_a_client_that_never_shakes_hands(
    owner: Owner, friend: Peer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HELLO_TIMEOUT_S", 0.2)
    with socket.create_connection(("127.0.0.1", owner.port)):
        assert "no TLS handshake within 0.2 s" in await told.wait_line()
    await check_undisturbed(owner, friend)


async def test_too_many_who_never_shake_hands(owner: Owner, friend: Peer, told: Told) -> None:
    with contextlib.ExitStack() as strangers:
        for _ in range(STRANGERS_MAX + 1):
            strangers.enter_context(socket.create_connection(("127.0.0.1", owner.port)))
        assert f"closed, {STRANGERS_MAX} others have not said yet who they are" in await told.wait_line()
    await check_undisturbed(owner, friend)


async def test_a_client_that_goes_away_in_the_handshake(owner: Owner, friend: Peer, told: Told) -> None:
    socket.create_connection(("127.0.0.1", owner.port)).close()
    line = await told.wait_line()
    assert line.startswith("127.0.0.1:")
    await check_undisturbed(owner, friend)
