"""Who reads the device next, and who may end: workers of the session loop, with a socket as the device."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import trio
import trio.testing

from omfs.mount import loop as loop_module
from omfs.mount.loop import Loop
from omfs.mount.lowlevel import Hook


class Device(NamedTuple):
    hook: Hook
    ours: socket.socket
    kernels: socket.socket


@pytest.fixture
def device() -> Iterator[Device]:
    ours, kernels = socket.socketpair()
    with ours, kernels:
        ours.setblocking(False)
        hook = Hook()
        hook.fd = ours.fileno()
        yield Device(hook, ours, kernels)


async def test_of_a_crowd_some_end_but_never_the_first(device: Device) -> None:
    """With the first one pyfuse3.main returns, and nobody would answer recalls any more."""
    hook, ended, answered = device.hook, [], trio.Event()
    loop = Loop(hook, lambda waiting: None)

    def read() -> None:
        try:
            device.ours.recv(100)
        except BlockingIOError:
            hook.drained = True

    async def work(name: str) -> None:
        while await loop.wait():
            read()
        ended.append(name)

    async def first() -> None:
        assert await loop.wait()
        read()
        handler = answered.wait()
        hook.pending = handler, handler.send(None)
        await work("first")

    others = [str(number) for number in range(loop_module._IDLE_MAX + 2)]
    async with trio.open_nursery() as nursery:
        loop.add_worker = lambda: nursery.start_soon(work, "leader")
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        device.kernels.send(b"a request that has to wait")
        await trio.testing.wait_all_tasks_blocked()
        for name in others:
            nursery.start_soon(work, name)
        await trio.testing.wait_all_tasks_blocked()
        assert len(ended) == 2, "so many are too many"
        answered.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(ended) == 2
        hook.ended = True
        hook.on_end()
        device.kernels.close()  # its leader has something to read
    assert sorted(ended) == sorted(["first", "leader", *others])
