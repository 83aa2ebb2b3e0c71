"""The Pings of one holder that are not answered yet: one per lane, so that each connection has something outstanding.

Silence of a connection then means silence of the node, and every answer renews the leases' term.  What it does not do:
send, or decide when.  Called by net/peer.py only.
"""

from __future__ import annotations

from collections.abc import Iterator

from omfs import wire


class Pings:
    """*round_trip_s*: of the last that was answered."""

    def __init__(self) -> None:
        self.round_trip_s = 0.0
        self._sent: dict[int, tuple[wire.Lane, float]] = {}

    def idle_lanes(self) -> Iterator[wire.Lane]:
        """Lanes on which none is outstanding."""
        waiting = {lane for lane, _ in self._sent.values()}
        return (lane for lane in wire.Lane if lane not in waiting)

    def sent(self, ping_id: int, lane: wire.Lane, now_s: float) -> None:
        self._sent[ping_id] = lane, now_s

    def take_answered(self, ping_id: int, now_s: float) -> float | None:
        """When the Ping with this id was sent; None: it is none of ours."""
        sent = self._sent.pop(ping_id, None)
        if sent is None:
            return None
        self.round_trip_s = now_s - sent[1]
        return sent[1]

    def forget(self) -> None:
        """The connections are lost."""
        self._sent.clear()
