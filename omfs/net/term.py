"""The clockwork of a holder's leases towards one owner: until when they may be used, and what must come first again.

    state    | meaning                                              | leaves by
    ---------+------------------------------------------------------+------------------------------------------
    NOTHING  | nothing is held, and the owner knows                 | answered (still within its span): HELD
    HELD     | what is granted may be cached and used               | lapse: LAPSED
    LAPSED   | everything cached is being dropped                   | dropped: DROPPED
    DROPPED  | all is dropped; the owner must hear (ReturnLeases)   | returned: NOTHING

The span is measured from the *sending* of the last message that was answered, so it ends before the owner, which counts
from its arrival, gives the leases away; it is shorter than the owner's term because dropping takes time too.  Each stay
in HELD is a round of its own: what was asked for in another round must not be cached.
Pure: no I/O, no clock; seconds of any clock that does not go back.  Called by net/recalls.py only.
"""

from __future__ import annotations

import enum
import math
from typing import Final

SPAN: Final = 0.7  # of the owner's term; the rest is for dropping what is cached
RENEWALS: Final = 4  # messages to be answered within a term, so that losing one or two harms nothing
TERM_MIN_S: Final = 1.0  # with less than this (or nonsense) from an owner, its leases are not used
TERM_MAX_S: Final = 3600.0


class State(enum.Enum):
    NOTHING = enum.auto()
    HELD = enum.auto()
    LAPSED = enum.auto()
    DROPPED = enum.auto()


class Term:
    """*lapses*: how often; *state*: see above; *until_s*: when the span ends, unless another message is answered."""

    def __init__(self) -> None:
        self.state = State.NOTHING
        self.lapses = 0
        self.until_s = -math.inf  # kept, not computed: it is looked at with every request
        self._rounds = 0
        self._term_s = 0.0
        self._answered_s = -math.inf  # when the last message that was answered had been sent

    @property
    def renew_every_s(self) -> float:
        """So often something must be sent that is answered."""
        return self._term_s / RENEWALS if self._term_s else math.inf

    def round_at(self, now_s: float) -> int:
        """Which round this is, counted from 1; 0: leases may not be used."""
        return self._rounds if self.state is State.HELD and now_s < self.until_s else 0

    def is_over(self, now_s: float) -> bool:
        """The span has ended and nobody has been told yet."""
        return self.state is State.HELD and now_s >= self.until_s

    def _measure(self, answered_s: float) -> None:
        self._answered_s = answered_s
        self.until_s = answered_s + SPAN * self._term_s

    # ------------------------------------------------------------ events

    def agree(self, term_s: float) -> None:
        """The owner's term, as it says with every connection."""
        self._term_s = term_s if TERM_MIN_S <= term_s <= TERM_MAX_S else 0.0
        self._measure(self._answered_s)

    def answered(self, sent_s: float, now_s: float) -> None:
        """A message that was sent at *sent_s* has been answered."""
        self._measure(max(self._answered_s, sent_s))
        if self.state is State.NOTHING and now_s < self.until_s:
            self.state = State.HELD
            self._rounds += 1

    def lapse(self) -> bool:
        """The leases must not be used any more.  True: there were some to lose, and they must be dropped now."""
        if self.state is not State.HELD:
            return False
        self.state = State.LAPSED
        self.lapses += 1
        return True

    def owner_forgot(self) -> bool:
        """As `lapse`, because the owner has lost our session: what it answered before counts no more."""
        self._measure(-math.inf)
        return self.lapse()

    def dropped(self) -> None:
        """Nothing is cached any more."""
        if self.state is State.LAPSED:
            self.state = State.DROPPED

    def returned(self) -> None:
        """The owner knows that nothing is held."""
        if self.state is State.DROPPED:
            self.state = State.NOTHING
