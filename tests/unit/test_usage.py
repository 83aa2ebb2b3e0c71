"""What the mount counts for guests, and what mignode makes of that and of /proc."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dfsa.hints import Totals
from mignode import guestusage
from mignode.decay import Pace
from mignode.guestusage import Meter, Used
from mignode.weighing import Amount, Demand
from omfs.mount import lowlevel_abi as abi, usage
from omfs.mount.usage import ASKED_WITHIN_S, Usage

OWN, GUEST, OTHER = 4026531836, 4026532001, 4026532002
THREADS = {"self": OWN, "7": OWN, "10": GUEST, "11": GUEST, "20": OTHER}


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def namespaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    known = dict(THREADS)
    monkeypatch.setattr(usage, "_namespace_of", lambda thread: known.get(thread, 0))
    return iter([known])


def request(size: int = 0) -> memoryview:
    return memoryview(bytes(abi.IN_HEADER_BYTES) + struct.pack("<QQI", 1, 0, size) + bytes(16))


def owner_of(number: int) -> int:
    return {1000: 2, 1001: 3}.get(number, 0)


async def told(counting: Usage) -> set[tuple[int, ...]]:
    return set((await counting.tell({})).counts)


async def test_what_guests_ask_of_other_nodes_is_counted_by_guest_and_owner() -> None:
    counting = Usage(owner_of, Clock())
    assert await told(counting) == set()
    counting.seen(abi.READ, 1000, 10, request(4096))
    counting.seen(abi.READ, 1000, 11, request(4096))
    counting.seen(abi.WRITE, 1000, 10, request(100))
    counting.seen(abi.GETATTR, 1001, 10, request())
    counting.seen(abi.READ, 1000, 20, request(5))
    assert await told(counting) == {(GUEST, 2, 8192, 100, 3), (GUEST, 3, 0, 0, 1), (OTHER, 2, 5, 0, 1)}


async def test_who_is_no_guest_is_not_counted() -> None:
    counting = Usage(owner_of, Clock())
    await counting.tell({})
    counting.seen(abi.READ, 1000, 7, request(4096))  # a process of the node
    counting.seen(abi.READ, 1000, 99, request(4096))  # one that has ended
    counting.seen(abi.READ, 1000, 0, request(4096))  # the kernel itself
    counting.seen(abi.READ, 7777, 10, request(4096))  # no other node's file
    assert await told(counting) == set()


async def test_nothing_is_counted_where_nobody_asks() -> None:
    clock = Clock()
    counting = Usage(owner_of, clock)
    counting.seen(abi.READ, 1000, 10, request(4096))
    assert await told(counting) == set()
    counting.seen(abi.READ, 1000, 10, request(4096))
    clock.now_s += ASKED_WITHIN_S + 1
    counting.seen(abi.READ, 1000, 10, request(4096))
    assert await told(counting) == set()


async def test_a_thread_whose_number_is_anothers_now_is_looked_at_again(namespaces: Iterator[dict[str, int]]) -> None:
    clock, known = Clock(), next(namespaces)
    counting = Usage(owner_of, clock)
    await counting.tell({})
    counting.seen(abi.GETATTR, 1000, 10, request())
    known["10"] = OTHER
    counting.seen(abi.GETATTR, 1000, 10, request())
    clock.now_s += 2
    counting.seen(abi.GETATTR, 1000, 10, request())
    assert await told(counting) == {(GUEST, 2, 0, 0, 2), (OTHER, 2, 0, 0, 1)}


# ---------------------------------------------------------------- mignode's side


def test_two_looks_make_rates() -> None:
    meter = Meter(here=1, speed=2.0, pace=Pace(2, 0.975))
    first = Used(cpu_s=5.0, waited_s=1.0, io_bytes=1_000_000, memory=4096)
    assert meter.advance(10.0, first, {2: Totals(0, 0, 0)}) is None
    found = meter.advance(12.0, Used(6.0, 1.5, 5_000_000, 8192), {2: Totals(1_000_000, 1_000_000, 100)})
    assert found is not None
    assert found[:3] == (1.0, 0.75, 8192)
    assert found.files[2] == Amount(pytest.approx(1_000_000), pytest.approx(50))
    assert found.files[1].bytes == pytest.approx(1_000_000)  # what was read and was no other node's
    assert meter.worked_s == pytest.approx(2.0)


def test_who_sleeps_does_not_work() -> None:
    meter = Meter(1, 1.0, Pace(2, 0.975))
    idle = Used(5.0, 1.0, 1000, 4096)
    meter.advance(10.0, idle, {})
    assert meter.advance(20.0, idle, {}) == Demand(0.0, 0.0, 4096, {})
    assert meter.worked_s == 0.0


def test_what_becomes_less_counts_as_nothing() -> None:
    """A child that has ended and was not waited for takes what it used along."""
    meter = Meter(1, 1.0, Pace(2, 0.975))
    meter.advance(10.0, Used(5.0, 1.0, 10_000, 4096), {})
    found = meter.advance(11.0, Used(4.0, 0.5, 5_000, 4096), {})
    assert found == Demand(0.0, 0.0, 4096, {})


def test_a_look_at_real_processes() -> None:
    program = (
        "import sys; data = bytearray(50 << 20); sum(range(3_000_000)); print('x' * 99999); sys.stdout.flush(); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert len(child.stdout.readline()) == 100_000
        before = guestusage.look(os.getpid(), [])
        found = guestusage.look(os.getpid(), [child.pid, 1 << 22])  # the latter is nobody
        assert found.cpu_s - before.cpu_s > 0.01
        assert found.io_bytes >= 100_000
        assert 50 << 20 <= found.memory < 200 << 20
        assert found.waited_s >= 0
    finally:
        child.communicate(b"\n")
