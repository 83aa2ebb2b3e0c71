"""Guests in a room of their own (criuroom.py): a hatchery, "home" with the room's own tree, "away" with a copy of it.

`Guests` is to be used with `async with`, inside; what it hatched ends with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final
from weakref import WeakKeyDictionary

import trio

from dfsa.guestroot import World
from mignode import birthright, body
from mignode.body import Body
from mignode.bodywords import Program
from mignode.hatchery import Hatchery
from tests.lab.criuroom import DEADLINE_S, run
from tests.unit.plainfiles import PlainFiles

ELSEWHERE: Final = "/run/elsewhere"
MFS: Final = "/mnt"  # any directory of the machine may stand for it
AT_HOME: Final = World(1, 1, "/", MFS, "first")
AWAY: Final = World(1, 2, ELSEWHERE, MFS, "first")
PID: Final = 4242
PLAN: Final = b"plain"
ENVIRONMENT: Final = (b"PATH=/usr/bin:/bin", b"LANG=C.UTF-8")


def make_elsewhere() -> None:
    """Another node's tree, as it would be below /mfs."""
    run("mkdir", ELSEWHERE)
    run("mount", "--rbind", "/", ELSEWHERE)


def touch(path: str) -> None:
    Path(path).touch()


def text_of(path: str) -> str:
    return Path(path).read_text()


def same(found: object, wanted: object) -> None:
    """What differs is said; in a room pytest does not do that."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for each in sorted({*found, *wanted}):
            assert found.get(each) == wanted.get(each), f"{each}: {found.get(each)!r} instead of {wanted.get(each)!r}"
    assert found == wanted, f"{found!r}\ninstead of\n{wanted!r}"


def own_birthright() -> birthright.Birthright:
    return birthright.read(os.getpid(), os.getuid(), os.getgid())


def program(
    *argv: str | bytes, directory: str = "/", of: birthright.Birthright | None = None, pid: int = PID
) -> Program:
    words = tuple(os.fsencode(word) for word in argv)
    return Program(words[0], words, ENVIRONMENT, os.fsencode(directory), pid, of or own_birthright())


_said: Final[WeakKeyDictionary[Body, bytes]] = WeakKeyDictionary()
"""What came behind the line that was asked for last."""


class Guests:
    """Hatches, and hears what guests say."""

    def __init__(self) -> None:
        self.hatchery = Hatchery(PlainFiles)
        self._bodies: list[Body] = []
        self._heard: dict[Body, bytes] = {}

    async def __aenter__(self) -> Guests:
        self._opened = trio.open_nursery()
        self.nursery = await self._opened.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        for one in self._bodies:
            await one.end()
        self.hatchery.close()
        self.nursery.cancel_scope.cancel()
        return await self._opened.__aexit__(kind, error, traceback)

    async def hatch(self, world: World = AT_HOME, name: str = "guest") -> Body:
        folder = self.folder(name)
        folder.mkdir()
        return self.own(await body.hatch(self.hatchery, self.nursery, folder, world))

    @staticmethod
    def folder(name: str = "guest") -> Path:
        return Path("/run", name)

    def own(self, one: Body) -> Body:
        self._bodies.append(one)
        return one

    async def run(self, *argv: str | bytes, world: World = AT_HOME, plan: bytes = PLAN, **of: object) -> Body:
        """A new guest with this program, and a way to us."""
        one = await self.hatch(world)
        one.way_is_open()
        await one.run(program(*argv, **of), plan)  # type: ignore[arg-type]
        return one


async def heard(one: Body) -> list[bytes]:
    """All that its guest says, until no process of it is left; frames as plainfiles.py has them."""
    with trio.fail_after(DEADLINE_S):
        await one.wait_told()
    return list(_waiting(one))


def _waiting(one: Body) -> Iterable[bytes]:
    if rest := _said.pop(one, b""):
        yield rest
    while True:
        try:
            yield one.frames.receive_nowait()
        except trio.WouldBlock:
            return


async def output(one: Body) -> str:
    """What its guest writes until its end, which has to be status 0."""
    frames = await heard(one)
    assert frames[-1] == b"e0", frames
    return b"".join(frames[:-1]).decode()


async def line(one: Body) -> str:
    """The next one that its guest writes; several may come together."""
    said = _said.pop(one, b"")
    with trio.fail_after(DEADLINE_S):
        while b"\n" not in said:
            said += await one.frames.receive()
    first, _, _said[one] = said.partition(b"\n")
    return first.decode().strip()


async def ask(one: Body, question: str) -> str:
    one.send_frame(question.encode() + b"\n")
    return await line(one)
