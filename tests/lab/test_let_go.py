"""What handover.py says of a CRIU that was told to let a copy run: it does, though who told it is killed at once."""

from __future__ import annotations

import os
import signal
import sys

import trio

from mignode.checkpoint import Tree
from mignode.criurpc import notice_answer
from tests.lab.criuroom import DEADLINE_S, IMAGES, criu, images, run_inside
from tests.lab.movedprograms import SUM
from tests.lab.test_checkpoint import dump, python


async def let_go(keys: dict[str, int]) -> None:
    """Restore it, say that it may run, and be killed before CRIU can answer."""
    directory = os.open(IMAGES / "images", os.O_RDONLY | os.O_DIRECTORY)
    async with criu().restore(directory, Tree(), DEADLINE_S, inherited=keys) as restored:
        await restored._talk._send(notice_answer(True))
        os.kill(os.getpid(), signal.SIGKILL)


async def inside_let_go() -> None:
    puppet = python(SUM)
    assert await puppet.ask("5") == "5"
    await dump(puppet, images())
    keys = puppet.new_pipes()
    text = f"import trio; from {let_go.__module__} import let_go; trio.run(let_go, {keys})"
    done = await trio.run_process([sys.executable, "-c", text], pass_fds=list(keys.values()), check=False)
    assert done.returncode == -signal.SIGKILL
    puppet.given()
    assert await puppet.ask("1") == "6"
    puppet.kill()


def test_a_copy_that_was_let_go_runs_though_mignode_is_dead() -> None:
    run_inside(inside_let_go)
