"""Two mounts and one owner, all real but for the kernels and the wire: EXCLUSIVE leases from grant to end."""

from __future__ import annotations

import errno
import os
import random

import pytest
import trio
from trio.testing import MockClock

from omfs.export import guards
from omfs.mount.recall import CLOSE_WITHIN_S
from omfs.net.term import SPAN
from omfs.wiretypes import Mode
from tests.sim.mounts import FIRST, SECOND, TERM_S, Owner


async def test_who_looks_from_elsewhere_sees_what_was_answered_early(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    fh = await first.open(os.O_WRONLY)
    assert first.mode is Mode.EXCLUSIVE
    assert first.answered(first.write(fh, 0, b"hello"))
    assert owner.path.read_bytes() == b""
    assert await second.size() == 5
    assert first.mode is Mode.SHARED
    assert owner.path.read_bytes() == b"hello"
    request = first.write(fh, 5, b" there")
    assert not first.answered(request), "waits for the owner now"
    reading = await second.open(os.O_RDONLY)
    assert await second.read_all(reading) == b"hello there"


async def test_two_writers_write_through_and_one_alone_holds_it_again(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    one = await first.open(os.O_WRONLY)
    await first.written(one, 0, b"first")
    other = await second.open(os.O_WRONLY)
    assert owner.path.read_bytes() == b"first"
    assert first.mode is Mode.NONE
    await second.written(other, 0, b"SECOND")
    await first.written(one, 6, b"!")
    assert await first.flush(one) == await second.flush(other) == 0
    assert owner.path.read_bytes() == b"SECOND!"
    await second.release(other)
    await trio.sleep(1)
    for _ in range(4):
        await first.written(one, 0, b"alone")
    assert first.mode is Mode.EXCLUSIVE


async def test_who_is_cut_off_loses_what_it_did_not_send_and_hears_it(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    fh = await first.open(os.O_WRONLY)
    await first.written(fh, 0, b"kept")
    assert await first.flush(fh) == 0
    await first.written(fh, 0, b"lost")
    first.line.cut()
    cut_s = trio.current_time()
    other = await second.open(os.O_WRONLY)
    assert trio.current_time() - cut_s >= SPAN * TERM_S, "not before the holder has given up"
    await second.written(other, 0, b"new!")
    assert await second.flush(other) == 0
    first.line.heal()
    await trio.sleep(3 * TERM_S)
    assert owner.path.read_bytes() == b"new!", "what is late overwrites nothing"
    assert await first.flush(fh) == errno.EIO
    assert await first.flush(fh) == 0
    assert await first.written(fh, 4, b" and newer") == 0
    assert await first.flush(fh) == 0
    assert owner.path.read_bytes() == b"new! and newer"


async def test_what_is_asked_while_a_recall_waits_for_readers_is_not_kept(
    owner: Owner, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From when the recall was sent on, nothing is recalled for what changes next; an answer without a grant is old."""
    monkeypatch.setattr(guards, "UNCACHED_NS", 0)  # also what was written just now is cached
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    reading = await first.open(os.O_RDONLY)
    assert first.operations.is_cached(reading)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.open, os.O_WRONLY)
        await trio.sleep(CLOSE_WITHIN_S / 2)
        assert (first.mode, first.inode.lease.recalls) == (Mode.SHARED, 0), "it waits"
        assert await first.get_xattr_names() == ()
    assert first.mode is Mode.NONE
    await second.set_xattr(b"user.x", b"new")
    fh = await first.open(os.O_RDONLY)
    assert first.mode is Mode.SHARED
    assert await first.get_xattr_names() == (b"user.x",)
    for file in (reading, fh):
        await first.release(file)


async def test_an_owner_that_restarts_gets_what_was_unsent_before_anybody_looks(
    owner: Owner, autojump_clock: MockClock
) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    fh = await first.open(os.O_WRONLY)
    await trio.sleep(1)  # until the table knows
    await first.written(fh, 0, b"unsent")
    await owner.restart()
    assert await second.size() == 6
    assert await first.flush(fh) == 0


async def test_a_mount_that_ends_leaves_nothing_behind(owner: Owner, autojump_clock: MockClock) -> None:
    first, second = await owner.mount(FIRST), await owner.mount(SECOND)
    fh = await first.open(os.O_WRONLY)
    await first.written(fh, 0, b"last words")
    await first.node.give_back_all()
    assert owner.path.read_bytes() == b"last words"
    before_s = trio.current_time()
    await second.open(os.O_WRONLY)
    assert trio.current_time() == before_s, "nobody has to be waited for"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rare", ["append", "restart"])
async def test_whoever_reads_sees_the_latest_write(
    owner: Owner, autojump_clock: MockClock, rare: str, seed: int
) -> None:
    """One call after the other, from either node, through files that come and go.

    With restarts of the owner there are no appends: one that is under way then may have been executed or not (EIO).
    """
    chance, wanted = random.Random(seed), bytearray()
    mounts = [await owner.mount(FIRST), await owner.mount(SECOND)]
    opened: list[list[int]] = [[], []]
    for step in range(150):
        which = chance.randrange(2)
        mount, files = mounts[which], opened[which]
        match chance.choice(("open", "write", "write", "write", rare, "read", "size", "flush", "release", "wait")):
            case "open" if len(files) < 2:
                files.append(await mount.open(os.O_RDWR))
            case "write" | "append" as how if files:
                place, data = chance.randrange(60), chance.randbytes(chance.randrange(1, 30))
                flags, offset = (os.O_APPEND, len(wanted)) if how == "append" else (0, place)
                assert await mount.written(chance.choice(files), offset, data, flags) == 0
                wanted.extend(bytes(max(0, offset - len(wanted))))
                wanted[offset : offset + len(data)] = data
            case "restart" if chance.random() < 0.3:
                await owner.restart()
            case "read" if files:
                assert await mount.read_all(chance.choice(files)) == wanted, step
            case "size":
                assert await mount.size() == len(wanted), step
            case "flush" if files:
                assert await mount.flush(chance.choice(files)) == 0
            case "release" if files:
                await mount.release(files.pop())
            case "wait":
                await trio.sleep(chance.choice((0.001, 0.01, 0.1)))
    for mount, files in zip(mounts, opened, strict=True):
        for fh in files:
            await mount.release(fh)
    assert owner.path.read_bytes() == wanted
