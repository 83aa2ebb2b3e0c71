"""A descriptor is shown to the mount by a mark; what the open file behind it has locked goes over under its name."""

from __future__ import annotations

import fcntl
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from omfs import wire
from omfs.errors import ControlError, Interrupted
from omfs.mount.movinglocks import MovingLocks
from omfs.mount.ranges import Range
from omfs.mount.remote import RemoteNode
from omfs.net.control import LockedRange, MarkedOpen
from omfs.net.peer import Peer
from tests.unit.fakepeer import FakePeer, opened

MARK, OTHER, UNSEEN = 1 << 61, (1 << 61) + 1, (1 << 61) + 2
OPEN_OWNER, PROCESS_OWNER = 11, 12  # lock owners, as the kernel tells them
MINE = Range(0, 9, fcntl.F_WRLCK, 77)
OWN = Range(20, 29, fcntl.F_RDLCK, 77)
NAME = wire.Moving("guest/2", 7, 3)


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
def node(peer: FakePeer) -> RemoteNode:
    return RemoteNode(cast(Peer, peer))


async def locked(node: RemoteNode) -> tuple[MovingLocks, Any]:
    """An open file with a flock, an OFD lock, and a POSIX lock of process 77; it was shown with MARK."""
    moving, file = MovingLocks({node.node_id: node}), await opened(node)
    file.inode = cast(Any, SimpleNamespace(id=5, lease=None))
    await file.locks.lock_file(fcntl.LOCK_EX, False)
    await file.locks.lock_range(OPEN_OWNER, MINE, False)
    await file.locks.lock_range(PROCESS_OWNER, OWN, False)
    await moving.expect_marks({"marks": [MARK, OTHER, UNSEEN]})
    assert moving.is_mark(file, OPEN_OWNER, MARK)
    return moving, file


async def test_what_an_open_file_has_locked_is_told_by_its_mark(peer: FakePeer, node: RemoteNode) -> None:
    moving, file = await locked(node)
    assert moving.is_mark(file, OPEN_OWNER, OTHER)
    told = await moving.tell_marked({"marks": [MARK, OTHER, UNSEEN]})
    assert told.opens == (MarkedOpen((MARK, OTHER), fcntl.LOCK_EX, ((fcntl.F_WRLCK, 0, 9),)),)
    await moving.forget_marks({"marks": [MARK, OTHER, UNSEEN]})
    assert not moving.is_mark(file, OPEN_OWNER, MARK)


@pytest.mark.parametrize("flock", [fcntl.LOCK_EX, fcntl.LOCK_UN])
async def test_who_looks_again_finds_the_file_again(peer: FakePeer, node: RemoteNode, flock: int) -> None:
    """Though it is known by then whose its ranges are."""
    moving, file = await locked(node)
    await file.locks.lock_file(flock, False)
    told = await moving.tell_locked({})
    assert told.inodes == (5,)
    assert told.ranges == (LockedRange(node.node_id, 5, 77, fcntl.F_RDLCK, 20, 29),)


@pytest.mark.parametrize("refused", [wire.LockFile, wire.LockRange])
async def test_what_is_in_doubt_is_settled_first(
    peer: FakePeer, node: RemoteNode, refused: type[wire.LockFile | wire.LockRange]
) -> None:
    """As far as the owner answers."""
    moving, file = await locked(node)
    by_flock = refused is wire.LockFile
    peer.refuse[refused] = Interrupted()
    with pytest.raises(Interrupted):
        await (
            file.locks.lock_file(fcntl.LOCK_SH, True) if by_flock else file.locks.lock_range(PROCESS_OWNER, OWN, True)
        )

    async def told() -> tuple[object, object]:
        unsure = (await moving.tell_locked({})).unsure
        return unsure, (await moving.tell_marked({"marks": [MARK]})).opens[0].flock

    assert await told() == (((), None) if by_flock else ((77,), fcntl.LOCK_EX))
    peer.refuse.clear()
    assert await told() == ((), fcntl.LOCK_EX)


async def test_it_is_offered_under_its_name(peer: FakePeer, node: RemoteNode) -> None:
    moving, file = await locked(node)
    before = len(peer.of(wire.LockRange))
    offer = {"attempt": "guest/2", "processes": {77: 7}, "opens": {MARK: [7, 3]}}
    assert await moving.offer(msgspec.json.decode(msgspec.json.encode(offer))) == {"offered": 2}
    assert peer.of(wire.LockFile)[-1] == wire.LockFile(file.open_id, fcntl.LOCK_EX, False, NAME)
    assert peer.of(wire.LockRange)[before:] == [
        wire.LockRange(file.open_id, PROCESS_OWNER, OWN.kind, 20, 29, 77, False, wire.Moving("guest/2", 7)),
        wire.LockRange(file.open_id, OPEN_OWNER, MINE.kind, 0, 9, 77, False, NAME),
    ]


async def test_it_is_taken_under_its_name(peer: FakePeer, node: RemoteNode) -> None:
    moving, file = MovingLocks({node.node_id: node}), await opened(node)
    await moving.expect_marks({"marks": [MARK, UNSEEN]})
    assert moving.is_mark(file, OPEN_OWNER, MARK)
    wanted = {"process": 7, "descriptor": 3, "pid": 88, "flock": fcntl.LOCK_SH, "ranges": [[fcntl.F_WRLCK, 0, 9]]}
    await moving.take({"attempt": "guest/2", "opens": [{"mark": MARK, **wanted}]})
    assert peer.of(wire.LockFile) == [wire.LockFile(file.open_id, fcntl.LOCK_SH, False, NAME)]
    assert peer.of(wire.LockRange) == [wire.LockRange(file.open_id, OPEN_OWNER, fcntl.F_WRLCK, 0, 9, 88, False, NAME)]
    assert (file.locks.flock, file.locks.owned_ranges()) == (fcntl.LOCK_SH, [(OPEN_OWNER, MINE._replace(pid=88))])
    with pytest.raises(ControlError, match="mark"):
        await moving.take({"attempt": "guest/2", "opens": [{"mark": UNSEEN, **wanted}]})
