"""How long a guest's init may take to answer, for body.py: who asks it may hold a process still meanwhile.

Not of `Body.run`, which ends when the program was executed: that may wait for the node of its file.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

import trio

ANSWER_S: Final = 30.0  # it has nothing to do that takes long, but on a machine that is very busy


@contextlib.contextmanager
def in_time(what: str, deadline_s: float = ANSWER_S) -> Iterator[None]:
    """Raises TimeoutError: "*what* within ... s"."""
    try:
        with trio.fail_after(deadline_s):
            yield
    except trio.TooSlowError:
        raise TimeoutError(errno.ETIMEDOUT, f"{what} within {deadline_s:.0f} s") from None
