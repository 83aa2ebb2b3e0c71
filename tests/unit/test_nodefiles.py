"""hpc/nodes/<n>/ and hpc/info: what gossip says of other nodes as openMosix's values, and what it is told of ours."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from mignode.adminvalues import AdminStore
from mignode.hpcfiles import HpcFiles
from mignode.nodeinfo import CONFIGURED, NOMFS, QUIET, STAY, UP, NodeInfo
from omfs.config import Settings
from omfs.errors import ControlError, NotRunning, OmfsError, RemoteFailure
from omfs.net import control
from omfs.standing import Standing

OWN = 2
FILES = ("load", "speed", "cpus", "mem", "rmem", "tmem", "util", "status")
TOLD = NodeInfo(
    node=3, incarnation=1, seq=1, age_s=2.5, load=250, frozen=50, speed=20000, cpus=8, mem_free=5, mem_raw_free=4,
    mem_total=6, util=90, status=CONFIGURED | UP | STAY, version="0.1.0",
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> AdminStore:
    return AdminStore(tmp_path / "state")


@pytest.fixture
def files(tmp_path: Path, store: AdminStore) -> HpcFiles:
    """Of node 2 of three; nothing else runs here, so there is no mount that could be asked."""
    (tmp_path / "map").write_text("1 192.0.2.1 1\n2 127.0.0.1 1\n3 192.0.2.3 1\n")
    settings = Settings(map=str(tmp_path / "map"), address="127.0.0.1", sec="none", run_dir=str(tmp_path))
    return HpcFiles(Standing(settings), store, tmp_path)


async def refusal(files: HpcFiles, node: int, name: str) -> int:
    with pytest.raises(RemoteFailure) as caught:
        await files.read("nodes", node, name)
    return caught.value.errno


async def test_what_gossip_says_is_shown(files: HpcFiles) -> None:
    files.others = {3: TOLD}.get
    assert [await files.read("nodes", 3, name) for name in FILES] == [250, 20000, 8, 5, 4, 6, 90, 7]
    own, first, third = str(await files.read("info", 0, "info")).splitlines()
    assert own.startswith("node=2 status=3 cpus=")
    assert first == "node=1 status=1"
    assert (
        third
        == "node=3 status=7 cpus=8 speed=20000 load=250 mem=5 rmem=4 tmem=6 util=90 frozen=50 age=2.5 version=0.1.0"
    )


async def test_loads_are_shown_by_the_yardstick_that_was_set_here(files: HpcFiles, store: AdminStore) -> None:
    """Whatever another node's is: what it says is by one standard."""
    files.others = {3: TOLD}.get
    store.change(sspeed=30000)
    assert await files.read("nodes", 3, "load") == 500
    assert " load=500 " in str(await files.read("info", 0, "info"))
    assert " frozen=100 " in str(await files.read("info", 0, "info"))


async def test_an_export_that_is_silent_keeps_nobody_waiting_and_changes_nothing(
    files: HpcFiles, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Gossip asks each second, and who says nothing for some is taken for dead."""
    said: list[dict[str, bool] | OmfsError | None] = [{"on": True}, None, ControlError("broken"), NotRunning("gone")]

    async def ask(path: Path, command: str, *, deadline_s: float) -> dict[str, bool]:
        answer = said.pop(0)
        await trio.sleep(deadline_s if answer is None else 0)
        if answer is None:
            raise ControlError("no answer")
        if isinstance(answer, OmfsError):
            raise answer
        return answer

    monkeypatch.setattr(control, "ask", ask)
    for refuses in (True, True, True, False):
        before_s = trio.current_time()
        assert bool((await files.own()).status & NOMFS) == refuses
        assert trio.current_time() - before_s <= 0.5
        await trio.sleep(6)
    assert said == []


async def test_a_quiet_node_is_there_and_shows_no_load(files: HpcFiles) -> None:
    files.others = {3: msgspec.structs.replace(TOLD, status=CONFIGURED | UP | QUIET)}.get
    assert [await files.read("nodes", 3, name) for name in ("cpus", "speed", "tmem", "status")] == [8, 20000, 6, 35]
    for name in ("load", "mem", "rmem", "util"):
        assert await refusal(files, 3, name) == errno.ENODATA
    line = str(await files.read("info", 0, "info")).splitlines()[2]
    assert line == "node=3 status=35 cpus=8 speed=20000 tmem=6 age=2.5 version=0.1.0"


async def test_a_dead_node(files: HpcFiles) -> None:
    files.others = {3: msgspec.structs.replace(TOLD, status=CONFIGURED)}.get
    assert (await files.read("nodes", 3, "cpus"), await files.read("nodes", 3, "status")) == (-101, 1)
    for name in ("load", "speed", "mem", "rmem", "tmem", "util"):
        assert await refusal(files, 3, name) == errno.EHOSTDOWN
    assert str(await files.read("info", 0, "info")).splitlines()[2] == "node=3 status=1 age=2.5 version=0.1.0"


async def test_what_is_told_of_this_node(files: HpcFiles, store: AdminStore) -> None:
    told = await files.tell()
    assert (told.node, told.status) == (OWN, CONFIGURED | UP)
    assert told.mem_free > 0
    store.change(quiet=True)
    told = await files.tell()
    assert (told.status, told.load, told.mem_free, told.mem_raw_free, told.util) == (0x23, 0, 0, 0, 0)
    assert told.mem_total > 0
    assert await files.read("nodes", OWN, "mem") != 0  # here it is shown
