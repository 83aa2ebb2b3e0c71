"""What /mfs/proc/hpc/remote/PID/ says of a guest, to the letter, of a /proc that is known to the letter."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mignode.guestfiles import GuestFiles
from mignode.moves import BEST
from omfs.errors import BodyLost, RemoteFailure
from omfs.kernel import processes
from omfs.kernel.processes import Identity

HERE, HOME = 2, 7
INIT, PID, OWN = 500, 501, 600  # a guest's body, its program, and a process of this node
STAT = (
    "501 (a) b (c) S 500 501 500 34816 501 4194304 210 30 4 5 611 12 613 14 20 15 3 0 987654 18018304 1919 "
    "18446744073709551615 1 2 3 4 5 6 7 8 9 10 36 37 17 0 0 0 0 0 0 1 2 3 4 5 6 7 0\n"
)
STATUS = """\
Name:\ta\\tb
Umask:\t0022
State:\tS (sleeping)
Tgid:\t501
Pid:\t501
Uid:\t1000\t1001\t1002\t1003
Gid:\t2000\t2001\t2002\t2003
NStgid:\t501\t4711
NSpid:\t501\t4711
NSpgid:\t500\t4700
NSsid:\t490\t4242
"""
TEXTS = {
    "from": "7 192.0.2.7",
    "statm": "4399 1919 1024 7 0 401 0",
    "stats": "utime=611\ncutime=613\nnice=15\nstate=S\nvsize=18018304\nrss=1919\nnswap=36\ncnswap=37",
    "identity": "uid=1000\ngid=2000\npid=4711\npgrp=4700\nsession=4242\nnmigs=3\ncommand=a\\tb",
}


class Body:
    """Two processes; *pid*: its init, which is mignode's and nobody's guest."""

    pid = INIT

    def __init__(self, *, is_lost: bool = False) -> None:
        self._is_lost = is_lost

    async def all_pids(self) -> dict[int, int]:
        await trio.lowlevel.checkpoint()
        if self._is_lost:
            raise BodyLost("it has ended")
        return {4712: 502, 4711: PID}


class Moved:
    def __init__(self) -> None:
        self.asked: list[tuple[Identity, int, int]] = []

    async def move(self, process: Identity, node: int, by: int) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append((process, node, by))


class Proc:
    """/proc, whose files can be changed or taken away."""

    def __init__(self) -> None:
        self.files = {
            f"/proc/{PID}/statm": "4399 1919 1024 7 0 401 0\n",
            f"/proc/{PID}/stat": STAT,
            f"/proc/{PID}/status": STATUS,
        }

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return self.files[path].encode()


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> Proc:
    found = Proc()
    monkeypatch.setattr(processes, "read_file", found.read)
    monkeypatch.setattr(processes, "identify", lambda pid: Identity(502 if pid == 503 else pid, 9))
    return found


@pytest.fixture
def moved() -> Moved:
    return Moved()


@pytest.fixture
def files(proc: Proc, moved: Moved) -> GuestFiles:
    """Of node 2: a guest of node 7's, one that has just ended, and a program of this node's own."""
    stranger: Any = SimpleNamespace(traits=SimpleNamespace(home=HOME), body=Body())
    lost: Any = SimpleNamespace(traits=SimpleNamespace(home=HOME), body=Body(is_lost=True))
    own: Any = SimpleNamespace(traits=SimpleNamespace(home=HERE), body=Body())

    class Guests(list[Any]):
        def of(self, process: Identity) -> Any:
            return {INIT: stranger, PID: stranger, 502: stranger, OWN: own}.get(process.pid)

    entry = SimpleNamespace(settings=SimpleNamespace(nmigs=3))
    registry: Any = SimpleNamespace(own_id=HERE, entry_of=lambda process: entry)
    guests: Any = Guests([lost, stranger, own])
    they: Any = moved
    return GuestFiles(guests, they, registry, lambda node: f"192.0.2.{node}")


@pytest.mark.parametrize("name", TEXTS)
async def test_to_the_letter(files: GuestFiles, name: str) -> None:
    """Numbers in identity are its home's; a name may have what else ends it."""
    assert await files.read(PID, name) == TEXTS[name]
    assert await files.read(PID, "goto") == 0


async def test_who_is_a_guest(files: GuestFiles) -> None:
    assert await files.pids() == [PID, 502]


@pytest.mark.parametrize("pid", [INIT, OWN, 503, 1], ids=["its init", "of this node", "a thread", "no guest"])
async def test_who_is_none(files: GuestFiles, moved: Moved, pid: int) -> None:
    for name in TEXTS:
        with pytest.raises(RemoteFailure) as refused:
            await files.read(pid, name)
        assert refused.value.errno == errno.ENOENT
    with pytest.raises(RemoteFailure):
        await files.write(pid, 1, 0)
    assert moved.asked == []


@pytest.mark.parametrize(("name", "gone"), [("statm", "statm"), ("stats", "stat"), ("identity", "status")])
async def test_who_ends_meanwhile(files: GuestFiles, proc: Proc, name: str, gone: str) -> None:
    del proc.files[f"/proc/{PID}/{gone}"]
    with pytest.raises(RemoteFailure) as refused:
        await files.read(PID, name)
    assert refused.value.errno == errno.ENOENT


@pytest.mark.parametrize(("written", "node"), [(5, 5), (0, HOME), (-1, BEST)], ids=["a node", "home", "balancing"])
async def test_goto(files: GuestFiles, moved: Moved, written: int, node: int) -> None:
    await files.write(PID, written, 1000)
    assert moved.asked == [(Identity(PID, 9), node, 1000)]
