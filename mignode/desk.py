"""Who answers where a guest is: this node for those that were born here, another one asked on a line for the others.

The answers are homeanswers.py's.  Called by migrate, receive and the links; the lines that others bring come by
guesthouse.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from mignode.handover import Located, Record
from mignode.homeanswers import Question, answer
from mignode.line import Line, dial_line
from mignode.record import records
from mignode.words import Begin, Begun, Refused
from omfs.config import Settings
from omfs.errors import HandoverRefused, NodeDown, RemoteFailure, WireError
from omfs.standing import Standing

ANSWER_TIMEOUT_S: Final = 5.0  # home looks at one small file

Told = Callable[[str, Record], None]
"""(guest, its record): the guest is somewhere else now."""


WhyNot = Callable[[str, int], str]
"""(guest, node): why it may not go there; "": it may."""


def _always(_: str, __: int) -> str:
    return ""


class AnyDesk(Protocol):
    async def ask(self, question: Question) -> Begun | Located:
        """Begun for Begin, else Located.

        Raises HandoverRefused, RemoteFailure, NodeDown where home does not answer.
        """


class Desk:
    """Of this node, for the guests that were born here."""

    def __init__(self, standing: Standing, settings: Settings, moved: Told, why_not: WhyNot = _always) -> None:
        self._standing = standing
        self._settings = settings
        self._records = records(Path(settings.run_dir))
        self._moved = moved
        self._why_not = why_not

    def of(self, home: int) -> AnyDesk:
        """The desk of that node."""
        if home == self._standing.local.node_id:
            return self
        return AwayDesk(self._standing, self._settings, home)

    async def ask(self, question: Question) -> Begun | Located:
        """Of this node itself."""
        return _understood(self.answer(self._standing.local.node_id, question))

    def answer(self, sender: int, question: Question) -> Begun | Located | Refused:
        """To another node."""
        if isinstance(question, Begin) and (reason := self._why_not(question.guest, question.destination)):
            return Refused(errno.EROFS, reason)
        before = self._records.read(question.guest)
        said = answer(self._records, self._standing.local.node_id, sender, question)
        after = self._records.read(question.guest)
        if after is not None and before is not None and after.node != before.node:
            self._moved(question.guest, after)
        return said


class AwayDesk:
    """Of another node."""

    def __init__(self, standing: Standing, settings: Settings, home: int) -> None:
        self._standing = standing
        self._settings = settings
        self._home = home

    async def ask(self, question: Question) -> Begun | Located:
        line = await dial_line(self._standing, self._settings, self._home, ANSWER_TIMEOUT_S)
        try:
            await line.send(question, deadline_s=ANSWER_TIMEOUT_S)
            said, _ = await line.receive(ANSWER_TIMEOUT_S)
        except (OSError, WireError) as error:
            raise NodeDown(f"node {self._home}, where the guest is at home: {error}") from None
        finally:
            line.close()
        if not isinstance(said, Begun | Located | Refused):
            raise NodeDown(f"node {self._home} answered with {type(said).__name__}")
        return _understood(said)


def _understood(said: Begun | Located | Refused) -> Begun | Located:
    if isinstance(said, Refused):
        if said.errno == HandoverRefused.errno:
            raise HandoverRefused(said.reason)
        raise RemoteFailure(said.errno, said.reason)
    return said


async def answer_on(line: Line, desk: Desk, question: Question) -> None:
    """A line that another node has brought."""
    await line.send(desk.answer(line.node_id, question), deadline_s=ANSWER_TIMEOUT_S)
