"""While a call of a node changes a name, nobody there sees it as it was: from when others may see it changed."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from omfs import wire
from omfs.mount import flights
from omfs.mount.flights import LOCKED_BY_ASKER_S, Flight
from tests.unit.twonodes import node, place, room
from tests.unit.wholemount import Node

__all__ = ["node", "place", "room"]  # fixtures

CHANGER, ASKER = os.getpid(), 1  # of the first is known that it has not ended


class Changing:
    """A CREATE of one thread, and another one that looks for the name.

    begin; answer: the kernel is answered; finish: the thread has taken that, and lets the directory go.
    """

    def __init__(self, node: Node, top: int, nursery: trio.Nursery) -> None:
        self.kernel, self.top, self._nursery = node.kernel, top, nursery
        self.seen: bool | None = None  # by who looked
        self._has_seen = trio.Event()
        self._answered = node.line.late[wire.CreateFile] = trio.Event()
        self._unlocked = node.kernel.locks[top] = threading.Event()
        self._taken = node.kernel.lag = trio.Event()

    async def begin(self) -> None:
        assert not await self.kernel.is_there(self.top, b"name")
        self._nursery.start_soon(self._make)
        await trio.testing.wait_all_tasks_blocked()

    async def _make(self) -> None:
        self.kernel.stand_for(CHANGER)
        await self.kernel.make(self.top, b"name")

    async def look(self) -> None:
        self._nursery.start_soon(self._look)
        await trio.testing.wait_all_tasks_blocked()

    async def _look(self) -> None:
        self.kernel.stand_for(ASKER)
        self.seen = await self.kernel.is_there(self.top, b"name")
        self._has_seen.set()

    async def answer(self) -> None:
        self._answered.set()
        await trio.testing.wait_all_tasks_blocked()

    async def finish(self, *, unlocks: bool = True) -> None:
        self._taken.set()
        await trio.testing.wait_all_tasks_blocked()
        if unlocks:
            self.unlock()

    def unlock(self) -> None:
        self._unlocked.set()

    async def wait_seen(self) -> bool:
        with trio.fail_after(60):
            await self._has_seen.wait()
        return bool(self.seen)


@pytest.fixture
async def changing(node: Node, place: Path, nursery: trio.Nursery) -> AsyncIterator[Changing]:
    changing = Changing(node, await node.kernel.walk(place), nursery)
    yield changing
    changing.unlock()


def asker(monkeypatch: pytest.MonkeyPatch, only_looks: bool, may_rename: bool = False) -> None:
    """What is found out about who asks."""
    monkeypatch.setattr(flights, "only_looks", lambda thread: only_looks)
    monkeypatch.setattr(flights, "may_rename", lambda thread: may_rename)


@pytest.mark.parametrize("only_looks", [True, False])
async def test_who_asks_before_the_answer_sees_what_is(
    changing: Changing, monkeypatch: pytest.MonkeyPatch, only_looks: bool
) -> None:
    """However long that takes."""
    asker(monkeypatch, only_looks)
    await changing.begin()
    await changing.look()
    await trio.sleep(2 * LOCKED_BY_ASKER_S)
    assert changing.seen is None
    await changing.answer()
    assert changing.seen is None, "the thread that made the name has not taken the answer yet"
    await changing.finish()
    assert await changing.wait_seen()


async def test_who_only_looks_sees_what_is_after_the_answer(
    changing: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker(monkeypatch, only_looks=True)
    await changing.begin()
    await changing.answer()
    await changing.look()
    await trio.sleep(2 * LOCKED_BY_ASKER_S)
    assert changing.seen is None
    await changing.finish()
    assert await changing.wait_seen()


async def test_the_next_request_of_who_changed_it_says_that_it_is_over(
    changing: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RELEASE here; the lock need not be had."""
    asker(monkeypatch, only_looks=True)
    await changing.begin()
    await changing.look()
    await changing.answer()
    assert changing.seen is None
    await changing.finish(unlocks=False)
    assert await changing.wait_seen()


async def test_who_may_have_it_locked_is_answered_after_a_while(
    changing: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker(monkeypatch, only_looks=False)
    await changing.begin()
    await changing.answer()
    await changing.look()
    assert not await changing.wait_seen()


async def test_a_rename_is_answered_after_a_while(changing: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may be waiting for what it has locked."""
    asker(monkeypatch, only_looks=False, may_rename=True)
    await changing.begin()
    await changing.look()
    assert not await changing.wait_seen()


async def test_who_changes_names_alone_waits_for_nothing_and_asks_no_more_than_before(node: Node, place: Path) -> None:
    node.kernel.stand_for(CHANGER)
    top = await node.kernel.walk(place)
    new = await node.kernel.make_directory(top, b"new")
    node.kernel.locks[new] = threading.Event()
    node.asked()
    for number in range(3):
        await node.kernel.make(new, b"%d" % number)
    assert node.asked() == {"CreateFile": 3}


def test_a_thread_that_has_ended_has_finished_its_call() -> None:
    process = subprocess.Popen(["true"])
    flight = Flight(process.pid)
    flight.answered()
    assert not flight.is_over_for(ASKER)
    process.wait()
    assert flight.is_over_for(ASKER)
