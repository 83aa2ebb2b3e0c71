"""How long is looked before sleeping: learned from what came, under a clock of our own."""

from __future__ import annotations

from typing import Any

import pytest

from omfs.net import spin
from omfs.net.spin import BUSY_FOR_S, BUSY_S, SPIN_MAX_S, SPIN_MIN_S, Spinner

LOOK_S = 0.00001
TIMEOUT_S = 0.001


class Device:
    """A poller and a clock: each look takes LOOK_S, and *next_s* is when there will be something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.next_s = float("inf")
        self.sleeps = 0
        self.slice_s = 0.0  # what others compute when the processor is left to them
        monkeypatch.setattr(spin.time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(spin.os, "sched_yield", self.leave)

    def leave(self) -> None:
        self.now_s += self.slice_s

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        if timeout_s:
            self.sleeps += 1
            self.now_s = max(self.now_s, min(self.next_s, self.now_s + timeout_s))
        else:
            self.now_s += LOOK_S
        return [(3, 1)] if self.now_s >= self.next_s else []


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def waited(spinner: Spinner, device: Any, after_s: float) -> tuple[bool, int]:
    """(whether something came, how often it slept) where the next event is *after_s* from now."""
    device.next_s = device.now_s + after_s
    device.sleeps = 0
    return bool(spinner.poll(device, TIMEOUT_S)), device.sleeps


def test_what_comes_at_once_is_seen_without_sleeping(device: Device) -> None:
    spinner = Spinner()
    assert waited(spinner, device, SPIN_MIN_S / 2) == (True, 0)
    assert spinner.spin_s == SPIN_MIN_S


def test_who_fell_asleep_a_little_too_early_looks_longer_the_next_time(device: Device) -> None:
    spinner = Spinner()
    between_s = (SPIN_MIN_S + SPIN_MAX_S) / 2
    assert waited(spinner, device, between_s) == (True, 1)
    assert waited(spinner, device, between_s) == (True, 0)
    assert waited(spinner, device, SPIN_MIN_S / 2) == (True, 0)
    assert waited(spinner, device, between_s) == (True, 0)  # a quick one between is no reason to unlearn it


@pytest.mark.parametrize("after_s", [SPIN_MAX_S + TIMEOUT_S / 2, 10.0])
def test_looking_long_in_vain_ends(device: Device, after_s: float) -> None:
    spinner = Spinner()
    waited(spinner, device, SPIN_MAX_S / 2)
    assert spinner.spin_s == SPIN_MAX_S
    assert waited(spinner, device, after_s) == (after_s < 1, 1)
    assert spinner.spin_s == SPIN_MIN_S


def test_what_comes_later_than_the_longest_look_teaches_nothing(device: Device) -> None:
    spinner = Spinner()
    assert waited(spinner, device, SPIN_MAX_S + SPIN_MIN_S) == (True, 1)
    assert spinner.spin_s == SPIN_MIN_S


def test_beside_others_that_compute_nobody_looks(device: Device) -> None:
    spinner = Spinner()
    device.slice_s = 3 * BUSY_S
    waited(spinner, device, SPIN_MIN_S / 2)  # the slice is lost, and teaches
    assert waited(spinner, device, SPIN_MIN_S / 2) == (True, 1)
    assert spinner.spin_s == SPIN_MAX_S  # what it learns meanwhile is for later
    device.now_s += BUSY_FOR_S
    device.slice_s = 0.0
    assert waited(spinner, device, SPIN_MIN_S / 2) == (True, 0)
    assert waited(spinner, device, SPIN_MAX_S / 2) == (True, 0)


def test_others_that_compute_a_little_do_not_matter(device: Device) -> None:
    spinner = Spinner()
    device.slice_s = SPIN_MIN_S / 4
    waited(spinner, device, SPIN_MIN_S / 2)
    assert waited(spinner, device, SPIN_MIN_S / 2) == (True, 0)


def test_what_one_finds_out_of_the_processor_another_knows(device: Device) -> None:
    first = Spinner()
    second, stranger = Spinner(beside=first), Spinner()
    device.slice_s = 3 * BUSY_S
    waited(first, device, SPIN_MIN_S / 2)
    device.slice_s = 0.0
    assert waited(second, device, SPIN_MIN_S / 2) == (True, 1)
    assert waited(stranger, device, SPIN_MIN_S / 2) == (True, 0)
