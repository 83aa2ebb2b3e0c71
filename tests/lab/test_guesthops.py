"""Guests of ordinary users that go from home to another node, through the inits at both ends, with a real CRIU.

The functions named `inside_...` run in namespaces of their own (criuroom.py).
"""

from __future__ import annotations

import errno
import os
import platform
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from dfsa.guestfilter import filter_for
from dfsa.router import Router
from mignode import birthright, body
from mignode.body import Body
from mignode.checkpoint import Criu, Restored, Tree
from mignode.criutalk import decide_kept
from mignode.guestinit import LISTENER
from omfs.kernel.criuprogram import find_criu
from omfs.kernel.seccomp import Listener
from tests.lab.criuroom import DEADLINE_S, criu, images, run_inside
from tests.lab.guestroom import AT_HOME, AWAY, PID, PLAN, Guests, ask, heard, line, make_elsewhere, program, text_of
from tests.lab.movedprograms import PYTHON, SUM
from tests.lab.test_guestworld import Caller, user

USER: Final = 1000

SHARED: Final = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
id = libc.shmget(4711, 4096, 0o1600)
assert id >= 0
total = ctypes.c_int.from_address(libc.shmat(id, None, 0))
for line in sys.stdin:
    if os.fork() == 0:
        other = ctypes.c_int.from_address(libc.shmat(libc.shmget(4711, 4096, 0), None, 0))
        other.value += int(line)
        os._exit(0)
    os.wait()
    print(total.value, flush=True)
"""

REFUSED: Final = """
import os, socket, sys
for line in sys.stdin:
    try:
        socket.sethostname("mine")
        print("done", flush=True)
    except OSError as error:
        print(error.errno, os.getpid(), socket.gethostname(), flush=True)
"""


class Hops(Guests):
    """With what a migration needs besides."""

    def __init__(self) -> None:
        super().__init__()
        self.routers: list[Router] = []

    def listening(self, descriptor: int) -> None:
        self.routers.append(Router(Listener(descriptor), {}, restoring=True))
        self.nursery.start_soon(self.routers[-1].serve)

    @staticmethod
    def criu_at(one: Body) -> Criu:
        """As it has to be for the guest of an ordinary user."""
        return Criu(find_criu(), one.starting(USER, USER))

    async def run_as_user(self, text: str) -> Body:
        """At home."""
        await criu().features(DEADLINE_S)  # so that it knows this kernel: as an ordinary user's it could not find out
        with Caller(user(USER)) as asking:
            of = birthright.read(asking.pid, USER, USER)
        one = await self.hatch(AT_HOME, "guest")
        await one.run(program(PYTHON, "-c", text, of=of), PLAN)
        one.way_is_open()
        return one

    @asynccontextmanager
    async def restored(self, directory: int, state: bytes) -> AsyncIterator[tuple[Body, Restored]]:
        """Away, below a filter, and held."""
        one = await self.hatch(AWAY, "guest away")
        files = await one.prepare_files(PLAN, state)
        there = Criu(find_criu(), one.start_below(filter_for(platform.machine()), self.listening))
        async with there.restore(directory, Tree(shell_job=True), DEADLINE_S, inherited=files.inherited) as restored:
            assert restored.pid == PID
            await one.adopt(PID)
            await one.given()
            for descriptor in files.inherited.values():
                os.close(descriptor)
            yield one, restored

    async def move(self, one: Body) -> Body:
        """To the other node, with the source ended before it runs there."""
        directory = images()
        async with self.criu_at(one).dump(PID, directory, Tree(shell_job=True), DEADLINE_S) as frozen:
            state = await one.freeze_files()
            async with self.restored(directory, state) as (other, restored):
                await frozen.finish()
                with trio.fail_after(DEADLINE_S):
                    await one.wait_gone()
                await one.end()
                self.routers[-1].restored()
                await restored.finish()
        other.way_is_open()
        return other


# ---------------------------------------------------------------- to another node


async def inside_move() -> None:
    make_elsewhere()
    async with Hops() as hops:
        one = await hops.run_as_user(SUM)
        assert await ask(one, "5") == "5"
        before = text_of(f"/proc/{await one.outer_root()}/status")
        one.send_frame(b"6\n")
        assert await line(one) == "11"
        other = await hops.move(one)
        assert await ask(other, "7") == "18"
        after = text_of(f"/proc/{await other.outer_root()}/status")
        for name in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Umask"):
            assert birthright.status_lines(before)[name] == birthright.status_lines(after)[name]
        assert [*await other.all_pids()] == [PID]
        other.send_frame(b"")
        assert (await heard(other))[-1] in (b"e0", b"")
        assert other.root_status == 0


def test_a_users_program_goes_on_at_another_node() -> None:
    run_inside(inside_move)


async def inside_unread() -> None:
    """Nothing that was written or sent before is lost or repeated; a line that came while it was frozen, neither."""
    make_elsewhere()
    async with Hops() as hops:
        one = await hops.run_as_user("import sys, time\nsys.stdin.readline()\nsys.stdin.readline()\n" + SUM)
        one.send_frame(b"x\n")
        directory = images()
        async with hops.criu_at(one).dump(PID, directory, Tree(shell_job=True), DEADLINE_S) as frozen:
            one.send_frame(b"y\n4\n")
            await one.signal(1, 0)  # answered in order: it has the frame
            state = await one.freeze_files()
            async with hops.restored(directory, state) as (other, restored):
                await frozen.finish()
                hops.routers[-1].restored()
                await restored.finish()
        other.way_is_open()
        assert await ask(other, "7") == "4"
        assert await line(other) == "11"


def test_what_it_had_not_read_comes_along() -> None:
    run_inside(inside_unread)


async def inside_shared_memory() -> None:
    make_elsewhere()
    async with Hops() as hops:
        one = await hops.run_as_user(SHARED)
        assert await ask(one, "5") == "5"
        other = await hops.move(one)
        assert await ask(other, "6") == "11"


def test_system_v_memory_comes_along() -> None:
    run_inside(inside_shared_memory)


async def inside_refused() -> None:
    make_elsewhere()
    async with Hops() as hops:
        one = await hops.run_as_user(REFUSED)
        assert await ask(one, "x") == f"{errno.EPERM} {PID} first"
        other = await hops.move(one)
        assert await ask(other, "x") == f"{errno.EPERM} {PID} first"
        assert hops.routers[-1].refused["sethostname"] == 1
        # another mignode would find the listener there
        (listener,) = await other.fetch(LISTENER)
        assert not Listener(listener).is_deserted()


def test_the_filter_holds_once_it_runs() -> None:
    run_inside(inside_refused)


# ---------------------------------------------------------------- not to another node, after all


async def inside_thawed() -> None:
    async with Hops() as hops:
        one = await hops.run_as_user(SUM)
        assert await ask(one, "5") == "5"
        async with hops.criu_at(one).dump(PID, images(), Tree(shell_job=True), DEADLINE_S):
            await one.freeze_files()
            one.send_frame(b"6\n")
        await one.thaw_files()
        assert await line(one) == "11"
        async with hops.criu_at(one).dump(PID, images("second"), Tree(shell_job=True), DEADLINE_S) as frozen:
            await one.freeze_files()
            await frozen.finish()
        with trio.fail_after(DEADLINE_S):
            assert await one.wait_root_ended() == signal.SIGKILL
        await one.wait_gone()
        assert one.frames.statistics().current_buffer_used == 0, "nobody is told as long as it may live elsewhere"
        await one.thaw_files()
        assert b"e9" in await heard(one)


def test_who_stays_goes_on_and_an_end_is_told_when_it_is_one() -> None:
    run_inside(inside_thawed)


async def inside_first_mignode() -> None:
    """Killed while it holds a guest frozen."""
    async with Hops() as hops:
        one = await hops.run_as_user(SUM)
        assert await ask(one, "5") == "5"
        async with hops.criu_at(one).dump(PID, images(), Tree(shell_job=True), DEADLINE_S) as frozen:
            await one.keep("criu", [frozen.socket])
            await one.freeze_files()
            os.kill(os.getpid(), signal.SIGKILL)


async def inside_second_mignode() -> None:
    """What the init keeps decides: CRIU waits on, until somebody says what was agreed."""
    text = f"import trio; from {__name__} import inside_first_mignode as first; trio.run(first)"
    await trio.run_process([sys.executable, "-c", text], check=False)
    async with Guests() as guests:
        one = guests.own(await body.connect(guests.nursery, guests.folder()))
        assert one.is_frozen
        assert one.kept == {"criu"}
        outer = await one.outer_root()
        assert text_of(f"/proc/{outer}/stat").rpartition(")")[2].split()[0] == "t", "it runs, and nobody decided so"
        (held,) = await one.fetch("criu")
        (command,) = one.running().values()
        finish = sys.argv[3] == "finish"
        decide_kept(held, finish=finish)
        os.close(held)
        await one.keep("criu", [])
        with trio.fail_after(DEADLINE_S):
            await command.wait()
            if finish:
                await one.wait_gone()
                return
        await one.thaw_files()
        one.way_is_open()
        assert await ask(one, "6") == "11"


def test_a_killed_mignode_does_not_thaw_what_it_held() -> None:
    run_inside(inside_second_mignode, "undo")


def test_a_killed_mignodes_successor_may_finish() -> None:
    run_inside(inside_second_mignode, "finish")
