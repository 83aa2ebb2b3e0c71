"""What both ends of a link have: words that go out in order, and questions that wait for their answers.

Called by links.py.
"""

from __future__ import annotations

import math

import trio

from mignode.line import Line
from mignode.transit import SILENCE_S
from mignode.words import Told, Word
from omfs.config import HOME_CALL_TIMEOUT_S
from omfs.errors import NodeDown, RemoteFailure, WireError


class Speaker:
    """Says words in order, from anywhere, without waiting; the windows of the standard files bound what waits."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._to_say, self._said = trio.open_memory_channel[tuple[Word, bytes]](math.inf)
        self._unsaid = 0
        self._is_over = False
        self._progress = trio.Event()

    def say(self, word: Word, bulk: bytes = b"") -> None:
        self._unsaid += 1
        self._to_say.send_nowait((word, bulk))

    async def run(self) -> None:
        """Until the line is lost, which whoever receives is told."""
        try:
            async for word, bulk in self._said:
                await self._line.send(word, bulk, deadline_s=SILENCE_S)
                self._unsaid -= 1
                self._progress.set()
        except (OSError, WireError):
            self._line.close()
        finally:
            self._is_over = True
            self._progress.set()

    async def wait_said(self) -> None:
        """Until all is on its way, or the line is lost."""
        while self._unsaid and not self._is_over:
            self._progress = trio.Event()
            await self._progress.wait()


class Answers:
    """Questions under way, by number."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[trio.Event, list[Word]]] = {}
        self._last = 0

    def ask(self) -> int:
        self._last += 1
        self._waiting[self._last] = (trio.Event(), [])
        return self._last

    def take(self, number: int, word: Word) -> None:
        if number in self._waiting:
            event, answers = self._waiting[number]
            answers.append(word)
            event.set()

    async def wait(self, number: int) -> Word:
        """Raises NodeDown where the line was lost."""
        event, answers = self._waiting[number]
        try:
            await event.wait()
        finally:
            del self._waiting[number]
        if not answers:
            raise NodeDown("the line to the node was lost")
        return answers[0]

    def lose(self) -> None:
        for event, _ in self._waiting.values():
            event.set()


async def answer_told(answers: Answers, number: int) -> str:
    """Raises NodeDown, RemoteFailure."""
    answer = None
    with trio.move_on_after(HOME_CALL_TIMEOUT_S):
        answer = await answers.wait(number)
    match answer:
        case Told(errno=0, text=text):
            return text
        case Told(errno=number, text=text):
            raise RemoteFailure(number, text)
    raise NodeDown("the node does not answer")
