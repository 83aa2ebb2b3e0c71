"""Fixtures of the simulation ring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.sim.line import FakeMount, Pair, connected_pair
from tests.sim.mounts import Owner


@pytest.fixture
async def pair(nursery: trio.Nursery) -> Pair:
    """A holder and an owner that are connected; nothing was executed yet."""
    return await connected_pair(nursery)


@pytest.fixture
def mount(pair: Pair) -> FakeMount:
    """The holder's mount, which caches and drops."""
    return FakeMount(pair.peer)


@pytest.fixture
def threads_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps while a thread runs: on a busy machine a term would pass during a notification."""

    async def run_sync(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
async def owner(nursery: trio.Nursery, tmp_path: Path, threads_take_no_time: None) -> Iterator[Owner]:  # type: ignore[misc]
    (tmp_path / "file").write_bytes(b"")
    owner = Owner(nursery, tmp_path / "state", tmp_path / "file")
    await owner.start()
    yield owner
    await owner.stop()
