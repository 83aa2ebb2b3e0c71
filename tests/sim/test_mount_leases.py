"""Two mounts and one owner, all real but for the kernels and the wire: EXCLUSIVE leases from grant to end."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from omfs.cache.table import LeaseTable
from omfs.export.guards import Guards
from omfs.export.leasing import Leasing
from omfs.export.service import ExportService
from omfs.export.underleases import UnderLeases
from omfs.mount import lowlevel_abi as abi
from omfs.mount.callers import ROOT
from omfs.net.peer import Peer
from omfs.net.server import Server
from omfs.net.term import SPAN
from omfs.wiretypes import Mode
from tests.sim.line import OWNER, SETTINGS, Line, local_node
from tests.unit.exportroom import serving
from tests.unit.leaseroom import FakeChanges
from tests.unit.takenmount import TakenMount

FIRST, SECOND = 1, 3  # node ids
TERM_S = SETTINGS.lease_term_s


class Changes(FakeChanges):
    """Lets the kernel say whether somebody else has the file open."""

    def guard_exclusive(self, key: bytes, fd: int) -> bool:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            return False
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)  # nobody opens it natively here
        return super().guard_exclusive(key, fd)


class Owner:
    """A node that serves its tree, with leases; `restart` is a crash of the daemon and its next start."""

    def __init__(self, nursery: trio.Nursery, state: Path, path: Path) -> None:
        self.path = path  # of the file that the tests use
        self.lines: list[Line] = []
        self._nursery = nursery
        self._state = state
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def start(self) -> None:
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with serving(self._state) as service, self._scope:
            await self._serve(service, task_status)
        self._ended.set()

    async def _serve(self, service: ExportService, task_status: trio.TaskStatus[None]) -> None:
        table = LeaseTable.open(self._state / "leases", "boot")
        leasing = Leasing(table, TERM_S, lambda *words: server.end_session(*words))
        guards = Guards(service.disk, leasing)
        guards.watch(Changes())  # type: ignore[arg-type]
        server = service.server = Server(local_node(OWNER), SETTINGS, UnderLeases(service, leasing, guards))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leasing.tend)
                nursery.start_soon(leasing.write_behind)
                await nursery.start(lambda *, task_status: server.run(task_status=task_status))
                for line in self.lines:
                    line.server = server
                self.server = server
                task_status.started()
        finally:
            service.disk.mounts.on_found = None
            leasing.close()

    async def stop(self) -> None:
        for line in self.lines:
            line.server = None
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def restart(self) -> None:
        for line in self.lines:
            line.reset()
        await self.stop()
        await self.start()

    async def mount(self, node_id: int) -> Mounted:
        mount = Mounted(self._nursery, Line(self._nursery, self.server), node_id)
        self.lines.append(mount.line)
        await mount.walk_to(self.path)
        return mount


class Mounted(TakenMount):
    """A mount of the owner, over a line that can be cut."""

    def __init__(self, nursery: trio.Nursery, line: Line, node_id: int) -> None:
        self.line = line
        self.peer = Peer(OWNER, ["a"], 723, local_node(node_id), SETTINGS, dial=line.dial)
        super().__init__(nursery, self.peer)
        nursery.start_soon(self.peer.run)
        nursery.start_soon(self.node.tend)
        nursery.start_soon(self.operations.recaller.run)

    async def walk_to(self, path: Path) -> None:
        self.file = await self.node.root()
        for name in path.parts[1:]:
            self.file = (await self.node.look_up(self.file, os.fsencode(name), ROOT)).handle

    async def written(self, fh: int, offset: int, data: bytes, flags: int = 0) -> int:
        """Returns the errno."""
        request = struct.pack("<QQIIQII", fh, offset, len(data), 0, 0, flags, 0) + data
        return (await self.asked(abi.WRITE, request))[0]

    async def read_all(self, fh: int) -> bytes:
        request = struct.pack("<QQIIQII", fh, 0, 32 << 10, abi.READ_LOCK_OWNER, 0, 0, 0)
        return (await self.asked(abi.READ, request))[1]

    async def size(self) -> int:
        return (await self.node.get_attributes(self.file)).attributes.size_bytes

    async def release(self, fh: int) -> None:
        await self.asked(abi.RELEASE, struct.pack("<QIIQ", fh, 0, 0, 0))

    @property
    def mode(self) -> Mode:
        return self.inode.lease.mode


@pytest.fixture(autouse=True)
def threads_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps while a thread runs: on a busy machine a term would pass during a notification."""

    async def run_sync(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
async def owner(nursery: trio.Nursery, tmp_path: Path) -> Iterator[Owner]:  # type: ignore[misc]
    (tmp_path / "file").write_bytes(b"")
    owner = Owner(nursery, tmp_path / "state", tmp_path / "file")
    await owner.start()
    yield owner
    await owner.stop()


async def test_who_looks_from_elsewhere_sees_what_was_answered_early(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    fh = await first.open(os.O_WRONLY)
    assert first.mode is Mode.EXCLUSIVE
    assert first.answered(first.write(fh, 0, b"hello"))
    assert owner.path.read_bytes() == b""
    assert await second.size() == 5
    assert first.mode is Mode.SHARED
    assert owner.path.read_bytes() == b"hello"
    request = first.write(fh, 5, b" there")
    assert not first.answered(request), "waits for the owner now"
    reading = await second.open(os.O_RDONLY)
    assert await second.read_all(reading) == b"hello there"


async def test_two_writers_write_through_and_one_alone_holds_it_again(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    one = await first.open(os.O_WRONLY)
    await first.written(one, 0, b"first")
    other = await second.open(os.O_WRONLY)
    assert owner.path.read_bytes() == b"first"
    assert first.mode is Mode.NONE
    await second.written(other, 0, b"SECOND")
    await first.written(one, 6, b"!")
    assert await first.flush(one) == await second.flush(other) == 0
    assert owner.path.read_bytes() == b"SECOND!"
    await second.release(other)
    await trio.sleep(1)
    for _ in range(4):
        await first.written(one, 0, b"alone")
    assert first.mode is Mode.EXCLUSIVE


async def test_who_is_cut_off_loses_what_it_did_not_send_and_hears_it(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    fh = await first.open(os.O_WRONLY)
    await first.written(fh, 0, b"kept")
    assert await first.flush(fh) == 0
    await first.written(fh, 0, b"lost")
    first.line.cut()
    cut_s = trio.current_time()
    other = await second.open(os.O_WRONLY)
    assert trio.current_time() - cut_s >= SPAN * TERM_S, "not before the holder has given up"
    await second.written(other, 0, b"new!")
    assert await second.flush(other) == 0
    first.line.heal()
    await trio.sleep(3 * TERM_S)
    assert owner.path.read_bytes() == b"new!", "what is late overwrites nothing"
    assert await first.flush(fh) == errno.EIO
    assert await first.flush(fh) == 0
    assert await first.written(fh, 4, b" and newer") == 0
    assert await first.flush(fh) == 0
    assert owner.path.read_bytes() == b"new! and newer"


async def test_an_owner_that_restarts_gets_what_was_unsent_before_anybody_looks(
    owner: Owner, autojump_clock: MockClock
) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    fh = await first.open(os.O_WRONLY)
    await trio.sleep(1)  # until the table knows
    await first.written(fh, 0, b"unsent")
    await owner.restart()
    assert await second.size() == 6
    assert await first.flush(fh) == 0


async def test_a_mount_that_ends_leaves_nothing_behind(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    fh = await first.open(os.O_WRONLY)
    await first.written(fh, 0, b"last words")
    await first.node.give_back_all()
    assert owner.path.read_bytes() == b"last words"
    before_s = trio.current_time()
    await second.open(os.O_WRONLY)
    assert trio.current_time() == before_s, "nobody has to be waited for"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rare", ["append", "restart"])
async def test_whoever_reads_sees_the_latest_write(
    owner: Owner, autojump_clock: MockClock, rare: str, seed: int
) -> None:
    """One call after the other, from either node, through files that come and go.

    With restarts of the owner there are no appends: one that is under way then may have been executed or not (EIO).
    """
    chance, wanted = random.Random(seed), bytearray()
    mounts = [await owner.mount(FIRST), await owner.mount(SECOND)]
    opened: list[list[int]] = [[], []]
    for step in range(150):
        which = chance.randrange(2)
        mount, files = mounts[which], opened[which]
        match chance.choice(("open", "write", "write", "write", rare, "read", "size", "flush", "release", "wait")):
            case "open" if len(files) < 2:
                files.append(await mount.open(os.O_RDWR))
            case "write" | "append" as how if files:
                place, data = chance.randrange(60), chance.randbytes(chance.randrange(1, 30))
                flags, offset = (os.O_APPEND, len(wanted)) if how == "append" else (0, place)
                assert await mount.written(chance.choice(files), offset, data, flags) == 0
                wanted.extend(bytes(max(0, offset - len(wanted))))
                wanted[offset : offset + len(data)] = data
            case "restart" if chance.random() < 0.3:
                await owner.restart()
            case "read" if files:
                assert await mount.read_all(chance.choice(files)) == wanted, step
            case "size":
                assert await mount.size() == len(wanted), step
            case "flush" if files:
                assert await mount.flush(chance.choice(files)) == 0
            case "release" if files:
                await mount.release(files.pop())
            case "wait":
                await trio.sleep(chance.choice((0.001, 0.01, 0.1)))
    for mount, files in zip(mounts, opened, strict=True):
        for fh in files:
            await mount.release(fh)
    assert owner.path.read_bytes() == wanted
