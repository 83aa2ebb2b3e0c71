"""A registry of processes at work, for the tests of what it knows and of who asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mignode.registry import Registry


@asynccontextmanager
async def running_registry(node_id: int, run_dir: Path) -> AsyncIterator[Registry]:
    """Of that node; it begins with what *run_dir* has of one before it."""
    registry = Registry(node_id, run_dir)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(registry.run)
            yield registry
            nursery.cancel_scope.cancel()
    finally:
        registry.close()
