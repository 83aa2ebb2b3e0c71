"""EXCLUSIVE leases when the owner's daemon was killed: their holder comes back first, others wait for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from omfs import wire
from omfs.cache.owner import STUCK_S
from omfs.wiretypes import Mode
from tests.unit.exclusiveroom import READ, held, mode_asked_for, owner_of, reap_keepers
from tests.unit.exportroom import ROOT, Asker, refused
from tests.unit.leaseroom import TERM_S, Room
from tests.unit.localwatch import program
from tests.unit.test_underleases import Outcome, settle


@pytest.fixture(autouse=True)
def no_keeper_is_left() -> Iterator[None]:
    yield
    reap_keepers()


@pytest.fixture
def file(room: Path) -> Path:
    path = room / "file"
    path.write_bytes(b"content")
    return path


async def restarted(tmp_path: Path, file: Path, kept: bool, written: bool = True) -> bytes:
    """An owner that was killed while node 1 held the file EXCLUSIVE; the file's handle."""
    with owner_of(tmp_path / "state", tmp_path / "run") as owner:
        _, session, handle, _ = await held(owner, file)
        if kept and written:
            owner.leasing.writer.write()
            owner.leasing._table.note_behind(False)
        if kept:
            owner.changes.keep()
        owner.is_killed = True
        session.data.files.close_all()
    return handle


async def come_back(owner: Room, handle: bytes, data: bytes) -> tuple[Asker, int]:
    """Node 1 again: it opens the file, sends what it has, and gives back everything."""
    one, _ = owner.holder(1)
    opened = await one.get(wire.OpenFile(handle, os.O_RDWR, ROOT, reclaim=True), wire.FileOpened)
    await one.get(wire.WriteBlocks(opened.open_id, 0, behind=True), wire.BlocksWritten, data)
    await one.get(wire.ReturnLeases((), everything=True), wire.Done)
    with refused(errno.EIO):
        await one.ask(wire.WriteBlocks(opened.open_id, 0, behind=True), b"late")
    return one, opened.open_id


@pytest.mark.parametrize("kept", [True, False])
async def test_who_held_it_before_a_restart_flushes_before_anybody_looks(
    tmp_path: Path, file: Path, kept: bool
) -> None:
    handle = await restarted(tmp_path, file, kept)
    with owner_of(tmp_path / "state", tmp_path / "run") as owner:
        assert owner.leasing.owner.in_grace is not kept
        other, _ = owner.holder(2)
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run, other, wire.GetAttributes(handle))
            await settle()
            assert not outcome.is_over
            await come_back(owner, handle, b"what was not sent yet")
        assert isinstance(outcome.reply, wire.AttributesGot)
        assert outcome.reply.attributes.size_bytes == 21


async def test_a_native_program_is_kept_off_over_the_restart(tmp_path: Path, file: Path) -> None:
    handle = await restarted(tmp_path, file, kept=True)
    with program(file, READ) as reader, owner_of(tmp_path / "state", tmp_path / "run") as owner:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner.under._guards.run)
            await settle()
            assert not reader.is_in
            one, _ = owner.holder(1)
            opened = await one.get(wire.OpenFile(handle, os.O_RDWR, ROOT, reclaim=True), wire.FileOpened)
            await settle()
            assert not reader.is_in
            await one.get(wire.WriteBlocks(opened.open_id, 0, behind=True), wire.BlocksWritten, b"flushed")
            await one.get(wire.ReturnLeases((), everything=True), wire.Done)
            await trio.to_thread.run_sync(reader.wait_in)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("written", [True, False])
async def test_the_guard_of_before_goes_when_its_holder_has_come_back(
    tmp_path: Path, file: Path, written: bool
) -> None:
    """Also in the grace, and if the table did not say whose it is."""
    handle = await restarted(tmp_path, file, kept=True, written=written)
    with owner_of(tmp_path / "state", tmp_path / "run") as owner:
        await come_back(owner, handle, b"x")
        assert owner.changes.in_grace
        other, _ = owner.holder(2)
        await other.open(handle)
        with program(file, READ) as reader:
            reader.wait_in()


async def test_only_who_held_it_gets_the_descriptor_of_before(tmp_path: Path, file: Path) -> None:
    handle = await restarted(tmp_path, file, kept=True)
    with owner_of(tmp_path / "state", tmp_path / "run") as owner:
        assert owner.under._guards.claim(handle, os.O_WRONLY) == -1  # it was open for both
        other, other_session = owner.holder(2)
        await other.ask(wire.AttachTree(ROOT))
        assert not owner.leasing.may_write_behind(other_session.key, handle)
        assert await mode_asked_for(*await come_back(owner, handle, b"x")) is Mode.EXCLUSIVE
        assert owner.under._guards.claim(handle, os.O_RDWR) == -1


async def test_whoever_opens_a_file_of_which_nobody_comes_back_waits_for_a_term(
    tmp_path: Path, file: Path, autojump_clock: object
) -> None:
    handle = await restarted(tmp_path, file, kept=True)
    with owner_of(tmp_path / "state", tmp_path / "run") as owner:
        other, session = owner.holder(2)
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run, other, wire.GetAttributes(handle))
            await trio.sleep(TERM_S - 1)
            owner.leasing.look_after(trio.current_time())
            assert not outcome.is_over
            await trio.sleep(1)
            session.heard_s = trio.current_time()
            owner.leasing.look_after(trio.current_time())
        assert outcome.error is None
        owner.changes.end_grace()
        assert len(owner.changes._guards) == 0


async def test_a_look_up_does_not_keep_its_own_node_from_coming_back(
    tmp_path: Path, file: Path, autojump_clock: object
) -> None:
    """It keeps the directory locked of which that node must forget names."""
    handle = await restarted(tmp_path, file, kept=False)
    with owner_of(tmp_path / "state", tmp_path / "run") as owner:
        one, _ = owner.holder(1)
        parent = (await one.walk(file.parent)).handle
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.run, one, wire.LookUp(parent, b"file", ROOT))
            await trio.sleep(STUCK_S)
            owner.leasing.look_after(trio.current_time())
        assert isinstance(outcome.error, OSError)
        assert outcome.error.errno == errno.ESTALE
        assert set(await one.list(parent)) == {b"file"}
        await come_back(owner, handle, b"x")
