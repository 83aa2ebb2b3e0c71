"""EXCLUSIVE leases on real files, with native programs: who gets one, who waits for its holder, when it is over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from omfs import wire
from omfs.wiretypes import Mode
from tests.unit.exclusiveroom import READ, held, mode_asked_for, owner_of
from tests.unit.exportroom import ROOT, Asker, refused
from tests.unit.leaseroom import HoldingSession, Room
from tests.unit.localwatch import program
from tests.unit.test_underleases import Outcome, settle

WRITE = "os.open(PATH, os.O_WRONLY)"


@pytest.fixture
async def owner(tmp_path: Path, room: Path) -> Iterator[Room]:  # type: ignore[misc]
    """Of the directory *room*, on each kind of file system."""
    with owner_of(tmp_path / "state", tmp_path / "run") as running:
        yield running


@pytest.fixture
def file(room: Path) -> Path:
    path = room / "file"
    path.write_bytes(b"content")
    return path


async def waits_for(session: HoldingSession, asker: Asker, request: wire.Message, mode: Mode) -> Outcome:
    """The request must wait until this session has answered a recall down to *mode*."""
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, asker, request)
        await settle()
        assert not outcome.is_over
        assert [(type(one), one.mode) for one in session.seen if isinstance(one, wire.RecallLease)] == [
            (wire.RecallLease, mode)
        ]
        session.answer_recalls()
    assert outcome.error is None
    return outcome


# ---------------------------------------------------------------- who gets it


async def test_who_opens_for_writing_gets_it_and_who_reads_does_not(owner: Room, file: Path) -> None:
    asker, session, handle, _ = await held(owner, file)
    assert owner.leasing.owner.exclusive == {handle: session.key}
    (file.parent / "other").touch()
    other = (await asker.walk(file.parent / "other")).handle
    opened = await asker.get(wire.OpenFile(other, os.O_RDONLY, ROOT), wire.FileOpened)
    assert opened.mode is Mode.SHARED


async def test_who_creates_a_file_gets_it_with_the_reply(owner: Room, room: Path) -> None:
    asker, session = owner.holder(1)
    parent = (await asker.walk(room)).handle
    created = await asker.create(parent, "new")
    assert (created.mode, created.parent_mode) == (Mode.EXCLUSIVE, Mode.SHARED)
    assert created.serial > 0
    await asker.close(created.open_id)
    again = await asker.create(parent, "new", os.O_RDONLY)
    assert again.mode is Mode.SHARED
    assert session.seen == []


async def test_not_while_a_native_program_has_the_file_open(owner: Room, file: Path) -> None:
    asker, _ = owner.holder(1)
    handle = (await asker.walk(file)).handle
    with program(file, READ) as reader:
        reader.wait_in()
        opened = await asker.get(wire.OpenFile(handle, os.O_WRONLY, ROOT), wire.FileOpened)
        assert opened.mode is Mode.SHARED
        assert await mode_asked_for(asker, opened.open_id) is Mode.SHARED
    assert await mode_asked_for(asker, opened.open_id) is Mode.EXCLUSIVE
    assert await mode_asked_for(asker, opened.open_id) is Mode.EXCLUSIVE


async def test_not_while_another_holder_has_the_file_open(owner: Room, file: Path) -> None:
    one, _ = owner.holder(1)
    other, session = owner.holder(2)
    handle = (await one.walk(file)).handle
    reading = await other.open(handle)
    writing = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writing.run, one, wire.OpenFile(handle, os.O_RDWR, ROOT))
        await settle()
        session.answer_recalls()
    assert isinstance(writing.reply, wire.FileOpened)
    assert writing.reply.mode is Mode.SHARED
    await other.close(reading)
    assert await mode_asked_for(one, writing.reply.open_id) is Mode.EXCLUSIVE


async def test_who_may_not_write_is_granted_less(owner: Room, file: Path) -> None:
    asker, _ = owner.holder(1)
    open_id = await asker.open((await asker.walk(file)).handle)
    assert await mode_asked_for(asker, open_id) is Mode.SHARED


async def test_of_two_who_take_it_from_each_other_both_are_served(owner: Room, file: Path) -> None:
    one, one_session, handle, open_id = await held(owner, file)
    other, other_session = owner.holder(2)
    owner.leasing.owner.end_session(one_session.key)
    for asker in (one, other):
        await asker.get(wire.GetAttributes(handle), wire.AttributesGot)
    assert owner.leasing.owner.holders_of(handle) == [one_session.key, other_session.key]
    changing, asking = Outcome(), Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(changing.run, other, wire.SetAttributes(handle, ROOT, mode=0o600))
        await settle()
        nursery.start_soon(asking.run, one, wire.AskLease(open_id))
        await settle()
        one_session.answer_recalls()
        other_session.answer_recalls()
    assert isinstance(changing.reply, wire.AttributesGot)
    assert isinstance(asking.reply, wire.LeaseGranted)
    granted = {changing.reply.mode, asking.reply.mode}
    assert granted in ({Mode.NONE, Mode.EXCLUSIVE}, {Mode.NONE, Mode.SHARED})


# ---------------------------------------------------------------- who waits for its holder


@pytest.mark.parametrize("what", ["attributes", "look up", "open", "xattr", "xattrs", "access", "create"])
async def test_who_looks_waits_until_the_holder_has_flushed(owner: Room, file: Path, what: str) -> None:
    one, session, handle, open_id = await held(owner, file)
    other, _ = owner.holder(2)
    parent = (await other.walk(file.parent)).handle
    requests: dict[str, wire.Message] = {
        "attributes": wire.GetAttributes(handle),
        "look up": wire.LookUp(parent, b"file", ROOT),
        "open": wire.OpenFile(handle, os.O_RDONLY, ROOT),
        "xattr": wire.ListXattrs(handle, ROOT),
        "xattrs": wire.ListXattrs(handle, ROOT),
        "access": wire.CheckAccess(handle, os.R_OK, ROOT),
        "create": wire.CreateFile(parent, b"file", 0o644, 0, os.O_RDONLY, ROOT),
    }
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, other, requests[what])
        await settle()
        assert not outcome.is_over
        assert [(type(one), one.mode) for one in session.seen if isinstance(one, wire.RecallLease)] == [
            (wire.RecallLease, Mode.SHARED)
        ]
        await one.get(wire.WriteBlocks(open_id, 0, behind=True), wire.BlocksWritten, b"flushed, and longer")
        session.answer_recalls()
    assert outcome.error is None
    assert owner.leasing.owner.mode_of(session.key, handle) is Mode.SHARED
    assert owner.leasing.owner.exclusive == {}
    if isinstance(outcome.reply, wire.Found | wire.AttributesGot | wire.FileCreated):
        assert outcome.reply.attributes.size_bytes == 19
        assert outcome.reply.mode is Mode.SHARED
    assert (await other.get(wire.GetAttributes(handle), wire.AttributesGot)).mode is Mode.SHARED


@pytest.mark.parametrize("what", ["write", "cut", "chmod", "xattr", "remove", "rename", "link"])
async def test_who_changes_waits_until_the_holder_has_given_back(owner: Room, file: Path, what: str) -> None:
    _, session, handle, _ = await held(owner, file)
    other, _ = owner.holder(2)
    parent = (await other.walk(file.parent)).handle
    requests: dict[str, wire.Message] = {
        "write": wire.OpenFile(handle, os.O_WRONLY, ROOT),
        "cut": wire.SetAttributes(handle, ROOT, size_bytes=0),
        "chmod": wire.SetAttributes(handle, ROOT, mode=0o600),
        "xattr": wire.SetXattr(handle, b"user.x", b"1", 0, ROOT),
        "remove": wire.RemoveName(parent, b"file", False, ROOT),
        "rename": wire.RenameName(parent, b"file", parent, b"new", 0, ROOT),
        "link": wire.MakeLink(handle, parent, b"new", ROOT),
    }
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, other, requests[what])
        await settle()
        assert not outcome.is_over
        assert Mode.NONE in {one.mode for one in session.seen if isinstance(one, wire.RecallLease)}
        session.answer_recalls()
    assert outcome.error is None
    assert owner.leasing.owner.mode_of(session.key, handle) is Mode.NONE


async def test_a_listing_waits_for_what_it_shows(owner: Room, file: Path) -> None:
    one, session, _, open_id = await held(owner, file)
    (file.parent / "before").touch()
    other, _ = owner.holder(2)
    directory = await other.get(wire.OpenDirectory((await other.walk(file.parent)).handle, ROOT), wire.FileOpened)
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, other, wire.ReadDirectory(directory.open_id, 0, 65536))
        await settle()
        assert not outcome.is_over
        await one.get(wire.WriteBlocks(open_id, 0, behind=True), wire.BlocksWritten, b"0123456789")
        session.answer_recalls()
    assert isinstance(outcome.reply, wire.DirectoryRead)
    sizes = {entry.name: (entry.attributes.size_bytes, entry.mode) for entry in outcome.reply.entries}
    assert sizes == {b"file": (10, Mode.SHARED), b"before": (0, Mode.SHARED)}


async def test_the_holder_itself_waits_for_nothing(owner: Room, file: Path) -> None:
    asker, session, handle, open_id = await held(owner, file)
    parent = (await asker.walk(file.parent)).handle
    await asker.look_up(parent, b"file")
    await asker.attributes(handle)
    await asker.list(parent)
    await asker.write(open_id, 0, b"x")
    await asker.get(wire.SetAttributes(handle, ROOT, size_bytes=3, open_id=open_id), wire.AttributesGot)
    await asker.change(handle, mode=0o600)
    assert session.seen == []
    assert owner.leasing.owner.mode_of(session.key, handle) is Mode.EXCLUSIVE


@pytest.mark.parametrize("what", ["open", "truncate by path", "lock"])
async def test_who_has_it_shares_when_the_owner_must_open_the_file_again(owner: Room, file: Path, what: str) -> None:
    """The kernel's lease would block our own open."""
    asker, session, handle, open_id = await held(owner, file)
    requests: dict[str, wire.Message] = {
        "open": wire.OpenFile(handle, os.O_RDONLY, ROOT),
        "truncate by path": wire.SetAttributes(handle, ROOT, size_bytes=1),
        "lock": wire.LockRange(open_id, 1, 1, 0, 1, 10, False),
    }
    await waits_for(session, asker, requests[what], Mode.SHARED)
    assert owner.leasing.owner.exclusive == {}


async def test_nothing_exclusive_is_granted_while_somebody_waits_to_look(owner: Room, file: Path) -> None:
    """Else he would look while there are newer data again."""
    one, session, handle, open_id = await held(owner, file)
    other, _ = owner.holder(2)
    looking = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(looking.run, other, wire.GetAttributes(handle))
        await settle()
        assert await mode_asked_for(one, open_id) is Mode.NONE
        session.answer_recalls()
        assert not looking.is_over  # its task has not run yet
        assert await mode_asked_for(one, open_id) is Mode.SHARED
    assert isinstance(looking.reply, wire.AttributesGot)


# ---------------------------------------------------------------- when it is over


@pytest.mark.parametrize("kind", ["one", "several", "given up"])
async def test_who_closes_the_file_has_it_shared(owner: Room, file: Path, kind: str) -> None:
    asker, session, handle, open_id = await held(owner, file)
    if kind == "given up":
        owner.under.given_up(session, wire.FileOpened(open_id))  # type: ignore[arg-type]
    else:
        await asker.get(wire.CloseFile(open_id) if kind == "one" else wire.CloseFiles((open_id,)), wire.Done)
    assert owner.leasing.owner.mode_of(session.key, handle) is Mode.SHARED
    other, _ = owner.holder(2)
    await other.attributes(handle)
    assert session.seen == []
    with program(file, WRITE) as writer:
        writer.wait_in()
    assert len(owner.changes._guards) == 0


async def test_nothing_is_left_of_a_guard(owner: Room, room: Path) -> None:
    asker, _ = owner.holder(1)
    parent = (await asker.walk(room)).handle
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        created = await asker.create(parent, f"new {number}")
        owner.changes.keep() if number % 2 else None
        await asker.close(created.open_id)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the directory
    for number in range(20):  # nobody has them open for writing any more, the keeper neither
        assert (await asker.create(parent, f"new {number}")).mode is Mode.EXCLUSIVE


async def test_a_late_write_is_refused(owner: Room, file: Path) -> None:
    one, session, _, open_id = await held(owner, file)
    await one.get(wire.WriteBlocks(open_id, 0, behind=True), wire.BlocksWritten, b"in time")
    await one.get(wire.AppendBlocks(open_id, behind=True), wire.BlocksWritten, b"!")
    owner.leasing.owner.end_session(session.key)  # its term is over
    owner.leasing._settle()
    for request in (wire.WriteBlocks(open_id, 0, behind=True), wire.AppendBlocks(open_id, behind=True)):
        with refused(errno.EIO):
            await one.ask(request, b"late")
    assert await one.read(open_id) == b"in time!"
    await one.get(wire.WriteBlocks(open_id, 0), wire.BlocksWritten, b"IN")


async def test_a_write_that_takes_long_is_refused_if_the_lease_is_lost_before_it_begins(
    owner: Room, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, session, _, open_id = await held(owner, file)
    monkeypatch.setattr("omfs.export.blocks._takes_long", lambda opened, bulk: True)
    work = one.begin(wire.WriteBlocks(open_id, 0, behind=True), b"late")
    owner.leasing.owner.end_session(session.key)
    with refused(errno.EIO):
        await work
    assert await one.read(open_id) == b"content"


async def test_a_native_change_that_is_told_with_the_grant_prevents_it(owner: Room, file: Path) -> None:
    asker, session = owner.holder(1)
    handle = (await asker.walk(file)).handle
    with program(file, "os.chmod(PATH, 0o600)") as running:
        running.wait_in()
    opened = await asker.get(wire.OpenFile(handle, os.O_RDWR, ROOT), wire.FileOpened)
    assert opened.mode is Mode.NONE
    assert [type(one) for one in session.seen] == [wire.RecallLease]
    assert len(owner.changes._guards) == 0
    session.answer_recalls()
    assert await mode_asked_for(asker, opened.open_id) is Mode.EXCLUSIVE


async def test_a_write_that_waited_is_refused_if_the_lease_is_lost_meanwhile(owner: Room, file: Path) -> None:
    one, session, handle, open_id = await held(owner, file)
    _, other_session = owner.holder(2)
    owner.leasing.owner.restore([(other_session.key, handle, Mode.SHARED, 1)])  # as it can't be: the write must wait
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, one, wire.WriteBlocks(open_id, 0, behind=True))
        await settle()
        assert not outcome.is_over
        owner.leasing.owner.end_session(session.key)
        owner.leasing.owner.end_session(other_session.key)
        owner.leasing._settle()
    assert isinstance(outcome.error, OSError)
    assert outcome.error.errno == errno.EIO


# ---------------------------------------------------------------- native programs


@pytest.mark.parametrize(("action", "left"), [(READ, Mode.SHARED), (WRITE, Mode.NONE)])
async def test_a_native_open_waits_until_the_holder_has_flushed(
    owner: Room, file: Path, nursery: trio.Nursery, action: str, left: Mode
) -> None:
    nursery.start_soon(owner.under._guards.run)
    one, session, handle, open_id = await held(owner, file)
    with program(file, action) as running:
        while not session.asked:  # noqa: ASYNC110 - a list is what is asked
            await trio.sleep(0.001)
        assert [one.mode for one in session.seen if isinstance(one, wire.RecallLease)] == [left]
        assert not running.is_in
        await one.get(wire.WriteBlocks(open_id, 0, behind=True), wire.BlocksWritten, b"flushed")
        session.answer_recalls()
        await trio.to_thread.run_sync(running.wait_in)
        assert owner.leasing.owner.mode_of(session.key, handle) is left
        assert await mode_asked_for(one, open_id) is Mode.SHARED


async def test_what_a_native_program_changes_by_path_is_given_back(owner: Room, file: Path) -> None:
    _, session, _, _ = await held(owner, file)
    with program(file, "os.chmod(PATH, 0o600)") as running:
        running.wait_in()
    owner.changes.drain()
    assert [one.mode for one in session.seen if isinstance(one, wire.RecallLease)] == [Mode.NONE]
