"""Remote nodes and files against a fake peer: reopening, what is owed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import cast

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.config import WRITTEN_CLOSES_MAX
from omfs.errors import HelloRefused, Interrupted, NodeDown, OmfsError, OpenLost, OutcomeUnknown, RemoteFailure
from omfs.mount.opening import create_file, open_directory, open_file, open_unknown
from omfs.mount.ranges import Range
from omfs.mount.remote import RemoteNode
from omfs.net.peer import Peer
from tests.unit.fakepeer import ATTRIBUTES, USER, FakePeer, opened

ALL = Range(0, 2**63 - 1, fcntl.F_WRLCK, 77)
INDEFINITE = [NodeDown("away"), Interrupted("killed"), HelloRefused("no"), OutcomeUnknown("restarted")]


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
def node(peer: FakePeer) -> RemoteNode:
    return RemoteNode(cast(Peer, peer))


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
    assert await file.write(None, b"abcd") == 4
    peer.restart()
    await file.set_attributes(wire.SetAttributes(b"handle", USER, size_bytes=3))
    assert peer.of(wire.SetAttributes)[-1].open_id == file.open_id


async def test_a_program_is_opened_again_as_one(peer: FakePeer, node: RemoteNode) -> None:
    file, _ = await open_file(node, b"handle", os.O_RDONLY | 0x20, USER, execute=True)
    peer.restart()
    await file.read(0, 10)
    assert [(request.flags, request.execute) for request in peer.of(wire.OpenFile)] == [(os.O_RDONLY, True)] * 2


async def test_tasks_that_meet_a_restart_together_open_once(peer: FakePeer, node: RemoteNode) -> None:
    file = await opened(node)
    peer.restart()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(file.read, 0, 10)
    assert len(peer.of(wire.OpenFile)) == 2
    assert peer.opens == {file.open_id}


async def test_both_files_of_a_copy_are_opened_again(peer: FakePeer, node: RemoteNode) -> None:
    source, (target, _) = await opened(node), await open_file(node, b"other", os.O_RDWR, USER)
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
        await file.write(None, b"x")
    assert len(peer.of(wire.AppendBlocks)) == 1


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


@pytest.mark.parametrize("error", INDEFINITE)
async def test_a_close_that_did_not_arrive_is_made_good(
    peer: FakePeer,
    node: RemoteNode,
    error: OmfsError,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    nursery.start_soon(node.tend)
    first, second = await opened(node), await opened(node)
    await first.locks.lock_range(11, ALL, True)
    peer.refuse = {wire.CloseFile: error, wire.ReleaseLocks: error}
    await first.close()
    peer.refuse = {}
    await second.close()
    peer.asked.clear()
    await trio.sleep(3)
    assert not peer.opens
    assert [type(request) for request in peer.asked] == [wire.ReleaseLocks, wire.CloseFile, wire.CloseFiles], "in order"


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


async def test_files_that_are_written_one_after_the_other_are_closed_some_together(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Later than one alone, with which somebody may wait for the end of its lease."""
    nursery.start_soon(node.tend)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(30):
        await (await opened(node, os.O_WRONLY)).close()
        await trio.sleep(0.0012)
    await trio.sleep(0.01)
    assert not peer.opens
    assert len(peer.of(wire.CloseFiles)) < 10
    await (await opened(node, os.O_WRONLY)).close()
    await trio.sleep(0.002)
    assert not peer.opens


async def test_files_are_closed_together(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(3):
        await (await opened(node, os.O_RDONLY)).close()
    for _ in range(WRITTEN_CLOSES_MAX + 1):
        await (await opened(node, os.O_WRONLY)).close()
    assert len(peer.opens) == 3 + WRITTEN_CLOSES_MAX + 1
    await trio.sleep(0.005)
    assert len(peer.opens) == 3, "somebody may want to execute what was written"
    assert len(peer.of(wire.CloseFiles)) == 2
    await trio.sleep(0.1)
    assert not peer.opens
    assert len(peer.of(wire.CloseFiles)) == 3
    assert not peer.of(wire.CloseFile)
    await (await opened(node, os.O_RDONLY)).close()
    await trio.sleep(0.1)
    assert not peer.opens


async def test_locks_are_taken_again_soon_after_a_restart(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(node.tend)
    locked, idle = await opened(node), await opened(node)
    await locked.locks.lock_file(fcntl.LOCK_EX, True)
    peer.restart()
    await trio.sleep(3)
    assert peer.opens == {locked.open_id}
    assert idle.open_id not in peer.opens
    assert len(peer.of(wire.LockFile)) == 2


async def test_the_root_is_asked_once_and_shown_while_the_node_is_away(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock
) -> None:
    assert await node.get_root_attributes() == wire.AttributesGot(ATTRIBUTES)
    assert await node.root() == b"root"
    assert len(peer.of(wire.AttachTree)) == 1
    peer.state = "down"
    assert await node.get_root_attributes() == wire.AttributesGot(ATTRIBUTES)
    peer.state, peer.silence = "up", True
    begun = trio.current_time()
    assert await node.get_root_attributes() == wire.AttributesGot(ATTRIBUTES)
    assert trio.current_time() - begun <= 1
    peer.silent_s = 5.0
    begun = trio.current_time()
    assert await node.get_root_attributes() == wire.AttributesGot(ATTRIBUTES)  # not waited for a second time
    assert trio.current_time() == begun


@pytest.mark.parametrize("state", ["up", "connecting"])
async def test_who_looks_at_a_silent_root_is_told_and_who_walks_through_it_waits(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, state: str
) -> None:
    answers: list[bytes] = []

    async def ask(handle: bytes) -> bytes:
        await peer.call(wire.GetXattr(handle, b"name", USER), wire.Done)
        return handle

    async def walk() -> None:
        answers.append(await node.ask_of_root(ask, lambda: True))

    peer.state, peer.silence, peer.silent_s = state, True, 5.0
    for longest_s in (1.0, 0.1, 0.1):  # waited for once
        begun_s = trio.current_time()
        with pytest.raises(NodeDown):
            await node.ask_of_root(ask, lambda: False)
        assert trio.current_time() - begun_s <= longest_s
    nursery.start_soon(walk)
    await trio.sleep(60)
    assert not answers
    peer.state, peer.silence, peer.silent_s = "up", False, 0.0
    nursery.cancel_scope.cancel()  # the fake never answers what it was asked while silent
    assert await node.ask_of_root(ask, lambda: False) == b"root"


@pytest.mark.parametrize("refusal", [None, RemoteFailure(61)])
async def test_a_root_that_answered_is_waited_for_again(
    peer: FakePeer, node: RemoteNode, autojump_clock: trio.testing.MockClock, refusal: OmfsError | None
) -> None:
    """Also where the answer was "no such attribute"."""

    async def ask(handle: bytes) -> None:
        if refusal is not None and not peer.silence:
            raise refusal
        await peer.call(wire.GetXattr(handle, b"name", USER), wire.Done)

    with contextlib.nullcontext() if refusal is None else pytest.raises(RemoteFailure):
        await node.ask_of_root(ask, lambda: False)
    peer.silence, peer.silent_s = True, 5.0
    begun_s = trio.current_time()
    with pytest.raises(NodeDown):
        await node.ask_of_root(ask, lambda: False)
    assert trio.current_time() - begun_s == pytest.approx(1.0, abs=0.01)


async def test_a_stale_root_is_asked_again(peer: FakePeer, node: RemoteNode) -> None:
    await node.get_root_attributes()
    peer.refuse[wire.GetAttributes] = RemoteFailure(116)
    assert await node.get_root_attributes() == wire.AttributesGot(ATTRIBUTES)
    assert len(peer.of(wire.AttachTree)) == 2


async def test_a_file_opened_from_the_cache_makes_no_message_until_it_must(peer: FakePeer, node: RemoteNode) -> None:
    file = open_unknown(node, b"handle", os.O_RDONLY, USER, execute=False)
    await file.close()
    assert not peer.asked
    file = open_unknown(node, b"handle", os.O_RDONLY, USER, execute=False)
    assert await file.read(0, 10) == b"data"
    assert [type(request) for request in peer.asked] == [wire.OpenFile, wire.ReadBlocks]
    assert not node.unopened
    await file.close()
    assert node.files == {}


@pytest.mark.parametrize("handle", [b"handle", None])
async def test_before_it_may_change_or_go_it_is_opened_once(
    peer: FakePeer, node: RemoteNode, handle: bytes | None
) -> None:
    files = [open_unknown(node, name, os.O_RDONLY, USER, execute=False) for name in (b"handle", b"handle", b"other")]
    for _ in range(2):
        await node.open_unopened(handle)
    names = [b"handle", b"handle"] if handle is not None else [b"handle", b"handle", b"other"]
    assert sorted(request.handle for request in peer.of(wire.OpenFile)) == names
    assert len(node.unopened) == 3 - len(names)
    for file in files:
        await file.close()
    assert not node.unopened


async def test_a_name_is_removed_only_when_what_is_open_is_open_at_its_owner(peer: FakePeer, node: RemoteNode) -> None:
    open_unknown(node, b"handle", os.O_RDONLY, USER, execute=False)
    await node.remove_name(b"dir", b"name", False, USER)
    open_unknown(node, b"handle", os.O_RDONLY, USER, execute=False)
    await node.rename(b"dir", b"other", b"dir", b"name", 0, USER)
    kinds = [type(request) for request in peer.asked]
    assert kinds == [wire.OpenFile, wire.RemoveName, wire.OpenFile, wire.RenameName]


async def test_closed_while_it_is_opened_it_is_given_back(peer: FakePeer, node: RemoteNode) -> None:
    file = open_unknown(node, b"handle", os.O_RDONLY, USER, execute=False)

    def close_it(request: wire.Message) -> None:
        if isinstance(request, wire.OpenFile):
            with pytest.raises(StopIteration):  # it waits for nothing
                file.close().send(None)

    peer.before = close_it
    await file.open_now()
    assert [type(request) for request in peer.asked] == [wire.OpenFile, wire.CloseFile]
    assert not peer.opens


async def test_an_owner_that_refuses_is_asked_again(peer: FakePeer, node: RemoteNode) -> None:
    file = open_unknown(node, b"handle", os.O_RDONLY, USER, execute=False)
    peer.refuse[wire.OpenFile] = RemoteFailure(13, "no")
    await node.open_unopened()
    assert node.unopened == {file}
    with pytest.raises(RemoteFailure):
        await file.read(0, 10)
    peer.refuse.clear()
    assert await file.read(0, 10) == b"data"
