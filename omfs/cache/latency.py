"""How long something took: a histogram with fixed bounds, as metrics want it.  Pure.  Called by export/leasing.py."""

from __future__ import annotations

from typing import Final

BOUNDS_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1, 1.0, 10.0)


class Latency:
    """Counts per bucket (the last: above all bounds), their number and sum in seconds."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.count = 0
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.sum_s += seconds
        for index, bound_s in enumerate(BOUNDS_S):
            if seconds <= bound_s:
                self.buckets[index] += 1
                return
        self.buckets[-1] += 1
