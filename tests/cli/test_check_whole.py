"""omfs-admin check against a real omfs-export, and a holder that is real but for its FUSE session.

The holder is this node's own mount, as with dfsa=0: so the question goes from the mount's socket over its peer to the
export, and from there to the mount's socket again.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from omfs import wire
from omfs.cli import admin
from omfs.config import Settings, load_settings
from omfs.kernel.fusenotify import Notifier
from omfs.mount.inodes import Inode, InodeTable
from omfs.mount.opening import open_file
from omfs.mount.recall import Recaller
from omfs.mount.remote import RemoteNode
from omfs.mount.telling import Teller
from omfs.net import control
from omfs.net.peer import Peer
from omfs.standing import Standing
from omfs.wiretypes import Mode
from tests.cli.test_export import COMMAND, ask_status, end
from tests.freeports import free_port

pytestmark = pytest.mark.lab

ROOT = wire.Caller(0, 0)

# Sees at each node id what is at a path.
READER = """
import json, os, sys
import msgspec
from omfs.kernel.statx import status_of
from omfs.mount.cachereader import Seen, Wanted, digest_of
paths = json.load(open(os.environ["SEEN_AT"]))
for line in sys.stdin.buffer:
    one = msgspec.json.decode(line, type=Wanted)
    fd = os.open(paths[str(one.number)], os.O_RDONLY)
    status = status_of(fd)
    data = digest_of(fd, status.size_bytes, one.seed) if one.with_data else (0, 0, b"")
    sys.stdout.buffer.write(msgspec.json.encode(Seen(one.number, 0, status, *data)) + b"\\n")
"""


class Kernel:
    """Forgets whatever it is told to."""

    def _forget(self, *_: Any, **__: Any) -> bool:
        return True

    inval_inode = inval_attributes = inval_entry = _forget


class Holder:
    """A mount without FUSE in a thread of its own; `do` runs a function there."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.token: trio.lowlevel.TrioToken | None = None
        self.ready = threading.Event()
        self.scope = trio.CancelScope()
        self.thread = threading.Thread(target=trio.run, args=(self._main,))

    async def _main(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        standing = Standing(self.settings)
        peer = Peer(1, ("127.0.0.1",), self.settings.port, standing.local, self.settings, None)
        self.node = RemoteNode(peer)
        self.inodes: InodeTable[RemoteNode] = InodeTable()
        recaller = Recaller(self.inodes, lambda _: None)
        recaller.serve(self.node)
        recaller.attach(cast(Notifier, Kernel()))
        teller = Teller({1: self.node}, self.inodes, "/nowhere", "pathreader")
        handlers: dict[str, control.Handler] = {"describe": self._describe, **teller.handlers}
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.run)
                nursery.start_soon(self.node.tend)
                nursery.start_soon(recaller.run)
                await nursery.start(control.serve, Path(self.settings.run_dir) / "mount.sock", handlers)
                await self.node.root()  # connected
                self.ready.set()
                await trio.sleep_forever()

    async def _describe(self, _: control.Arguments) -> object:
        return control.DescribeReply(1, ())

    def do(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        done: queue.Queue[Any] = queue.Queue()

        async def run_it() -> None:
            try:
                done.put((await function(*arguments), None))
            except BaseException as error:
                done.put((None, error))
                raise

        assert self.token is not None
        self.token.run_sync_soon(lambda: trio.lowlevel.spawn_system_task(run_it))
        result, error = done.get(timeout=60)
        if error is not None:
            raise error
        return result

    async def look_up(self, path: Path) -> Inode[RemoteNode]:
        """As the kernel would, name by name."""
        handle, inode = await self.node.root(), None
        for name in path.parts[1:]:
            found = await self.node.look_up(handle, os.fsencode(name), ROOT)
            handle, inode = found.handle, self.inodes.find(self.node, found.handle)
            inode.lookups += 1
            self.node.leases.granted(inode.lease, found.serial, found.mode)
        assert inode is not None
        assert inode.lease.is_held
        return inode

    async def cache_data(self, inode: Inode[RemoteNode]) -> None:
        """Until the owner grants it, which it does not while the file is new."""
        assert inode.handle is not None
        while not inode.lease.data:
            file, opened = await open_file(self.node, inode.handle, os.O_RDONLY, ROOT)
            self.node.leases.granted(inode.lease, opened.serial, opened.mode)
            inode.lease.data = opened.data
            await file.close()
            await trio.sleep(0.05)

    async def believe(self, handle: bytes) -> None:
        """What was never granted."""
        self.inodes.find(self.node, handle).lease.mode = Mode.SHARED

    async def close(self) -> None:
        """In order, so that the export need not keep its kernel leases."""
        await self.node.give_back_all()
        self.scope.cancel()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Made before the export watches: what is made later is recalled a moment later."""
    path = tmp_path / "tree" / "file"
    path.parent.mkdir()
    path.write_text("new")
    return path


@pytest.fixture
def holder(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holder]:
    (tmp_path / "map").write_text("1 127.0.0.1 1\n")
    (tmp_path / "omfs.toml").write_text(
        f'map = "{tmp_path}/map"\naddress = "127.0.0.1"\nport = {free_port()}\nsec = "none"\ndfsa = false\n'
        f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\nconfig_dir = "{tmp_path}/etc"\n'
    )
    (tmp_path / "pathreader.py").write_text(READER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(filter(None, sys.path))}")
    monkeypatch.setenv("SEEN_AT", str(tmp_path / "seen.json"))
    # In a mount namespace of its own: whatever is mounted on the machine meanwhile, it would recall everything.
    command = ["unshare", "-m", *COMMAND, "--config", str(tmp_path / "omfs.toml")]
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.ExitStack() as ending:  # each is ended, whatever another one says

        @ending.callback
        def end_export() -> None:
            pid = ask_status(tmp_path / "omfs.toml")["pid"]
            assert isinstance(pid, int)
            end(pid)

        made = Holder(load_settings(tmp_path / "omfs.toml"))
        made.thread.start()
        ending.callback(made.thread.join, 60)
        ending.callback(lambda: made.do(made.close))
        assert made.ready.wait(60)
        yield made


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[tuple[str, str]]]:
    """What omfs-admin check finds: (check, text)."""

    def find(*arguments: str) -> list[tuple[str, str]]:
        status = admin.main(["check", "--config", str(tmp_path / "omfs.toml"), "--json", *arguments])
        shown = json.loads(capsys.readouterr().out)["findings"]
        found = [(one["check"], one["text"]) for one in shown if one["result"] != "ok"]
        assert status == (1 if found else 0)
        return found

    return find


Check = Callable[..., list[tuple[str, str]]]


def test_what_is_believed_and_was_not_granted(holder: Holder, file: Path, check: Check) -> None:
    holder.do(holder.look_up, file)
    assert check("--sample", "0") == []
    holder.do(holder.believe, b"never granted")
    assert check("--sample", "0") == [("holders", f"1 used without a lease: {b'never granted'.hex()}")]
    assert check("--sample", "0", "--repair") == []


def test_data_without_a_guard(holder: Holder, file: Path, check: Check) -> None:
    inode = holder.do(holder.look_up, file)
    inode.lease.data = True  # nobody opened it
    assert check("--sample", "0") == [("holders", f"1 cached while native programs may write it: {file}")]
    assert check("--sample", "0", "--repair") == []
    assert not inode.lease.data


def test_old_data(holder: Holder, file: Path, tmp_path: Path, check: Check) -> None:
    old = tmp_path / "old"
    inode = holder.do(holder.look_up, file)
    holder.do(holder.cache_data, inode)
    seen = {one.id: str(file) for one in holder.inodes.of_owner(holder.node) if one.lease.is_held}
    for parent in file.parents[:-1]:
        above = holder.do(holder.look_up, parent)
        seen[above.id] = str(parent)
    (tmp_path / "seen.json").write_text(json.dumps(seen))
    assert check() == []
    old.write_text("OLD")
    os.utime(old, ns=(0, file.stat().st_mtime_ns))
    seen[inode.id] = str(old)
    (tmp_path / "seen.json").write_text(json.dumps(seen))
    ((name, text),) = check()
    assert name == "audit"
    assert f"{file} (ctime, data)" in text
    assert check("--repair") == []  # it is not held any more, so it is not audited
    assert not inode.lease.data
