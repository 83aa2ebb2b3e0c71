"""What omfs-export tells omfs-admin check of its leases and guards, and leases that end because it says so."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.cache.parts import is_in_part
from omfs.errors import ControlError
from omfs.export.dropping import Dropper
from omfs.export.localchanges import GuardNow
from omfs.kernel.filelease import LeaseState
from omfs.net.control import BrokenGuard
from omfs.wiretypes import Mode
from tests.unit.exportroom import ROOT
from tests.unit.leaseroom import Room


@pytest.fixture
async def dropper(leased: Room) -> Dropper:
    return Dropper(leased.leasing, leased.guards)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


async def cached(leased: Room, path: Path) -> tuple[Any, bytes]:
    """Node 1 has the file cached, data too; its session and the handle."""
    holder, session = leased.holder(1)
    handle = (await holder.walk(path)).handle
    opened = await holder.get(wire.OpenFile(handle, os.O_RDONLY, ROOT), wire.FileOpened)
    assert opened.data
    return session, handle


async def test_who_is_away_and_holds_nothing_is_not_asked(leased: Room, file: Path) -> None:
    """As a mount that has ended in order: it never comes back."""
    session, _ = await cached(leased, file)
    session.small = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leased.leasing.drop_node, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert [type(recall) for recall in session.seen] == [wire.RecallAll], "it may come back"
        session.answer_recalls()
    assert await leased.leasing.drop_node(1) == 0
    assert session.asked == []


def shown(*handles: bytes) -> list[str]:
    return [base64.b64encode(handle).decode() for handle in handles]


async def test_guards_that_are_well(leased: Room, dropper: Dropper, file: Path) -> None:
    await cached(leased, file)
    assert (await dropper.guards({})).broken == ()
    (key,) = leased.changes.guards
    leased.changes.lost[key] = GuardNow(LeaseState.BREAKING, True)  # it is being recalled
    assert (await dropper.guards({})).broken == ()


async def test_a_broken_guard_that_is_about_to_be_told(leased: Room, dropper: Dropper, file: Path) -> None:
    await cached(leased, file)
    (key,) = leased.changes.guards
    leased.changes.lost[key] = GuardNow(LeaseState.BREAKING, False)
    leased.changes.undrained.append(lambda: leased.changes.lost.update({key: GuardNow(LeaseState.BREAKING, True)}))
    assert (await dropper.guards({})).broken == ()


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (GuardNow(LeaseState.GONE, True), "gone"),
        (GuardNow(LeaseState.GONE, False), "gone"),
        (GuardNow(LeaseState.BREAKING, False), "being broken"),
        (GuardNow(None, False), "missing"),
    ],
)
async def test_a_guard_that_is_not(leased: Room, dropper: Dropper, file: Path, now: GuardNow, state: str) -> None:
    session, handle = await cached(leased, file)
    (key,) = leased.changes.guards
    leased.changes.lost[key] = now
    assert (await dropper.guards({})).broken == (BrokenGuard((handle,), state, (1,)),)
    (told,) = [one for one in (await owned(dropper, session.key)) if one.handle == handle]
    assert not told.data

    recalled: list[dict[str, int]] = []

    async def drop() -> None:
        recalled.append(await dropper.drop({"handles": shown(handle)}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drop)
        while not session.asked:
            await trio.lowlevel.checkpoint()
        assert leased.changes.guards  # until the holder has forgotten it
        session.answer_recalls()
    assert recalled == [{"recalled": 1}]
    assert not leased.changes.guards
    assert (await dropper.guards({})).broken == ()


async def test_a_lost_guard_of_what_nobody_has(leased: Room, dropper: Dropper, file: Path) -> None:
    session, _ = await cached(leased, file)
    (key,) = leased.changes.guards
    leased.changes.lost[key] = GuardNow(LeaseState.GONE, False)
    leased.leasing.returned(session.key, wire.ReturnLeases((), everything=True))
    assert (await dropper.guards({})).broken == ()


async def owned(dropper: Dropper, key: bytes, parts: int = 1) -> list[Any]:
    told: list[Any] = []
    for part in range(parts):
        of_part = (await dropper.owned({"session": shown(key)[0], "part": part, "parts": parts})).leases
        assert all(is_in_part(one.handle, part, parts) for one in of_part)
        told += of_part
    return told


async def test_what_a_session_holds(leased: Room, dropper: Dropper, file: Path) -> None:
    session, handle = await cached(leased, file)
    told = {one.handle: one for one in await owned(dropper, session.key)}
    assert len(told) == leased.leasing.owner.held_by(session.key) > 1
    one = told[handle]
    assert (one.mode, one.data, one.recalled) == (Mode.SHARED, True, False)
    assert sum(lease.data for lease in told.values()) == 1
    assert {lease.handle for lease in await owned(dropper, session.key, parts=3)} == told.keys()
    assert await owned(dropper, b"nobody's") == []
    leased.leasing.changed_here(handle, None)
    assert [lease.handle for lease in await owned(dropper, session.key) if lease.recalled] == [handle]


@pytest.mark.parametrize(
    "asked", [{}, {"session": "?", "part": 0, "parts": 1}, {"session": "", "part": 1, "parts": 1},
              {"session": "", "part": -1, "parts": 1}, {"session": "", "part": 0, "parts": 0}],
)  # fmt: skip
async def test_questions_that_make_no_sense(dropper: Dropper, asked: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        await dropper.owned(asked)


async def test_handles_that_are_none(dropper: Dropper) -> None:
    with pytest.raises(ControlError, match="handles"):
        await dropper.drop({"handles": [7]})
    assert await dropper.drop({"handles": []}) == {"recalled": 0}
