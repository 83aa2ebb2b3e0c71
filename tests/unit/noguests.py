"""The rooms for guests of a node where there are none, and none can come."""

from __future__ import annotations

import trio

from mignode.guest import Guest
from mignode.guests import Guests
from mignode.transit import Transit


def nobody(nursery: trio.Nursery) -> Guests:
    def never(_: Guest) -> None:
        raise AssertionError

    return Guests(None, nursery, never, never, never)  # type: ignore[arg-type]


def no_transit() -> Transit:
    raise AssertionError
