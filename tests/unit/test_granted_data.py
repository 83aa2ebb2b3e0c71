"""What an owner grants with an open for reading: that the data may be cached, and the data of a small file at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omfs import wire
from omfs.config import WHOLE_FILE_MAX_BYTES
from omfs.export import guards
from omfs.wiretypes import Mode
from tests.unit.exportroom import ROOT
from tests.unit.leaseroom import Room


async def test_data_may_be_cached_only_when_nobody_writes(leased: Room, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    holder, _ = leased.holder(1)
    handle = (await holder.walk(tmp_path / "file")).handle
    reading = await holder.get(wire.OpenFile(handle, os.O_RDONLY, ROOT), wire.FileOpened)
    assert (reading.mode, reading.data) == (Mode.SHARED, True)
    assert len(leased.changes.guards) == 1
    leased.changes.is_written = True
    again = await holder.get(wire.OpenFile(handle, os.O_RDONLY, ROOT), wire.FileOpened)
    assert not again.data
    assert not (await holder.get(wire.OpenFile(handle, os.O_RDONLY, ROOT), wire.FileOpened)).data


@pytest.mark.parametrize("wanted", [True, False], ids=["wanted", "not wanted"])
async def test_the_data_of_a_small_file_come_when_it_is_opened(leased: Room, tmp_path: Path, wanted: bool) -> None:
    (tmp_path / "file").write_bytes(b"hello")
    holder, _ = leased.holder(1)
    handle = (await holder.walk(tmp_path / "file")).handle
    request = wire.OpenFile(handle, os.O_RDONLY, ROOT, wants_data=wanted)
    _, data = await holder.ask(request)
    assert bytes(data) == (b"hello" if wanted else b"")
    leased.changes.is_written = True
    reply, data = await holder.ask(request)
    assert isinstance(reply, wire.FileOpened)
    assert (reply.data, bytes(data)) == (False, b""), "a native program writes it: what was read may be old by now"


@pytest.mark.parametrize("beyond", [0, 1])
async def test_the_data_of_a_larger_file_are_read_when_they_are_wanted(
    leased: Room, tmp_path: Path, beyond: int
) -> None:
    (tmp_path / "file").write_bytes(bytes(WHOLE_FILE_MAX_BYTES + beyond))
    holder, _ = leased.holder(1)
    handle = (await holder.walk(tmp_path / "file")).handle
    _, data = await holder.ask(wire.OpenFile(handle, os.O_RDONLY, ROOT, wants_data=True))
    assert bytes(data) == b""


async def test_data_of_a_file_that_was_just_changed_are_not_cached(
    leased: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "UNCACHED_NS", 10**12)
    (tmp_path / "file").write_bytes(b"x")
    holder, _ = leased.holder(1)
    handle = (await holder.walk(tmp_path / "file")).handle
    opened = await holder.get(wire.OpenFile(handle, os.O_RDONLY, ROOT), wire.FileOpened)
    assert (opened.mode, opened.data) == (Mode.SHARED, False)


async def test_data_are_granted_only_when_native_changes_of_before_are_told(leased: Room, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    holder, session = leased.holder(1)
    handle = (await holder.walk(tmp_path / "file")).handle
    leased.changes.undrained.append(lambda: leased.leasing.changed_here(handle, None))
    opened = await holder.get(wire.OpenFile(handle, os.O_RDONLY, ROOT), wire.FileOpened)
    assert (opened.mode, opened.data) == (Mode.NONE, False)
    assert [type(recall) for recall in session.seen] == [wire.RecallLease]
    session.answer_recalls()
    assert (await holder.get(wire.OpenFile(handle, os.O_RDONLY, ROOT), wire.FileOpened)).data
