"""Fork events: from bytes anywhere; from the kernel where it tells them (initial PID, user and network namespaces)."""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given, strategies as st

from omfs.kernel import forkevents
from omfs.kernel.forkevents import Forked, ForkEvents, parse_event
from omfs.kernel.namespaces import CLONE_NEWUSER

HERE: Final = Path(__file__).parent.parent.parent
FORK, EXEC, NONE = 1, 2, 0
pids = st.integers(1, (1 << 31) - 1)


def datagram(what: int, at_ns: int, *numbers: int, connector: tuple[int, int] = (1, 1)) -> bytes:
    """An event as Linux 6.18 sends it: nlmsghdr, cn_msg, proc_event (40 bytes, of which *numbers* fill a part)."""
    event = (struct.pack("=IIQ", what, 0, at_ns) + struct.pack(f"={len(numbers)}i", *numbers)).ljust(40, b"\0")
    return struct.pack("=IHHII", 76, 3, 0, 0, 0) + struct.pack("=4I2H", *connector, 7, 0, 40, 0) + event


class Saying:
    """A socket that says what it is told to, and then that there is nothing."""

    def __init__(self, said: Iterator[tuple[bytes, int]]) -> None:
        self.said = said

    def recvfrom(self, _: int) -> tuple[bytes, tuple[int, int]]:
        for data, sender in self.said:
            return data, (sender, 1)
        raise BlockingIOError


@given(pids, pids, pids, pids, st.integers(0, (1 << 63) - 1))
def test_a_fork_is_told_by_processes(thread: int, parent: int, child: int, other: int, at_ns: int) -> None:
    told = parse_event(datagram(FORK, at_ns, thread, parent, child, child))
    assert told == (at_ns, Forked(parent, child, at_ns))
    if other != child:  # a new thread of *child*
        assert parse_event(datagram(FORK, at_ns, thread, parent, other, child)) == (at_ns, None)
    assert parse_event(datagram(EXEC, at_ns, thread, parent, child, child)) == (at_ns, None)
    assert parse_event(datagram(NONE, at_ns, 0)) == (at_ns, None)  # an acknowledgement


@given(st.binary(max_size=100))
@example(datagram(FORK, 1, 2, 2, 3, 3)[:-9])
@example(datagram(FORK, 1, 2, 2, 3, 3, connector=(1, 2)))
@example(datagram(FORK, 1, 2, 2, 3, 3, connector=(2, 1)))
def test_what_is_no_event(data: bytes) -> None:
    assert parse_event(data) is None


def test_what_others_send_does_not_count() -> None:
    real, forged = datagram(FORK, 1, 2, 2, 3, 3), datagram(FORK, 1, 2, 2, 4, 4)
    events = ForkEvents(Saying(iter([(forged, 17), (real, 0), (b"?", 0)])))
    assert events.drain() == [Forked(2, 3, 1)]
    assert events.drain() == []


def test_a_storm_without_end_is_left_at_what_came_later() -> None:
    def storm() -> Iterator[tuple[bytes, int]]:
        yield datagram(FORK, 1, 2, 2, 3, 3), 0
        yield datagram(EXEC, 2, 3, 3), 0
        while True:
            yield datagram(FORK, time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 1, 2, 2, 5, 5), 0

    told = ForkEvents(Saying(storm())).drain()
    assert [forked.child for forked in told] == [3, 5]


TRY: Final = """
import sys
from omfs.kernel.forkevents import ForkEvents
from omfs.kernel.namespaces import unshare
unshare(int(sys.argv[1]))
try: ForkEvents.open()
except OSError as error: print(error.strerror)
"""


@pytest.mark.parametrize(
    ("options", "flags", "reason"),
    [
        (("--net",), 0, "network namespace"),
        (("--pid", "--fork", "--mount-proc"), 0, "PID namespace"),
        ((), CLONE_NEWUSER, "permitted"),  # by Python itself: as nobody it could not read what is another user's
    ],
)
def test_where_no_event_comes_it_says_why(options: tuple[str, ...], flags: int, reason: str) -> None:
    command = ["unshare", *options, sys.executable, "-c", TRY, str(flags)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, text=True)
    assert done.stdout.startswith("no fork events: ")
    assert reason in done.stdout or "PID namespace" in done.stdout  # that comes first, where it is not the initial one


# ---------------------------------------------------------------- the kernel's own


def why_not() -> str:
    try:
        ForkEvents.open().close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


WHY_NOT: Final = why_not()
# Where none comes pytest says that the set is empty, for each of these tests.
where_they_come = pytest.mark.parametrize("events", [""] if not WHY_NOT else [], indirect=True)


def test_where_none_comes_there_is_a_reason() -> None:
    """So that a fault of ours is not taken for a container's."""
    assert WHY_NOT == "" or any(known in WHY_NOT for known in ("PID namespace", "network namespace", "permitted"))


@pytest.fixture
def events() -> Iterator[ForkEvents]:
    events = ForkEvents.open()
    yield events
    events.close()


def forked_child() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def concerning(told: list[Forked], *parents: int) -> list[tuple[int, int]]:
    return [(forked.parent, forked.child) for forked in told if forked.parent in parents]


@where_they_come
def test_children_are_told_in_order_and_threads_are_not(events: ForkEvents) -> None:
    before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    children = [forked_child() for _ in range(20)]
    after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert select.select([events], [], [], 0)[0]
    told = events.drain()
    assert concerning(told, os.getpid()) == [(os.getpid(), child) for child in children]
    ours = [forked for forked in told if forked.parent == os.getpid()]
    assert all(before_ns < forked.at_ns < after_ns for forked in ours)
    assert not events.lost
    assert concerning(events.drain(), os.getpid()) == []


@where_they_come
def test_an_event_is_there_before_the_child_runs(events: ForkEvents) -> None:
    """A child's first act is to say its number; whoever hears it finds the event in the queue."""
    hears, says = os.pipe()
    forker = os.fork()
    if forker == 0:
        for _ in range(100):
            child = os.fork()
            if child == 0:
                os.write(says, struct.pack("=i", os.getpid()))
                os._exit(0)
            os.waitpid(child, 0)
        os._exit(0)
    try:
        known: set[tuple[int, int]] = set()
        for _ in range(100):
            child = struct.unpack("=i", os.read(hears, 4))[0]
            known.update(concerning(events.drain(), forker))
            assert (forker, child) in known
    finally:
        os.kill(forker, signal.SIGKILL)
        os.waitpid(forker, 0)
        os.close(hears)
        os.close(says)


@where_they_come
def test_a_full_queue_is_told(events: ForkEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkevents, "QUEUE_BYTES", 8192)
    small = ForkEvents.open()
    try:
        children = {forked_child() for _ in range(60)}
        told = {child for _, child in concerning(small.drain(), os.getpid())}
        assert small.lost
        assert told < children
        child = forked_child()
        assert (os.getpid(), child) in concerning(small.drain(), os.getpid())
        assert not small.lost
        assert {child for _, child in concerning(events.drain(), os.getpid())} > children
        assert not events.lost
    finally:
        small.close()


@where_they_come
def test_a_kernel_that_knows_no_filter(events: ForkEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.6 a request of two words is ignored, and all events come."""
    ask = ForkEvents._ask
    monkeypatch.setattr(ForkEvents, "_ask", lambda self, *words: ask(self, *words) if len(words) == 1 else None)
    old = ForkEvents.open()
    try:
        events.drain()
        old.drain()
        subprocess.run(["true"], check=True)
        child = forked_child()
        both = [concerning(one.drain(), os.getpid()) for one in (old, events)]
        assert both[0] == both[1]
        assert both[0][-1] == (os.getpid(), child)
    finally:
        old.close()


@where_they_come
def test_a_filter_keeps_the_queue_short(events: ForkEvents) -> None:
    events.drain()
    subprocess.run(["true"], check=True)
    kinds = set()
    while select.select([events], [], [], 0)[0]:
        kinds.add(struct.unpack_from("=I", events._socket.recv(4096), 36)[0])
    is_old = tuple(map(int, os.uname().release.split(".")[:2])) < (6, 6)
    assert kinds == {FORK} or is_old
