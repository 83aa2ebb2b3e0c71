"""What the kernel is told to forget, in which order, and when a recall is answered; peer and notifier are fakes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.kernel.fusenotify import Notifier
from omfs.mount.inodes import Inode, InodeTable
from omfs.mount.recall import LOCKED_BY_ASKER_S, REVALIDATED_S, Recaller
from omfs.mount.remote import RemoteNode
from omfs.net.peer import Peer
from omfs.wiretypes import Mode
from tests.unit.fakepeer import ATTRIBUTES, FakePeer

SHARED, NONE = Mode.SHARED, Mode.NONE

ASKER = 4711  # a thread


class LeasingPeer(FakePeer):
    """Also has leases."""

    lease_round = 1

    def __init__(self) -> None:
        super().__init__()
        self.lapsed = trio.Event()

    def lapse_handled(self) -> None:
        self.lapsed.set()


class Kernel:
    """Hears the notifications; *unknown* inodes it does not know, *before* runs before each, in the thread."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.unknown: set[int] = set()
        self.before: Callable[[tuple[Any, ...]], None] = lambda _: None

    def _hear(self, *what: Any) -> bool:
        self.before(what)
        self.heard.append(what)
        return what[1] not in self.unknown

    def inval_inode(self, number: int, offset: int = 0, size_bytes: int = 0) -> bool:
        return self._hear("inode", number, offset, size_bytes)

    def inval_attributes(self, number: int) -> bool:
        return self._hear("attributes", number)

    def inval_entry(self, parent: int, name: bytes, expire: bool = False) -> bool:
        return self._hear("expire" if expire else "drop", parent, name)

    def kinds(self) -> list[Any]:
        return [what[0] for what in self.heard]


class Mount:
    """One owner, one directory and one file that the kernel knows."""

    def __init__(self) -> None:
        self.peer = LeasingPeer()
        self.node = RemoteNode(cast(Peer, self.peer))
        self.kernel = Kernel()
        self.inodes: InodeTable[RemoteNode] = InodeTable()
        self.stale: list[int] = []
        self.recaller = Recaller(self.inodes, self.stale.append)
        self.recaller.serve(self.node)
        self.recaller.attach(cast(Notifier, self.kernel))
        self.directory, self.file = self.known(b"dir"), self.known(b"file")
        self.directory.is_directory = True

    def known(self, handle: bytes) -> Inode[RemoteNode]:
        inode = self.inodes.find(self.node, handle)
        inode.lookups += 1
        return inode

    def grant(self, inode: Inode[RemoteNode], serial: int = 1) -> bool:
        return self.node.leases.granted(inode.lease, serial, SHARED)

    def name(self, name: bytes, serial: int = 1) -> bool:
        return self.node.leases.may_name(self.directory.lease, serial, SHARED, name)

    async def recall(self, recall: wire.Recall) -> None:
        self.recaller.seen(self.node, recall)
        await self.recaller.recall(self.node, recall)


@pytest.fixture
async def mount(nursery: trio.Nursery) -> Mount:
    mount = Mount()
    nursery.start_soon(mount.recaller.run)
    await trio.testing.wait_all_tasks_blocked()
    return mount


async def test_names_are_forgotten_before_the_directory(mount: Mount) -> None:
    assert mount.grant(mount.directory)
    assert mount.name(b"a")
    await mount.recall(wire.RecallNames(b"dir", 2, (b"a", b"never told")))
    number = mount.directory.id
    assert mount.kernel.heard == [
        ("expire", number, b"a"), ("expire", number, b"never told"), ("inode", number, 0, 0),
    ]  # fmt: skip
    assert mount.stale == [number]
    assert mount.directory.lease.mode is SHARED, "it keeps the rest"
    assert mount.name(b"b", 3)


async def test_a_directory_that_is_given_back_takes_all_told_names_along(mount: Mount) -> None:
    mount.grant(mount.directory)
    for name in (b"a", b"b"):
        mount.name(name)
    await mount.recall(wire.RecallLease(b"dir", 2, NONE))
    assert {what[2] for what in mount.kernel.heard[:-1]} == {b"a", b"b"}
    assert mount.kernel.heard[-1][0] == "inode"
    assert mount.directory.lease.mode is NONE
    assert not mount.grant(mount.directory, 2), "granted before the recall"
    assert mount.grant(mount.directory, 3)


async def test_a_directory_without_names_is_locked_all_the_same(mount: Mount) -> None:
    mount.grant(mount.directory)
    await mount.recall(wire.RecallNames(b"dir", 2, ()))
    (entry, _, name), _ = mount.kernel.heard
    assert entry == "expire"
    assert len(name) == 256, "no owner has such a name"


async def test_a_name_that_was_just_looked_up_again_is_dropped_for_real(
    mount: Mount, autojump_clock: trio.testing.MockClock
) -> None:
    mount.grant(mount.directory)
    mount.recaller.looked_up(mount.directory.id, b"again")
    await mount.recall(wire.RecallNames(b"dir", 2, (b"again", b"other")))
    assert mount.kernel.kinds() == ["drop", "expire", "inode"]
    mount.kernel.heard.clear()
    await trio.sleep(REVALIDATED_S + 1)
    mount.recaller.looked_up(mount.directory.id, b"other")
    await mount.recall(wire.RecallNames(b"dir", 3, (b"again", b"other")))
    assert mount.kernel.kinds() == ["expire", "drop", "inode"]


async def test_only_pages_that_may_be_there_are_dropped(mount: Mount) -> None:
    mount.grant(mount.file)
    await mount.recall(wire.RecallLease(b"file", 2, NONE))
    assert mount.kernel.kinds() == ["attributes"]
    mount.kernel.heard.clear()
    mount.grant(mount.file, 3)
    mount.file.lease.data = True
    await mount.recall(wire.RecallLease(b"file", 4, NONE))
    assert mount.kernel.kinds() == ["inode"]
    assert not mount.file.lease.data


async def test_what_is_told_during_a_pass_makes_another(mount: Mount) -> None:
    mount.grant(mount.directory)
    mount.name(b"a")
    moved: list[int] = []

    def move(what: tuple[Any, ...]) -> None:
        if what[0] == "inode" and not moved:
            moved.append(1)
            trio.from_thread.run_sync(mount.recaller.moved, mount.directory, b"moved here")

    mount.kernel.before = move
    await mount.recall(wire.RecallLease(b"dir", 2, NONE))
    names = [what[2] for what in mount.kernel.heard if what[0] == "expire"]
    assert names[0] == b"a"
    assert set(names[1:]) == {b"moved here"}  # perhaps twice: by itself, too


async def test_what_the_kernel_does_not_know_yet_is_told_again(
    mount: Mount, autojump_clock: trio.testing.MockClock
) -> None:
    mount.grant(mount.file)
    mount.kernel.unknown.add(mount.file.id)

    def learn(_: tuple[Any, ...]) -> None:
        if len(mount.kernel.heard) == 3:
            mount.kernel.unknown.clear()

    mount.kernel.before = learn
    await mount.recall(wire.RecallLease(b"file", 2, NONE))
    assert len(mount.kernel.heard) == 4


async def test_what_the_kernel_never_gets_to_know_is_given_up(
    mount: Mount, autojump_clock: trio.testing.MockClock
) -> None:
    mount.grant(mount.file)
    mount.kernel.unknown.add(mount.file.id)
    await mount.recall(wire.RecallLease(b"file", 2, NONE))
    assert 10 < trio.current_time() < 12
    mount.kernel.heard.clear()
    mount.inodes.forget(mount.file.id, 1)
    await mount.recall(wire.RecallLease(b"file", 3, NONE))
    assert mount.kernel.heard == [], "it was forgotten"


async def test_a_recall_voids_grants_of_what_is_not_known_yet(mount: Mount) -> None:
    await mount.recall(wire.RecallLease(b"new", 7, NONE))
    new = mount.known(b"new")
    assert not mount.grant(new, 7)
    assert mount.grant(new, 8)


async def test_nothing_is_granted_while_a_recall_is_under_way(mount: Mount) -> None:
    mount.grant(mount.directory)
    granted = []

    def ask(what: tuple[Any, ...]) -> None:
        granted.append(trio.from_thread.run_sync(mount.grant, mount.directory, 9))

    mount.kernel.before = ask
    await mount.recall(wire.RecallNames(b"dir", 2, (b"a",)))
    assert granted == [False, False]
    assert mount.grant(mount.directory, 9)


async def test_one_that_is_stuck_does_not_stop_others(mount: Mount, nursery: trio.Nursery) -> None:
    free = threading.Event()
    mount.grant(mount.directory)
    mount.kernel.before = lambda what: None if what[0] != "expire" else cast(None, free.wait(60))
    done = trio.Event()

    async def stuck() -> None:
        await mount.recall(wire.RecallNames(b"dir", 2, (b"a",)))
        done.set()

    nursery.start_soon(stuck)
    await trio.testing.wait_all_tasks_blocked()
    mount.grant(mount.file)
    mount.file.lease.data = True
    await mount.recall(wire.RecallLease(b"file", 3, NONE))
    assert not done.is_set()
    free.set()
    await done.wait()


async def test_ending_does_not_wait_for_what_is_stuck() -> None:
    mount, free = Mount(), threading.Event()
    mount.grant(mount.directory)
    mount.kernel.before = lambda _: cast(None, free.wait(60))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.recaller.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(mount.recall, wire.RecallNames(b"dir", 2, (b"a",)))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert mount.directory.lease.recalls == 0
    free.set()


async def test_a_recall_waits_for_pages_that_are_being_dropped(mount: Mount, nursery: trio.Nursery) -> None:
    free = threading.Event()
    mount.grant(mount.file)
    mount.kernel.before = lambda what: None if what[0] != "inode" else cast(None, free.wait(60))
    mount.recaller.drop_pages_soon(mount.file, 4096, 100)
    done = trio.Event()

    async def recall() -> None:
        await mount.recall(wire.RecallLease(b"file", 2, NONE))
        done.set()

    nursery.start_soon(recall)
    await trio.testing.wait_all_tasks_blocked()
    assert not done.is_set()
    free.set()
    await done.wait()
    assert ("inode", mount.file.id, 4096, 100) in mount.kernel.heard
    assert not mount.file.dropping


async def test_a_lapse_forgets_everything_attributes_first(mount: Mount, nursery: trio.Nursery) -> None:
    nursery.start_soon(mount.node.tend)
    mount.inodes.add_directory(mount.node)
    many = [mount.known(b"%d" % number) for number in range(50)]
    for inode in (mount.directory, mount.file, *many):
        mount.grant(inode)
    mount.name(b"a")
    mount.file.lease.data = True
    untouched = mount.known(b"never granted")
    mount.peer.lease_round = 0
    mount.recaller._lapse(mount.node, "silence")
    assert not mount.grant(mount.file, 5), "at once"
    with trio.fail_after(60):
        await mount.peer.lapsed.wait()
    granted = {mount.directory.id, mount.file.id, *(inode.id for inode in many)}
    first = mount.kernel.heard[: len(granted)]
    assert {what[0] for what in first} == {"attributes"}
    assert {what[1] for what in first} == granted
    assert ("expire", mount.directory.id, b"a") in mount.kernel.heard
    assert ("inode", mount.file.id, 0, 0) in mount.kernel.heard
    assert untouched.id not in {what[1] for what in mount.kernel.heard}
    assert all(inode.lease.mode is NONE and not inode.lease.recalls for inode in mount.inodes.of_owner(mount.node))
    mount.peer.lease_round = 2
    assert mount.grant(mount.file, 5)


async def test_recall_all_forgets_everything_and_leases_go_on(mount: Mount) -> None:
    for inode in (mount.directory, mount.file):
        mount.grant(inode)
    await mount.recall(wire.RecallAll(5))
    assert {what[1] for what in mount.kernel.heard} == {mount.directory.id, mount.file.id}
    assert not mount.grant(mount.file, 5)
    assert mount.grant(mount.file, 6)


async def test_the_root_of_a_node_is_recalled_by_its_handle(mount: Mount) -> None:
    directory = mount.inodes.add_directory(mount.node)
    assert await mount.node.root() == b"root"
    assert mount.grant(directory)
    await mount.recall(wire.RecallLease(b"root", 2, NONE))
    assert {what[1] for what in mount.kernel.heard} == {directory.id}
    assert directory.lease.mode is NONE


async def test_an_owner_that_restarted_counts_anew(mount: Mount) -> None:
    mount.grant(mount.file, 1000)
    await mount.recall(wire.RecallLease(b"file", 1001, NONE))
    mount.peer.epoch += 1
    assert mount.grant(mount.file, 1)


async def test_answers_of_an_earlier_round_grant_nothing(mount: Mount) -> None:
    def lapse_and_renew(_: wire.Message) -> None:
        mount.peer.lease_round += 1

    granting = wire.AttributesGot(ATTRIBUTES, 3, SHARED)
    assert mount.node.leases.counts(1, granting) is granting
    assert mount.node.leases.counts(0, granting).serial == 0
    lapse_and_renew(wire.Ping())
    assert mount.node.leases.counts(1, granting).serial == 0


async def test_what_the_kernel_forgets_is_given_back_together(
    mount: Mount, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    nursery.start_soon(mount.node.tend)
    mount.grant(mount.file, 4)
    mount.grant(mount.directory, 5)
    mount.inodes.forget(mount.file.id, 1)
    mount.inodes.forget(mount.directory.id, 1)
    await trio.sleep(1)
    assert mount.peer.of(wire.ReturnLeases) == [wire.ReturnLeases(((b"file", 4), (b"dir", 5)))]
    again = mount.known(b"file")
    assert not mount.grant(again, 4), "an answer that was on its way"
    assert mount.grant(again, 6)


async def test_nothing_is_cached_without_a_way_to_tell_the_kernel() -> None:
    peer = LeasingPeer()
    node = RemoteNode(cast(Peer, peer))
    inodes: InodeTable[RemoteNode] = InodeTable()
    Recaller(inodes, lambda _: None).serve(node)
    inode = inodes.find(node, b"file")
    assert node.leases.round == 0
    assert not node.leases.granted(inode.lease, 1, SHARED)
    assert inode.hold is None


async def test_xattrs_are_held_only_without_a_break(mount: Mount) -> None:
    holds = [mount.file.hold]
    mount.grant(mount.file)
    holds.append(mount.file.hold)
    mount.recaller.seen(mount.node, wire.RecallLease(b"file", 2, NONE))
    holds.append(mount.file.hold)
    assert holds[0] is None
    assert holds[1] is not None
    assert holds[1] != holds[2]


# ---------------------------------------------------------------- names, while calls of ours keep the directory locked


class Locked:
    """The directory is locked in the kernel until `free` is set."""

    def __init__(self, mount: Mount) -> None:
        self.free = threading.Event()
        mount.kernel.before = lambda what: None if what[0] != "expire" else cast(None, self.free.wait(60))
        mount.grant(mount.directory)
        mount.name(b"a")
        self.answered = trio.Event()
        self._mount = mount

    async def recall(self) -> None:
        await self._mount.recall(wire.RecallNames(b"dir", 2, (b"a",)))
        self.answered.set()


async def test_names_are_answered_for_at_once_while_a_call_of_ours_changes_some(mount: Mount) -> None:
    locked = Locked(mount)
    mount.directory.begin_change()
    await locked.recall()
    assert mount.kernel.kinds() == ["inode"], "attributes and listing: nobody is reading that just now"
    assert not mount.grant(mount.directory, 9), "until they are forgotten"
    (forgotten,) = mount.directory.forgetting
    locked.free.set()
    await forgotten.wait()
    assert mount.kernel.kinds() == ["inode", "expire", "inode"]
    assert not mount.directory.forgetting
    assert mount.grant(mount.directory, 9)


async def test_a_call_that_begins_meanwhile_has_the_recall_answered(mount: Mount, nursery: trio.Nursery) -> None:
    locked = Locked(mount)
    nursery.start_soon(locked.recall)
    await trio.testing.wait_all_tasks_blocked()
    assert not locked.answered.is_set()
    mount.directory.begin_change()
    await locked.answered.wait()
    assert "inode" in mount.kernel.kinds()
    locked.free.set()


async def test_attributes_wait_until_names_are_forgotten(mount: Mount, nursery: trio.Nursery) -> None:
    locked, told = Locked(mount), trio.Event()
    mount.directory.begin_change()
    await locked.recall()

    async def ask() -> None:
        await mount.recaller.wait_forgotten(mount.directory, ASKER)
        told.set()

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    assert not told.is_set()
    locked.free.set()
    await told.wait()
    assert ("expire", mount.directory.id, b"a") in mount.kernel.heard


async def test_who_may_keep_the_directory_locked_himself_is_told_after_a_while(
    mount: Mount, autojump_clock: trio.testing.MockClock
) -> None:
    locked = Locked(mount)
    mount.directory.begin_change()
    await locked.recall()
    mount.directory.end_change()
    begun_s = trio.current_time()
    await mount.recaller.wait_forgotten(mount.directory, ASKER)
    assert trio.current_time() - begun_s >= LOCKED_BY_ASKER_S
    assert mount.directory.forgetting, "his lock is in their way"
    locked.free.set()


async def test_who_only_looks_waits_until_the_names_are_forgotten(
    mount: Mount, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omfs.mount.recall.only_looks", lambda thread: thread == ASKER)
    locked, told = Locked(mount), trio.Event()
    mount.directory.begin_change()
    await locked.recall()

    async def ask() -> None:
        await mount.recaller.wait_forgotten(mount.directory, ASKER)
        told.set()

    nursery.start_soon(ask)
    await trio.sleep(LOCKED_BY_ASKER_S / 2)
    mount.directory.end_change()
    await trio.sleep(10 * LOCKED_BY_ASKER_S)
    assert not told.is_set()
    locked.free.set()
