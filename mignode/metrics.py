"""What mignode counts, as Prometheus reads it: gossip, what it says of all nodes, and calls refused to guests.

Loaded only where omfs.toml names a port; text and door are those of the other daemons (omfs/metrics.py).
Called by daemon.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import trio
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from mignode.gossipport import GossipPort
from mignode.nodeinfo import NodeInfo
from omfs.config import SOFTWARE
from omfs.metrics import text_of
from omfs.net import metricsport
from omfs.standing import Standing

_COUNTED: Final = {
    "sent": ("sent", "Datagrams sent."),
    "sent_bytes": ("sent_bytes", "Bytes of them."),
    "received": ("received", "Datagrams received, whatever became of them."),
    "received_bytes": ("received_bytes", "Bytes of them."),
    "unsent": ("unsent", "Datagrams that could not be sent."),
}
_FATES: Final = (
    "believed", "early", "replayed", "misdirected", "stranger", "forged", "malformed", "unchecked",
)  # fmt: skip


async def serve(
    sock: socket.socket, standing: Standing, gossip: GossipPort, refused: Callable[[], Mapping[str, int]], *,
    task_status: trio.TaskStatus[None],
) -> None:  # fmt: skip
    """Tell them on *sock* (of metricsport.open_listener) until cancelled."""

    async def make_text() -> bytes:
        found = list(families(standing.local.node_id, gossip, refused()))
        return await trio.to_thread.run_sync(text_of, found)

    await metricsport.serve(sock, make_text, CONTENT_TYPE_PLAIN_0_0_4, task_status=task_status)


def families(own: int, gossip: GossipPort, refused: Mapping[str, int]) -> Iterator[Metric]:
    """A snapshot.  *refused*: to guests, by the call's name."""
    labels = {"role": "mignode", "node": str(own), "software": SOFTWARE}
    yield InfoMetricFamily("omfs", "Which daemon this is.", value=labels)
    for name, (counted, text) in _COUNTED.items():
        yield CounterMetricFamily(f"omfs_gossip_{name}", text, value=gossip.counts[counted])
    fates = CounterMetricFamily("omfs_gossip_heard", "What became of datagrams received.", labels=("fate",))
    for fate in _FATES:
        fates.add_metric([fate], gossip.counts[fate])
    yield fates
    calls = CounterMetricFamily("omfs_guest_refused_calls", "System calls refused to guests here.", labels=("call",))
    for name, count in sorted(refused.items()):
        calls.add_metric([name], count)
    yield calls
    yield from _nodes(gossip.known())


def _nodes(known: list[NodeInfo]) -> Iterator[Metric]:
    up = GaugeMetricFamily("omfs_node_up", "1 while others hear the node, else 0.", labels=("node",))
    age = GaugeMetricFamily("omfs_node_age_seconds", "Since the node said what is known of it.", labels=("node",))
    load = GaugeMetricFamily("omfs_node_load", "100: one standard CPU fully busy.", labels=("node",))
    for info in known:
        up.add_metric([str(info.node)], info.is_up)
        age.add_metric([str(info.node)], info.age_s)
        if info.tells_load:
            load.add_metric([str(info.node)], info.load)
    yield from (up, age, load)
