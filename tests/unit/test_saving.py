"""mignode/saving.py without a CRIU: who gets an image, and which files can't be in one."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from mignode.criuimages import message_of, number_of
from mignode.deputies import Deputies, Deputy
from mignode.deputywords import TakeImage
from mignode.journey import Journey, State
from mignode.record import guest_name
from mignode.saving import Saving, has_linked
from mignode.traits import Traits
from omfs.errors import ConfigError, WireError
from omfs.kernel.processes import identify

OWN = identify(os.getpid())
assert OWN is not None
NAME = guest_name(1, *OWN)
TRAITS = Traits(NAME, 1, OWN.pid, 1001, 1001, (), "one", b"prog", b"", OWN.pid)
MAGIC = bytes(8)
LINKED, GHOST, PROC = 0, 1, 2


class Stream:
    """Of a mosrun that hears nothing."""

    def __init__(self, uid: int, pid: int = OWN.pid) -> None:
        self.uid, self.pid = uid, pid


def saving(told: list[Journey]) -> Saving:
    def no_criu() -> NoReturn:
        raise ConfigError("no criu here")

    deputies = Deputies()
    deputies.add(Deputy(TRAITS))
    guests: Any = SimpleNamespace(get=lambda _: None)
    return Saving(guests, deputies, no_criu, lambda _, journey: told.append(journey))


@pytest.mark.parametrize(
    ("uid", "pid", "guest", "number"),
    [
        (1002, OWN.pid, NAME, errno.EPERM),
        (0, OWN.pid, NAME, errno.EPERM),
        (1001, os.getppid(), NAME, errno.EPERM),
        (1001, OWN.pid, "1.5.6", errno.ESRCH),
    ],
    ids=["another user", "root", "another process", "of another guest"],
)
async def test_nobody_else_gets_an_image(uid: int, pid: int, guest: str, number: int) -> None:
    told: list[Journey] = []
    stream: Any = Stream(uid, pid)
    with pytest.raises(OSError, match=r"another process|ended") as caught:
        await saving(told).take(stream, TakeImage(guest, 60))
    assert (caught.value.errno, told) == (number, [])


async def test_what_went_wrong_is_told_in_the_journey() -> None:
    told: list[Journey] = []
    stream: Any = Stream(1001)
    with pytest.raises(ConfigError):
        await saving(told).take(stream, TakeImage(NAME, 60))
    assert told == [Journey(1, 1, State.STAYED, reason="no checkpoint: no criu here")]


def remapped(*kinds: int | None) -> bytes:
    entries = (number_of(1, 5) + number_of(2, 6) + (number_of(3, kind) if kind is not None else b"") for kind in kinds)
    return MAGIC + b"".join(map(message_of, entries))


@pytest.mark.parametrize(
    ("kinds", "is_linked"),
    [((), False), ((GHOST, PROC), False), ((GHOST, LINKED), True), ((None,), True)],
)
def test_a_file_with_another_name_is_found(kinds: tuple[int | None, ...], is_linked: bool) -> None:
    assert has_linked(remapped(*kinds)) == is_linked


def test_no_image_is_none() -> None:
    with pytest.raises(WireError):
        has_linked(MAGIC + b"\xff\xff")
