"""Listings without OPENDIR: what is packed, what the kernel may keep, what is asked of the owner."""

from __future__ import annotations

import errno
import struct

import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError

from omfs import wire
from omfs.errors import OutcomeUnknown, RemoteFailure, StaleHandle
from omfs.export import listings as owner_listings
from omfs.mount import lowlevel_abi as abi, lowlevel_abi_dirs as dirs, takenlistings
from omfs.mount.counters import Counters
from omfs.mount.inodes import ROOT_ID
from omfs.mount.magiclinks import listed
from tests.unit.kerneldirectory import PAGE, Kernel, Stream, parse
from tests.unit.listingmount import FOREVER_S, HANDLE, SHARED, Mount, finished

# ---------------------------------------------------------------- packing


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 255])
@pytest.mark.parametrize("plus", [False, True])
def test_entries_are_laid_out_as_in_fuse_h(length: int, plus: bool) -> None:
    name = b"n" * length
    header = struct.pack("<QQQQIIQ", 9, 0, 3, 4, 0, 0, 9) + bytes(80) if plus else b""
    dirent = struct.pack("<QQII", 9, 1 << 40, length, 8) + name
    expected = header + dirent + bytes(-len(dirent) % 8)
    assert len(expected) % 8 == 0
    reply = dirs.DirectoryReply(len(expected), plus)
    told = dirs.known_entry(9, struct.pack("<Q", 9) + bytes(80), 3, 4)
    assert reply.add(9, 8, name, 1 << 40, told)
    assert not reply.add(9, 8, b"x", 1), "full"
    assert reply.message(5) == struct.pack("<IiQ", 16 + len(expected), 0, 5) + expected
    assert dirs.dirent_bytes(name) == len(expected) - len(header)
    assert not dirs.DirectoryReply(len(expected) - 1, plus).add(9, 8, name, 1, told)


def test_other_layouts() -> None:
    assert dirs.cached_directory_reply(7) == struct.pack("<IiQQII", 32, 0, 7, 0, 2 | 8, 0)
    for flags, data_only in ((0, False), (1, True)):
        request = memoryview(bytes(abi.IN_HEADER_BYTES) + struct.pack("<QII", 0, flags, 0))
        assert dirs.fsync_data_only(request) is data_only


def test_the_owner_counts_an_entry_as_the_mount_believes() -> None:
    assert takenlistings.OWNER_ENTRY_BYTES == owner_listings.ENTRY_OVERHEAD_BYTES


@pytest.mark.parametrize("length", [1, 8, 60, 255])
@pytest.mark.parametrize("size_bytes", [4096, 32768, 131072])
def test_a_piece_under_a_lease_fits_the_answer(length: int, size_bytes: int) -> None:
    """What the owner sends for the size that is asked for (its last entry may exceed it) finds room."""
    mount = Mount()
    mount.leases.is_on = True
    mount.peer.make(*(b"%0*d" % (length, n) for n in range(10 if length == 1 else 2000)))
    asked = bytearray()

    def read(request: wire.ReadDirectory) -> wire.DirectoryRead:
        left, size_left = [], request.size_bytes
        for name, cursor in mount.peer.names.items():
            if cursor > request.cursor and size_left > 0:
                size_left -= len(name) + len(HANDLE) + owner_listings.ENTRY_OVERHEAD_BYTES
                left.append(mount.peer._entry(name, cursor))
        asked.append(min(len(left), 255))
        return wire.DirectoryRead(tuple(left), size_left > 0, 1, SHARED)

    mount.peer._read = read  # type: ignore[method-assign]
    offset, told = 0, 0
    while entries := mount.ask(offset, size_bytes):
        assert all(entry.node_id for entry in entries if entry.name not in (b".", b"..")), "told without its object"
        told, offset = told + len(entries), entries[-1].off
    assert told == 2 + len(mount.peer.names)


# ---------------------------------------------------------------- one listing


def test_a_leased_listing_is_repeated_without_a_request() -> None:
    mount = Mount()
    mount.leases.is_on = True
    mount.peer.make(b"a", b"b", b"c", b"d")
    assert mount.list_all() == [b"a", b"b", b"c", b"d"]
    assert mount.warm()
    assert mount.open_count() == 0
    mount.peer.make(b"e")
    mount.listings.stale(mount.inode.id)
    mount.kernel.invalidate()
    assert mount.list_all() == [b"a", b"b", b"c", b"d", b"e"]
    assert mount.warm()


def test_hits_and_misses_are_counted() -> None:
    mount, counters = Mount(), Counters()
    mount.operations.counters = counters
    mount.peer.make(b"a", b"b")
    assert mount.list_all() == mount.list_all() == [b"a", b"b"]
    assert (counters.asked_listings, counters.answered_listings) == (2, 0), "without a lease each asks the owner"
    mount.leases.is_on = True
    assert mount.list_all() == [b"a", b"b"]
    mount.kernel.invalidate()  # it has its pages no more, but nothing was recalled
    assert mount.list_all() == [b"a", b"b"]
    assert (counters.asked_listings, counters.answered_listings) == (3, 1)


def test_without_a_lease_nothing_is_kept() -> None:
    mount = Mount()
    mount.peer.make(b"a", b"b")
    assert mount.list_all() == [b"a", b"b"]
    assert not mount.kernel.pages
    mount.peer.make(b"c")
    assert mount.list_all() == [b"a", b"b", b"c"], "another node made it, and nobody told us"


def test_a_copy_that_ends_with_its_page_is_not_kept() -> None:
    """There the kernel takes a place that it does not find for the end, and a slower reader would miss the rest."""
    mount = Mount()
    mount.leases.is_on = True
    mount.peer.piece = 100
    mount.peer.make(*(b"%d" % n for n in range(2 * PAGE // 32 - 2)))
    slow = Stream()
    mount.kernel.getdents(slow, 9)
    mount.listings.stale(mount.inode.id)
    mount.kernel = other = Kernel(mount.ask)  # as after a reset of the copy
    mount.list_all()
    assert not mount.warm()
    while other.getdents(slow, 9):
        pass
    assert slow.told[2:] == list(mount.peer.names)
    mount.peer.make(b"more")
    mount.listings.stale(mount.inode.id)
    mount.list_all()
    assert mount.warm()


def test_objects_are_told_only_when_the_kernel_may_use_them() -> None:
    mount = Mount()
    mount.peer.make(b"a", b"b")
    assert [entry.node_id for entry in mount.ask(0, 4096)] == [0, 0, 0, 0]
    assert len(mount.operations.inodes) == 2, "the directory and its node"
    mount.leases.is_on = True
    entries = mount.ask(0, 4096)
    assert [entry.valid_s for entry in entries] == [(0, 0)] * 2 + [(FOREVER_S, FOREVER_S - 1)] * 2
    for entry in entries[2:]:
        assert entry.number == entry.node_id
        assert mount.operations.inodes.get(entry.node_id).lookups == 1
    again = mount.ask(0, 4096)
    assert [entry.number for entry in again] == [entry.number for entry in entries]
    assert not any(entry.node_id for entry in again), "what was received earlier may be overtaken"
    assert not any(entry.node_id for entry in mount.ask(0, 4096, plus=False))


def test_what_does_not_fit_is_not_counted() -> None:
    mount = Mount()
    mount.leases.is_on = True
    mount.peer.make(b"a", b"b", b"c")
    first = mount.ask(0, 3 * 160)
    assert [entry.name for entry in first] == [b".", b"..", b"a"]
    second = mount.ask(first[-1].off, 4096)
    assert [entry.name for entry in second] == [b"b", b"c"]
    assert len(mount.operations.inodes) == 3


def test_names_only_are_nobody_elses() -> None:
    """A user who may not search the directory sees no objects; others may."""
    mount = Mount()
    mount.leases.is_on = True
    mount.peer.make(b"a")
    mount.peer.searchable = False
    assert [(entry.node_id, entry.kind) for entry in mount.ask(0, 4096)][2:] == [(0, 8)]
    mount.list_all()
    assert not mount.kernel.pages
    mount.peer.searchable = True
    assert mount.ask(0, 4096)[2].node_id


def test_mfs_itself_lists_its_nodes() -> None:
    mount = Mount()
    others = [name.name for name in listed()]
    names = [entry.name for entry in mount.ask(0, 4096, ROOT_ID)]
    assert names == [b".", b"..", b"2", *others]
    mount.operations.nodes[7] = mount.node
    assert len(mount.ask(0, 4096, ROOT_ID)) == len(names), "until the map is read again"
    mount.listings.stale(ROOT_ID)
    entries = mount.ask(0, 4096, ROOT_ID)
    assert [(entry.name, entry.number, entry.kind) for entry in entries[2:4]] == [(b"2", 3, 4), (b"7", 8, 4)]
    assert [entry.name for entry in entries[4:]] == others
    assert mount.ask(entries[-1].off, 4096, ROOT_ID) == []
    assert not mount.peer.asked


def test_below_the_own_node_there_is_nothing() -> None:
    mount = Mount()
    mount.operations.self_id = 5
    assert [entry.name for entry in mount.ask(0, 4096, ROOT_ID + 5)] == [b".", b".."]


def test_errors() -> None:
    mount = Mount()
    mount.peer.refuse = RemoteFailure(errno.EACCES)
    with pytest.raises(RemoteFailure, match="denied"):
        mount.ask(0, 4096)
    mount.peer.refuse = RemoteFailure(errno.ESTALE)
    with pytest.raises(FUSEError) as removed:
        mount.ask(0, 4096)
    assert removed.value.errno == errno.ENOENT
    mount.peer.refuse = None
    assert len(mount.ask(0, 4096)) == 2
    with pytest.raises(StaleHandle):
        mount.ask(0, 4096, 1 << 50)


def test_changes_of_our_own_end_a_listing_for_others() -> None:
    mount = Mount()
    mount.leases.is_on = True
    number = mount.inode.id

    async def change(error: Exception | None = None) -> wire.NamesChanged:
        mount.kernel.iversion += error is None
        if error is not None:
            raise error
        mount.peer.make(b"a%d" % len(mount.peer.names))
        return wire.NamesChanged(())

    for expected in (1, 2):
        finished(mount.operations.changing_names(change(), 0, (number, b"name")))
        assert len(mount.list_all()) == expected
        assert mount.warm()
    with pytest.raises(RemoteFailure):
        finished(mount.operations.changing_names(change(RemoteFailure(errno.EEXIST)), 0, (number, b"name")))
    assert mount.warm(), "nothing happened"
    mount.peer.make(b"perhaps")
    with pytest.raises(OutcomeUnknown):
        finished(mount.operations.changing_names(change(OutcomeUnknown("restarted")), 0, (number, b"name")))
    assert b"perhaps" in mount.list_all()


def test_a_listing_that_rests_is_closed_at_the_owner_and_goes_on() -> None:
    mount = Mount()
    mount.peer.make(*(b"%d" % n for n in range(10)))
    stream = Stream()
    mount.kernel.getdents(stream, 4)
    assert mount.open_count() == 1
    assert mount.listings.idle() == [], "just used"
    for snapshot in mount.listings.idle():
        finished(takenlistings._close(snapshot))
    assert mount.open_count() == 0
    while mount.kernel.getdents(stream, 4):
        pass
    assert stream.told[2:] == list(mount.peer.names)


def test_a_shared_listing_outlives_its_first_reader() -> None:
    """One process has all, another is slow: what it stands in stays, though it serves nobody new."""
    mount = Mount()
    mount.leases.is_on = True
    mount.peer.make(*(b"%d" % n for n in range(20)))
    slow, fast = Stream(), Stream()
    mount.kernel.getdents(slow, 8)
    mount.listings.stale(mount.inode.id)  # so that the end is told from here
    mount.leases.is_on = False
    fast.pos = slow.pos
    while mount.kernel.getdents(fast, 4):
        pass
    for name in slow.told[2:6]:
        del mount.peer.names[name]
    for _ in range(3):
        assert mount.listings.idle() == []
    while mount.kernel.getdents(slow, 4):
        pass
    assert len(slow.told) == len(set(slow.told)) == 22


def test_a_directory_that_the_kernel_forgot_begins_anew() -> None:
    mount = Mount()
    mount.leases.is_on = True
    mount.peer.make(b"a")
    cookie = mount.ask(0, 4096)[-1].off
    mount.peer.make(b"b")
    mount.operations.inodes.forget(mount.inode.id, 1)
    again = mount.operations.inodes.find(mount.node, HANDLE)
    assert again.id == mount.inode.id
    again.lookups = 1
    assert [entry.name for entry in mount.ask(0, 4096)][2:] == [b"a", b"b"]
    assert [entry.name for entry in mount.ask(cookie, 4096)] == [b"b"], "at the same position"


def test_bounds() -> None:
    mount = Mount(snapshots_max=3, names_max=20)
    mount.peer.make(*(b"%d" % n for n in range(15)))
    streams = [Stream() for _ in range(5)]
    for stream in streams:
        mount.kernel.getdents(stream, 4)
    assert len(mount.listings) == 3
    assert mount.open_count() <= 3
    for stream in streams:
        while mount.kernel.getdents(stream, 4):
            assert len(mount.listings) <= 3
        assert stream.told[2:] == list(mount.peer.names), "a dropped one goes on at the same position"
    assert mount.open_count() == 0


def test_a_big_directory_costs_its_entries() -> None:
    mount = Mount()
    mount.peer.make(*(b"e%d" % n for n in range(100_000)))
    left = sorted((cursor, name) for name, cursor in mount.peer.names.items())

    def read(request: wire.ReadDirectory) -> wire.DirectoryRead:
        start = request.cursor // 7
        entries = tuple(mount.peer._entry(name, cursor) for cursor, name in left[start : start + 600])
        return wire.DirectoryRead(entries, start + 600 >= len(left))

    mount.peer._read = read  # type: ignore[method-assign]
    first = mount.ask(0, 32768)
    assert len(mount.peer.asked) == 2, "the first names come at once"
    offset, told = first[-1].off, len(first)
    while entries := mount.ask(offset, 32768):
        told, offset = told + len(entries), entries[-1].off
    assert told == 100_002
    assert len(mount.peer.asked) < 2 + 100_000 / 600 + 2


async def test_two_processes_ask_for_the_same_piece_once() -> None:
    mount = Mount()
    mount.leases.is_on = True
    mount.peer.piece = 2
    mount.peer.make(b"a", b"b", b"c")
    offset = mount.ask(0, 4096)[-1].off
    before = len(mount.peer.asked)
    mount.peer.wait = trio.Event()
    answers: list[list[bytes]] = []

    async def ask() -> None:
        message = await mount.lister.read(mount.request(offset, 4096, mount.inode.id), 2)
        answers.append([entry.name for entry in parse(message[16:], True)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        mount.peer.wait.set()
    assert answers == [[b"c"], [b"c"]]
    assert len(mount.peer.asked) == before + 1
