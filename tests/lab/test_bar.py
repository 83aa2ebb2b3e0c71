"""mignode/bar.py with a real CRIU: a tree that is barred does not run, whoever is killed; and nothing is seen of it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mignode.bar import bar, is_held, lift_bar, stopped_among
from mignode.checkpoint import Tree
from omfs.errors import CriuEnded
from tests.lab.criuroom import DEADLINE_S, Puppet, criu, images, run_inside
from tests.lab.movedprograms import PYTHON
from tests.lab.test_checkpoint import Watched, compiled, restore

FAMILY = """
import os, signal, sys
seen = []
signal.signal(signal.SIGCHLD, lambda number, frame: seen.append(number))
down, up = os.pipe(), os.pipe()
if not os.fork():
    while word := os.read(down[0], 1):
        os.write(up[1], word)
print("child", flush=True)
for line in sys.stdin:
    os.write(down[1], b"x")
    os.read(up[0], 1)
    print(line.strip(), len(seen), flush=True)
"""
"""Answers through its child, and says how many children have stopped, gone on or ended."""


def tree_of(puppet: Puppet) -> list[int]:
    """Parents first."""
    children = Path(f"/proc/{puppet.pid}/task/{puppet.pid}/children").read_text().split()
    return [puppet.pid, *map(int, children)]


def states(processes: list[int]) -> set[str]:
    """Of all their threads."""
    tasks = [task for process in processes for task in Path(f"/proc/{process}/task").iterdir()]
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


async def wait_state(processes: list[int], wanted: str) -> None:
    with trio.fail_after(DEADLINE_S):
        while True:
            if states(processes) == {wanted}:
                return
            await trio.sleep(0.01)


async def family() -> tuple[Puppet, list[int]]:
    puppet = Puppet([PYTHON, "-c", FAMILY])
    assert await puppet.hear() == "child"
    return puppet, tree_of(puppet)


async def inside_undone() -> None:
    """The bar is lifted while the tree is held: it goes on, and has seen nothing."""
    puppet, processes = await family()
    assert not is_held(processes)
    async with criu().dump(puppet.pid, images(), Tree(), DEADLINE_S):
        assert is_held(processes)
        bar(processes)
        assert is_held(processes)
        lift_bar(processes)
    assert await puppet.ask("on") == "on 0"
    puppet.kill()


def test_an_attempt_that_is_undone_is_not_seen() -> None:
    run_inside(inside_undone)


async def dump_and_lose(puppet: Puppet, while_held: Callable[[], None], then: Callable[[], None]) -> None:
    """A CRIU that is killed when it holds the program."""
    watched = Watched()
    async with criu(watched.start).dump(puppet.pid, images(), Tree(), DEADLINE_S) as frozen:
        while_held()
        watched.kill()
        with pytest.raises(CriuEnded):
            await frozen.finish()
        then()


async def inside_killed() -> None:
    """CRIU is killed: the tree stands still until the bar is lifted, and then goes on."""
    puppet, processes = await family()

    def while_held() -> None:
        bar(processes)
        assert is_held(processes)

    await dump_and_lose(puppet, while_held, lambda: None)
    await wait_state(processes, "T")
    assert not is_held(processes)
    puppet.say("on")
    assert stopped_among(processes) == tuple(processes)
    lift_bar(processes)
    assert (await puppet.hear()).startswith("on ")
    puppet.kill()


def test_a_barred_tree_stands_still_when_criu_is_killed() -> None:
    run_inside(inside_killed)


async def inside_threads() -> None:
    """The same for all threads; and by undoing, as when mignode is killed."""
    puppet = Puppet([sys.argv[3]])
    assert await puppet.ask("x") == "8"
    async with criu().dump(puppet.pid, images(), Tree(), DEADLINE_S):
        bar([puppet.pid])
    await wait_state([puppet.pid], "T")
    puppet.say("x")
    lift_bar([puppet.pid])
    assert await puppet.hear() == "16"
    puppet.kill()


def test_no_thread_of_it_runs(tmp_path: Path) -> None:
    run_inside(inside_threads, compiled(tmp_path))


async def inside_too_late() -> None:
    """CRIU was killed before: the tree has run since its dump, and the bar says so."""
    puppet, processes = await family()

    def too_late() -> None:
        bar(processes)
        assert not is_held(processes)
        lift_bar(processes)

    await dump_and_lose(puppet, lambda: None, too_late)
    assert (await puppet.ask("on")).startswith("on ")
    puppet.kill()


def test_a_tree_that_has_run_is_not_held() -> None:
    run_inside(inside_too_late)


async def inside_moved() -> None:
    """The images know nothing of the bar."""
    puppet, processes = await family()
    directory = images()
    async with criu().dump(puppet.pid, directory, Tree(), DEADLINE_S) as frozen:
        bar(processes)
        puppet.is_dumped()
        await frozen.finish()
    assert os.WTERMSIG(puppet.reap()) == signal.SIGKILL
    await restore(puppet, directory)
    assert await puppet.ask("on") == "on 0"
    puppet.kill()


def test_the_copy_is_not_barred() -> None:
    run_inside(inside_moved)


async def inside_stopped() -> None:
    """What was stopped before stays so, by CRIU's own doing while it lives and by ours afterwards."""
    puppet, processes = await family()
    os.kill(processes[1], signal.SIGSTOP)
    await wait_state(processes[1:], "T")
    stopped = stopped_among(processes)
    assert stopped == (processes[1],)
    async with criu().dump(puppet.pid, images(), Tree(), DEADLINE_S):
        bar(processes)
        lift_bar(processes, stopped)
    await wait_state(processes[1:], "T")
    await wait_state(processes[:1], "S")
    os.kill(processes[1], signal.SIGCONT)
    assert re.fullmatch(r"on \d+", await puppet.ask("on"))
    puppet.kill()


def test_what_was_stopped_before_stays_so() -> None:
    run_inside(inside_stopped)
