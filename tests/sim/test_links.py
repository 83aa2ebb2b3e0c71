"""The link of a guest that is away: it finds its way home again and again, or ends the guest."""

from __future__ import annotations

import errno
import os
import types
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from mignode import links
from mignode.deputies import Deputy
from mignode.handover import Record
from mignode.homeanswers import answer
from mignode.journey import Journey
from mignode.line import Line
from mignode.linkends import answer_told
from mignode.links import LinkAway, LinkHome, attend
from mignode.record import Files, records
from mignode.traits import Traits
from mignode.words import END_UNKNOWN, AskSetting, ChangeSetting
from omfs.config import Settings
from omfs.errors import NodeDown, RemoteFailure
from omfs.net.transport import MemoryTransport, memory_transports

HOME, AWAY, NAME = 1, 2, "1.4242.99"
EPOCH = 3
TIMEOUT_S = Settings().guest_timeout_s
TRAITS = Traits(NAME, HOME, 4242, 1001, 1001, (), "one", b"prog", b"", 4242)


class Body:
    """That can be ended."""

    def __init__(self, is_over: trio.Event) -> None:
        self.ended_s = 0.0
        self.has_ended = trio.Event()
        self._is_over = is_over

    async def end(self) -> None:
        self.ended_s = trio.current_time()
        self.has_ended.set()
        self._is_over.set()


class Guest:
    """Where it runs; keeps what comes from home."""

    def __init__(self, epoch: int) -> None:
        self.name, self.epoch, self.traits = NAME, epoch, TRAITS
        self.is_over = trio.Event()
        self.body = Body(self.is_over)
        self.folder: Any = types.SimpleNamespace(leave=self._leave)
        self.has_departed = self.is_departing = False
        self.settled = trio.Event()
        self.folders_left = 0
        self.frames: list[bytes] = []
        self.home: Any = None
        self.is_orphan = False
        self.stops = 0

    def _leave(self) -> None:
        self.folders_left += 1

    async def wait_settled(self) -> None:
        if self.is_departing:
            await self.settled.wait()

    def meet(self, home: Any) -> None:
        self.home = home

    def send_frame(self, frame: bytes) -> None:
        self.frames.append(frame)

    def deputy_stopped(self) -> None:
        self.stops += 1

    def deputy_lost(self) -> None:
        self.is_orphan = True


class Stream:
    """mosrun's connection."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.calls: list[Any] = []
        self.answer: Callable[[], Awaitable[int]] = self._seven

    async def _seven(self) -> int:
        return 7

    def say(self, word: Any) -> None:
        self.said.append(word)

    async def call(self, call: str, arguments: tuple[int, ...]) -> int:
        self.calls.append((call, arguments))
        return await self.answer()


class Room:
    """Home, a node where the guest runs, and the lines between them."""

    def __init__(self, nursery: trio.Nursery, kept: Files[Record], epoch: int = EPOCH) -> None:
        self.kept = kept
        self.deputy = Deputy(TRAITS)
        self.stream: Any = Stream()
        self.deputy.attach(self.stream)
        self.guest: Any = Guest(epoch)
        self.dialled = 0
        self.is_reachable = True
        self.ends: list[int | None] = []
        self.has_ended = trio.Event()
        self.moved: Callable[[int, Callable[[Journey], None]], Awaitable[None]] = self._move
        self._nursery = nursery
        self._transports: list[MemoryTransport] = []
        standing: Any = types.SimpleNamespace(local=types.SimpleNamespace(node_id=AWAY))

        async def move(guest: Any, node: int, report: Callable[[Journey], None]) -> None:
            await self.moved(node, report)

        async def why(guest: Any, is_brief: bool) -> str:
            return "nothing keeps it"

        async def selected(guest: Any, node: int | None) -> int:
            self.selected = await self.selects(self.selected if node is None else node)
            return self.selected

        self.selected = 0
        self.link = LinkHome(self.guest, standing, Settings(), move, why, selected=selected)

    async def selects(self, node: int) -> int:
        return node

    async def _move(self, node: int, report: Callable[[Journey], None]) -> None:
        report(Journey(AWAY, node))

    async def dial(self, *_: Any) -> Line:
        """In the place of dial_line."""
        await trio.lowlevel.checkpoint()
        if not self.is_reachable:
            raise NodeDown("no answer")
        self.dialled += 1
        self._transports = list(memory_transports())
        there, here = map(Line, self._transports)
        there.node_id, here.node_id = HOME, AWAY
        there.admit()
        here.admit()
        self._nursery.start_soon(self._serve, here)
        return there

    async def _serve(self, line: Line) -> None:
        desk: Any = types.SimpleNamespace(answer=lambda sender, question: answer(self.kept, HOME, sender, question))
        word: Any = (await line.receive(5))[0]
        try:
            self.ends.append(await attend(line, word, desk, self.deputy, *self.more))
            if self.ends[-1] is not None:
                self.kept.forget(NAME)
        except OSError:
            self.ends.append(None)
        finally:
            line.close()

    more: tuple[Any, ...] = (types.SimpleNamespace(), lambda journey: None)

    def break_line(self) -> None:
        for transport in self._transports:
            transport.close()

    def start(self) -> None:
        self._nursery.start_soon(self._run)

    async def _run(self) -> None:
        await self.link.run()
        self.has_ended.set()

    async def wait_way(self) -> None:
        assert await self.deputy.wait_way(AWAY)
        await trio.testing.wait_all_tasks_blocked()
        assert self.guest.home is not None


@pytest.fixture
async def room(nursery: trio.Nursery, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Room:
    kept = records(tmp_path)
    kept.write(NAME, Record(AWAY, EPOCH, EPOCH))
    made = Room(nursery, kept)
    monkeypatch.setattr(links, "dial_line", made.dial)
    made.start()
    await made.wait_way()
    return made


async def test_frames_go_both_ways_also_over_the_next_line(room: Room, autojump_clock: object) -> None:
    for round_ in (b"1", b"2", b"3"):
        room.deputy.relayed(b"to" + round_)
        room.guest.home.send_frame(b"from" + round_)
        await trio.testing.wait_all_tasks_blocked()
        assert room.guest.frames[-1] == b"to" + round_
        assert room.stream.said[-1].frame == b"from" + round_
        room.break_line()
        await trio.testing.wait_all_tasks_blocked()
        assert (room.deputy.way, room.guest.home) == (None, None), "each end knows that its frames are lost"
        await room.wait_way()
    assert room.dialled == 4
    assert not room.guest.body.has_ended.is_set()


async def test_a_line_that_is_silent_is_a_lost_one(room: Room, autojump_clock: object) -> None:
    for transport in room._transports:
        transport.cut()
    await trio.sleep(links.SILENCE_S + 5)
    await room.wait_way()
    assert room.dialled == 2


async def test_calls_are_done_at_home(room: Room, autojump_clock: object) -> None:
    assert await room.guest.home.ask(TRAITS.pid, "kill", (70, 9)) == 7
    assert await room.guest.home.ask(TRAITS.pid, "getpgid", (os.getpid(),)) == os.getpgrp()
    assert room.stream.calls == [("kill", (70, 9))]
    with pytest.raises(ProcessLookupError):
        await room.guest.home.ask(TRAITS.pid, "getpgid", (2**40,))

    async def refuse() -> int:
        raise PermissionError(errno.EPERM, "no")

    room.stream.answer = refuse
    with pytest.raises(PermissionError):
        await room.guest.home.ask(TRAITS.pid, "kill", (1, 9))
    room.stream.answer = trio.sleep_forever
    with pytest.raises((OSError, trio.TooSlowError)):  # which the router makes EHOSTDOWN
        await room.guest.home.ask(TRAITS.pid, "kill", (1, 9))


async def test_a_call_and_an_order_that_are_under_way_end_with_the_line(room: Room, autojump_clock: object) -> None:
    room.stream.answer = trio.sleep_forever

    async def never(node: int, report: Any) -> None:
        await trio.sleep_forever()

    room.moved = never
    failures: list[type[Exception]] = []

    async def fails(ask: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(NodeDown) as caught:
            await ask()
        failures.append(caught.type)

    home, way = room.guest.home, room.deputy.way
    assert way is not None
    async with trio.open_nursery() as askers:
        askers.start_soon(fails, lambda: home.ask(TRAITS.pid, "kill", (1, 9)))
        askers.start_soon(fails, lambda: way.move(3, lambda journey: None))
        await trio.testing.wait_all_tasks_blocked()
        room.break_line()
    assert len(failures) == 2


async def test_home_says_and_asks_what_the_root_selects(room: Room, autojump_clock: object) -> None:
    way = room.deputy.way
    assert way is not None
    assert await way.selected(None) == 0
    assert await way.selected(3) == 3
    assert room.selected == 3
    assert await way.selected(None) == 3

    async def ended(node: int) -> int:
        raise ProcessLookupError(errno.ESRCH, "it has ended")

    room.selects = ended  # type: ignore[method-assign]
    with pytest.raises(RemoteFailure, match="it has ended") as caught:
        await way.selected(2)
    assert caught.value.errno == errno.ESRCH


@pytest.mark.parametrize("word", [AskSetting(1, "lock"), ChangeSetting(1, "selected", "x")])
async def test_home_asks_for_nothing_else(room: Room, autojump_clock: object, word: Any) -> None:
    [way] = [one for one in (room.deputy.way,) if isinstance(one, LinkAway)]
    number = way._answers.ask()
    way._speaker.say(msgspec.structs.replace(word, number=number))
    with pytest.raises(RemoteFailure):
        await answer_told(way._answers, number)
    assert room.selected == 0


async def test_home_orders_a_move_and_hears_how_it_goes(room: Room, autojump_clock: object) -> None:
    told: list[Journey] = []
    assert room.deputy.way is not None
    await room.deputy.way.move(3, told.append)
    assert told == [Journey(AWAY, 3)]

    async def stays(node: int, report: Any) -> None:
        raise RemoteFailure(errno.EROFS, "holds a lock")

    room.moved = stays
    with pytest.raises(RemoteFailure, match="holds a lock") as caught:
        await room.deputy.way.move(3, told.append)
    assert caught.value.errno == errno.EROFS


async def test_a_deputy_that_comes_and_goes(room: Room, autojump_clock: object) -> None:
    room.deputy.detach(room.stream)
    await trio.testing.wait_all_tasks_blocked()
    assert room.guest.home is None
    room.deputy.attach(room.stream)
    await trio.testing.wait_all_tasks_blocked()
    assert room.guest.home is not None
    assert room.deputy.way is not None
    room.deputy.stopped(is_stopped=True)
    room.deputy.way.deputy_lost()
    await trio.testing.wait_all_tasks_blocked()
    assert (room.guest.stops, room.guest.is_orphan) == (1, True)


async def test_the_end_is_told_home(room: Room, autojump_clock: object) -> None:
    room.link.tell_end(256)
    room.guest.is_over.set()
    await room.has_ended.wait()
    assert (room.ends, room.guest.folders_left) == ([256, None], 1), "it asks once more, and hears that it is nowhere"


async def test_the_end_is_told_home_when_there_is_a_way(room: Room, autojump_clock: object) -> None:
    room.is_reachable = False
    room.break_line()
    await trio.testing.wait_all_tasks_blocked()
    room.link.tell_end(END_UNKNOWN)
    room.guest.is_over.set()
    await trio.sleep(links.SILENCE_S + 5)
    assert not room.has_ended.is_set()
    room.is_reachable = True
    await room.has_ended.wait()
    assert END_UNKNOWN in room.ends


async def test_who_has_left_answers_its_orders_and_is_silent(room: Room, autojump_clock: object) -> None:
    """The folder may be that of its next stay already."""
    may_end = trio.Event()

    async def leaves(node: int, report: Any) -> None:
        room.guest.is_over.set()
        await may_end.wait()

    room.moved = leaves
    assert room.deputy.way is not None
    async with trio.open_nursery() as orders:
        orders.start_soon(room.deputy.way.move, 3, lambda journey: None)
        await trio.testing.wait_all_tasks_blocked()
        assert not room.has_ended.is_set()
        may_end.set()
    await room.has_ended.wait()
    assert (room.guest.folders_left, room.guest.body.has_ended.is_set()) == (0, False)


async def test_who_has_left_is_waited_for_only_for_a_while(room: Room, autojump_clock: object) -> None:
    async def leaves(node: int, report: Any) -> None:
        room.guest.is_over.set()
        await trio.sleep_forever()

    room.moved = leaves
    assert room.deputy.way is not None
    with pytest.raises(NodeDown):
        await room.deputy.way.move(3, lambda journey: None)
    await room.has_ended.wait()


async def test_while_it_is_on_its_way_the_link_decides_nothing(room: Room, autojump_clock: object) -> None:
    """And looks for home again once it is known that it stays, in its new epoch."""
    room.guest.is_departing = True
    room.kept.write(NAME, Record(3, EPOCH + 1, EPOCH + 1))
    room.break_line()
    await trio.sleep(2 * TIMEOUT_S)
    assert not room.guest.body.has_ended.is_set()
    room.kept.write(NAME, Record(AWAY, EPOCH + 2, EPOCH + 2))
    room.guest.epoch, room.guest.is_departing = EPOCH + 2, False
    await room.wait_way()
    assert not room.guest.body.has_ended.is_set()


async def test_who_is_somewhere_else_is_ended_here(room: Room, autojump_clock: object) -> None:
    room.kept.write(NAME, Record(3, EPOCH + 1, EPOCH + 1))
    assert not room.guest.body.has_ended.is_set()
    room.break_line()
    await room.guest.body.has_ended.wait()
    assert room.guest.has_departed
    assert room.deputy.way is None, "its frames are not taken for those of the guest"


async def test_who_has_ended_at_home_is_ended_here(room: Room, autojump_clock: object) -> None:
    room.kept.forget(NAME)
    room.break_line()
    await room.guest.body.has_ended.wait()


async def test_a_home_that_is_silent_ends_the_guest_in_time_and_not_before(room: Room, autojump_clock: object) -> None:
    room.is_reachable = False
    room.break_line()
    await trio.sleep(TIMEOUT_S - 5)
    assert not room.guest.body.has_ended.is_set()
    room.is_reachable = True
    await room.wait_way()
    room.is_reachable = False
    began_s = trio.current_time()
    room.break_line()
    await room.guest.body.has_ended.wait()
    assert TIMEOUT_S <= room.guest.body.ended_s - began_s <= TIMEOUT_S + 10


@pytest.mark.parametrize(("node", "epoch"), [(AWAY, EPOCH + 1), (AWAY, EPOCH - 1), (3, EPOCH)])
async def test_a_link_of_another_node_or_epoch_is_none(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: object, monkeypatch: pytest.MonkeyPatch, node: int, epoch: int
) -> None:
    kept = records(tmp_path)
    kept.write(NAME, Record(node, epoch, max(epoch, EPOCH)))
    room = Room(nursery, kept)
    monkeypatch.setattr(links, "dial_line", room.dial)
    room.start()
    await room.guest.body.has_ended.wait()
    assert room.deputy.way is None
    assert room.guest.home is None
    assert room.ends == [None]
