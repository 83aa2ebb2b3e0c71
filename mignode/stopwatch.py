"""How long the stages of a journey take, told to whoever shows it while it goes on.

A context around the whole journey: left by an error, the guest stayed where it was.  Called by migrate.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final

from msgspec.structs import replace

from mignode.journey import Journey, Stage, State

TELL_EVERY_BYTES: Final = 16 << 20


class Stopwatch:
    """*report* gets the journey as it is, when a stage begins or ends and while much is sent."""

    def __init__(self, origin: int, target: int, report: Callable[[Journey], None]) -> None:
        self._journey = Journey(origin, target)
        self._report = report
        self._sent_bytes = self._told_bytes = 0
        self._frozen_since_s: float | None = None
        self._is_lost = False

    def __enter__(self) -> Stopwatch:
        self._tell()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._thaw()
        if error is not None:
            self._tell(state=State.LOST if self._is_lost else State.STAYED, reason=str(error) or type(error).__name__)
        else:
            self._tell(state=State.ARRIVED)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around a stage; one that fails is told too.  While it is under way it is the last one, of no length yet."""
        begun_s, sent_before, former = time.monotonic(), self._sent_bytes, self._journey.stages
        self._tell(stages=(*former, Stage(name, 0.0)))
        try:
            yield
        finally:
            stage = Stage(name, time.monotonic() - begun_s, self._sent_bytes - sent_before)
            self._tell(stages=(*former, stage))

    def expect(self, size_bytes: int) -> None:
        """To be sent, as far as it is known."""
        self._tell(expected_bytes=size_bytes)

    def freeze(self) -> None:
        """The process does not run from now on."""
        self._frozen_since_s = time.monotonic()

    def _thaw(self) -> None:
        if self._frozen_since_s is not None:
            self._tell(frozen_s=time.monotonic() - self._frozen_since_s)

    def sent(self, size_bytes: int) -> None:
        """So much in all."""
        self._sent_bytes = size_bytes
        if size_bytes - self._told_bytes >= TELL_EVERY_BYTES:
            self._told_bytes = size_bytes
            self._tell()

    def ran(self) -> None:
        """It runs again, there."""
        self._thaw()
        self._frozen_since_s = None

    def lost(self) -> None:
        """It runs nowhere."""
        self._is_lost = True

    def _tell(self, **changes: object) -> None:
        self._journey = replace(self._journey, sent_bytes=self._sent_bytes, **changes)
        self._report(self._journey)
