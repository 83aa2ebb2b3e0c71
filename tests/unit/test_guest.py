"""A guest and its way home: what is asked waits for one; one journey at a time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from mignode.guest import Guest
from mignode.traits import Traits
from omfs.errors import BodyLost, HandoverRefused

TRAITS = Traits("1.4242.99", 1, 4242, 1001, 1001, (), "one", b"prog", b"", 4242)


class Body:
    """Knows whether its frames reach anybody."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.root = 900

    async def signal(self, pid: int, number: int) -> None:
        self.told.append((pid, number))

    def way_is_open(self) -> None:
        self.told.append(True)

    def way_is_lost(self) -> None:
        self.told.append(False)

    def send_frame(self, frame: bytes) -> None:
        raise BodyLost("its init has ended")


class Home:
    async def ask(self, process: int, call: str, arguments: tuple[int, ...]) -> int:
        return process

    def send_frame(self, frame: bytes) -> None:
        pass


def made() -> tuple[Guest, Body]:
    body: Any = Body()
    folder: Any = None
    return Guest(folder, TRAITS, body, epoch=1), body


async def test_a_question_waits_for_a_way_home(nursery: trio.Nursery, autojump_clock: object) -> None:
    guest, body = made()

    async def come_and_go() -> None:
        for home in (Home(), None, Home()):
            await trio.sleep(1)
            guest.meet(home)

    nursery.start_soon(come_and_go)
    began_s = trio.current_time()
    assert await guest.ask(7, "getppid", ()) == 7
    assert trio.current_time() - began_s == 1
    await trio.sleep(1.5)
    assert await guest.ask(8, "getppid", ()) == 8
    assert trio.current_time() - began_s == 3
    assert body.told == [True, False, True]


async def test_its_root_is_known_by_its_number_at_home() -> None:
    """One that was restarted has another inside; where it has ended, home says what it does."""
    guest, body = made()
    guest.meet(Home())
    assert await guest.ask(7, "kill", (4242, 15)) == 0
    assert await guest.ask(7, "kill", (4243, 15)) == 7
    body.root = 0
    assert await guest.ask(7, "kill", (4242, 15)) == 7
    assert body.told == [True, (900, 15)]


async def test_a_move_waits_for_an_image(nursery: trio.Nursery) -> None:
    guest, _ = made()
    order = []

    async def move() -> None:
        await guest.wait_saved()
        with guest.departing():
            order.append("moved")

    await guest.wait_saved()
    with guest.saving():
        nursery.start_soon(move)
        await trio.testing.wait_all_tasks_blocked()
        assert guest.is_departing
        assert guest.is_frozen
        order.append("saved")
    await trio.testing.wait_all_tasks_blocked()
    assert order == ["saved", "moved"]
    assert not guest.is_being_saved


def test_one_journey_at_a_time() -> None:
    guest, _ = made()
    with guest.departing(), pytest.raises(HandoverRefused), guest.departing():
        pass
    with pytest.raises(ValueError, match="it failed"), guest.departing():
        raise ValueError("it failed")
    assert not guest.is_departing
    with guest.departing():
        guest.is_frozen = True
    assert not guest.is_frozen
    guest.has_departed = True
    with pytest.raises(HandoverRefused), guest.departing():
        pass


def test_frames_for_an_init_that_has_ended_are_no_error() -> None:
    guest, _ = made()
    guest.send_frame(b"late")
