"""What is fetched before anybody asks saves messages, and is never older than what asking would show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from omfs import wire
from omfs.mount import ahead
from omfs.mount.callers import ROOT
from omfs.mount.remotefile import RemoteFile
from omfs.wire import Caller
from tests.unit.twonodes import node, other, room
from tests.unit.wholemount import Node

__all__ = ["node", "other", "room"]

FILES = 200


@pytest.fixture
def place(tmp_path: Path) -> Path:
    top = tmp_path / "exported"
    top.mkdir()
    for number in range(FILES):
        (top / name(number).decode()).write_bytes(b"x" * number)
    return top


def name(number: int) -> bytes:
    return b"%04d" % number


async def size_of(node: Node, top: int, number: int) -> int:
    status: tuple[Any, ...] = await node.kernel.stat(await node.kernel.look_up(top, name(number)))
    return int(status[1])


async def begun(node: Node, place: Path) -> int:
    """Its node id, when so many were looked up that others came ahead."""
    top = await node.kernel.walk(place)
    for number in range(0, 40, 10):
        assert await size_of(node, top, number) == number
    await trio.testing.wait_all_tasks_blocked()
    assert node.operations.ahead
    return top


def known_ahead(node: Node, top: int) -> list[int]:
    """Those whose look-up would ask nobody."""
    directory = node.operations.ahead._directories[top]
    return sorted(int(one) for one in directory.objects)


async def test_a_walk_through_a_directory(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    node.asked()
    for number in range(FILES):
        assert await size_of(node, top, number) == number
        await trio.testing.wait_all_tasks_blocked()
    asked = node.asked()
    assert asked["LookUp"] < FILES / 4
    assert asked["ReadDirectory"] < 8
    assert "GetAttributes" not in asked
    assert not node.operations.ahead, "all were used"


async def test_some_files_of_a_large_directory_cost_little(node: Node, place: Path) -> None:
    for number in range(2000):
        (place / f"of many {number}").touch()
    await begun(node, place)
    assert len(node.operations.ahead) <= ahead._PIECE_MIN * 2


async def test_a_few_look_ups_fetch_nothing(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    node.asked()
    for number in range(ahead._ASKED_FIRST - 1):
        await node.kernel.look_up(top, name(number))
    await trio.testing.wait_all_tasks_blocked()
    assert node.asked() == {"LookUp": ahead._ASKED_FIRST - 1}


async def test_what_another_node_changes_is_asked_for(node: Node, other: Node, place: Path) -> None:
    """Attributes of an object, then a name."""
    top = await begun(node, place)
    there = await other.kernel.walk(place)
    changed, removed, kept = known_ahead(node, top)[:3]
    await other.kernel.make(there, name(changed), b"changed elsewhere")
    assert await size_of(node, top, changed) == 17
    assert kept in known_ahead(node, top), "only that one"
    await other.kernel.remove(there, name(removed))
    assert not await node.kernel.is_there(top, name(removed))
    node.asked()
    assert await size_of(node, top, kept) == kept
    assert node.asked()["LookUp"] == 1, "the directory was recalled"


async def test_what_a_call_of_ours_changes_is_not_told_as_it_was(node: Node, place: Path) -> None:
    top = await begun(node, place)
    moved, target = known_ahead(node, top)[:2]
    await node.kernel.rename(top, name(moved), top, name(target))
    assert await size_of(node, top, target) == moved
    assert not await node.kernel.is_there(top, name(moved))
    assert len(known_ahead(node, top)) == len(node.operations.ahead)


async def test_a_name_is_not_told_once_a_change_of_it_begins(node: Node, place: Path) -> None:
    """Whatever the kernel did before."""
    top = await begun(node, place)
    first = known_ahead(node, top)[0]
    (place / name(first).decode()).unlink()
    node.operations.ahead.changes(node.operations.object(top), name(first))
    node.asked()
    assert not await node.kernel.is_there(top, name(first))
    assert node.asked()["LookUp"] == 1


async def test_a_name_that_we_change_while_a_piece_is_asked_for_is_not_taken_from_it(
    node: Node, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel never knew what had it: another node may just have made that."""
    monkeypatch.setattr(ahead, "_PIECE_MIN", FILES)
    top = await node.kernel.walk(place)
    directory, fetched = node.operations.object(top), node.operations.ahead
    for number in range(ahead._ASKED_FIRST - 1):
        await node.kernel.look_up(top, name(number))
    begin_change(node, top, 49)
    directory.end_change()
    begin_change(node, top, 50)  # and goes on
    begin_change(node, top, 51)
    directory.end_change()
    node.line.late[wire.ReadDirectory] = trio.Event()
    await node.kernel.look_up(top, name(ahead._ASKED_FIRST))
    await trio.testing.wait_all_tasks_blocked()
    directory.end_change()
    for number in (52, 53):
        begin_change(node, top, number)
        directory.end_change()
    node.line.late[wire.ReadDirectory].set()
    await trio.testing.wait_all_tasks_blocked()
    known = known_ahead(node, top)
    assert not set(known) & {50, 52, 53}
    assert 49 in known, "its change was over, and nothing was asked for before it"
    assert len(known) == len(fetched) > FILES - 10


def begin_change(node: Node, top: int, number: int) -> None:
    """As a call of ours on this name does."""
    node.operations.object(top).begin_change()
    node.operations.ahead.changes(node.operations.object(top), name(number))


async def test_who_removes_all_of_a_directory_looks_up_few(node: Node, place: Path) -> None:
    """As rm does by names that it was given: the pieces come while names are being removed."""
    top = await node.kernel.walk(place)
    node.asked()
    for number in range(FILES):
        await node.kernel.look_up(top, name(number))
        await node.kernel.remove(top, name(number))
        await trio.testing.wait_all_tasks_blocked()
    asked = node.asked()
    assert asked["RemoveName"] == FILES
    assert asked["LookUp"] < FILES / 4
    assert not os.listdir(place)


async def test_what_the_kernel_has_forgotten_since_a_piece_was_asked_for_is_not_taken_from_it(
    node: Node, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been changed by us while the kernel knew it."""
    monkeypatch.setattr(ahead, "_PIECE_MIN", FILES)
    top = await node.kernel.walk(place)
    node.line.late[wire.ReadDirectory] = trio.Event()
    known = await node.kernel.look_up(top, name(77))
    for number in range(ahead._ASKED_FIRST - 1):
        await node.kernel.look_up(top, name(number))
    await trio.testing.wait_all_tasks_blocked()
    await node.operations.forget([(known, 1)])
    assert node.operations.inodes.peek(known) is None
    node.line.late[wire.ReadDirectory].set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(known_ahead(node, top)) > FILES - 10
    assert 77 not in known_ahead(node, top)
    assert not node.operations.inodes._noted


async def test_an_object_that_the_kernel_knows_by_another_name_is_asked_for(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    os.link(place / "0150", place.parent / "other name")
    over = await node.kernel.walk(place.parent)
    await node.kernel.look_up(over, b"other name")
    for number in range(0, 200, 7):
        await node.kernel.look_up(top, name(number))
        await trio.testing.wait_all_tasks_blocked()
    assert 150 not in known_ahead(node, top)
    assert len(known_ahead(node, top)) > 50


async def test_only_who_it_was_fetched_for_is_told(node: Node, place: Path) -> None:
    top = await begun(node, place)
    first = known_ahead(node, top)[0]
    directory = node.operations.object(top)
    assert node.operations.ahead.take(directory, name(first), Caller(1000, 1000)) is None
    assert node.operations.ahead.take(directory, name(first), ROOT) is not None


async def test_who_may_not_read_the_directory_gets_nothing_ahead(node: Node, place: Path) -> None:
    top = await node.kernel.walk(place)
    os.chmod(place, 0o711)
    node.asked()
    for _ in range(20):
        node.operations.ahead.missed(node.operations.object(top), Caller(1000, 1000))
        await trio.testing.wait_all_tasks_blocked()
    assert node.asked() == {"OpenDirectory": 1}
    assert not node.operations.ahead


async def test_what_nobody_wants_is_given_back(node: Node, place: Path) -> None:
    top = await begun(node, place)
    objects = [one.inode for one in node.operations.ahead._directories[top].objects.values()]
    node.operations.ahead.give_up_resting()
    assert node.operations.ahead, "used a moment ago"
    node.operations.ahead.give_up_resting()
    assert not node.operations.ahead
    assert all(node.operations.inodes.peek(inode.id) is None for inode in objects)
    assert not any(inode.lease.is_held for inode in objects)


async def test_names_are_bounded(node: Node, place: Path) -> None:
    node.operations.ahead._names_max = 30
    top = await node.kernel.walk(place)
    for number in range(100):
        assert await size_of(node, top, number) == number
        await trio.testing.wait_all_tasks_blocked()
        assert len(node.operations.ahead) <= 30


# ---------------------------------------------------------------- names that are not there


def absent_known(node: Node, top: int, new: bytes) -> bool:
    """Whether it would be said without asking that there is no such name."""
    return node.operations.all_names.is_absent(node.operations.object(top), new)


async def not_found(node: Node, top: int, *names: bytes) -> None:
    for one in names:
        assert not await node.kernel.is_there(top, one)


async def all_known(node: Node, place: Path) -> int:
    """Its node id, when so many were missing that all names came ahead."""
    top = await node.kernel.walk(place)
    for number in range(FILES // ahead._PER_ABSENT):
        await not_found(node, top, b"missing %d" % number)
        await trio.testing.wait_all_tasks_blocked()
    assert absent_known(node, top, b"another")
    return top


async def test_who_makes_many_files_is_told_that_they_are_not_there(node: Node, place: Path) -> None:
    for number in range(20, FILES):
        (place / name(number).decode()).unlink()
    top = await node.kernel.walk(place)
    node.asked()
    for number in range(FILES):
        await not_found(node, top, b"new %d" % number)
        await node.kernel.make(top, b"new %d" % number, b"")
        await trio.testing.wait_all_tasks_blocked()
    asked = node.asked()
    assert asked["LookUp"] == ahead._ASKED_FIRST
    assert asked["ReadDirectory"] == 1
    for number in range(FILES):
        assert await node.kernel.is_there(top, b"new %d" % number)


async def test_a_few_missing_names_of_a_large_directory_cost_little(node: Node, place: Path) -> None:
    for number in range(2000):
        (place / f"of many {number}").touch()
    top = await node.kernel.walk(place)
    for number in range(40):
        await not_found(node, top, b"missing %d" % number)
        await trio.testing.wait_all_tasks_blocked()
    assert node.operations.ahead._directories[top].fetched < 40 * ahead._PER_ABSENT + 2 * ahead._PIECE_MIN
    assert not absent_known(node, top, b"another"), "not all of it came"


async def test_what_another_node_makes_is_there(node: Node, other: Node, place: Path) -> None:
    top = await all_known(node, place)
    await other.kernel.make(await other.kernel.walk(place), b"another", b"x")
    assert not absent_known(node, top, b"another")
    assert await node.kernel.is_there(top, b"another")
    for number in range(FILES):  # it is fetched again, with the new one
        await not_found(node, top, b"still missing %d" % number)
        await trio.testing.wait_all_tasks_blocked()
    assert absent_known(node, top, b"one more")
    assert not absent_known(node, top, b"another")


async def test_what_another_node_makes_between_two_pieces_is_there(
    node: Node, other: Node, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pieces did not show it, and the last says nothing of their part of the directory."""
    monkeypatch.setattr(ahead, "_PIECE_MAX", ahead._PIECE_MIN)
    top = await node.kernel.walk(place)
    there = await other.kernel.walk(place)
    directory = None
    for number in range(FILES):
        await not_found(node, top, b"missing %d" % number)
        await trio.testing.wait_all_tasks_blocked()
        directory = node.operations.ahead._directories[top]
        if directory.cursor:
            break
    assert directory is not None
    assert directory.names
    assert not directory.at_end
    await other.kernel.make(there, b"made between", b"")
    while not directory.at_end:
        node.operations.ahead.missed(node.operations.object(top), directory.caller)
        await trio.testing.wait_all_tasks_blocked()
    assert not absent_known(node, top, b"made between")
    assert await node.kernel.is_there(top, b"made between")


@pytest.mark.parametrize("begins", ["before it is asked for", "while it is asked for"])
async def test_a_name_that_we_make_while_all_are_fetched_is_not_said_to_be_missing(
    node: Node, place: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """The piece that came may have been read before it was made."""
    monkeypatch.setattr(ahead, "_PIECE_MIN", 2 * FILES)
    top = await node.kernel.walk(place)
    directory, made = node.operations.object(top), b"just made"
    for number in range(ahead._ASKED_FIRST - 1):
        await not_found(node, top, b"missing %d" % number)
    if begins.startswith("before"):
        directory.begin_change()
        node.operations.ahead.changes(directory, made)
    node.line.late[wire.ReadDirectory] = trio.Event()
    await not_found(node, top, b"one more that is missing")
    await trio.testing.wait_all_tasks_blocked()
    if not begins.startswith("before"):
        directory.begin_change()
        node.operations.ahead.changes(directory, made)
    directory.end_change()
    node.line.late[wire.ReadDirectory].set()
    await trio.testing.wait_all_tasks_blocked()
    assert absent_known(node, top, b"another")
    assert not absent_known(node, top, made)


async def test_a_change_that_nobody_noted_makes_the_names_uncertain(
    node: Node, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began before the directory was walked through, and was under way when the names were asked for."""
    monkeypatch.setattr(ahead, "_PIECE_MIN", 2 * FILES)
    top = await node.kernel.walk(place)
    directory = node.operations.object(top)
    directory.begin_change()
    node.operations.ahead.changes(directory, b"just made")
    for number in range(ahead._ASKED_FIRST):
        await not_found(node, top, b"missing %d" % number)
    await trio.testing.wait_all_tasks_blocked()
    assert node.operations.ahead._directories[top].at_end
    directory.end_change()
    assert not absent_known(node, top, b"just made")
    assert not absent_known(node, top, b"another")


async def test_who_may_read_but_not_search_learns_nothing_of_what_is_missing(
    node: Node, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_PIECE_MIN", 2 * FILES)
    top = await node.kernel.walk(place)
    os.chmod(place, 0o744)
    for _ in range(ahead._ASKED_FIRST):
        node.operations.ahead.missed_absent(node.operations.object(top), Caller(1000, 1000))
    await trio.testing.wait_all_tasks_blocked()
    assert node.operations.ahead._directories[top].at_end
    assert not absent_known(node, top, b"another")


async def test_an_owner_that_does_not_list_all_is_asked(
    node: Node, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names may be folded there, or an entry could not be shown."""
    monkeypatch.setattr(ahead, "_PIECE_MIN", 2 * FILES)
    top = await node.kernel.walk(place)
    read_directory = RemoteFile.read_directory

    async def some(*arguments: Any) -> wire.DirectoryRead:
        return msgspec.structs.replace(await read_directory(*arguments), lists_all=False)

    monkeypatch.setattr(RemoteFile, "read_directory", some)
    for number in range(ahead._ASKED_FIRST):
        await not_found(node, top, b"missing %d" % number)
    await trio.testing.wait_all_tasks_blocked()
    assert node.operations.ahead._directories[top].at_end
    assert not absent_known(node, top, b"another")
