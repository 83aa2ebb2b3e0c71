"""How long recalls took: a histogram with fixed bounds, as metrics want it.  Pure.

The same bounds at the owner (from sending to the answer) and at the holder (from hearing to answering), so that the two
can be held against each other.  Called by export/leasing.py and mount/counters.py.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS_S: Final = (50e-6, 100e-6, 200e-6, 500e-6, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0, 5.0)


class Latency:
    """*buckets*: how many took up to each of BOUNDS_S and longer than the one before, the last: longer than all.

    *sum_s*: seconds of all together.
    """

    __slots__ = ("buckets", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def add(self, seconds: float) -> None:
        """One more."""
        self.sum_s += seconds
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1
