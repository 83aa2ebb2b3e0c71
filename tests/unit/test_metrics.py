"""Metrics: snapshots become the right families, and the text is what Prometheus' own parser reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from omfs.cache.latency import BOUNDS_S, Latency
from omfs.metrics import STATES, export_families, mount_families, text_of
from omfs.mount.counters import Counters
from omfs.net.control import HolderStatus, LeasesStatus, NodeStatus, OwnerStatus, StatusReply

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"

UP = NodeStatus(
    node_id=2, addresses=("10.0.0.2",), state="up", round_trip_s=0.000125, silent_s=0.5, requests=1234, in_flight=2,
    bytes_in=5000, bytes_out=600, epoch=1, lapses=3, leases=57,
)  # fmt: skip
DOWN = NodeStatus(node_id=3, addresses=("10.0.0.3",), state="down", reason="silent for 20 s", silent_s=20.0)
SELF = NodeStatus(node_id=1, addresses=("10.0.0.1",), state="self")

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(families: Iterable[Metric]) -> tuple[dict[str, str], Samples]:
    """Types by family, and values by sample and labels, as a scraper gets them."""
    types: dict[str, str] = {}
    samples: Samples = {}
    for family in text_string_to_metric_families(text_of(families).decode()):
        assert family.documentation, family.name
        types[family.name] = family.type
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return types, samples


def one(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


# ---------------------------------------------------------------- how long


def test_latency_counts_into_its_buckets() -> None:
    latency = Latency()
    for seconds in (BOUNDS_S[0], BOUNDS_S[0] / 2, BOUNDS_S[1], BOUNDS_S[-1], BOUNDS_S[-1] * 2):
        latency.add(seconds)
    assert latency.count == 5
    assert (latency.buckets[0], latency.buckets[1], latency.buckets[-2], latency.buckets[-1]) == (2, 1, 1, 1)
    assert latency.sum_s == pytest.approx(1.5 * BOUNDS_S[0] + BOUNDS_S[1] + 3 * BOUNDS_S[-1])


# ---------------------------------------------------------------- the owner's side


def owner_status(*sessions: HolderStatus, leases: LeasesStatus | None = None) -> OwnerStatus:
    return OwnerStatus(
        node_id=1, software="omfs 0.1.0", sessions=sessions, requests=9, bytes_in=10, bytes_out=11, leases=leases
    )


def test_an_export_tells_who_uses_it() -> None:
    sessions = (HolderStatus(2, "aa", 5, 3), HolderStatus(3, "bb", 1, 0), HolderStatus(2, "cc", 3, 4))
    types, samples = read(export_families(owner_status(*sessions)))
    assert one(samples, "omfs_info", role="export", node="1", software="omfs 0.1.0") == 1
    assert one(samples, "omfs_export_sessions", node="2") == 2
    assert one(samples, "omfs_export_node_leases", node="2") == 7
    assert one(samples, "omfs_export_node_leases", node="3") == 0
    assert one(samples, "omfs_export_requests_total") == 9
    assert one(samples, "omfs_export_received_bytes_total") == 10
    assert one(samples, "omfs_export_sent_bytes_total") == 11
    assert one(samples, "omfs_export_nomfs") == 0
    closed = OwnerStatus(node_id=1, nomfs=True)
    assert one(read(export_families(closed))[1], "omfs_export_nomfs") == 1
    assert types["omfs_export_requests"] == "counter"
    assert types["omfs_export_sessions"] == "gauge"
    assert types["process_resident_memory_bytes"] == "gauge"


def test_an_export_tells_of_its_leases() -> None:
    latency = Latency()
    for seconds in (0.00007, 0.0004, 0.0004, 30.0):
        latency.add(seconds)
    leases = LeasesStatus(
        held=12, grants=340, recalls=25, recalls_under_way=1, refusals=2, waiting=3, table_bytes=8192,
        recall_bounds_s=BOUNDS_S, recall_buckets=tuple(latency.buckets), recall_sum_s=latency.sum_s,
    )  # fmt: skip
    types, samples = read(export_families(owner_status(leases=leases)))
    told = {
        "leases": 12, "lease_grants_total": 340, "recalls_total": 25, "recalls_under_way": 1,
        "lease_refusals_total": 2, "waiting_requests": 3, "lease_table_bytes": 8192,
    }  # fmt: skip
    assert {name: one(samples, f"omfs_export_{name}") for name in told} == told
    took = "omfs_export_recall_duration_seconds"
    assert types[took] == "histogram"
    upto = {le: one(samples, f"{took}_bucket", le=le) for le in ("5e-05", "0.0001", "0.0005", "5.0", "+Inf")}
    assert upto == {"5e-05": 0, "0.0001": 1, "0.0005": 3, "5.0": 3, "+Inf": 4}
    assert one(samples, f"{took}_count") == 4
    assert one(samples, f"{took}_sum") == pytest.approx(30.00087)


# ---------------------------------------------------------------- the holder's side


def mount_samples(counters: Counters, *nodes: NodeStatus) -> Samples:
    return read(mount_families(StatusReply(node_id=1, nodes=nodes, software="omfs 0.1.0"), counters))[1]


def test_a_mount_tells_how_the_nodes_are() -> None:
    samples = mount_samples(Counters(), SELF, UP, DOWN)
    assert one(samples, "omfs_info", role="mount", node="1", software="omfs 0.1.0") == 1
    told = {
        "up": 1, "round_trip_seconds": 0.000125, "silent_seconds": 0.5, "requests_in_flight": 2, "leases": 57,
        "requests_total": 1234, "received_bytes_total": 5000, "sent_bytes_total": 600, "sessions_lost_total": 1,
        "lease_lapses_total": 3,
    }  # fmt: skip
    assert {name: one(samples, f"omfs_mount_node_{name}", node="2") for name in told} == told
    assert one(samples, "omfs_mount_node_up", node="3") == 0
    assert [one(samples, "omfs_mount_node_state", node="3", state=state) for state in STATES] == [0, 0, 1, 0]
    assert not any(dict(labels).get("node") == "1" for name, labels in samples if name.startswith("omfs_mount_node"))
    # Nothing was measured: no sample, which is not the same as 0 seconds.
    assert not any(name == "omfs_mount_node_round_trip_seconds" for name, labels in samples if ("node", "3") in labels)


def test_a_mount_tells_of_its_caches() -> None:
    counters = Counters()
    counters.asked_look_ups, counters.asked_reads = 5, 6
    counters.answered_listings = 7
    counters.passes, counters.dropped_names, counters.dropped_pages = 8, 9, 10
    counters.recalled(0.00007)
    counters.recalled(30.0)
    samples = mount_samples(counters)
    asked = {name: value for (name, labels), value in samples.items() if name == "omfs_mount_asked_total"}
    assert asked
    assert one(samples, "omfs_mount_asked_total", what="look_ups") == 5
    assert one(samples, "omfs_mount_asked_total", what="reads") == 6
    assert one(samples, "omfs_mount_asked_total", what="xattrs") == 0
    assert one(samples, "omfs_mount_answered_total", what="listings") == 7
    told = {"recalls_total": 2, "recall_passes_total": 8, "dropped_names_total": 9, "dropped_pages_total": 10}
    assert {name: one(samples, f"omfs_mount_{name}") for name in told} == told
    took = "omfs_mount_recall_duration_seconds"
    assert [one(samples, f"{took}_bucket", le=le) for le in ("5e-05", "0.0001", "5.0", "+Inf")] == [0, 1, 1, 2]
    assert (one(samples, f"{took}_count"), one(samples, f"{took}_sum")) == (2, pytest.approx(30.00007))


def test_the_document_names_every_metric() -> None:
    leases = LeasesStatus(held=0, recall_bounds_s=(1.0,), recall_buckets=(0, 0))
    told = {one.name for one in export_families(owner_status(leases=leases))}
    told |= {one.name for one in mount_families(StatusReply(node_id=1, nodes=(UP,)), Counters())}
    written = set(re.findall(r"`(omfs_(?:export|mount)_\w+?)(?:_total)?(?:\{[\w, ]+\})?`", METRICS.read_text()))
    assert written == told - {"omfs"}


def test_everything_that_a_mount_counts_is_told() -> None:
    """A counter that is added and not told here would be missed by nobody."""
    counters = Counters()
    values = {name: 1000 + index for index, name in enumerate(Counters.__slots__) if name != "latency"}
    for name, value in values.items():
        setattr(counters, name, value)
    told = set(mount_samples(counters, UP).values())
    by_node = {"lapses"}  # told per node, counted by the peers
    assert {name for name, value in values.items() if value not in told} == by_node
