"""Who is asked where a guest is: home itself, or home by a line; and what home does besides answering."""

from __future__ import annotations

import errno
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from mignode import desk as desk_module
from mignode.desk import AwayDesk, Desk, answer_on
from mignode.handover import Record
from mignode.line import Line
from mignode.record import records
from mignode.words import Begin, Begun, Commit, Discard, GiveBack, Located, Refused, WhereIs
from omfs.config import Settings
from omfs.errors import HandoverRefused, NodeDown, RemoteFailure
from omfs.net.transport import memory_transports

HOME, AWAY, NAME = 1, 2, "1.4242.99"


class Home:
    """A desk, and what it told."""

    def __init__(self, run_dir: Path) -> None:
        self.kept = records(run_dir)
        self.kept.write(NAME, Record(HOME))
        self.moved: list[tuple[str, int]] = []
        self.forbidden: set[int] = set()
        self.settings = Settings(run_dir=str(run_dir))
        self.desk = Desk(self.standing(HOME), self.settings, self._told, self._why_not)

    @staticmethod
    def standing(node: int) -> Any:
        return types.SimpleNamespace(local=types.SimpleNamespace(node_id=node))

    def _told(self, name: str, record: Record) -> None:
        self.moved.append((name, record.node))

    def _why_not(self, name: str, node: int) -> str:
        return "its mask" if node in self.forbidden else ""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def test_home_tells_when_the_guest_is_somewhere_else(home: Home) -> None:
    assert home.desk.of(HOME) is home.desk
    begun = await home.desk.ask(Begin(NAME, 1, AWAY))
    assert isinstance(begun, Begun)
    assert home.moved == []
    assert await home.desk.ask(Commit(NAME, begun.attempt)) == Located(begun.attempt, begun.attempt, AWAY, False)
    assert home.moved == [(NAME, AWAY)]
    home.desk.answer(HOME, WhereIs(NAME, begun.attempt))
    assert home.moved == [(NAME, AWAY)]
    home.desk.answer(AWAY, GiveBack(NAME, begun.attempt))
    assert home.moved == [(NAME, AWAY), (NAME, HOME)]


async def test_what_is_forbidden_is_not_begun(home: Home) -> None:
    home.forbidden.add(AWAY)
    with pytest.raises(RemoteFailure, match="its mask") as caught:
        await home.desk.ask(Begin(NAME, 1, AWAY))
    assert caught.value.errno == errno.EROFS
    assert home.kept.read(NAME) == Record(HOME)


async def test_who_has_left_begins_nothing(home: Home) -> None:
    with pytest.raises(HandoverRefused):
        await home.desk.ask(Begin(NAME, 7, AWAY))


Answering = Callable[[Line], Awaitable[None]]


@pytest.fixture
def away(home: Home, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Callable[[Answering], Any]:
    """The desk as another node has it, whose lines somebody answers."""

    def made(answering: Answering) -> Any:
        async def dial(*_: object) -> Line:
            await trio.lowlevel.checkpoint()
            ours, theirs = map(Line, memory_transports())
            theirs.node_id = AWAY
            ours.admit()
            theirs.admit()
            nursery.start_soon(answering, theirs)
            return ours

        monkeypatch.setattr(desk_module, "dial_line", dial)
        desk = Desk(home.standing(AWAY), home.settings, home._told).of(HOME)
        assert isinstance(desk, AwayDesk)
        return desk

    return made


async def test_another_node_asks_by_a_line(home: Home, away: Callable[[Answering], Any]) -> None:
    async def answering(line: Line) -> None:
        word: Any = (await line.receive(5))[0]
        await answer_on(line, home.desk, word)

    desk = away(answering)
    assert await desk.ask(WhereIs(NAME, 1)) == Located(1, 1, HOME, True)
    with pytest.raises(HandoverRefused):  # it is not there
        await desk.ask(Begin(NAME, 1, AWAY))
    with pytest.raises(RemoteFailure):
        await desk.ask(Begin("1.1.1", 1, AWAY))


async def test_a_home_that_does_not_answer(autojump_clock: object, away: Callable[[Answering], Any]) -> None:
    async def silent(line: Line) -> None:
        await line.receive(5)
        await trio.sleep_forever()

    async def closed(line: Line) -> None:
        line.close()

    async def strange(line: Line) -> None:
        await line.send(Discard("why"), deadline_s=5)

    began_s = trio.current_time()
    for answering in (silent, closed, strange):
        with pytest.raises(NodeDown, match=f"node {HOME}"):
            await away(answering).ask(WhereIs(NAME, 1))
    assert trio.current_time() - began_s == desk_module.ANSWER_TIMEOUT_S


def test_a_refusal_is_what_was_refused(home: Home) -> None:
    assert isinstance(home.desk.answer(AWAY, Begin(NAME, 1, AWAY)), Refused)
