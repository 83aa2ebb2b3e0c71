"""Whether somebody waits for himself, through others: a search in a graph, and nothing else.

Pure.  Called by owner.py, for requests that wait for each other's nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def circle_through(first: T, waits_for: Callable[[T], Iterable[T]]) -> list[T]:
    """Those who wait for each other, each for the next and the last for *first*; empty if there are none."""
    before: dict[T, T | None] = {first: None}
    ways = [first]
    while ways:
        last = ways.pop()
        for other in waits_for(last):
            if other is first:
                circle: list[T] = []
                step: T | None = last
                while step is not None:
                    circle.append(step)
                    step = before[step]
                return circle[::-1]
            if other not in before:
                before[other] = last
                ways.append(other)
    return []
