"""Answers that are overtaken: what they say of directories, names and ACLs must not be kept.

The kernel lets no two changes of one directory run at once; the mount does not rely on that.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.export import bare
from tests.unit.test_fewer_messages import ACL_VALUE
from tests.unit.twonodes import node, other, place, room
from tests.unit.wholemount import Node

__all__ = ["node", "other", "place", "room"]  # fixtures


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def must_be_as_on_disk(node: Node, number: int, path: Path) -> None:
    told, status = await node.kernel.stat(number), os.stat(path)
    assert told[4] * 10**9 + told[7] == status.st_mtime_ns
    assert told[5] * 10**9 + told[8] == status.st_ctime_ns
    assert told[10] == status.st_nlink


async def test_an_answer_that_another_change_overtook(node: Node, place: Path, nursery: trio.Nursery) -> None:
    top = await node.kernel.walk(place)
    taken = node.line.late[wire.CreateFile] = trio.Event()
    nursery.start_soon(node.kernel.make, top, b"early")
    await settled()
    await node.kernel.make_directory(top, b"sub")
    taken.set()
    await settled()
    await must_be_as_on_disk(node, top, place)


async def test_an_answer_that_was_overtaken_at_the_owner(node: Node, place: Path, nursery: trio.Nursery) -> None:
    """Begun last, executed first, and answered last."""
    top = await node.kernel.walk(place)
    reached = node.line.held[wire.CreateFile] = trio.Event()
    nursery.start_soon(node.kernel.make, top, b"late")
    await settled()
    taken = node.line.late[wire.MakeDirectory] = trio.Event()
    nursery.start_soon(node.kernel.make_directory, top, b"sub")
    await settled()
    reached.set()
    await settled()
    taken.set()
    await settled()
    await must_be_as_on_disk(node, top, place)


async def test_a_directory_that_was_moved_meanwhile(node: Node, place: Path, nursery: trio.Nursery) -> None:
    top = await node.kernel.walk(place)
    sub = await node.kernel.make_directory(top, b"sub")
    taken = node.line.late[wire.CreateFile] = trio.Event()
    nursery.start_soon(node.kernel.make, sub, b"file")
    await settled()
    await node.kernel.rename(top, b"sub", top, b"moved")
    taken.set()
    await settled()
    await must_be_as_on_disk(node, sub, place / "moved")


async def test_a_name_that_was_made_again(node: Node, place: Path, nursery: trio.Nursery) -> None:
    top = await node.kernel.walk(place)
    sub = await node.kernel.make_directory(top, b"sub")
    await node.kernel.make(sub, b"name")
    taken = node.line.late[wire.RemoveName] = trio.Event()
    nursery.start_soon(node.kernel.remove, sub, b"name")
    await settled()
    await node.kernel.make(sub, b"name")
    taken.set()
    await settled()
    node.kernel.names.clear()
    assert await node.kernel.is_there(sub, b"name")


async def test_a_name_that_is_made_after_it_was_listed(node: Node, place: Path, nursery: trio.Nursery) -> None:
    """The listing was read before our own change, and is looked at after it."""
    (place / "old").touch()
    top = await node.kernel.walk(place)
    taken = node.line.late[wire.ReadDirectory] = trio.Event()
    nursery.start_soon(node.kernel.list_long, top)
    await settled()
    await node.kernel.make(top, b"ours")
    taken.set()
    await settled()
    node.kernel.names.clear()
    assert await node.kernel.is_there(top, b"ours")


async def test_a_name_that_is_being_made_while_it_is_listed(node: Node, place: Path, nursery: trio.Nursery) -> None:
    """The change begins before the listing, and is made after it."""
    (place / "old").touch()
    top = await node.kernel.walk(place)
    reached = node.line.held[wire.CreateFile] = trio.Event()
    nursery.start_soon(node.kernel.make, top, b"ours")
    await settled()
    node.kernel.names.clear()
    await node.kernel.list_long(top)
    reached.set()
    await settled()
    node.kernel.names.clear()
    assert await node.kernel.is_there(top, b"ours")


async def test_a_listing_that_does_not_show_all(node: Node, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare, "TELLING", frozenset())
    top = await node.kernel.walk(place)
    sub = await node.kernel.make_directory(top, b"sub")
    await node.kernel.list_long(sub)
    node.asked()
    assert not await node.kernel.is_there(sub, b"name")
    assert node.asked() == {"LookUp": 1}


async def test_what_we_said_is_absent_is_forgotten_with_the_directory(node: Node, other: Node, place: Path) -> None:
    """After two changes without a question of ours the owner takes the lease, and tells of no name any more."""
    top = await node.kernel.walk(place)
    sub = await node.kernel.make_directory(top, b"sub")
    assert not await node.kernel.is_there(sub, b"x")
    there = await other.kernel.walk(place / "sub")
    for name in (b"a", b"b", b"x"):
        await other.kernel.make(there, name)
    assert node.session.seen[-1] == wire.RecallLease(
        node.session.seen[-1].handle, node.session.seen[-1].serial, wire.Mode.NONE
    )
    assert await node.kernel.is_there(sub, b"x")


async def test_an_acl_that_is_being_set_while_it_is_listed(node: Node, place: Path, nursery: trio.Nursery) -> None:
    """The change begins before the listing, and is made after it."""
    top = await node.kernel.walk(place)
    file = await node.kernel.make(top, b"file")
    assert not await node.kernel.has_acl(file)
    reached = node.line.held[wire.SetXattr] = trio.Event()
    name = b"system.posix_acl_access"
    nursery.start_soon(node.operations.setxattr, file, name, ACL_VALUE, node.hook)
    await settled()
    await node.kernel._read_directory(top, 0, 4096)
    reached.set()
    await settled()
    assert await node.kernel.has_acl(file)


@pytest.mark.parametrize("who", ["we", "they"])
async def test_a_new_directory_that_was_known_before_its_answer(
    node: Node, other: Node, place: Path, nursery: trio.Nursery, who: str
) -> None:
    """It is not empty any more."""
    top = await node.kernel.walk(place)
    taken = node.line.late[wire.MakeDirectory] = trio.Event()
    nursery.start_soon(node.kernel.make_directory, top, b"new")
    await settled()
    node.kernel.names.clear()
    await node.kernel.list_long(top)
    new = await node.kernel.look_up(top, b"new")
    maker = node if who == "we" else other
    await maker.kernel.make(await maker.kernel.walk(place / "new"), b"name")
    await node.kernel.stat(new)
    taken.set()
    await settled()
    node.kernel.names.clear()
    assert await node.kernel.is_there(new, b"name")
    await must_be_as_on_disk(node, new, place / "new")
