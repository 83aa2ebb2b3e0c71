"""What the daemons count, as Prometheus reads it: names, help texts, and the port where they are told.

The counters themselves are plain numbers in the rooms that count; nothing here is on their way.  At each scrape a
snapshot is taken in the daemon's own thread (so no counter changes meanwhile, and no lock is needed) and turned into
families of prometheus_client.  The text is made of them in another thread, which shares nothing with the daemon: it
also counts descriptors, of which an export may have hundreds of thousands, a microsecond each.

Names begin with omfs_export_ (this node's tree, used by others) or omfs_mount_ (the others' trees, used from here),
units are seconds and bytes.  docs/metrics.md explains them.

What it does not do: count, keep anything, know how the snapshot is made.  Started by daemon.py where omfs.toml gives
a port, and only imported then: it costs 3 MB and 25 ms.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from omfs.cache.latency import BOUNDS_S
from omfs.mount.counters import Counters
from omfs.net import metricsport
from omfs.net.control import LeasesStatus, NodeStatus, OwnerStatus, StatusReply

STATES: Final = ("up", "connecting", "down", "refused")

ExportSnapshot = Callable[[], OwnerStatus]
MountSnapshot = Callable[[], Awaitable[StatusReply]]


async def serve_export(
    sock: socket.socket, snapshot: ExportSnapshot, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Tell an export's metrics on *sock* (of metricsport.open_listener) until cancelled."""

    async def make_text() -> bytes:
        return await trio.to_thread.run_sync(text_of, list(export_families(snapshot())))

    await metricsport.serve(sock, make_text, CONTENT_TYPE_PLAIN_0_0_4, task_status=task_status)


async def serve_mount(
    sock: socket.socket,
    snapshot: MountSnapshot,
    counters: Counters,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The same for a mount."""

    async def make_text() -> bytes:
        return await trio.to_thread.run_sync(text_of, list(mount_families(await snapshot(), counters)))

    await metricsport.serve(sock, make_text, CONTENT_TYPE_PLAIN_0_0_4, task_status=task_status)


class _Families(Collector):
    """What was made of one snapshot."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def text_of(families: Iterable[Metric]) -> bytes:
    """The text of these, and of what is usual for every process (CPU, memory, descriptors)."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


# ---------------------------------------------------------------- families


def _info(role: str, node_id: int, software: str) -> Metric:
    labels = {"role": role, "node": str(node_id), "software": software}
    return InfoMetricFamily("omfs", "Which daemon this is.", value=labels)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Metric:
    """*counts*: up to each bound and over the one before; the last: over all."""
    buckets: list[tuple[str, float]] = []
    so_far = 0
    for bound, count in zip((*bounds, None), counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound is None else repr(float(bound)), so_far))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


# ---------------------------------------------------------------- the owner's side


def export_families(status: OwnerStatus) -> Iterator[Metric]:
    """This node's tree, used by others."""
    yield _info("export", status.node_id, status.software)
    yield from _holders(status)
    yield _counter("omfs_export_requests", "Requests of other nodes.", status.requests)
    yield _counter("omfs_export_received_bytes", "Bytes received from other nodes, before TLS.", status.bytes_in)
    yield _counter("omfs_export_sent_bytes", "Bytes sent to other nodes, before TLS.", status.bytes_out)
    yield _gauge("omfs_export_nomfs", "1 while other nodes are refused (nomfs), else 0.", status.nomfs)
    if status.leases is not None:
        yield from _leases(status.leases)


def _holders(status: OwnerStatus) -> Iterator[Metric]:
    sessions: dict[int, int] = {}
    leases: dict[int, int] = {}
    for one in status.sessions:
        sessions[one.node_id] = sessions.get(one.node_id, 0) + 1
        leases[one.node_id] = leases.get(one.node_id, 0) + one.leases
    by_node = GaugeMetricFamily("omfs_export_sessions", "Sessions (mounts) of a node.", labels=("node",))
    held = GaugeMetricFamily("omfs_export_node_leases", "Leases that a node's sessions hold here.", labels=("node",))
    for node_id in sorted(sessions):
        by_node.add_metric([str(node_id)], sessions[node_id])
        held.add_metric([str(node_id)], leases[node_id])
    yield by_node
    yield held


def _leases(leases: LeasesStatus) -> Iterator[Metric]:
    yield _gauge(
        "omfs_export_leases",
        "Leases held on objects here, also by sessions that ended and whose term is not over.",
        leases.held,
    )
    yield _counter("omfs_export_lease_grants", "Leases granted.", leases.grants)
    yield _counter("omfs_export_recalls", "Recalls sent (or due to a holder that is away).", leases.recalls)
    yield _gauge("omfs_export_recalls_under_way", "Recalls that are not answered yet.", leases.recalls_under_way)
    yield _gauge("omfs_export_waiting_requests", "Requests that wait for recalls.", leases.waiting)
    yield _counter(
        "omfs_export_lease_refusals",
        "Requests refused (ESTALE, the kernel repeats them) because waiting for a recall could never have ended.",
        leases.refusals,
    )
    yield _gauge("omfs_export_lease_table_bytes", "Size of the lease table on disk.", leases.table_bytes)
    if leases.recall_buckets:
        yield _histogram(
            "omfs_export_recall_duration_seconds",
            "Time from sending a recall to its answer.",
            leases.recall_bounds_s,
            leases.recall_buckets,
            leases.recall_sum_s,
        )


# ---------------------------------------------------------------- the holder's side

_NODE_COUNTERS: Final[tuple[tuple[str, str, Callable[[NodeStatus], float]], ...]] = (
    ("requests", "Requests sent to the node.", lambda node: node.requests),
    ("received_bytes", "Bytes received from the node, before TLS.", lambda node: node.bytes_in),
    ("sent_bytes", "Bytes sent to the node, before TLS.", lambda node: node.bytes_out),
    ("sessions_lost", "Times that the node lost our session (it restarted).", lambda node: node.epoch),
    ("lease_lapses", "Times that all our leases of the node lapsed.", lambda node: node.lapses),
)
_NODE_GAUGES: Final[tuple[tuple[str, str, Callable[[NodeStatus], float | None]], ...]] = (
    ("up", "1 if the node is connected, else 0.", lambda node: node.state == "up"),
    ("round_trip_seconds", "Round trip of the last ping; only while it is up.", lambda node: node.round_trip_s),
    ("silent_seconds", "Time since the last byte from the node.", lambda node: node.silent_s),
    ("requests_in_flight", "Requests that are not answered yet.", lambda node: node.in_flight),
    ("leases", "Leases that this mount holds there.", lambda node: node.leases),
)
_ASKED: Final = (
    "Questions that reached an owner because nothing here could answer them. What the kernel answers from its own "
    "caches under a lease never comes to the daemon and cannot be counted."
)

_ANSWERED: Final = (
    "Questions that the daemon answered under a lease, without the owner. The hits in the kernel's own caches are not "
    "among them: they never come to the daemon and cannot be counted."
)


def mount_families(status: StatusReply, counters: Counters) -> Iterator[Metric]:
    """The others' trees, used from here."""
    yield _info("mount", status.node_id, status.software)
    yield from _nodes(status.nodes)
    counts = counters.describe()
    yield _by_kind("omfs_mount_asked", _ASKED, "asked_", counts)
    yield _by_kind("omfs_mount_answered", _ANSWERED, "answered_", counts)
    yield _counter("omfs_mount_recalls", "Recalls answered.", counters.recalls)
    yield _counter("omfs_mount_recall_passes", "Times that the kernel was told what to forget.", counters.passes)
    yield _counter("omfs_mount_dropped_names", "Names that the kernel was told to forget.", counters.dropped_names)
    yield _counter("omfs_mount_dropped_pages", "Times that pages of a file were dropped.", counters.dropped_pages)
    yield GaugeMetricFamily("omfs_mount_behind_bytes", "Written and not yet at the owner.", counters.behind_bytes)
    yield GaugeMetricFamily("omfs_mount_behind_files", "Open files with such bytes.", counters.behind_files)
    yield _counter("omfs_mount_behind_writes", "Writes answered before the owner had them.", counters.behind_writes)
    yield _counter("omfs_mount_behind_requests", "Requests that carried them to it.", counters.behind_requests)
    yield _counter("omfs_mount_behind_failed", "Such requests that failed.", counters.behind_failed)
    yield _histogram(
        "omfs_mount_recall_duration_seconds",
        "Time from hearing a recall to answering it.",
        BOUNDS_S,
        counters.latency.buckets,
        counters.latency.sum_s,
    )


def _by_kind(name: str, text: str, prefix: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=("what",))
    for kind in sorted(counts):
        if kind.startswith(prefix):
            family.add_metric([kind.removeprefix(prefix)], counts[kind])
    return family


def _nodes(nodes: Iterable[NodeStatus]) -> Iterator[Metric]:
    others = [node for node in nodes if node.state != "self"]
    states = GaugeMetricFamily("omfs_mount_node_state", "1 for the state that holds.", labels=("node", "state"))
    for node in others:
        for state in STATES:
            states.add_metric([str(node.node_id), state], node.state == state)
    yield states
    for name, text, of in _NODE_GAUGES:
        gauge = GaugeMetricFamily(f"omfs_mount_node_{name}", text, labels=("node",))
        for node in others:
            value = of(node)
            if value is not None:
                gauge.add_metric([str(node.node_id)], value)
        yield gauge
    for name, text, count in _NODE_COUNTERS:
        counter = CounterMetricFamily(f"omfs_mount_node_{name}", text, labels=("node",))
        for node in others:
            counter.add_metric([str(node.node_id)], count(node))
        yield counter
