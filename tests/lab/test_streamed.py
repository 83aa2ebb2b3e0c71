"""mignode/images.py with a real CRIU: what is sent while CRIU writes it is what a copy is made of."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from mignode.checkpoint import Tree
from mignode.images import ImageRoom, Images
from mignode.line import Line
from mignode.words import ImagesSent
from omfs.net.transport import memory_transports
from tests.lab.criuroom import DEADLINE_S, Puppet, criu, run_inside
from tests.lab.movedprograms import PYTHON
from tests.lab.test_checkpoint import restore

MEMORY_BYTES = 60_000_000
REMEMBERS = f"""
import hashlib, os, sys
kept = os.urandom({MEMORY_BYTES})
print(hashlib.sha1(kept).hexdigest(), flush=True)
for line in sys.stdin:
    print(hashlib.sha1(kept).hexdigest(), flush=True)
"""


async def dump_and_send(puppet: Puppet, source: Images, line: Line) -> None:
    """Dump it, and end it when all is sent."""
    is_written = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send, line, is_written, DEADLINE_S)
        async with criu().dump(puppet.pid, source.fd, Tree(), DEADLINE_S) as frozen:
            puppet.is_dumped()
            is_written.set()
            await frozen.finish()


async def inside_streamed() -> None:
    room = ImageRoom(Path("/run"), 3 * MEMORY_BYTES)
    room.open()
    source, destination = room.make("source"), room.make("destination")
    here, there = map(Line, memory_transports())
    for line in (here, there):
        line.admit()
    puppet = Puppet([PYTHON, "-c", REMEMBERS])
    digest = await puppet.hear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dump_and_send, puppet, source, here)
        word, size_bytes = await destination.receive(there, 3 * MEMORY_BYTES, DEADLINE_S)
    assert isinstance(word, ImagesSent)
    assert size_bytes > MEMORY_BYTES
    left = sum(entry.stat().st_blocks * 512 for entry in source.path.iterdir())
    assert left < MEMORY_BYTES / 10, "the source keeps what it has sent"
    assert os.WTERMSIG(puppet.reap()) == signal.SIGKILL
    await restore(puppet, destination.fd)
    assert await puppet.ask("still") == digest
    puppet.kill()
    for images in (source, destination):
        images.discard()
    room.close()


def test_a_copy_of_what_was_sent_while_it_was_written() -> None:
    run_inside(inside_streamed)
