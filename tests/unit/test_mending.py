"""What CRIU loses of timers and interrupted calls is put right in its images, and nothing else is changed."""

from __future__ import annotations

import pytest

from mignode.criuimages import field_of, fields_of, message_of, number_of, only_message
from mignode.mending import calls_restarted, timers_wound_up
from omfs.errors import WireError

MAGIC = b"\x54\x56\x43\x44magi"
EINTR = 2**64 - 4
POLL, NANOSLEEP, FUTEX, CLOCK_NANOSLEEP, RESTART = 7, 35, 202, 230, 219
R10, AX, DX, SI, DI, ORIG_AX, IP, CS = 8, 11, 13, 14, 15, 16, 17, 18
REGISTERS = {number: 1000 + number for number in range(1, 28)} | {CS: 0x33}


def timer(ticks: int, value: tuple[int, int], interval: tuple[int, int]) -> bytes:
    numbers = (14, 2, None, 1, ticks, 0, *value, *interval)
    entry = b"".join(
        field_of(3, b"\x08\x00") if number is None else number_of(place, number)
        for place, number in enumerate(numbers, 1)
    )
    return number_of(1, 17) + number_of(2, 2) + field_of(12, entry)


def files(*entries: bytes) -> bytes:
    return MAGIC + b"".join(map(message_of, entries))


def core(registers: dict[int, int], machine: int = 1) -> bytes:
    regs = b"".join(number_of(*each) for each in registers.items())
    info = number_of(1, 2**47) + field_of(2, regs) + field_of(3, b"floating point")
    return MAGIC + message_of(number_of(1, machine) + field_of(2, info) + field_of(5, b"\x69" + bytes(8)))


def registers_of(image: bytes) -> dict[int, int | bytes]:
    (info,) = [each.value for each in fields_of(only_message(image)) if each.number == 2]
    assert isinstance(info, bytes)
    (regs,) = [each.value for each in fields_of(info) if each.number == 2]
    assert isinstance(regs, bytes)
    return {each.number: each.value for each in fields_of(regs)}


def test_a_timer_that_had_expired_goes_on() -> None:
    other = number_of(1, 1) + field_of(3, b"a regular file")
    before = files(other, timer(3, (0, 0), (0, 7_000_000)), other)
    assert timers_wound_up(before) == files(other, timer(2, (0, 1), (0, 7_000_000)), other)


@pytest.mark.parametrize(
    "one",
    [
        timer(0, (0, 0), (0, 0)),  # not wound up
        timer(1, (0, 0), (0, 0)),  # once, and over
        timer(0, (0, 5), (1, 0)),
        timer(1, (0, 5), (1, 0)),  # it runs
    ],
)
def test_other_timers_stay(one: bytes) -> None:
    assert timers_wound_up(files(one)) == files(one)


@pytest.mark.parametrize(
    ("call", "changed"),
    [
        (POLL, {}),
        (FUTEX, {}),
        (NANOSLEEP, {DI: REGISTERS[SI]}),
        (CLOCK_NANOSLEEP, {DX: REGISTERS[R10]}),
    ],
)
def test_a_call_is_asked_again(call: int, changed: dict[int, int]) -> None:
    was = REGISTERS | {AX: EINTR, ORIG_AX: call}
    assert registers_of(calls_restarted(core(was))) == was | {AX: call, IP: was[IP] - 2} | changed


def test_a_sleep_whose_rest_nobody_wanted_begins_anew() -> None:
    was = REGISTERS | {AX: EINTR, ORIG_AX: NANOSLEEP, SI: 0}
    assert registers_of(calls_restarted(core(was))) == was | {AX: NANOSLEEP, IP: was[IP] - 2}


@pytest.mark.parametrize(
    "other",
    [
        core(REGISTERS | {AX: 1, ORIG_AX: POLL}),  # it has an answer
        core(REGISTERS | {AX: EINTR, ORIG_AX: 0}),  # read
        core(REGISTERS | {AX: EINTR, ORIG_AX: RESTART}),
        core(REGISTERS | {AX: EINTR, ORIG_AX: POLL, CS: 0x23}),  # a program of 32 bits
        core(REGISTERS | {AX: EINTR, ORIG_AX: POLL}, machine=3),
    ],
)
def test_all_else_stays(other: bytes) -> None:
    assert calls_restarted(other) == other


def test_what_is_no_image() -> None:
    with pytest.raises(WireError):
        calls_restarted(core(REGISTERS)[:-3])
    with pytest.raises(WireError):
        timers_wound_up(files(timer(1, (0, 0), (1, 0)))[:-3])
