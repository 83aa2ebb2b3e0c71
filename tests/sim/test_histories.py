"""Three mounts and one owner, all real but for kernels and wire: what concurrent calls saw is linearizable.

Meanwhile lines are cut for moments and for longer than a term, connections break, and the owner's daemon is killed and
starts anew.  Each kernel keeps a page of the file as long as it may.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
from collections.abc import Iterator
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from omfs.export import guards
from omfs.kernel.fusenotify import Notifier
from omfs.mount import lowlevel_abi as abi
from tests.linearizability import UNKNOWN, NotLinearizable, Operation, Register, check
from tests.sim.mounts import FIRST, SECOND, TERM_S, Mounted, Owner
from tests.unit.writingmount import Kernel

THIRD = 4
CALLS = 40  # of each program
PAUSES_S = (0.0, 0.0, 0.001, 0.02, 0.5, 3.0)
BEFORE = b"in the beginning"
SIZE_BYTES = len(BEFORE)


class PageCache(Kernel):
    """Of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.page: bytes | None = None
        self.drops = 0

    def inval_inode(self, number: int, offset: int = 0, size_bytes: int = 0) -> bool:
        self.page = None
        self.drops += 1
        return True


class Machine:
    """A node: its mount and its kernel."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.kernel = PageCache()
        mount.operations.recaller.attach(cast(Notifier, self.kernel))

    async def read(self) -> bytes | None:
        """open, read, close.  None: it failed."""
        mount = self.mount
        error, body = await mount.asked(abi.OPEN, struct.pack("<II", os.O_RDONLY, 0))
        if error:
            return None
        fh, how, _ = struct.unpack_from("<QIi", body)
        if not how & (abi.FOPEN_KEEP_CACHE | abi.FOPEN_DIRECT_IO):
            self.kernel.inval_inode(0)
        data = None if how & abi.FOPEN_DIRECT_IO else self.kernel.page
        if data is None:
            drops = self.kernel.drops
            error, body = await mount.asked(abi.READ, struct.pack("<QQIIQII", fh, 0, 4096, 0, 0, 0, 0))
            data = None if error else bytes(body)
            if mount.operations.is_cached(fh) and drops == self.kernel.drops:
                self.kernel.page = data
        await mount.release(fh)
        return data

    async def write(self, data: bytes) -> bool:
        """open, write, close.  False: it failed, perhaps after it was executed."""
        mount = self.mount
        error, body = await mount.asked(abi.OPEN, struct.pack("<II", os.O_WRONLY, 0))
        if error:
            return False
        (fh,) = struct.unpack_from("<Q", body)
        failed = await mount.written(fh, 0, data)
        failed = await mount.flush(fh) or failed
        await mount.release(fh)
        return not failed


class Run:
    def __init__(self, owner: Owner, seed: int) -> None:
        self.owner = owner
        self.chance = random.Random(seed)
        self.history: list[Operation] = []
        self.machines: list[Machine] = []
        self._moments: Iterator[int] = itertools.count()
        self._programs = 0

    async def begin(self) -> None:
        self.owner.path.write_bytes(BEFORE)
        self.machines = [Machine(await self.owner.mount(node)) for node in (FIRST, SECOND, THIRD)]

    async def programs(self, on_each: int) -> None:
        """Until all have ended."""
        async with trio.open_nursery() as nursery:
            for machine in self.machines * on_each:
                self._programs += 1
                nursery.start_soon(self._program, machine, f"program {self._programs}")

    async def _program(self, machine: Machine, name: str) -> None:
        for number in range(CALLS):
            await trio.sleep(self.chance.choice(PAUSES_S))
            value = f"{name}: {number}".encode().ljust(SIZE_BYTES) if self.chance.random() < 0.4 else None
            await self.call(machine, name, value)

    async def call(self, machine: Machine, name: str, value: bytes | None) -> None:
        """Writes *value*, or reads."""
        called = next(self._moments)
        if value is None:
            seen = await machine.read()
            if seen is not None:
                self.history.append(Operation(name, called, next(self._moments), "file", "read", None, seen))
        else:
            result = "ok" if await machine.write(value) else UNKNOWN
            self.history.append(Operation(name, called, next(self._moments), "file", "write", value, result))

    async def trouble(self, kinds: tuple[str, ...]) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(self.chance.choice((0.05, 1, 5)))
            line = self.chance.choice(self.machines).mount.line
            match self.chance.choice(kinds):
                case "cut":
                    line.cut()
                    await trio.sleep(self.chance.choice((0.3, 4, 2 * TERM_S)))
                    line.heal()
                case "break":
                    line.reset()
                case "restart":
                    await self.owner.restart()

    async def end(self) -> None:
        """All is well again, and everybody looks."""
        await trio.sleep(4 * TERM_S)
        for machine in self.machines:
            await self.call(machine, "the end", None)
        assert sum(one.who == "the end" for one in self.history) == len(self.machines), "nobody is refused now"


async def recorded(owner: Owner, seed: int, kinds: tuple[str, ...], on_each: int) -> Run:
    run = Run(owner, seed)
    await run.begin()
    async with trio.open_nursery() as nursery:
        if kinds:
            nursery.start_soon(run.trouble, kinds)
        await run.programs(on_each)
        nursery.cancel_scope.cancel()
    for machine in run.machines:
        machine.mount.line.heal()
    await run.end()
    return run


@pytest.fixture(autouse=True)
def nobody_writes_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    """So data are cached right after a change; the time that the owner waits for is not that of trio's clock."""
    monkeypatch.setattr(guards, "UNCACHED_NS", 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("kinds", "on_each"),
    [
        pytest.param((), 2, id="calm"),
        pytest.param(("break", "restart"), 2, id="restarts"),
        # Who is cut off may lose what it wrote, which its own node could see until then: one program on each.
        pytest.param(("cut", "cut", "break", "restart"), 1, id="cuts"),
    ],
)
async def test_what_was_seen_has_an_order(
    owner: Owner, autojump_clock: MockClock, seed: int, kinds: tuple[str, ...], on_each: int
) -> None:
    run = await recorded(owner, seed, kinds, on_each)
    failed = sum(one.result is UNKNOWN for one in run.history)
    assert len(run.history) - failed > (CALLS if kinds else 3 * on_each * CALLS)
    check(run.history, Register(BEFORE))


async def test_a_page_that_is_kept_too_long_is_noticed(
    owner: Owner, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PageCache, "inval_inode", lambda *_: True)
    run = await recorded(owner, 1, (), 2)
    with pytest.raises(NotLinearizable):
        check(run.history, Register(BEFORE))
