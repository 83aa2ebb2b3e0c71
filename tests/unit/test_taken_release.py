"""RELEASE as the kernel sends it: after reading only it is answered at once; else what is left is settled first."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest
import trio
from trio.testing import MockClock

from omfs import wire
from omfs.mount import lowlevel_abi as abi
from tests.unit.fakepeer import FakePeer
from tests.unit.takenmount import TakenMount

END = 2**63 - 1


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
async def mount(nursery: trio.Nursery, peer: FakePeer) -> TakenMount:
    mount = TakenMount(nursery, peer)
    nursery.start_soon(mount.node.tend)
    return mount


def release(mount: TakenMount, fh: int) -> bool:
    """Whether it is answered at once."""
    return mount.answered(mount.ask(abi.RELEASE, struct.pack("<QIIQ", fh, 0, 0, 0)))


async def lock(mount: TakenMount, fh: int, flags: int) -> None:
    body = struct.pack("<QQQQIIII", fh, 5, 0, END, fcntl.F_RDLCK, os.getpid(), flags, 0)
    assert (await mount.asked(abi.SETLK, body))[0] == 0


async def test_a_file_that_was_read_is_closed_at_once(
    mount: TakenMount, peer: FakePeer, autojump_clock: MockClock
) -> None:
    first, second = [await mount.open(os.O_RDONLY) for _ in range(2)]
    opens = set(peer.opens)
    assert release(mount, first)
    assert release(mount, second)
    assert not mount.operations.files
    assert not mount.node.files
    await trio.sleep(1)
    assert {one for request in peer.of(wire.CloseFiles) for one in request.open_ids} == opens
    assert release(mount, first), "whatever the kernel asks is answered"


@pytest.mark.parametrize("flags", [0, abi.LOCK_IS_FLOCK], ids=["range", "flock"])
async def test_locks_are_given_back_before_it_is_closed(
    mount: TakenMount, peer: FakePeer, autojump_clock: MockClock, flags: int
) -> None:
    fh = await mount.open(os.O_RDONLY)
    await lock(mount, fh, flags)
    peer.asked.clear()
    assert not release(mount, fh)
    await trio.sleep(1)
    kinds = [type(request) for request in peer.asked if type(request) is not wire.Ping]
    assert kinds == ([] if flags else [wire.ReleaseLocks]) + [wire.CloseFile]
    assert not peer.opens


async def test_what_was_written_is_sent_before_it_is_closed(
    mount: TakenMount, peer: FakePeer, autojump_clock: MockClock
) -> None:
    fh = await mount.open(os.O_RDWR)
    written = mount.write(fh, 0, b"data")
    while not mount.answered(written):
        await mount.hook.news.wait()
    assert not release(mount, fh)
    await trio.sleep(1)
    (write,) = peer.of(wire.WriteBlocks)
    (close,) = peer.of(wire.CloseFiles)
    assert peer.asked.index(write) < peer.asked.index(close)
