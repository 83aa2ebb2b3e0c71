"""Fixtures of the simulation ring."""

from __future__ import annotations

import pytest
import trio

from tests.sim.line import Pair, connected_pair


@pytest.fixture
async def pair(nursery: trio.Nursery) -> Pair:
    """A holder and an owner that are connected; nothing was executed yet."""
    return await connected_pair(nursery)
