"""What owner.py keeps and tells: needs of requests, who waits, who holds what, and what is to be recalled.

Pure data.  Called by owner.py, which gives the meaning; Need, Recall, Change and Ticket are had from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from omfs.cache.rules import Use
from omfs.wiretypes import Mode

SessionKey: TypeAlias = bytes
Handle: TypeAlias = bytes


class Need(NamedTuple):
    """How a request uses one object; *name*: for Use.NAME.  *everybody*: its own session is no exception."""

    handle: Handle
    use: Use
    name: bytes = b""
    everybody: bool = False


@dataclass(frozen=True, slots=True)
class Recall:
    """To be sent to the session: keep no more than *mode*; or, unless *names* is None, only forget these names."""

    session: SessionKey
    handle: Handle
    serial: int
    mode: Mode
    names: tuple[bytes, ...] | None = None


class Change(NamedTuple):
    """What the lease table must remember; mode NONE: nothing any more."""

    session: SessionKey
    handle: Handle
    mode: Mode
    serial: int


class Held:
    """One session's lease on one object."""

    __slots__ = ("forgot_at", "mode", "serial")

    def __init__(self, mode: Mode, serial: int) -> None:
        self.mode = mode
        self.serial = serial  # of its last grant
        self.forgot_at = 0  # its serial when it was last told to forget names


class Ticket:
    """A request that could not be executed at once."""

    __slots__ = ("begun_s", "despite_grace", "handles", "needs", "refused", "session", "waits_for")

    def __init__(self, session: SessionKey, needs: tuple[Need, ...], begun_s: float, despite_grace: bool) -> None:
        self.session = session
        self.begun_s = begun_s
        self.despite_grace = despite_grace
        self.needs = needs
        self.handles = frozenset(need.handle for need in needs)
        self.waits_for: dict[Recall, None] = {}  # in order: the same events have the same effects
        self.refused = False

    @property
    def is_ready(self) -> bool:
        return not self.waits_for and not self.refused


class Leased:
    """One object of which something is held, or that somebody waits for."""

    __slots__ = ("changing", "contended_until_s", "held", "is_directory", "recalls", "waiting")

    def __init__(self) -> None:
        self.held: dict[SessionKey, Held] = {}
        self.recalls: list[Recall] = []  # sent and not answered
        self.waiting = 0  # needs of open tickets,
        self.changing = 0  # and those of them that change it
        self.contended_until_s = 0.0
        self.is_directory = False  # as far as anybody changed it as one


class Holder:
    """What is known of one session."""

    __slots__ = ("handles", "recalls", "serial")

    def __init__(self) -> None:
        self.serial = 0
        self.handles: set[Handle] = set()
        self.recalls: dict[int, Recall] = {}  # by serial
