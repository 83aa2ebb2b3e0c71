"""What the registry knows of a guest's processes goes to the next node: by their numbers inside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mignode.luggage import pack, unpack
from omfs.errors import WireError
from omfs.kernel import processes
from tests.unit.puppets import Puppets, puppets
from tests.unit.registryroom import running_registry

HERE, THERE, INSIDE = 1, 2, 4242


@pytest.fixture
def tree() -> Iterator[Puppets]:
    with puppets() as made:
        yield made


async def test_each_has_there_what_it_had_here(tmp_path: Path, tree: Puppets) -> None:
    """*other*: a process that stands for what CRIU will restore there under the same number inside."""
    other = tree.fork(tree.first)
    process = processes.identify(tree.first)
    assert process is not None
    async with running_registry(HERE, tmp_path) as registry:
        await registry.set_settings(process, lock=True, nmigs=3)
        await registry.select(process, 7)
        luggage = pack(registry, {INSIDE: tree.first}, HERE)
    [entry] = unpack(luggage, {INSIDE: other}, THERE, root=INSIDE, init=0)
    place = entry.place
    assert (place.pid, place.home, place.here, place.selected) == (other, HERE, THERE, 7)
    assert (place.lastexec, place.image, place.magic) == (HERE, processes.image_of(process), HERE)
    assert (entry.settings.lock, entry.settings.nmigs) == (True, 4)


async def test_what_it_executes_is_that_of_its_departure(tmp_path: Path, tree: Puppets) -> None:
    """The copy is not looked at, which does not run yet; here it is ourselves, who execute something else."""
    process, other = processes.identify(tree.first), processes.identify(os.getpid())
    assert process is not None
    assert other is not None
    assert processes.image_of(process) != processes.image_of(other)
    async with running_registry(HERE, tmp_path) as registry:
        luggage = pack(registry, {INSIDE: tree.first}, HERE)
    [entry] = unpack(luggage, {INSIDE: other.pid}, THERE, root=INSIDE, init=0)
    assert entry.place.image == processes.image_of(process)


async def test_its_init_has_what_a_child_of_its_root_has(tmp_path: Path, tree: Puppets) -> None:
    child, init = tree.fork(tree.first), tree.fork(tree.first)
    root = processes.identify(tree.first)
    assert root is not None
    async with running_registry(HERE, tmp_path) as registry:
        await registry.select(root, 7)
        luggage = pack(registry, {child: child, INSIDE: tree.first}, HERE)
    found = unpack(luggage, {child: child, INSIDE: tree.first}, THERE, root=INSIDE, init=init)
    assert [entry.place.pid for entry in found] == [child, tree.first, init]
    place = found[-1].place
    assert (place.home, place.here, place.selected, found[-1].settings.nmigs) == (HERE, THERE, 7, 0)
    assert place.key == processes.identify(init)


async def test_who_has_ended_is_left_out(tmp_path: Path, tree: Puppets) -> None:
    ended = tree.fork(tree.first)
    tree.end(ended)
    async with running_registry(HERE, tmp_path) as registry:
        luggage = pack(registry, {1: tree.first, 2: ended}, HERE)
    assert [
        entry.place.pid for entry in unpack(luggage, {1: os.getpid(), 2: os.getpid()}, THERE, root=2, init=os.getpid())
    ] == [os.getpid()]
    assert unpack(luggage, {}, THERE, root=1, init=os.getpid()) == []
    assert unpack(luggage, {1: ended}, THERE, root=1, init=os.getpid()) == []


@pytest.mark.parametrize("luggage", [b"", b"\x91\x80", b"\xc1", b"x" * 1000])
def test_what_is_no_luggage(luggage: bytes) -> None:
    with pytest.raises(WireError, match="of a guest's processes"):
        unpack(luggage, {}, THERE, root=INSIDE, init=0)
