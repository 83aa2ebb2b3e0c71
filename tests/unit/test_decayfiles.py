"""hpc/decay and the file decay of a process: who they are about, what they say, and what is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from omfs.magic import controlfiles
from tests.unit.controlroom import NOBODY, refused, room
from tests.unit.puppets import Puppets, puppets

DECAYS = tuple(file.name for file in controlfiles.OF_DECAY)


@pytest.fixture
def tree() -> Iterator[Puppets]:
    with puppets() as made:
        yield made


async def test_a_class_of_decay_is_of_who_writes_and_those_that_he_starts(tmp_path: Path, tree: Puppets) -> None:
    async with room(tmp_path) as here:
        assert refused(errno.EINVAL)(await here.write("decay/own", "1", tree.first, NOBODY))  # it has none
        for name in DECAYS:
            assert refused(errno.EINVAL)(await here.write(f"decay/{name}", "0", tree.first))
        assert here.everything()[1] == []
        for name in ("cpujob", "fast", "exec"):
            assert await here.write(f"decay/{name}", "1", tree.first, NOBODY) == {}
        child = tree.fork(tree.first)
        for pid in (tree.first, child):
            assert (await here.read("decay", pid))["text"] == "cpujob fast exec\n"
            in_force = [name for name in DECAYS if (await here.read(f"decay/{name}", pid))["text"] == "1\n"]
            assert in_force == ["cpujob", "fast", "inherit", "exec"]
        assert (await here.read("decay"))["text"] == "default\n"
        assert await here.write("decay/clear", "1", child, NOBODY) == {}
        assert (await here.read("decay", child))["text"] == "default\n"
        assert (await here.read("decay", tree.first))["text"] == "cpujob fast exec\n"


async def test_own_values_are_written_to_the_process(tmp_path: Path, tree: Puppets) -> None:
    async with room(tmp_path) as here:
        owner = os.geteuid()
        for text in ("nonsense", "own:1001:1", "cpujob, slow"):
            assert refused(errno.EINVAL)(await here.write("decay", text, tree.first, owner))
        assert refused(errno.EPERM)(await here.write("decay", "slow", tree.first, NOBODY))
        assert await here.write("decay", "own:900:7 iojob noinherit", tree.first, owner) == {}
        assert await here.write("decay/slow", "1", tree.first, NOBODY) == {}
        assert (await here.read("decay", tree.first))["text"] == "iojob slow own:900:7 noinherit\n"
        assert await here.write("decay/own", "1", tree.first, NOBODY) == {}
        assert (await here.read("decay", tree.first))["text"] == "iojob own:900:7 noinherit\n"
        assert (await here.read("decay", tree.fork(tree.first)))["text"] == "default\n"
