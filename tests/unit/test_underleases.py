"""The owner's door: what is granted with replies, who is asked before a change, and when the change is made."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from omfs import wire
from omfs.cache.owner import STUCK_S
from omfs.export import guards
from omfs.export.handles import prepared_of
from omfs.export.service import ExportService
from omfs.wiretypes import Mode
from tests.unit.exportroom import ROOT, Asker, serving
from tests.unit.leaseroom import TERM_S, HoldingSession, Room, leasing_room


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory on the machine's own disk."""
    top = tmp_path / "exported"
    top.mkdir()
    return top


@pytest.fixture(autouse=True)
def nothing_is_too_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that the tests have just made count as old."""
    monkeypatch.setattr(guards, "UNCACHED_NS", 0)


@pytest.fixture
async def room(tmp_path: Path) -> Iterator[Room]:  # type: ignore[misc]
    with serving(tmp_path / "state") as service, leasing_room(tmp_path / "state", service) as running:
        yield running


async def two(room: Room) -> tuple[Asker, HoldingSession, Asker, HoldingSession]:
    one, one_session = room.holder(1)
    other, other_session = room.holder(2)
    return one, one_session, other, other_session


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await trio.lowlevel.checkpoint()


class Outcome:
    """A request under way in a task of its own."""

    def __init__(self) -> None:
        self.reply: wire.Message | None = None
        self.error: BaseException | None = None

    async def run(self, asker: Asker, request: wire.Message) -> None:
        try:
            self.reply, _ = await asker.ask(request)
        except OSError as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return self.reply is not None or self.error is not None


# ---------------------------------------------------------------- grants


async def test_what_is_looked_up_may_be_cached(room: Room, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    holder, _ = room.holder(1)
    parent = (await holder.walk(place)).handle
    found = await holder.look_up(parent, b"file")
    assert (found.mode, found.parent_mode) == (Mode.SHARED, Mode.SHARED)
    got = await holder.get(wire.GetAttributes(found.handle), wire.AttributesGot)
    assert got.mode is Mode.SHARED
    assert got.serial > found.serial > 0


async def test_a_missing_name_may_be_remembered(room: Room, place: Path) -> None:
    holder, _ = room.holder(1)
    parent = (await holder.walk(place)).handle
    missing = await holder.get(wire.LookUp(parent, b"nothing", ROOT), wire.NameMissing)
    assert missing.parent_mode is Mode.SHARED


async def test_a_listing_grants_the_directory_and_its_entries(room: Room, place: Path) -> None:
    (place / "a").touch()
    (place / "b").mkdir()
    holder, _ = room.holder(1)
    parent = (await holder.walk(place)).handle
    opened = await holder.get(wire.OpenDirectory(parent, ROOT), wire.FileOpened)
    listed = await holder.get(wire.ReadDirectory(opened.open_id, 0, 65536), wire.DirectoryRead)
    assert listed.mode is Mode.SHARED
    assert listed.serial
    assert {entry.name: entry.mode for entry in listed.entries} == {b"a": Mode.SHARED, b"b": Mode.SHARED}


async def test_what_is_not_watched_is_not_leased(room: Room, place: Path) -> None:
    holder, _ = room.holder(1)
    room.leasing.index.watched.clear()
    found = await holder.walk(place)
    assert (found.serial, found.mode) == (0, Mode.NONE)
    missing, _ = await holder.ask(wire.LookUp(found.handle, b"nothing", ROOT))
    assert missing == wire.Failed(errno.ENOENT)


# ---------------------------------------------------------------- changes


async def test_a_change_waits_until_the_others_have_given_back(room: Room, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    one, _, other, session = await two(room)
    handle = (await one.walk(place / "file")).handle
    await other.walk(place / "file")
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, one, wire.SetAttributes(handle, ROOT, mode=0o600))
        await settle()
        assert not outcome.is_over
        assert [type(recall) for recall in session.seen] == [wire.RecallLease]
        assert (place / "file").stat().st_mode & 0o777 != 0o600
        # Meanwhile the old state may be read, but not kept.
        assert (await other.get(wire.GetAttributes(handle), wire.AttributesGot)).mode is Mode.NONE
        session.answer_recalls()
    assert isinstance(outcome.reply, wire.AttributesGot)
    assert outcome.reply.mode is Mode.SHARED
    assert outcome.reply.attributes.mode & 0o777 == 0o600
    assert room.leasing.latency.count == 1


async def test_ones_own_lease_is_not_recalled(room: Room, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    one, session = room.holder(1)
    handle = (await one.walk(place / "file")).handle
    await one.change(handle, mode=0o600)
    await one.remove((await one.walk(place)).handle, b"file")
    assert session.seen == []


@pytest.mark.parametrize("what", ["create", "mkdir", "symlink", "mknod", "link", "unlink", "rename"])
async def test_a_change_of_a_name_makes_others_forget_it(room: Room, place: Path, what: str) -> None:
    (place / "old").write_bytes(b"x")
    one, _, other, session = await two(room)
    parent, old = (await one.walk(place)).handle, (await one.walk(place / "old")).handle
    for name in (b"old", b"new"):
        await other.ask(wire.LookUp(parent, name, ROOT)) if name == b"old" else None
    await other.get(wire.LookUp(parent, b"new", ROOT), wire.NameMissing)
    requests: dict[str, tuple[wire.Message, dict[bytes, set[bytes]]]] = {
        "create": (wire.CreateFile(parent, b"new", 0o644, 0, os.O_RDWR, ROOT), {parent: {b"new"}}),
        "mkdir": (wire.MakeDirectory(parent, b"new", 0o755, 0, ROOT), {parent: {b"new"}}),
        "symlink": (wire.MakeSymlink(parent, b"new", b"old", ROOT), {parent: {b"new"}}),
        "mknod": (wire.MakeNode(parent, b"new", 0o100644, 0, ROOT), {parent: {b"new"}}),
        "link": (wire.MakeLink(old, parent, b"new", ROOT), {parent: {b"new"}, old: set()}),
        "unlink": (wire.RemoveName(parent, b"old", False, ROOT), {parent: {b"old"}, old: set()}),
        "rename": (wire.RenameName(parent, b"old", parent, b"new", 0, ROOT), {parent: {b"old", b"new"}, old: set()}),
    }
    request, expected = requests[what]
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, one, request)
        await settle()
        assert not outcome.is_over
        seen: dict[bytes, set[bytes]] = {}
        for recall in session.seen:
            assert not isinstance(recall, wire.RecallAll)
            seen.setdefault(recall.handle, set()).update(recall.names if isinstance(recall, wire.RecallNames) else ())
        assert seen == expected
        session.answer_recalls()
    assert outcome.error is None


async def test_writing_recalls_whoever_has_looked_since(room: Room, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    one, _, other, session = await two(room)
    handle = (await one.walk(place / "file")).handle
    room.changes.is_open_elsewhere = True
    open_id = await one.open(handle, os.O_RDWR)
    assert await one.write(open_id, 0, b"y") == 1
    assert session.seen == []
    await other.walk(place / "file")
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, one, wire.WriteBlocks(open_id, 0))
        await settle()
        assert [type(recall) for recall in session.seen] == [wire.RecallLease]
        session.answer_recalls()
    assert outcome.error is None


async def test_who_opens_for_writing_ends_the_guard_of_all_even_its_own(room: Room, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    one, session = room.holder(1)
    handle = (await one.walk(place / "file")).handle
    await one.get(wire.OpenFile(handle, os.O_RDONLY, ROOT), wire.FileOpened)
    assert room.changes.guards
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, one, wire.OpenFile(handle, os.O_RDWR, ROOT))
        await settle()
        assert [type(recall) for recall in session.seen] == [wire.RecallLease]
        assert room.changes.guards
        session.answer_recalls()
    assert isinstance(outcome.reply, wire.FileOpened)
    assert not outcome.reply.data
    assert outcome.reply.mode is Mode.EXCLUSIVE
    assert not room.changes.guards


async def test_of_two_nodes_in_each_others_way_one_is_told_to_try_again(
    room: Room, place: Path, autojump_clock: object
) -> None:
    """Where neither answers because its kernel keeps the directory locked."""
    for name in ("mine", "yours"):
        (place / name).write_bytes(b"x")
    one, one_session, other, other_session = await two(room)
    parent = (await one.walk(place)).handle
    for asker in (one, other):
        await asker.walk(place)
        for name in (b"mine", b"yours"):
            await asker.look_up(parent, name)
    first, second = Outcome(), Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.run, one, wire.RemoveName(parent, b"mine", False, ROOT))
        await settle()
        nursery.start_soon(second.run, other, wire.RemoveName(parent, b"yours", False, ROOT))
        await settle()
        assert not first.is_over
        assert not second.is_over
        await trio.sleep(STUCK_S)
        one_session.heard_s = other_session.heard_s = trio.current_time()
        room.leasing.look_after(trio.current_time())
        await settle()
        refused = [outcome for outcome in (first, second) if outcome.is_over]
        assert [error.errno for outcome in refused if isinstance(error := outcome.error, OSError)] == [errno.ESTALE]
        other_session.answer_recalls()
        one_session.answer_recalls()
    assert [first.error is None, second.error is None].count(True) == 1
    assert (place / "mine").exists() is (first.error is not None)
    assert (place / "yours").exists() is (second.error is not None)
    assert room.leasing.refusals == 1


# ---------------------------------------------------------------- time, restarts


async def test_who_is_silent_for_a_term_holds_up_nobody(room: Room, place: Path, autojump_clock: object) -> None:
    (place / "file").write_bytes(b"x")
    one, one_session, other, session = await two(room)
    handle = (await one.walk(place / "file")).handle
    await other.walk(place / "file")
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, one, wire.SetAttributes(handle, ROOT, mode=0o600))
        await trio.sleep(TERM_S - 1)
        room.leasing.look_after(trio.current_time())
        assert not outcome.is_over
        await trio.sleep(1)
        one_session.heard_s = trio.current_time()
        room.leasing.look_after(trio.current_time())
    assert outcome.error is None
    assert room.ended == []
    assert room.leasing.owner.mode_of(session.key, handle) is Mode.NONE


async def test_who_is_heard_but_does_not_answer_loses_its_session(
    room: Room, place: Path, autojump_clock: object
) -> None:
    (place / "file").write_bytes(b"x")
    one, one_session, other, session = await two(room)
    handle = (await one.walk(place / "file")).handle
    await other.walk(place / "file")
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, one, wire.SetAttributes(handle, ROOT, mode=0o600))
        await trio.sleep(TERM_S)
        one_session.heard_s = session.heard_s = trio.current_time()
        room.leasing.look_after(trio.current_time())
        assert room.ended == [session.key]
        room.under.session_ended(session)  # type: ignore[arg-type]
        await settle()
        assert not outcome.is_over  # it may still use its caches
        returning = HoldingSession(2)
        await Asker(room.under, returning).ask(wire.ReturnLeases((), everything=True))  # type: ignore[arg-type]
    assert outcome.error is None


async def test_after_a_restart_only_real_conflicts_wait(tmp_path: Path, place: Path) -> None:
    for name in ("held", "free"):
        (place / name).write_bytes(b"x")
    state = tmp_path / "state"
    with serving(state) as service, leasing_room(state, service) as room:
        await room.holder(2)[0].walk(place / "held")
    with serving(state) as service, leasing_room(state, service) as room:
        one, _ = room.holder(1)
        await one.change((await one.walk(place / "free")).handle, mode=0o600)
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            request = wire.SetAttributes((await one.walk(place / "held")).handle, ROOT, mode=0o600)
            nursery.start_soon(outcome.run, one, request)
            await settle()
            assert not outcome.is_over
            returning = HoldingSession(2)
            await Asker(room.under, returning).ask(wire.ReturnLeases((), everything=True))  # type: ignore[arg-type]
        assert outcome.error is None
        room.leasing.writer.write()
        assert list(room.table.leases(session=returning.key)) == []


async def test_after_a_kill_changes_wait_for_whoever_may_hold_more_than_is_written(tmp_path: Path, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    state = tmp_path / "state"
    with serving(state) as service, leasing_room(state, service) as room:
        handle = (await room.holder(2)[0].walk(place / "file")).handle
        room.is_killed = True
    with serving(state) as service, leasing_room(state, service) as room:
        one, _ = room.holder(1)
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run, one, wire.SetAttributes(handle, ROOT, mode=0o600))
            await settle()
            assert not outcome.is_over
            returning = HoldingSession(2)
            await Asker(room.under, returning).ask(wire.ReturnLeases((), everything=True))  # type: ignore[arg-type]
        assert outcome.error is None


async def test_the_table_catches_up(room: Room, place: Path, autojump_clock: object) -> None:
    (place / "file").write_bytes(b"x")
    holder, session = room.holder(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.leasing.writer.run)
        await holder.walk(place / "file")
        await trio.sleep(0.1)
        assert len(list(room.table.leases(session=session.key))) == len(room.leasing.owner)
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert not room.leasing.writer.is_behind


@pytest.mark.parametrize("is_killed", [False, True])
async def test_who_is_uncertain_is_so_after_another_restart(
    tmp_path: Path, place: Path, is_killed: bool, autojump_clock: object
) -> None:
    (place / "file").write_bytes(b"x")
    state = tmp_path / "state"
    with serving(state) as service, leasing_room(state, service) as room:
        await room.holder(2)[0].walk(place / "file")
        room.is_killed = True
    with serving(state) as service, leasing_room(state, service) as room:
        assert room.leasing.owner.in_grace
        with trio.move_on_after(TERM_S / 2):
            await room.leasing.writer.run()
        room.is_killed = is_killed
    with serving(state) as service, leasing_room(state, service) as room:
        assert room.leasing.owner.in_grace
        room.leasing.returned(HoldingSession(2).key, wire.ReturnLeases((), everything=True))
        assert not room.leasing.owner.in_grace
        with trio.move_on_after(TERM_S / 2):
            await room.leasing.writer.run()
        assert not room.leasing.writer.is_behind


@pytest.mark.parametrize("starts", [1, 2], ids=["one start", "a start that ended in the grace"])
async def test_after_a_power_cut_changes_wait_for_a_term(
    tmp_path: Path, place: Path, autojump_clock: object, starts: int
) -> None:
    (place / "file").write_bytes(b"x")
    state = tmp_path / "state"
    with serving(state) as service, leasing_room(state, service) as room:
        handle = (await room.holder(2)[0].walk(place / "file")).handle
    for _ in range(starts - 1):
        with serving(state) as service, leasing_room(state, service, boot_id="another") as room:
            room.leasing.look_after(trio.current_time())
    with serving(state) as service, leasing_room(state, service, boot_id="another") as room:
        one, session = room.holder(1)
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run, one, wire.SetAttributes(handle, ROOT, mode=0o600))
            await trio.sleep(TERM_S / 2)
            room.leasing.look_after(trio.current_time())
            assert not outcome.is_over
            await trio.sleep(TERM_S / 2)
            session.heard_s = trio.current_time()
            room.leasing.look_after(trio.current_time())
        assert outcome.error is None


async def test_who_never_held_anything_waits_as_well(tmp_path: Path, place: Path) -> None:
    """After a restart only the holder of before is known."""
    (place / "file").write_bytes(b"x")
    state = tmp_path / "state"
    with serving(state) as service, leasing_room(state, service) as room:
        handle = (await room.holder(2)[0].walk(place / "file")).handle
    with serving(state) as service, leasing_room(state, service) as room:
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run, room.holder(1)[0], wire.SetAttributes(handle, ROOT, mode=0o600))
            await settle()
            assert not outcome.is_over
            nursery.cancel_scope.cancel()


async def test_a_session_that_has_ended_is_granted_nothing(room: Room, place: Path) -> None:
    holder, session = room.holder(1)
    handle = (await holder.walk(place)).handle
    room.under.session_ended(session)  # type: ignore[arg-type]
    assert room.leasing.grant(session.key, [handle]) == (0, [Mode.NONE])


async def test_native_changes_matter_from_the_first_grant_until_the_last_is_given_back(room: Room, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    one, _, other, _ = await two(room)
    found = await one.walk(place / "file")
    key = room.changes.key(None, prepared_of(found.handle))
    assert room.leasing.index.is_of_interest(key)
    again = await other.walk(place / "file")
    await one.ask(wire.ReturnLeases(((found.handle, found.serial),)))
    assert room.leasing.index.is_of_interest(key)
    await other.ask(wire.ReturnLeases(((again.handle, again.serial),)))
    assert not room.leasing.index.is_of_interest(key)
    await one.walk(place / "file")
    assert room.leasing.index.handles_of(key) == [found.handle]


async def test_given_back_is_not_recalled(room: Room, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    one, _, other, session = await two(room)
    found = await other.walk(place / "file")
    await other.ask(wire.ReturnLeases(((found.handle, found.serial),)))
    await one.change((await one.walk(place / "file")).handle, mode=0o600)
    assert session.seen == []


def test_every_request_that_changes_has_needs() -> None:
    from omfs.export.needs import NEEDS
    from omfs.net.repeats import ONCE_ONLY

    without_effect_on_others = {wire.OpenDirectory, wire.CloseFile}
    assert set(NEEDS) == (ONCE_ONLY - without_effect_on_others) | {wire.WriteBlocks, wire.AskLease}


def test_a_service_that_is_not_under_leases_grants_nothing(service: ExportService) -> None:
    assert service.leases.grant(b"", [b""]) == (0, [Mode.NONE])
