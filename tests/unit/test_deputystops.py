"""Home sees that a mosrun was stopped; here a process in its place."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from mignode.deputies import Deputies, Deputy
from mignode.deputystops import DeputyStops
from mignode.traits import Traits
from omfs.kernel.processes import identify


class Way:
    """To where the program runs."""

    node_id = 1

    def __init__(self) -> None:
        self.stops = 0

    def deputy_stopped(self) -> None:
        self.stops += 1

    def meet(self, home: Any) -> None:
        pass

    def send_frame(self, frame: bytes) -> None:
        pass


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def deputy_of(pid: int) -> Deputy:
    process = identify(pid)
    assert process is not None
    name = f"1.{pid}.{process.start_ticks}"
    deputy = Deputy(Traits(name, 1, pid, 0, 0, (), "node", b"sleep", b"", pid))
    deputy.stream = object()  # type: ignore[assignment]
    return deputy


@pytest.fixture
def deputies() -> Deputies:
    return Deputies()


@pytest.fixture
def stops(deputies: Deputies) -> Iterator[DeputyStops]:
    before = os.listdir("/proc/self/fd")
    made = DeputyStops(deputies)
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def go_on(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, process.pid, os.WCONTINUED)


def test_a_stop_is_told_once_each_time(
    sleeping: subprocess.Popen[bytes], deputies: Deputies, stops: DeputyStops
) -> None:
    deputy, way = deputies.add(deputy_of(sleeping.pid)), Way()

    def told() -> int:
        stops.look()
        stops.look()
        return way.stops

    deputy.found(way)  # type: ignore[arg-type]
    assert told() == 0
    stop(sleeping)
    assert told() == 1
    deputy.relayed(b"from before it was stopped, and may let its program go on")
    assert told() == 2
    deputy.lost(way)  # type: ignore[arg-type]
    assert told() == 2
    deputy.found(way)  # type: ignore[arg-type]
    assert told() == 3
    go_on(sleeping)
    assert told() == 3
    stop(sleeping)
    assert told() == 4
    sleeping.kill()
    sleeping.wait()
    assert told() == 4


def test_a_way_that_is_found_while_it_is_stopped(
    sleeping: subprocess.Popen[bytes], deputies: Deputies, stops: DeputyStops
) -> None:
    deputy, way = deputies.add(deputy_of(sleeping.pid)), Way()
    stop(sleeping)
    stops.look()
    deputy.found(way)  # type: ignore[arg-type]
    stops.look()
    assert way.stops == 1


def test_nothing_is_kept_of_who_has_ended(
    sleeping: subprocess.Popen[bytes], deputies: Deputies, stops: DeputyStops
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    deputy = deputies.add(deputy_of(sleeping.pid))
    stops.look()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    deputies.remove(deputy.traits.name)
    stops.look()
    assert len(os.listdir("/proc/self/fd")) == before
    deputies.add(Deputy(deputy.traits))  # one that is not connected may be another process by now
    stops.look()
    assert len(os.listdir("/proc/self/fd")) == before
