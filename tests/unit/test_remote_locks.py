"""Locks of remote files against a fake peer: taken again after a restart, lost, and of unknown outcome."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.errors import (
    HelloRefused,
    Interrupted,
    LockLost,
    NodeDown,
    OmfsError,
    OpenLost,
    OutcomeUnknown,
    RemoteFailure,
)
from omfs.mount.opening import open_file
from omfs.mount.ranges import Range
from omfs.mount.remote import RemoteNode
from omfs.net.peer import Peer
from tests.unit.fakepeer import USER, FakePeer, opened

ALL = Range(0, 2**63 - 1, fcntl.F_WRLCK, 77)
INDEFINITE = [NodeDown("away"), Interrupted("killed"), HelloRefused("no"), OutcomeUnknown("restarted")]


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
def node(peer: FakePeer) -> RemoteNode:
    return RemoteNode(cast(Peer, peer))


async def test_locks_are_taken_again(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    await file.locks.lock_file(fcntl.LOCK_EX, True)
    await file.locks.lock_range(11, ALL._replace(end=9), True)
    await file.locks.lock_range(12, Range(20, 29, fcntl.F_RDLCK, 78), False)
    await file.locks.lock_range(11, Range(4, 5, fcntl.F_UNLCK, 77), False)
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
        await file.locks.lock_file(fcntl.LOCK_EX, True)
    else:
        await file.locks.lock_range(11, ALL, True)
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
            await other.write(None, b"x")
    else:
        assert await other.read(0, 1) == b"data"


@pytest.mark.parametrize("how", ["write", "append", "allocate", "truncate", "copy from", "copy to"])
async def test_what_meets_the_restart_itself_does_not_go_on_without_its_lock(
    peer: FakePeer, node: RemoteNode, how: str
) -> None:
    file, (other, _) = await opened(node), await open_file(node, b"other", os.O_RDWR, USER)
    await file.locks.lock_file(fcntl.LOCK_EX, True)
    peer.restart()
    peer.refuse[wire.LockFile] = RemoteFailure(11)
    calls: dict[str, Callable[[], Any]] = {
        "write": lambda: file.write(0, b"x"),
        "append": lambda: file.write(None, b"x"),
        "allocate": lambda: file.allocate(0, 0, 1),
        "truncate": lambda: file.set_attributes(wire.SetAttributes(b"handle", USER, size_bytes=0)),
        "copy from": lambda: file.copy_to(0, other, 0, 1),
        "copy to": lambda: other.copy_to(0, file, 0, 1),
    }
    with pytest.raises(LockLost):
        await calls[how]()
    changing = (wire.WriteBlocks, wire.AppendBlocks, wire.AllocateSpace, wire.SetAttributes, wire.CopyRange)
    for request in (request for kind in changing for request in peer.of(kind)):
        used = request.target_open_id if isinstance(request, wire.CopyRange) else request.open_id
        assert used not in peer.opens, "executed without the lock"


@pytest.mark.parametrize("error", [NodeDown("away"), HelloRefused("no"), Interrupted("killed"), OpenLost("again")])
async def test_a_second_mishap_during_recovery_loses_no_lock(
    peer: FakePeer,
    node: RemoteNode,
    error: OmfsError,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    await file.locks.lock_file(fcntl.LOCK_EX, True)
    peer.restart()
    peer.refuse[wire.LockFile] = error
    with pytest.raises(type(error)):
        await file.read(0, 1)
    del peer.refuse[wire.LockFile]
    assert await file.write(0, b"abc") == 3
    assert peer.of(wire.LockFile)[-1] == wire.LockFile(file.open_id, fcntl.LOCK_EX, False)
    await trio.sleep(3)
    assert peer.opens == {file.open_id}, "what was opened in vain is closed again"


async def test_what_a_call_has_recovered_is_not_opened_twice(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    await file.locks.lock_file(fcntl.LOCK_EX, True)
    peer.restart()
    await file.read(0, 1)
    await trio.sleep(3)
    assert peer.opens == {file.open_id}
    assert len(peer.of(wire.LockFile)) == 2, "a second open would be refused the lock by the first"


async def test_a_file_that_is_closed_while_it_is_recovered_stays_closed(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    await file.locks.lock_file(fcntl.LOCK_EX, True)
    await file.locks.lock_range(11, ALL, True)
    peer.restart()

    def close_meanwhile(request: wire.Message) -> None:
        if isinstance(request, wire.OpenFile):
            peer.before = None
            nursery.start_soon(file.close)

    peer.before = close_meanwhile
    await trio.sleep(3)
    assert peer.of(wire.LockRange)[-1].open_id != file.open_id, "the locks were being taken again"
    assert not peer.opens
    assert peer.of(wire.ReleaseLocks)[-1] == wire.ReleaseLocks(peer.of(wire.LockRange)[-1].open_id, 11)


async def test_locks_that_end_while_they_are_taken_again_do_not_stay(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    await file.locks.lock_range(11, ALL._replace(end=9), True)
    await file.locks.lock_range(12, ALL._replace(start=10), True)
    peer.restart()

    def close_meanwhile(request: wire.Message) -> None:
        if isinstance(request, wire.OpenFile):
            peer.before = None
            nursery.start_soon(file.locks.release_ranges, 11)

    peer.before = close_meanwhile
    await trio.sleep(3)
    assert peer.opens == {file.open_id}, "recovered, and the mount lives"
    assert peer.of(wire.ReleaseLocks)[-1] == wire.ReleaseLocks(file.open_id, 11)
    assert peer.of(wire.LockRange)[-1].owner == 12


async def test_an_unexpected_fault_in_recovery_does_not_end_the_mount(
    peer: FakePeer,
    node: RemoteNode,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    await file.locks.lock_file(fcntl.LOCK_EX, True)
    monkeypatch.setattr(file, "_open_again", lambda: 1 // 0)
    peer.restart()
    await trio.sleep(3)
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()


# ---------------------------------------------------------------- locks whose outcome is not known


@pytest.mark.parametrize("error", INDEFINITE)
@pytest.mark.parametrize("before", [0, fcntl.LOCK_SH])
async def test_a_flock_of_unknown_outcome_is_undone(
    peer: FakePeer,
    node: RemoteNode,
    error: OmfsError,
    before: int,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    if before:
        await file.locks.lock_file(before, True)
    peer.refuse[wire.LockFile] = error
    with pytest.raises(type(error)):
        await file.locks.lock_file(fcntl.LOCK_EX, True)
    await trio.sleep(3)  # still away
    del peer.refuse[wire.LockFile]
    peer.asked.clear()
    await trio.sleep(3)
    assert peer.of(wire.LockFile) == [wire.LockFile(file.open_id, before or fcntl.LOCK_UN, False)]
    assert not node.doubtful


async def test_an_undo_never_follows_a_newer_lock(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    peer.refuse[wire.LockFile] = NodeDown("away")
    with pytest.raises(NodeDown):
        await file.locks.lock_file(fcntl.LOCK_EX, True)
    with pytest.raises(NodeDown):
        await file.locks.lock_file(fcntl.LOCK_EX, True)
    del peer.refuse[wire.LockFile]
    peer.asked.clear()
    await file.locks.lock_file(fcntl.LOCK_SH, True)
    await trio.sleep(3)
    assert [lock.operation for lock in peer.of(wire.LockFile)] == [fcntl.LOCK_UN, fcntl.LOCK_SH]


@pytest.mark.parametrize("error", INDEFINITE)
async def test_a_range_of_unknown_outcome_is_undone(
    peer: FakePeer,
    node: RemoteNode,
    error: OmfsError,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    await file.locks.lock_range(11, ALL._replace(end=9), True)
    peer.refuse[wire.LockRange] = error
    with pytest.raises(type(error)):
        await file.locks.lock_range(11, Range(5, 15, fcntl.F_RDLCK, 77), True)
    del peer.refuse[wire.LockRange]
    peer.asked.clear()
    await trio.sleep(3)
    assert [(lock.start, lock.end, lock.kind) for lock in peer.of(wire.LockRange)] == [
        (5, 9, fcntl.F_WRLCK),
        (10, 15, fcntl.F_UNLCK),
    ]
    assert not node.doubtful


async def test_a_close_releases_a_lock_of_unknown_outcome(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    peer.refuse[wire.LockRange] = NodeDown("away")
    with pytest.raises(NodeDown):
        await file.locks.lock_range(11, ALL, True)
    await file.close()
    assert peer.of(wire.ReleaseLocks) == [wire.ReleaseLocks(file.open_id, 11)]
    assert not node.doubtful


async def test_an_unlock_of_unknown_outcome_is_made_good(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    file = await opened(node)
    await file.locks.lock_file(fcntl.LOCK_EX, True)
    await file.locks.lock_range(11, ALL, True)
    peer.refuse = {wire.LockFile: NodeDown("away"), wire.LockRange: NodeDown("away")}
    with pytest.raises(NodeDown):
        await file.locks.lock_file(fcntl.LOCK_UN, False)
    peer.refuse = {wire.LockRange: NodeDown("away")}
    with pytest.raises(NodeDown):
        await file.locks.lock_range(11, ALL._replace(kind=fcntl.F_UNLCK), False)
    peer.refuse = {}
    await trio.sleep(3)
    assert peer.of(wire.LockFile)[-1].operation == fcntl.LOCK_UN
    assert peer.of(wire.LockRange)[-1].kind == fcntl.F_UNLCK


async def test_given_back_locks_are_not_taken_again(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    await file.locks.lock_file(fcntl.LOCK_SH, True)
    await file.locks.lock_file(fcntl.LOCK_UN, False)
    await file.locks.lock_range(11, ALL, True)
    await file.locks.lock_range(11, ALL._replace(kind=fcntl.F_UNLCK), True)
    assert not file.locks.are_held
    await file.locks.lock_range(11, ALL, True)
    await file.locks.release_ranges(11)
    peer.restart()
    peer.asked.clear()
    await file.read(0, 1)
    assert not peer.of(wire.LockFile)
    assert not peer.of(wire.LockRange)


async def test_a_close_asks_nothing_without_posix_locks(peer: FakePeer, node: RemoteNode) -> None:
    file, other = await opened(node), await opened(node)
    await other.locks.lock_range(11, ALL, True)
    await file.locks.release_ranges(12)
    assert not peer.of(wire.ReleaseLocks)
    await file.locks.release_ranges(11)  # any descriptor of the object
    assert peer.of(wire.ReleaseLocks) == [wire.ReleaseLocks(other.open_id, 11)]
    assert not other.locks.are_held


async def test_a_refused_lock_is_not_held(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    peer.refuse[wire.LockRange] = RemoteFailure(11)
    with pytest.raises(RemoteFailure):
        await file.locks.lock_range(11, ALL, False)
    assert not file.locks.are_held


async def test_what_may_be_locked(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    await file.locks.lock_range(11, ALL, False)
    assert (file.locks.owned_ranges(), file.locks.unsure, file.locks.flock) == ([(11, ALL)], [], 0)
    peer.refuse[wire.LockRange] = NodeDown("away")
    with pytest.raises(NodeDown):
        await file.locks.lock_range(11, ALL._replace(kind=fcntl.F_UNLCK), False)
    assert (file.locks.owned_ranges(), file.locks.unsure, file.locks.flock) == ([], [ALL.pid], 0)
    peer.refuse.clear()
    peer.refuse[wire.LockFile] = NodeDown("away")
    with pytest.raises(NodeDown):
        await file.locks.lock_file(fcntl.LOCK_EX, False)
    assert file.locks.flock is None


async def test_the_last_close_ends_locks_of_the_open_file_description(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    await file.locks.lock_range(99, ALL, True)
    await file.close()
    assert peer.of(wire.ReleaseLocks) == [wire.ReleaseLocks(file.open_id, 99)]
    assert not peer.opens
    assert not node.files
