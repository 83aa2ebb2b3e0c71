"""What is told of a process on its way to another node, and of its last way: the text of /mfs/proc/<pid>/journey.

One line of JSON, empty for who never moved.  `migrate` shows it while it waits, `migrate --explain` when it is over.
Pure.  Written by who moves the process, read by cli/migrate.py.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from omfs.kernel.processes import Identity

FILE: Final = "journey"
KEPT_MAX: Final = 1024  # half a MiB
_REASON_MAX_CHARACTERS: Final = 1000  # a control file holds 4095 in all


class State(enum.Enum):
    UNDER_WAY = "under way"
    ARRIVED = "arrived"
    STAYED = "stayed"  # it runs on where it was; the reason says why
    LOST = "lost"  # its node died with it


class Stage(msgspec.Struct, frozen=True):
    """*name*: what was done, for people; *bytes*: sent to the other node in it."""

    name: str
    seconds: float
    bytes: int = 0


class Journey(msgspec.Struct, frozen=True):
    """*frozen_s*: how long the process did not run.  *expected_bytes*: an estimate, 0 where there is none yet.

    *age_s*: how old the process was when it was last said so far; 0 but at its home, where it began.
    """

    origin: int
    target: int
    state: State = State.UNDER_WAY
    stages: tuple[Stage, ...] = ()
    sent_bytes: int = 0
    expected_bytes: int = 0
    frozen_s: float = 0.0
    reason: str = ""
    age_s: float = 0.0


class Journeys:
    """The last journeys of as many processes as are remembered."""

    def __init__(self) -> None:
        self._last: dict[Identity, Journey] = {}

    def note(self, process: Identity, journey: Journey) -> None:
        """How it is now.  The oldest is forgotten when there are too many: who ended is not looked for."""
        self._last.pop(process, None)
        self._last[process] = journey
        if len(self._last) > KEPT_MAX:
            del self._last[next(iter(self._last))]

    def of(self, process: Identity) -> Journey | None:
        return self._last.get(process)


def told(journey: Journey | None) -> str:
    """The text of the control file."""
    if journey is None:
        return ""
    short = msgspec.structs.replace(journey, reason=journey.reason[:_REASON_MAX_CHARACTERS])
    return msgspec.json.encode(short).decode()


def understood(text: str) -> Journey | None:
    """What `told` told; None for nothing, and for what is not understood: another version tells more."""
    try:
        return msgspec.json.decode(text, type=Journey)
    except (msgspec.DecodeError, UnicodeError):
        return None
