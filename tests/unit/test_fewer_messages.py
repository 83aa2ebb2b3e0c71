"""What the owner is asked when programs make, remove and list files, and that nobody sees an old directory for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.errors import OutcomeUnknown
from omfs.mount import allnames, heldleases
from tests.unit.kerneldirectory import parse
from tests.unit.twonodes import node, other, place, room
from tests.unit.wholemount import Node

__all__ = ["node", "other", "place", "room"]

ACL_VALUE = bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff")


# ---------------------------------------------------------------- how often the owner is asked


async def test_making_files_in_a_new_directory(node: Node, place: Path) -> None:
    """As tar does."""
    top = await node.kernel.walk(place)
    node.asked()
    new = await node.kernel.make_directory(top, b"new")
    assert node.asked() == {"LookUp": 1, "MakeDirectory": 1}
    for number in range(10):
        await node.kernel.make(new, b"%d" % number, b"data")
    assert node.asked() == {"CreateFile": 10, "WriteBlocks": 10}
    inner = await node.kernel.make_directory(new, b"inner")
    await node.kernel.make(inner, b"file")
    assert node.asked() == {"MakeDirectory": 1, "CreateFile": 1}
    assert sorted(os.listdir(place / "new")) == [*map(str, range(10)), "inner"]


async def test_making_files_in_a_directory_that_was_there(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    await node.kernel.make(top, b"first")
    node.asked()
    await node.kernel.make(top, b"second", b"data")
    assert node.asked() == {"LookUp": 1, "CreateFile": 1, "WriteBlocks": 1}
    await node.kernel.list_long(top)
    node.asked()
    await node.kernel.make(top, b"third", b"data")
    assert node.asked() == {"CreateFile": 1, "WriteBlocks": 1}, "its names are known since it was listed"


async def test_a_file_that_was_just_made_is_known(node: Node, place: Path) -> None:
    """The kernel checks access to it and does not keep what comes with CREATE; the program may be in a container."""
    top = await node.kernel.walk(place)
    new = await node.kernel.make(top, b"new")
    node.asked()
    made = await node.kernel.stat(new)
    assert node.asked() == {}
    assert made[4] == (place / "new").stat().st_mtime_ns // 10**9


@pytest.mark.parametrize("change", ["unlink of another name", "link", "write", "other node"])
async def test_a_file_that_was_just_made_is_asked_for_when_it_may_have_changed(
    node: Node, other: Node, place: Path, change: str
) -> None:
    top = await node.kernel.walk(place)
    await node.kernel.make(top, b"old")
    new = await node.kernel.make(top, b"new", b"data" if change == "write" else b"")
    if change == "unlink of another name":
        await node.kernel.remove(top, b"old")
    elif change == "link":
        await node.operations.link(new, top, b"second", cast(Any, node.hook))
    elif change == "other node":
        there = await other.kernel.walk(place)
        await other.kernel.rename(there, b"new", there, b"moved")
    node.asked()
    status = await node.kernel.stat(new)
    assert node.asked() == {"GetAttributes": 1}
    assert status[10] == (2 if change == "link" else 1)


async def test_removing_files(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    for number in range(10):
        await node.kernel.make(top, b"%d" % number)
        await node.kernel.stat(await node.kernel.look_up(top, b"%d" % number))
    node.asked()
    for number in range(10):
        await node.kernel.remove(top, b"%d" % number)
    assert node.asked() == {"RemoveName": 10}


async def test_renaming(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    one, two = [await node.kernel.make_directory(top, name) for name in (b"one", b"two")]
    for number in range(5):
        await node.kernel.make(one, b"%d" % number)
    node.asked()
    for number in range(5):
        await node.kernel.rename(one, b"%d" % number, two, b"moved %d" % number)
    await node.kernel.make(one, b"x")
    await node.kernel.make(two, b"x")
    assert node.asked() == {"RenameName": 5, "CreateFile": 2}


async def test_listing_with_attributes(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    for number in range(200):
        (place / f"{number}").touch()
    node.asked()
    assert len(await node.kernel.list_long(top)) == 200
    assert set(node.asked()) == {"OpenDirectory", "ReadDirectory"}, "nothing for a single entry"
    await node.kernel.list_long(top)
    assert node.asked() == {}, "and the second time nothing at all"


# ---------------------------------------------------------------- and it is right


async def test_attributes_told_after_a_change_are_those_of_the_disk(node: Node, place: Path) -> None:
    kernel = node.kernel
    top = await kernel.walk(place)
    first, second = [await kernel.make_directory(top, name) for name in (b"one", b"two")]
    await kernel.make(first, b"file")
    await kernel.make_directory(first, b"inner")
    await kernel.rename(first, b"inner", second, b"moved")
    for number, path in ((top, place), (first, place / "one"), (second, place / "two")):
        node.asked()
        told, status = await kernel.stat(number), os.stat(path)
        assert (told[1], told[10]) == (status.st_size, status.st_nlink)
        assert told[4] * 10**9 + told[7] == status.st_mtime_ns
        assert told[5] * 10**9 + told[8] == status.st_ctime_ns


async def test_a_directory_that_is_removed_or_moved_is_asked_for(node: Node, place: Path) -> None:
    """Its own attributes change, though the call names only the directory that it is in."""
    kernel = node.kernel
    top = await kernel.walk(place)
    one = await kernel.make_directory(top, b"one")
    await kernel.make(one, b"file")
    await kernel.rename(top, b"one", top, b"two")
    assert (await kernel.stat(one))[8] == os.stat(place / "two").st_ctime_ns % 10**9
    await kernel.remove(one, b"file")
    await kernel.remove(top, b"two")
    node.asked()
    assert (await kernel.stat(one))[10] == 0, "it has no name left"
    assert node.asked() == {"GetAttributes": 1}


async def test_another_nodes_change_is_seen(node: Node, other: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    new = await node.kernel.make_directory(top, b"new")
    assert not await node.kernel.is_there(new, b"theirs")
    there = await other.kernel.walk(place / "new")
    await other.kernel.make(there, b"theirs")
    await other.kernel.make_directory(there, b"never asked for")
    assert await node.kernel.is_there(new, b"theirs")
    assert await node.kernel.is_there(new, b"never asked for")
    assert (await node.kernel.stat(new))[10] == 3
    await other.kernel.remove(there, b"theirs")
    assert not await node.kernel.is_there(new, b"theirs")


async def test_answering_without_asking_leaves_the_lease_with_us(node: Node, other: Node, place: Path) -> None:
    """Also after two recalls in a row the directory is either held, or everything is asked for."""
    top = await node.kernel.walk(place)
    new = await node.kernel.make_directory(top, b"new")
    there = await other.kernel.walk(place / "new")
    for number in range(3):
        for _ in range(2):
            assert not await node.kernel.is_there(new, b"%d" % number)
        await other.kernel.make(there, b"%d" % number)
        assert await node.kernel.is_there(new, b"%d" % number)


async def test_a_name_of_ours_is_there_whatever_became_of_others(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    new = await node.kernel.make_directory(top, b"new")
    await node.kernel.make(new, b"a")
    await node.kernel.rename(new, b"a", new, b"b")
    os.link(place / "new" / "b", place / "new" / "c")  # a native program: the owner's watch is not in this test
    await node.kernel.stat(await node.kernel.look_up(new, b"b"))
    assert not await node.kernel.is_there(new, b"a")
    node.asked()
    await node.kernel.remove(new, b"b")
    node.kernel.names.clear()
    assert not await node.kernel.is_there(new, b"b")
    assert node.asked() == {"RemoveName": 1}


async def test_a_change_of_which_nobody_knows_ends_what_is_known(node: Node, place: Path) -> None:
    kernel = node.kernel
    top = await kernel.walk(place)
    new = await kernel.make_directory(top, b"new")
    await kernel.stat(new)
    node.line.fail[wire.CreateFile] = OutcomeUnknown("restarted")
    with pytest.raises(OSError, match="Input/output"):
        await kernel.make(new, b"perhaps")
    node.asked()
    kernel.names.clear()
    assert await kernel.is_there(new, b"perhaps"), "it was made"
    assert not await kernel.is_there(new, b"something else")
    assert node.asked() == {"GetAttributes": 1, "LookUp": 2}


async def test_a_recall_that_comes_before_the_answer_is_looked_at(
    node: Node, other: Node, place: Path, nursery: trio.Nursery
) -> None:
    """The answer was granted before: nothing of it may be kept."""
    kernel = node.kernel
    top = await kernel.walk(place)
    taken = node.line.late[wire.MakeDirectory] = trio.Event()
    nursery.start_soon(kernel.make_directory, top, b"new")
    await trio.testing.wait_all_tasks_blocked()
    there = await other.kernel.walk(place / "new")
    await other.kernel.make(there, b"theirs")
    await other.kernel.make(await other.kernel.walk(place), b"beside")
    taken.set()
    await trio.testing.wait_all_tasks_blocked()
    new = await kernel.look_up(top, b"new")
    assert await kernel.is_there(new, b"theirs")
    told, status = await kernel.stat(top), os.stat(place)
    assert told[4] * 10**9 + told[7] == status.st_mtime_ns


async def test_a_lapse_ends_what_is_known(node: Node, place: Path) -> None:
    kernel = node.kernel
    top = await kernel.walk(place)
    new = await kernel.make_directory(top, b"new")
    node.line.lease_round = 0
    node.asked()
    await kernel.stat(new)
    assert not await kernel.is_there(new, b"x")
    assert not await kernel.has_acl(new)
    assert node.asked() == {"GetAttributes": 2, "LookUp": 1, "GetXattr": 1}
    node.line.lease_round = 2
    assert not await kernel.is_there(new, b"y")
    assert node.asked() == {"GetAttributes": 1, "LookUp": 1}, "a new round begins with nothing"


async def test_the_kernel_remembers_names_only_up_to_a_bound(
    node: Node, other: Node, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a recall of the directory has to forget; each piece of a listing counts whole."""
    monkeypatch.setattr(heldleases, "NAMES_MAX", 30)
    for number in range(60):
        (place / f"{number:02}").touch()
    kernel = node.kernel
    top = await kernel.walk(place)
    first = parse(await kernel._read_directory(top, 0, 4096), plus=True)
    names = {entry.name for entry in first} - {b".", b".."}
    assert 10 < len(names) < 30
    assert {name for directory, name in kernel.names if directory == top} == names
    await kernel._read_directory(top, first[-1].off, 4096)
    assert {name for directory, name in kernel.names if directory == top} == names
    there = await other.kernel.walk(place)
    gone = min(names)
    await other.kernel.remove(there, gone)
    assert not await kernel.is_there(top, gone)


async def test_a_name_made_by_another_node_while_we_list(node: Node, other: Node, place: Path) -> None:
    kernel = node.kernel
    for number in range(60):
        (place / f"{number}").touch()
    top = await kernel.walk(place)
    there = await other.kernel.walk(place)
    await kernel._read_directory(top, 0, 4096)  # the first piece
    await other.kernel.make(there, b"theirs")
    await kernel.list_long(top)
    assert await kernel.is_there(top, b"theirs")


async def test_no_acl_until_somebody_sets_one(node: Node, other: Node, place: Path) -> None:
    kernel = node.kernel
    top = await kernel.walk(place)
    file = await kernel.make(top, b"file", b"data")
    node.asked()
    assert not await kernel.has_acl(file)
    assert node.asked() == {}, "the write did not give it one"
    there = await other.kernel.walk(place / "file")
    await other.remote.set_xattr(
        other.operations.object(there).handle or b"", b"system.posix_acl_access", ACL_VALUE, 0, wire.Caller(0, 0)
    )
    assert await kernel.has_acl(file)
    assert node.asked() == {"GetXattr": 1}


async def test_our_own_acl_shows(node: Node, place: Path, nursery: trio.Nursery) -> None:
    """Also where a listing was answered before it was set, and is looked at after that."""
    kernel = node.kernel
    top = await kernel.walk(place)
    file = await kernel.make(top, b"file")
    assert not await kernel.has_acl(file)
    taken = node.line.late[wire.ReadDirectory] = trio.Event()
    nursery.start_soon(kernel._read_directory, top, 0, 4096)
    await trio.testing.wait_all_tasks_blocked()
    await node.operations.setxattr(file, b"system.posix_acl_access", ACL_VALUE, node.hook)  # type: ignore[arg-type]
    taken.set()
    await trio.testing.wait_all_tasks_blocked()
    assert await kernel.has_acl(file)


async def test_the_names_that_are_known_are_bounded(node: Node, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = node.kernel
    node.operations.all_names = allnames.AllNames(names_max=20)
    top = await kernel.walk(place)
    new = [await kernel.make_directory(top, b"%d" % number) for number in range(6)]
    assert len(node.operations.all_names) == 5
    node.asked()
    assert not await kernel.is_there(new[0], b"x")
    assert not await kernel.is_there(new[5], b"x")
    assert node.asked() == {"LookUp": 1}
