"""Two nodes whose whole mounts ask an owner with leases, which serves `place`: fixtures that a test module imports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.exportroom import serving
from tests.unit.leaseroom import Room, leasing_room
from tests.unit.wholemount import Node


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What is exported."""
    top = tmp_path / "exported"
    top.mkdir()
    return top


@pytest.fixture
async def room(tmp_path: Path, place: Path) -> Iterator[Room]:  # type: ignore[misc]
    """The owner; what *place* has is older than it."""
    with serving(tmp_path / "state") as service, leasing_room(tmp_path / "state", service) as running:
        yield running


@pytest.fixture
async def node(room: Room, nursery: trio.Nursery) -> Node:
    return await _connected(room, 1, nursery)


@pytest.fixture
async def other(room: Room, nursery: trio.Nursery) -> Node:
    return await _connected(room, 2, nursery)


async def _connected(room: Room, node_id: int, nursery: trio.Nursery) -> Node:
    node = Node(room, node_id, nursery)
    await trio.testing.wait_all_tasks_blocked()
    return node
