"""What a mount counts of its caches: how often an owner had to be asked, and what recalls did.

One per mount, shown by the control socket's status and the metrics; plain numbers, most of which only grow.
"""

from __future__ import annotations

from omfs.cache.latency import BOUNDS_S, Latency


class Counters:
    """*asked_...*: answered by the owner, not from here.  *answered_...*: by this daemon, under a lease.

    What the kernel answers from its own caches never comes here.  *latency*: of recalls, from hearing to answering.
    *behind_bytes*, *behind_files*: written and not yet at the owner, now; these two also shrink.
    """

    __slots__ = (
        "answered_attributes", "answered_listings", "answered_look_ups", "answered_opens", "answered_xattrs",
        "asked_attributes", "asked_listings", "asked_look_ups", "asked_opens", "asked_reads", "asked_xattrs",
        "behind_bytes", "behind_failed", "behind_files", "behind_requests", "behind_writes", "dropped_names",
        "dropped_pages", "lapses", "latency", "passes", "recalls",
    )  # fmt: skip

    def __init__(self) -> None:
        self.asked_look_ups = 0
        self.asked_attributes = 0
        self.asked_listings = 0  # pieces of them
        self.asked_reads = 0
        self.asked_xattrs = 0
        self.asked_opens = 0
        self.answered_attributes = 0
        self.answered_listings = 0
        self.answered_look_ups = 0
        self.answered_opens = 0
        self.answered_xattrs = 0
        self.behind_bytes = 0
        self.behind_files = 0
        self.behind_writes = 0  # answered before the owner had the data
        self.behind_requests = 0  # that carried them there
        self.behind_failed = 0  # of those
        self.recalls = 0
        self.passes = 0
        self.dropped_names = 0
        self.dropped_pages = 0  # times that pages of a file were dropped
        self.lapses = 0
        self.latency = Latency()

    def recalled(self, took_s: float) -> None:
        """A recall was handled."""
        self.recalls += 1
        self.latency.add(took_s)

    def describe(self) -> dict[str, int]:
        """For the control socket."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name != "latency"}
        for bound_s, count in zip((*BOUNDS_S, None), self.latency.buckets, strict=True):
            shown[f"recall_to_{bound_s * 1e6:.0f}_us" if bound_s is not None else "recall_slower"] = count
        shown["recall_sum_us"] = round(self.latency.sum_s * 1e6)
        return shown
