"""What a mount tells of its leases, and of what its kernel shows; peer and reader are fakes."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.cache.holder import Lease
from omfs.errors import ControlError, RemoteFailure
from omfs.export.ownmount import OwnMount
from omfs.mount import telling
from omfs.mount.inodes import Inode, InodeTable
from omfs.mount.remote import RemoteNode
from omfs.mount.telling import Teller
from omfs.net import control
from omfs.net.peer import Peer
from omfs.wiretypes import Mode
from tests.unit.fakepeer import FakePeer

# Tells that each object has as many bytes as its node id; "hangs" and "fails" as it says.
READER = """
import sys
import msgspec
from omfs.kernel.statx import Status
from omfs.mount.cachereader import Seen, Wanted
place = sys.argv[1]
if place == "fails":
    sys.exit("it can not read")
if place == "hangs":
    sys.stdin.read()
    import time
    time.sleep(600)
for line in sys.stdin.buffer:
    one = msgspec.json.decode(line, type=Wanted)
    seen = Seen(one.number, status=Status(0o100644, 1, 0, 0, 0, one.number % 1000, 2, 3, one.number))
    if one.with_data:
        seen.offset, seen.size_bytes, seen.digest = one.seed, 7, b"digest"
    if place == "forgotten":
        seen = Seen(one.number, errno=116)
    sys.stdout.buffer.write(msgspec.json.encode(seen) + b"\\n")
"""


class AskedPeer(FakePeer):
    """Tells what *answer* is when it is asked."""

    session_key = b"k" * 16
    lease_round = 1
    answer: Any = None

    async def call(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        self.asked.append(request)
        if self.answer is None:
            await trio.sleep_forever()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Mount:
    """One owner, node 2, of which the kernel knows some objects."""

    def __init__(self, path: Path, place: str = "works") -> None:
        self.peer = AskedPeer()
        self.node = RemoteNode(cast(Peer, self.peer))
        self.node.leases.is_enabled = True
        self.inodes: InodeTable[RemoteNode] = InodeTable()
        self.inodes.add_directory(self.node)
        (path / "fakereader.py").write_text(READER)
        self.teller = Teller({2: self.node}, self.inodes, place, "fakereader")

    def knows(self, handle: bytes, serial: int, mode: Mode = Mode.SHARED, data: bool = False) -> Inode[RemoteNode]:
        inode = self.inodes.find(self.node, handle)
        inode.lookups = 1
        self.take(inode.lease, serial, mode)
        inode.lease.data = data
        return inode

    def take(self, lease: Lease, serial: int, mode: Mode = Mode.SHARED) -> None:
        assert self.node.leases.granted(lease, serial, mode, writer=self) or mode is Mode.NONE

    async def held(self, part: int = 0, parts: int = 1) -> wire.HeldTold:
        told = (await self.teller.tell_held({"node": 2, "part": part, "parts": parts})).told
        assert told is not None
        return told

    async def audit(
        self, count: int = 100, seed: int = 3, handles: tuple[bytes, ...] = (), start: int = 0
    ) -> wire.HeldAudited:
        shown = [base64.b64encode(handle).decode() for handle in handles]
        asked = {"node": 2, "start": start, "count": count, "seed": seed, "handles": shown}
        told = (await self.teller.audit(asked)).told
        assert told is not None
        return told


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mount:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(filter(None, sys.path))}")
    return Mount(tmp_path)


def place(mount: Mount, where: str) -> None:
    mount.teller._mountpoint = where


# ---------------------------------------------------------------- leases


async def test_what_is_believed(mount: Mount) -> None:
    mount.knows(b"file", 5, data=True)
    mount.knows(b"newer", 6, Mode.EXCLUSIVE)
    mount.knows(b"known only", 7, Mode.NONE)
    assert await mount.held() == wire.HeldTold(
        b"k" * 16,
        (wire.Believed(b"file", 5, Mode.SHARED, True), wire.Believed(b"newer", 6, Mode.EXCLUSIVE, False)),
        is_cut=False,
    )


async def test_the_root_has_a_handle_too(mount: Mount) -> None:
    mount.take(mount.node.leases.root, 4)
    assert (await mount.held()).leases == ()
    mount.node._root = b"root"
    assert [one.handle for one in (await mount.held()).leases] == [b"root"]


async def test_parts(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = {b"file %d" % number for number in range(50)}
    for handle in handles:
        mount.knows(handle, 5)
    parts = [{one.handle for one in (await mount.held(part, 3)).leases} for part in range(3)]
    assert set.union(*parts) == handles
    assert sum(map(len, parts)) == 50
    monkeypatch.setattr(telling, "LEASES_TOLD_MAX", 49)
    told = await mount.held()
    assert (len(told.leases), told.is_cut) == (49, True)


async def test_nothing_is_believed_after_a_lapse(mount: Mount) -> None:
    mount.knows(b"file", 5)
    mount.peer.lease_round = 0
    assert await mount.held() == wire.HeldTold(b"", (), is_cut=False)


@pytest.mark.parametrize(
    "asked", [{}, {"node": 3, "part": 0, "parts": 1}, {"node": 2, "part": 1, "parts": 1},
              {"node": 2, "part": 0, "parts": 0}],
)  # fmt: skip
async def test_questions_that_make_no_sense(mount: Mount, asked: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        await mount.teller.tell_held(asked)


# ---------------------------------------------------------------- audits


async def test_what_is_seen(mount: Mount) -> None:
    file, plain = mount.knows(b"file", 5, data=True), mount.knows(b"plain", 6)
    plain.broken()
    told = {one.handle: one for one in (await mount.audit()).objects}
    assert told[b"file"].attributes == wire.Attributes(0o100644, 1, 0, 0, 0, file.id % 1000, 0, 0, 0, 2, 3, file.id)
    assert (told[b"file"].offset, told[b"file"].digest) == (3, b"digest")
    assert (told[b"plain"].breaks, told[b"plain"].digest) == (1, b"")


async def test_half_of_a_sample_has_data(mount: Mount) -> None:
    for number in range(20):
        mount.knows(b"data %d" % number, 5, data=True)
        mount.knows(b"plain %d" % number, 5)

    async def sample(count: int, seed: int = 1) -> list[bytes]:
        return [one.handle for one in (await mount.audit(count, seed)).objects]

    assert sum(handle.startswith(b"data") for handle in await sample(10)) == 5
    assert len(set(await sample(100))) == 40
    assert sum(handle.startswith(b"data") for handle in await sample(30)) == 15
    assert await sample(6, 1) == await sample(6, 1) != await sample(6, 2)
    wanted = (b"data 3", b"plain 4", b"unknown")
    assert {one.handle for one in (await mount.audit(100, 1, wanted)).objects} == {b"data 3", b"plain 4"}


async def test_an_audit_in_pieces_meets_each_object_once(mount: Mount) -> None:
    for number in range(20):
        mount.knows(b"data %d" % number, 5, data=True)
        mount.knows(b"plain %d" % number, 5)
    mount.knows(b"newer", 5, Mode.EXCLUSIVE)
    pieces = [await mount.audit(16, 9, start=start) for start in (0, 16, 32)]
    assert [(len(one.objects), one.skipped, one.at_end) for one in pieces] == [
        (16, 1, False),
        (16, 0, False),
        (8, 0, True),
    ]
    assert len({one.handle for piece in pieces for one in piece.objects}) == 40


@pytest.mark.parametrize("wrong", [{"start": -1}, {"count": 0}, {"seed": -1}, {"seed": 1 << 32}, {"count": "x"}])
async def test_samples_that_make_no_sense(mount: Mount, wrong: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        await mount.teller.audit({"node": 2, "start": 0, "count": 1, "seed": 0, **wrong})


async def test_data_fill_a_sample_where_there_is_little_else(mount: Mount) -> None:
    for number in range(20):
        mount.knows(b"data %d" % number, 5, data=True)
    mount.knows(b"plain", 5)
    assert len({one.handle for one in (await mount.audit(10)).objects}) == 10


async def test_what_may_be_newer_here_is_skipped(mount: Mount) -> None:
    mount.knows(b"newer", 5, Mode.EXCLUSIVE)
    being_recalled = mount.knows(b"recalled", 5)
    being_recalled.lease.recalls += 1
    assert await mount.audit() == wire.HeldAudited((), 1, at_end=True)


async def test_what_changes_meanwhile_is_skipped(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, _ = mount.knows(b"changed", 5), mount.knows(b"still", 5)
    run_process = trio.run_process

    async def run(*arguments: Any, **options: Any) -> Any:
        done = await run_process(*arguments, **options)
        changed.broken()
        return done

    monkeypatch.setattr(trio, "run_process", run)
    told = await mount.audit()
    assert ([one.handle for one in told.objects], told.skipped) == ([b"still"], 1)


async def test_what_the_kernel_has_forgotten_is_skipped(mount: Mount) -> None:
    mount.knows(b"file", 5)
    place(mount, "forgotten")
    assert await mount.audit() == wire.HeldAudited((), 1, at_end=True)


async def test_a_reader_that_fails_or_hangs(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    mount.knows(b"file", 5)
    place(mount, "fails")
    with pytest.raises(ControlError, match="it can not read"):
        await mount.audit()
    place(mount, "hangs")
    monkeypatch.setattr(telling, "READ_WITHIN_S", 0.2)
    with pytest.raises(ControlError, match="did not end"):
        await mount.audit()


# ---------------------------------------------------------------- asking another node


HELD = wire.HeldTold(b"key", (wire.Believed(b"\xff", 3, Mode.SHARED, False),), is_cut=False)
AUDITED = wire.HeldAudited((), 3, at_end=False)


async def test_another_node_is_asked(mount: Mount, autojump_clock: trio.testing.MockClock) -> None:
    mount.peer.answer = HELD
    asked = {"node": 2, "part": 1, "parts": 3}
    assert await mount.teller.ask_held(asked) == control.HeldToldReply(HELD)
    mount.peer.answer = AUDITED
    assert (await mount.teller.ask_audit({"node": 2, "start": 4, "count": 9, "seed": 8})).told == AUDITED
    assert mount.peer.asked == [wire.TellHeld(1, 3), wire.AuditHeld(4, 9, 8)]
    mount.peer.answer = RemoteFailure(107, "no mount")
    assert await mount.teller.ask_held(asked) == control.HeldToldReply(None, "no mount")
    mount.peer.answer = None
    assert await mount.teller.ask_held(asked) == control.HeldToldReply(None, "no answer within 10 s")
    mount.peer.state = "down"
    assert await mount.teller.ask_held(asked) == control.HeldToldReply(None, "down")


async def test_an_export_asks_the_mount_beside_it(tmp_path: Path, mount: Mount) -> None:
    mount.knows(b"file\xff", 5, data=True)
    own = OwnMount(tmp_path)
    with pytest.raises(OSError, match="not connected"):
        await own.tell_held(2, wire.TellHeld(0, 1))
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, tmp_path / "mount.sock", mount.teller.handlers)
        assert [one.handle for one in (await own.tell_held(2, wire.TellHeld(0, 1))).leases] == [b"file\xff"]
        (seen,) = (await own.audit(2, wire.AuditHeld(0, 9, 8, (b"file\xff",)))).objects
        assert (seen.handle, seen.offset) == (b"file\xff", 8)
        with pytest.raises(ControlError, match="not in the map"):
            await own.tell_held(3, wire.TellHeld(0, 1))
        nursery.cancel_scope.cancel()


async def test_a_mount_of_another_version(tmp_path: Path) -> None:
    async def odd(_: control.Arguments) -> object:
        return {"told": 7}

    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, tmp_path / "mount.sock", {"tell_held": odd})
        with pytest.raises(ControlError, match="another version"):
            await OwnMount(tmp_path).tell_held(2, wire.TellHeld(0, 1))
        nursery.cancel_scope.cancel()
