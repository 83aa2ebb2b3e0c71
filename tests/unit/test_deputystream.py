"""mignode's end of a mosrun's connection, and the deputy behind it: calls, and when nobody answers any more."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from mignode import deputies
from mignode.deputies import Deputies, Deputy
from mignode.deputystream import DeputyStream
from mignode.deputywords import Attended, Call, Called, Lost, Relayed
from mignode.traits import Traits
from omfs.errors import NodeDown, WireError
from tests.unit.mosrunend import MosrunEnd

PID = 4242
TRAITS = Traits("1.4242.99", 1, PID, 1001, 1001, (), "one", b"prog", b"", PID)


class Way:
    """A way to a body, that keeps what goes there."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.told: list[Any] = []

    def send_frame(self, frame: bytes) -> None:
        self.told.append(frame)

    def meet(self, home: Any) -> None:
        self.told.append(home is not None)

    def deputy_lost(self) -> None:
        self.told.append("lost")

    def deputy_stopped(self) -> None:
        self.told.append("stopped")

    async def move(self, destination: int, report: Any) -> None:
        self.told.append(destination)


@pytest.fixture
async def ends(nursery: trio.Nursery) -> AsyncIterator[tuple[DeputyStream, MosrunEnd]]:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)
    stream = DeputyStream(trio.SocketStream(ours))
    nursery.start_soon(stream.speak)
    yield stream, MosrunEnd(theirs)
    ours.close()
    theirs.close()


async def serve(stream: DeputyStream) -> None:
    """As the door does."""
    while (word := await stream.hear()) is not None:
        assert isinstance(word, Called)
        stream.called(word)


async def test_who_it_is_the_kernel_says(ends: tuple[DeputyStream, MosrunEnd]) -> None:
    assert (ends[0].pid, ends[0].uid, ends[0].gid) == (os.getpid(), os.getuid(), os.getgid())


async def test_calls_are_answered_each_its_own(ends: tuple[DeputyStream, MosrunEnd], nursery: trio.Nursery) -> None:
    stream, mosrun = ends
    nursery.start_soon(serve, stream)
    results: dict[int, object] = {}

    async def call(target: int) -> None:
        try:
            results[target] = await stream.call("getpgid", (target,))
        except OSError as error:
            results[target] = error.errno

    async with trio.open_nursery() as callers:
        for target in (7, 8, 9):
            callers.start_soon(call, target)
        asked = {word.arguments[0]: word.number for word in [await mosrun.hear() for _ in range(3)]}
        await mosrun.say(
            Called(999, 1),
            Called(asked[9], 90),
            Called(asked[7], 0, errno.EPERM),
            Called(asked[8], 80),
            Called(asked[8], 1),
        )
    assert results == {7: errno.EPERM, 8: 80, 9: 90}


async def test_calls_end_with_the_connection(ends: tuple[DeputyStream, MosrunEnd], nursery: trio.Nursery) -> None:
    stream, mosrun = ends
    nursery.start_soon(serve, stream)
    errors: list[int | None] = []

    async def call() -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011 (the errno is looked at)
            await stream.call("getppid", ())
        errors.append(caught.value.errno)

    async with trio.open_nursery() as callers:
        callers.start_soon(call)
        assert isinstance(await mosrun.hear(), Call)
        await mosrun.close()
    await call()
    assert errors == [errno.EHOSTDOWN] * 2


async def test_what_is_no_message(ends: tuple[DeputyStream, MosrunEnd]) -> None:
    stream, mosrun = ends
    await mosrun.say(Relayed(b"x" * 1000))
    assert await stream.hear() == Relayed(b"x" * 1000)
    await mosrun.stream.send_all(b"\xff" * 100)
    with pytest.raises(WireError):
        await stream.hear()


async def test_a_deputy_is_woken_for_signals_only(ends: tuple[DeputyStream, MosrunEnd], nursery: trio.Nursery) -> None:
    """Its parent, groups and sessions are looked up: here this process stands for it."""
    stream, mosrun = ends
    deputy = Deputy(msgspec.structs.replace(TRAITS, pid=os.getpid(), root=os.getpid()))
    for call in (("kill", (PID, 0)), ("getppid", ())):
        with pytest.raises(NodeDown):
            await deputy.ask(os.getpid(), *call)
    deputy.attach(stream)
    assert await deputy.ask(os.getpid() + 1, "getppid", ()) == 1, "a child that has lost its parent"
    assert await deputy.ask(os.getpid(), "getppid", ()) == os.getppid()
    assert await deputy.ask(os.getpid() + 1, "getpgid", (0,)) == os.getpgrp()
    nursery.start_soon(serve, stream)

    async def answer() -> None:
        word = await mosrun.hear()
        assert (word.call, word.arguments) == ("kill", (PID, 0))
        await mosrun.say(Called(word.number, 77))

    nursery.start_soon(answer)
    assert await deputy.ask(os.getpid(), "kill", (PID, 0)) == 77


async def test_frames_go_where_the_body_is(ends: tuple[DeputyStream, MosrunEnd]) -> None:
    stream, mosrun = ends
    deputy, first, second = Deputy(TRAITS), Way(1), Way(2)
    deputy.relayed(b"nobody has it: it will be said again")
    deputy.found(first)
    deputy.attach(stream)
    deputy.relayed(b"a")
    deputy.found(second)
    deputy.lost(first)  # which is over since the other was found
    deputy.relayed(b"b")
    assert (first.told, second.told) == ([False, True, b"a"], [True, b"b"])
    deputy.send_frame(b"c")
    deputy.give_up("why")
    assert [await mosrun.hear(), await mosrun.hear()] == [Relayed(b"c"), Lost("why")]
    assert not deputy.detach(DeputyStream.__new__(DeputyStream)), "an older connection"
    assert deputy.detach(stream)
    deputy.send_frame(b"lost")
    assert second.told[-1] is False


async def test_a_way_is_waited_for(autojump_clock: object, nursery: trio.Nursery) -> None:
    deputy = Deputy(TRAITS)
    began_s = trio.current_time()
    assert not await deputy.wait_way()
    assert trio.current_time() - began_s == deputies.WAY_TIMEOUT_S
    deputy.found(Way(2))
    assert await deputy.wait_way()
    assert await deputy.wait_way(2)

    async def come() -> None:
        await trio.sleep(1)
        deputy.found(Way(2))
        await trio.sleep(1)
        deputy.found(Way(3))

    nursery.start_soon(come)
    began_s = trio.current_time()
    assert await deputy.wait_way(3)
    assert trio.current_time() - began_s == 2


async def test_who_is_lost_is_told_to_the_body_once_it_has_no_connection(
    ends: tuple[DeputyStream, MosrunEnd],
) -> None:
    stream, _ = ends
    known = Deputies()
    deputy, way = known.add(Deputy(TRAITS)), Way(2)
    deputy.found(way)
    deputy.attach(stream)
    known.lost(deputy)
    assert "lost" not in way.told
    deputy.detach(stream)
    known.lost(deputy)
    assert way.told[-1] == "lost"
    assert deputy.is_orphan
    assert known.remove(TRAITS.name) is deputy
    assert list(known) == []


async def test_what_was_said_goes_out_before_the_end(ends: tuple[DeputyStream, MosrunEnd]) -> None:
    stream, mosrun = ends
    stream.say(Attended())
    await stream.finish()
    assert await mosrun.hear() == Attended()
