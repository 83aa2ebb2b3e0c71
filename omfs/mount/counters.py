"""What a mount counts of its caches: how often an owner had to be asked, and what recalls did.

One per mount, shown by the control socket's status; plain numbers that only grow.  Latencies go into a fixed histogram:
bucket i counts those below BOUNDS_US[i] (and not below the one before), the last bucket the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

BOUNDS_US: Final = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 200_000, 1_000_000, 5_000_000)


class Counters:
    """*asked_...*: answered by the owner, not from here."""

    __slots__ = (
        "asked_attributes", "asked_look_ups", "asked_reads", "asked_xattrs", "dropped_names", "dropped_pages", "lapses",
        "latencies", "passes", "recalls",
    )  # fmt: skip

    def __init__(self) -> None:
        self.asked_look_ups = 0
        self.asked_attributes = 0
        self.asked_reads = 0
        self.asked_xattrs = 0
        self.recalls = 0
        self.passes = 0
        self.dropped_names = 0
        self.dropped_pages = 0  # times that pages of a file were dropped
        self.lapses = 0
        self.latencies = [0] * (len(BOUNDS_US) + 1)

    def recalled(self, took_s: float) -> None:
        """A recall was handled."""
        self.recalls += 1
        self.latencies[bisect_right(BOUNDS_US, took_s * 1e6)] += 1

    def describe(self) -> dict[str, int]:
        """For the control socket."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name != "latencies"}
        for bound_us, count in zip((*BOUNDS_US, 0), self.latencies, strict=True):
            shown[f"recall_below_{bound_us}_us" if bound_us else "recall_slower"] = count
        return shown
