"""What the mount is told, in which order, and what becomes of it when the mount does not hear."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from mignode import mountnews
from mignode.mountnews import MountNews
from omfs.errors import ControlError
from omfs.magic.places import Key, Place
from omfs.net import control
from tests.unit.fakemount import mounted


def place(pid: int, selected: int = 0) -> Place:
    return Place(pid, 100, 1, 1, 1, "", selected)


class Known:
    """What mignode knows."""

    def __init__(self) -> None:
        self.places: dict[Key, Place] = {}

    def put(self, *places: Place) -> list[Place]:
        self.places |= {one.key: one for one in places}
        return list(places)

    def all(self) -> list[Place]:
        return list(self.places.values())


@contextlib.asynccontextmanager
async def telling(run_dir: Path, known: Known) -> AsyncIterator[MountNews]:
    news = MountNews(run_dir / "mount.sock", known.all, True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(news.run)
        yield news
        nursery.cancel_scope.cancel()


async def test_it_begins_with_everything(tmp_path: Path) -> None:
    known = Known()
    known.put(place(1), place(2))
    async with mounted(tmp_path, [place(9)]) as mount, telling(tmp_path, known):
        await mount.wait_until(lambda: bool(mount.pushes))
        assert sorted(one.pid for one in mount.places) == [1, 2]
        assert (mount.pushes[0].all, mount.pushes[0].fork_events) == (True, True)


async def test_what_gathers_goes_in_one_message_and_the_last_word_counts(tmp_path: Path) -> None:
    known = Known()
    async with mounted(tmp_path) as mount, telling(tmp_path, known) as news:
        await mount.wait_until(lambda: bool(mount.pushes))
        mount.gate = trio.Event()
        news.note(known.put(place(1, 2)))
        first = trio.Event()

        async def wait_first() -> None:
            await news.wait_told()
            first.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_first)
            await trio.testing.wait_all_tasks_blocked(0.05)
            news.note(known.put(place(1, 3), place(2)))
            news.note([place(3)])
            news.note([], [(3, 100), (4, 100)])
            news.note([place(4)], [])
            known.put(place(4))
            assert not first.is_set()
            mount.gate.set()
            await news.wait_told()
        assert first.is_set()
        assert [[(one.pid, one.selected) for one in push.places] for push in mount.pushes[1:]] == [
            [(1, 2)],
            [(1, 3), (2, 0), (4, 0)],
        ]
        assert mount.pushes[2].gone == [(3, 100)]


async def test_who_changes_nothing_waits_for_what_is_under_way(tmp_path: Path) -> None:
    known = Known()
    async with mounted(tmp_path) as mount, telling(tmp_path, known) as news:
        await mount.wait_until(lambda: bool(mount.pushes))
        await news.wait_told()
        mount.gate = trio.Event()
        news.note(known.put(place(1, 2)))
        await trio.testing.wait_all_tasks_blocked(0.05)  # it is on its way
        with trio.move_on_after(0.05) as waiting:
            await news.wait_told()
        assert waiting.cancelled_caught
        mount.gate.set()
        await news.wait_told()
        assert mount.places.get((1, 100)) == place(1, 2)


async def test_after_a_failure_it_hears_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    ask, refusals = control.ask, [ControlError("not now")]

    async def ask_but_once(path: Path, command: str, /, **arguments: object) -> control.Arguments:
        if refusals:
            raise refusals.pop()
        return await ask(path, command, **arguments)  # type: ignore[arg-type]

    async with mounted(tmp_path) as mount, telling(tmp_path, known) as news:
        await mount.wait_until(lambda: bool(mount.pushes))
        await news.wait_told()
        monkeypatch.setattr(control, "ask", ask_but_once)
        news.note(known.put(place(1, 2)))
        await news.wait_told()  # nobody is held up
        assert (mount.places.get((1, 100)), news.refusal) == (None, "not now")
        news.note(known.put(place(2)))
        await news.wait_told()
        assert sorted(one.pid for one in mount.places) == [1, 2]
        assert mount.pushes[-1].all
        news.note(known.put(place(3)))
        await news.wait_told()
        assert (mount.pushes[-1].all, news.refusal) == (False, "")


async def test_a_mount_that_hangs_holds_nobody_up_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    async with mounted(tmp_path) as mount:
        mount.gate = trio.Event()
        async with telling(tmp_path, known) as news:
            with monkeypatch.context() as hurry:
                hurry.setattr(mountnews, "DEADLINE_S", 0.05)
                news.note(known.put(place(1, 2)))
                await news.wait_told()
            mount.gate.set()
            await mount.wait_until(lambda: (1, 100) in mount.places)
