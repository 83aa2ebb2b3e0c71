"""Remote nodes and files against a fake peer: reopening, locks, what is owed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.errors import NodeDown, OmfsError, OpenLost, OutcomeUnknown, RemoteFailure
from omfs.mount.ranges import Range
from omfs.mount.remote import RemoteNode
from omfs.mount.remotefile import LockLost, RemoteFile, create_file, open_directory, open_file
from omfs.net.peer import Peer

ATTRIBUTES = wire.Attributes(0o100644, 1, 0, 0, 0, 5, 8, 4096, 0, 0, 0, 9)
USER = wire.Caller(1000, 1000)
ALL = Range(0, 2**63 - 1, fcntl.F_WRLCK, 77)


class FakePeer:
    """An owner that can restart, go away, and give locks to somebody else."""

    node_id = 2
    silent_s = 0.0
    linger = None

    def __init__(self) -> None:
        self.state = "up"
        self.epoch = 0
        self.asked: list[wire.Message] = []
        self.opens: set[int] = set()
        self.refuse: dict[type, OmfsError] = {}
        self.before: Callable[[wire.Message], None] | None = None
        self.silence = False
        self._next = 100

    def restart(self) -> None:
        self.opens.clear()
        self.epoch += 1
        self._next += 1000

    async def call(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        return (await self.call_for_bulk(request, expect, bulk))[0]

    async def call_for_bulk(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        await trio.lowlevel.checkpoint()
        if self.silence:
            await trio.sleep_forever()
        if self.before is not None:
            self.before(request)
        if self.state == "down":
            raise NodeDown("down")
        self.asked.append(request)
        for name in ("open_id", "source_open_id", "target_open_id"):
            used = getattr(request, name, None)
            if used is not None and used not in self.opens:
                raise OpenLost("restarted")
        if type(request) in self.refuse:
            raise self.refuse[type(request)]
        if isinstance(request, wire.CloseFile):
            self.opens.remove(request.open_id)
        if isinstance(request, wire.CloseFiles):
            self.opens.difference_update(request.open_ids)
        return self._reply(request, bulk)

    def _reply(self, request: Any, bulk: Any) -> tuple[wire.Message, bytes]:
        match request:
            case wire.OpenFile() | wire.OpenDirectory() | wire.CreateFile():
                self._next += 1
                self.opens.add(self._next)
                if isinstance(request, wire.CreateFile):
                    return wire.FileCreated(self._next, b"new", ATTRIBUTES), b""
                return wire.FileOpened(self._next), b""
            case wire.ReadBlocks():
                return wire.BlocksRead(), b"data"
            case wire.WriteBlocks() | wire.AppendBlocks():
                return wire.BlocksWritten(len(bulk)), b""
            case wire.CopyRange():
                return wire.BlocksWritten(request.size_bytes), b""
            case wire.GetAttributes() | wire.SetAttributes():
                return wire.AttributesGot(ATTRIBUTES), b""
            case wire.AttachTree():
                return wire.Found(b"root", ATTRIBUTES), b""
            case wire.ReadDirectory():
                return wire.DirectoryRead((), True), b""
            case _:
                return wire.Done(), b""

    def of(self, kind: type) -> list[Any]:
        return [request for request in self.asked if type(request) is kind]


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
def node(peer: FakePeer) -> RemoteNode:
    return RemoteNode(cast(Peer, peer))


async def opened(node: RemoteNode, flags: int = os.O_RDWR) -> RemoteFile:
    return await open_file(node, b"handle", flags, USER)


async def test_only_flags_that_mean_something_travel(peer: FakePeer, node: RemoteNode) -> None:
    await opened(node, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT | os.O_NOFOLLOW | os.O_TRUNC | os.O_APPEND | 0x20)
    (request,) = peer.of(wire.OpenFile)
    assert request.flags == os.O_RDWR | os.O_TRUNC | os.O_APPEND
    await create_file(node, b"dir", b"name", 0o644, 0o22, os.O_WRONLY | os.O_EXCL | os.O_CREAT, USER)
    (request,) = peer.of(wire.CreateFile)
    assert request.flags == os.O_WRONLY | os.O_EXCL


async def test_after_a_restart_the_file_is_opened_again_and_the_call_repeated(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node, os.O_RDWR | os.O_TRUNC)
    first = file.open_id
    peer.restart()
    assert await file.read(0, 10) == b"data"
    again = peer.of(wire.OpenFile)[1]
    assert again.reclaim
    assert again.flags == os.O_RDWR, "a file must not be truncated twice"
    assert again.caller == USER
    assert file.open_id != first
    peer.restart()
    assert await file.write(0, b"abc") == 3
    peer.restart()
    assert await file.append(b"abcd") == 4
    peer.restart()
    await file.set_attributes(wire.SetAttributes(b"handle", USER, size_bytes=3))
    assert peer.of(wire.SetAttributes)[-1].open_id == file.open_id


async def test_tasks_that_meet_a_restart_together_open_once(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    peer.restart()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(file.read, 0, 10)
    assert len(peer.of(wire.OpenFile)) == 2
    assert peer.opens == {file.open_id}


async def test_both_files_of_a_copy_are_opened_again(peer: FakePeer, node: RemoteNode) -> None:
    source, target = await opened(node), await open_file(node, b"other", os.O_RDWR, USER)
    peer.restart()
    assert await source.copy_to(0, target, 5, 10) == 10
    assert {source.open_id, target.open_id} == peer.opens


async def test_a_directory_is_opened_again_as_one(peer: FakePeer, node: RemoteNode) -> None:
    listing = await open_directory(node, b"dir", USER)
    peer.restart()
    assert (await listing.read_directory(5, 100)).at_end
    assert len(peer.of(wire.OpenDirectory)) == 2


async def test_an_owner_that_always_restarts_is_given_up(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)

    def restart_before_reads(request: wire.Message) -> None:
        if isinstance(request, wire.ReadBlocks):
            peer.restart()

    peer.before = restart_before_reads
    with pytest.raises(OpenLost):
        await file.read(0, 1)


async def test_what_was_unlinked_while_open_is_stale_after_a_restart(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    peer.restart()
    peer.refuse[wire.OpenFile] = RemoteFailure(116)
    with pytest.raises(RemoteFailure) as failed:
        await file.read(0, 1)
    assert failed.value.errno == 116


async def test_an_append_whose_outcome_is_unknown_is_not_repeated(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    peer.refuse[wire.AppendBlocks] = OutcomeUnknown("restarted")
    with pytest.raises(OutcomeUnknown):
        await file.append(b"x")
    assert len(peer.of(wire.AppendBlocks)) == 1


# ---------------------------------------------------------------- locks


async def test_locks_are_taken_again(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    await file.lock_file(fcntl.LOCK_EX, True)
    await file.lock_range(11, ALL._replace(end=9), True)
    await file.lock_range(12, Range(20, 29, fcntl.F_RDLCK, 78), False)
    await file.lock_range(11, Range(4, 5, fcntl.F_UNLCK, 77), False)
    peer.restart()
    peer.asked.clear()
    await file.read(0, 1)
    assert peer.of(wire.LockFile) == [wire.LockFile(file.open_id, fcntl.LOCK_EX, False)]
    assert {(lock.owner, lock.start, lock.end, lock.kind, lock.wait) for lock in peer.of(wire.LockRange)} == {
        (11, 0, 3, fcntl.F_WRLCK, False),
        (11, 6, 9, fcntl.F_WRLCK, False),
        (12, 20, 29, fcntl.F_RDLCK, False),
    }


@pytest.mark.parametrize("kind", [wire.LockFile, wire.LockRange])
async def test_a_lost_lock_stops_the_files_use(peer: FakePeer, node: RemoteNode, kind: type) -> None:
    file, other = await opened(node), await opened(node)
    if kind is wire.LockFile:
        await file.lock_file(fcntl.LOCK_EX, True)
    else:
        await file.lock_range(11, ALL, True)
    peer.restart()
    peer.refuse[kind] = RemoteFailure(11)
    for _ in range(2):
        with pytest.raises(LockLost) as lost:
            await file.read(0, 1)
        assert lost.value.errno == 5
    with pytest.raises(LockLost):
        await file.write(0, b"x")
    if kind is wire.LockRange:  # POSIX locks belong to the process and the object
        with pytest.raises(LockLost):
            await other.append(b"x")
    else:
        assert await other.read(0, 1) == b"data"


async def test_given_back_locks_are_not_taken_again(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    await file.lock_file(fcntl.LOCK_SH, True)
    await file.lock_file(fcntl.LOCK_UN, False)
    await file.lock_range(11, ALL, True)
    await file.lock_range(11, ALL._replace(kind=fcntl.F_UNLCK), True)
    assert not file.holds_locks
    await file.lock_range(11, ALL, True)
    await file.release_ranges(11)
    peer.restart()
    peer.asked.clear()
    await file.read(0, 1)
    assert not peer.of(wire.LockFile)
    assert not peer.of(wire.LockRange)


async def test_a_close_asks_nothing_without_posix_locks(peer: FakePeer, node: RemoteNode) -> None:
    file, other = await opened(node), await opened(node)
    await other.lock_range(11, ALL, True)
    await file.release_ranges(12)
    assert not peer.of(wire.ReleaseLocks)
    await file.release_ranges(11)  # any descriptor of the object
    assert peer.of(wire.ReleaseLocks) == [wire.ReleaseLocks(other.open_id, 11)]
    assert not other.holds_locks


async def test_a_refused_lock_is_not_held(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    peer.refuse[wire.LockRange] = RemoteFailure(11)
    with pytest.raises(RemoteFailure):
        await file.lock_range(11, ALL, False)
    assert not file.holds_locks


async def test_the_last_close_ends_locks_of_the_open_file_description(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    await file.lock_range(99, ALL, True)
    await file.close()
    assert peer.of(wire.ReleaseLocks) == [wire.ReleaseLocks(file.open_id, 99)]
    assert not peer.opens
    assert not node.files


# ---------------------------------------------------------------- what is owed; restarts; the root


async def test_a_close_while_the_node_is_away_is_made_good(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    peer.state = "down"
    await file.close()
    await trio.sleep(5)
    assert peer.opens
    peer.state = "up"
    await trio.sleep(5)
    assert not peer.opens


async def test_nothing_is_owed_to_an_owner_that_restarted(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    peer.state = "down"
    await file.close()
    peer.restart()
    peer.state = "up"
    await trio.sleep(5)
    assert not peer.of(wire.CloseFile)


async def test_files_that_were_only_read_are_closed_together(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(3):
        await (await opened(node, os.O_RDONLY)).close()
    written = await opened(node, os.O_WRONLY)
    await written.close()
    assert peer.of(wire.CloseFile) == [wire.CloseFile(written.open_id)]
    assert len(peer.opens) == 3
    await trio.sleep(0.1)
    assert not peer.opens
    assert len(peer.of(wire.CloseFiles)) == 1
    await (await opened(node, os.O_RDONLY)).close()
    await trio.sleep(0.1)
    assert not peer.opens


async def test_locks_are_taken_again_soon_after_a_restart(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    locked, idle = await opened(node), await opened(node)
    await locked.lock_file(fcntl.LOCK_EX, True)
    peer.restart()
    await trio.sleep(3)
    assert peer.opens == {locked.open_id}
    assert idle.open_id not in peer.opens
    assert len(peer.of(wire.LockFile)) == 2


async def test_the_root_is_asked_once_and_shown_while_the_node_is_away(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock
) -> None:
    assert await node.get_root_attributes() == ATTRIBUTES
    assert await node.root() == b"root"
    assert len(peer.of(wire.AttachTree)) == 1
    peer.state = "down"
    assert await node.get_root_attributes() == ATTRIBUTES
    peer.state, peer.silence = "up", True
    begun = trio.current_time()
    assert await node.get_root_attributes() == ATTRIBUTES
    assert trio.current_time() - begun <= 1
    peer.silent_s = 5.0
    begun = trio.current_time()
    assert await node.get_root_attributes() == ATTRIBUTES  # not waited for a second time
    assert trio.current_time() == begun


async def test_a_stale_root_is_asked_again(peer: FakePeer, node: RemoteNode) -> None:
    await node.get_root_attributes()
    peer.refuse[wire.GetAttributes] = RemoteFailure(116)
    assert await node.get_root_attributes() == ATTRIBUTES
    assert len(peer.of(wire.AttachTree)) == 2
