"""Who is here, and what is counted of those who were."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import trio

from mignode.guests import Guests


def _guest(name: str, **refused: int) -> Any:
    leaves = trio.Event()

    async def no_end() -> bool:
        await trio.sleep_forever()
        return True

    return SimpleNamespace(
        name=name, router=SimpleNamespace(refused=Counter(refused)), serve=leaves.wait, wait_ended=no_end,
        leaves=leaves, has_departed=True, is_over=trio.Event(),
    )  # fmt: skip


async def test_refused_calls_are_counted_over_the_end_of_a_guest(nursery: trio.Nursery) -> None:
    hatchery: Any = None
    guests = Guests(hatchery, nursery, lambda _: None, lambda _: None, lambda _: None)
    assert guests.refused_calls() == {}
    first, second = _guest("1.2.3", mount=2, bpf=1), _guest("1.3.4", mount=1)
    guests.add(first)
    guests.add(second)
    assert guests.refused_calls() == {"mount": 3, "bpf": 1}
    first.router.refused["bpf"] += 1
    first.leaves.set()
    await first.is_over.wait()
    assert guests.refused_calls() == {"mount": 3, "bpf": 2}
    second.router = None
    assert guests.refused_calls() == {"mount": 2, "bpf": 2}
