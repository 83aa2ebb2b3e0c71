"""Fixtures of the simulation ring."""

from __future__ import annotations

import pytest
import trio

from tests.sim.line import FakeMount, Pair, connected_pair


@pytest.fixture
async def pair(nursery: trio.Nursery) -> Pair:
    """A holder and an owner that are connected; nothing was executed yet."""
    return await connected_pair(nursery)


@pytest.fixture
def mount(pair: Pair) -> FakeMount:
    """The holder's mount, which caches and drops."""
    return FakeMount(pair.peer)
