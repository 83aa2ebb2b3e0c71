"""The magic names as the kernel asks for them, and the mount's copy of the registry behind them: real processes."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from omfs.errors import ControlError
from omfs.kernel.processes import Identity, identify
from omfs.magic.names import Magic
from omfs.magic.places import Place
from omfs.mount import lowlevel_abi as abi, replica as replicas
from omfs.mount.handlers import CACHED_S
from omfs.mount.inodes import ROOT_ID
from omfs.mount.lowlevel import PASSED, Hook, Passed
from omfs.mount.magiclinks import LINKS_FROM, LINKS_UNTIL, install_magic_links, link_id, listed
from omfs.mount.replica import Replica
from omfs.net import control
from tests.unit.takenmount import RecordingHook

OWN: Final = 1


class Mount:
    """The hook with the magic names, and a replica that tests fill."""

    def __init__(self, mignode: Path) -> None:
        self.hook = RecordingHook()
        self.passed: list[int] = []
        for opcode in (abi.LOOKUP, abi.GETATTR):
            self.hook.takers[opcode] = self._pass
        self.replica = Replica(OWN, mignode, "/mfs", dfsa=True)
        install_magic_links(self.hook, self.replica, lambda: b"entry of proc")

    def _pass(self, hook: Hook, request: memoryview) -> Passed:
        self.passed.append(hook.opcode)
        return PASSED

    async def ask(self, opcode: int, number: int, payload: bytes = b"", thread: int = 0) -> tuple[int, bytes] | None:
        """None: it is passed on."""
        hook = self.hook
        hook.unique += 1
        hook.opcode, hook.node_id, hook.pid = opcode, number, thread or os.getpid()
        taken = hook.takers[opcode](hook, memoryview(bytes(abi.IN_HEADER_BYTES) + payload))
        if isinstance(taken, Passed):
            return None
        if taken is not None:
            await taken
        return hook.answers[hook.unique]

    async def look_up(self, name: Magic, thread: int = 0) -> int:
        """The node that it leads to."""
        answer = await self.ask(abi.LOOKUP, ROOT_ID, name.value.encode() + b"\0", thread)
        assert answer is not None
        error, body = answer
        assert not error
        number, _, entry_s, attr_s = struct.unpack_from("<QQQQ", body)
        assert (entry_s, attr_s) == (0, CACHED_S)
        target = await self.ask(abi.READLINK, number)
        assert target is not None
        return int(target[1])

    async def told(self, *places: Place, **arguments: Any) -> None:
        await self.replica.handlers["place"]({"places": [place_as_json(one) for one in places], **arguments})


def place_as_json(place: Place) -> dict[str, Any]:
    return {name: getattr(place, name) for name in place.__struct_fields__}


def here(pid: int = 0) -> Identity:
    identity = identify(pid or os.getpid())
    assert identity is not None
    return identity


def place(identity: Identity, **values: Any) -> Place:
    return Place(*identity, **{"home": OWN, "here": OWN, "lastexec": OWN, "image": "", **values})


class Mignode:
    """What the replica asks it; *places*: its answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.places: dict[int, Place] = {}

    async def resolve(self, arguments: control.Arguments) -> dict[str, Any]:
        self.asked.append(("resolve", arguments["pid"]))
        return {"place": self.places.get(arguments["pid"])}

    async def created(self, arguments: control.Arguments) -> dict[str, Any]:
        self.asked.append(("created", arguments["node"]))
        return {}

    async def tell(self, arguments: control.Arguments) -> dict[str, Any]:
        return {"places": tuple(self.places.values()), "fork_events": True}


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path / "mignode.sock")


@pytest.fixture
async def mignode(mount: Mount, tmp_path: Path, nursery: trio.Nursery) -> Mignode:
    mignode = Mignode()
    handlers = {"resolve": mignode.resolve, "created": mignode.created, "places": mignode.tell}
    await nursery.start(control.serve, tmp_path / "mignode.sock", handlers)
    return mignode


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def ended() -> int:
    """The pid of a process that is gone."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


# ---------------------------------------------------------------- as the kernel asks


async def test_an_ordinary_process_is_led_to_its_own_node(mount: Mount) -> None:
    assert [await mount.look_up(name) for name in Magic] == [OWN] * 5


async def test_other_names_and_objects_are_others_business(mount: Mount) -> None:
    assert await mount.ask(abi.LOOKUP, ROOT_ID, b"2\0") is None
    assert await mount.ask(abi.LOOKUP, ROOT_ID, b"proc\0") == (0, b"entry of proc")
    assert await mount.ask(abi.LOOKUP, LINKS_UNTIL, b"here\0") is None
    assert await mount.ask(abi.GETATTR, LINKS_FROM - 1) is None
    assert await mount.ask(abi.READLINK, LINKS_UNTIL) is None
    assert mount.passed == [abi.LOOKUP, abi.LOOKUP, abi.GETATTR]


async def test_a_link_object_never_changes(mount: Mount) -> None:
    number = link_id(Magic.HOME, 65535)
    assert await mount.ask(abi.READLINK, number) == (0, b"65535")
    answer = await mount.ask(abi.GETATTR, number)
    assert answer is not None
    valid_s, _, _, ino, size_bytes = struct.unpack_from("<QIIQQ", answer[1])
    (mode,) = struct.unpack_from("<I", answer[1], 16 + 60)
    assert (valid_s, ino, size_bytes, stat.S_ISLNK(mode)) == (CACHED_S, number, 5, True)
    for opcode, error in ((abi.SETATTR, errno.EPERM), (abi.GETXATTR, errno.ENODATA)):
        answer = await mount.ask(opcode, number, bytes(8) + b"name\0")
        assert answer is not None
        assert answer[0] == error


def test_they_are_listed_as_links() -> None:
    assert [name.name for name in listed()] == [b"here", b"home", b"lastexec", b"selected", b"magic", b"proc"]
    assert {name.kind for name in listed()[:-1]} == {stat.S_IFLNK >> 12}
    numbers = {link_id(name, node) for name in Magic for node in (0, 1, 65535)}
    assert len(numbers) == 15
    assert all(LINKS_FROM <= number < LINKS_UNTIL for number in numbers)


# ---------------------------------------------------------------- what is remembered of processes


async def test_a_process_and_its_children_are_led_where_the_registry_says(mount: Mount, child: int) -> None:
    await mount.told(place(here(), home=2, here=3, selected=4))
    expected = {Magic.HERE: 3, Magic.HOME: 2, Magic.LASTEXEC: 3, Magic.SELECTED: 4, Magic.MAGIC: 3}
    for thread in (0, child):
        assert {name: await mount.look_up(name, thread) for name in Magic} == expected
    await mount.told(place(here(child), selected=5))
    assert [await mount.look_up(Magic.SELECTED, thread) for thread in (0, child)] == [4, 5]
    await mount.told(gone=[list(here(child))])
    assert await mount.look_up(Magic.SELECTED, child) == 4
    await mount.told(place(here(child), selected=6), all=True)
    assert [await mount.look_up(Magic.SELECTED, thread) for thread in (0, child)] == [OWN, 6]


@pytest.mark.parametrize("forks", [True, False])
async def test_nobody_waits_for_a_process_that_is_looked_at(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, forks: bool
) -> None:
    """It may be in an execve that waits for this mount."""
    looking: set[int] = set()
    for name in ("identify", "parent_of", "image_of", "creates"):
        real = getattr(replicas, name)
        monkeypatch.setattr(
            replicas, name, lambda *arguments, real=real: (looking.add(threading.get_ident()), real(*arguments))[1]
        )
    await mount.told(place(here(os.getppid()), selected=4), fork_events=forks)
    for magic in Magic:
        await mount.look_up(magic)
    await mount.replica.handlers["where"]({"pid": os.getpid()})
    assert looking
    assert threading.get_ident() not in looking


async def test_another_process_with_the_same_pid_is_ordinary(mount: Mount, child: int) -> None:
    pid, start_ticks = here(child)
    await mount.told(place(Identity(pid, start_ticks - 1), selected=4))
    assert await mount.look_up(Magic.SELECTED, child) == OWN


async def test_a_process_that_ended_or_is_not_shown_is_ordinary(mount: Mount) -> None:
    await mount.told(place(here(), selected=4))
    assert await mount.look_up(Magic.SELECTED, ended()) == OWN


async def test_an_orphan_is_asked_for_once_where_forks_are_told(mount: Mount, mignode: Mignode, child: int) -> None:
    await mount.told(place(Identity(1 << 22, 1), selected=4), fork_events=True)
    assert [await mount.look_up(Magic.SELECTED, child) for _ in range(2)] == [OWN, OWN]
    assert mignode.asked == [("resolve", child)]
    mignode.places[os.getpid()] = place(here(), selected=3)
    assert await mount.look_up(Magic.SELECTED) == 3


async def test_nobody_is_asked_where_forks_are_not_told(mount: Mount, mignode: Mignode, child: int) -> None:
    await mount.told(place(Identity(1 << 22, 1), selected=4))
    assert await mount.look_up(Magic.SELECTED, child) == OWN
    assert mignode.asked == []


@pytest.mark.parametrize("is_there", [True, False], ids=["mignode is there", "mignode is away"])
async def test_a_creation_elsewhere_is_told_before_it_is_made(
    mount: Mount, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_there: bool
) -> None:
    monkeypatch.setattr(replicas, "creates", lambda _: creates)
    await mount.told(place(here(), here=3, magic=2))
    async with trio.open_nursery() as nursery:
        mignode = Mignode()
        if is_there:
            await nursery.start(control.serve, tmp_path / "mignode.sock", {"created": mignode.created})
        creates = False
        assert await mount.look_up(Magic.MAGIC) == 2
        creates = True
        assert await mount.look_up(Magic.MAGIC) == 3
        assert mignode.asked == ([("created", 3)] if is_there else [])
        nursery.cancel_scope.cancel()
    creates = False
    if not is_there:  # else it would have told us
        assert await mount.look_up(Magic.MAGIC) == 3


async def test_a_mount_that_begins_takes_what_mignode_knows_and_gives_it_back(mount: Mount, mignode: Mignode) -> None:
    mine = mignode.places[0] = place(here(), selected=4)
    await mount.replica.fetch()
    assert await mount.look_up(Magic.SELECTED) == 4
    assert await mount.replica.handlers["places"]({}) == {"places": (mine,), "dfsa": True}


async def test_a_mount_that_begins_without_mignode(mount: Mount) -> None:
    await mount.replica.fetch()
    assert await mount.look_up(Magic.SELECTED) == OWN


# ---------------------------------------------------------------- omfs-admin where


async def test_where(mount: Mount) -> None:
    await mount.told(place(here(), home=2, here=3, selected=4))
    where = mount.replica.handlers["where"]
    told = await where({"pid": os.getpid(), "path": "/mfs/selected/etc/hosts"})
    assert isinstance(told, control.WhereReply)
    assert (told.node, told.name, told.path) == (4, "selected", "/mfs/4/etc/hosts")
    assert "selected" in told.why
    assert [await where({"pid": os.getpid(), "path": path}) for path in ("/mfs/7/x", "/mfs/proc/1", "/mfs")] == [
        control.WhereReply(7, "/mfs/7/x", why="the path names the node"),
        control.WhereReply(OWN, "/mfs/proc/1", why="it is this node's own"),
        control.WhereReply(0, "/mfs", why="/mfs itself is nobody's"),
    ]
    told = await where({"pid": os.getpid()})
    assert isinstance(told, control.NamesReply)
    assert {name: node for name, (node, _) in told.names.items()} == {
        "here": 3, "home": 2, "lastexec": 3, "selected": 4, "magic": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, '"pid" is missing'),
        ({"pid": 1 << 22}, "no such process"),
        ({"pid": os.getpid(), "path": "/etc/passwd"}, "not below /mfs"),
        ({"pid": os.getpid(), "path": "relative"}, "not below /mfs"),
    ],
)
async def test_where_is_not_known(mount: Mount, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ControlError, match=says):
        await mount.replica.handlers["where"](arguments)


async def test_nonsense_is_refused(mount: Mount) -> None:
    with pytest.raises(ControlError, match="bad request"):
        await mount.replica.handlers["place"]({"places": [{"pid": "x"}]})
