"""Mounts and one owner of the file they use, all real but for the kernels and the wire."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from omfs.cache.table import LeaseTable
from omfs.export.guards import Guards
from omfs.export.leasing import Leasing
from omfs.export.nomfs import Nomfs
from omfs.export.service import ExportService
from omfs.export.underleases import UnderLeases
from omfs.mount import lowlevel_abi as abi
from omfs.mount.callers import ROOT
from omfs.net.peer import Peer
from omfs.net.server import Server
from omfs.wiretypes import Mode
from tests.sim.line import OWNER, SETTINGS, Line, local_node
from tests.unit.exportroom import serving
from tests.unit.leaseroom import FakeChanges
from tests.unit.takenmount import TakenMount

FIRST, SECOND = 1, 3  # node ids
TERM_S = SETTINGS.lease_term_s
_CONTEXT: Any = SimpleNamespace(uid=0, gid=0, pid=0, umask=0)  # root's call


class Changes(FakeChanges):
    """Lets the kernel say whether somebody else has the file open."""

    def guard_exclusive(self, key: bytes, fd: int) -> bool:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            return False
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)  # nobody opens it natively here
        return super().guard_exclusive(key, fd)


class Owner:
    """A node that serves its tree, with leases; `restart` is a crash of the daemon and its next start."""

    def __init__(self, nursery: trio.Nursery, state: Path, path: Path) -> None:
        self.path = path  # of the file that the tests use
        self.lines: list[Line] = []
        self.nursery = nursery
        self.state = state
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def start(self) -> None:
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        await self.nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with serving(self.state) as service, self._scope:
            await self._serve(service, task_status)
        self._ended.set()

    async def _serve(self, service: ExportService, task_status: trio.TaskStatus[None]) -> None:
        table = LeaseTable.open(self.state / "leases", "boot")
        leasing = Leasing(table, TERM_S, lambda *words: server.end_session(*words))
        guards = Guards(service.disk, leasing)
        guards.watch(Changes())  # type: ignore[arg-type]
        server = service.server = Server(local_node(OWNER), SETTINGS, UnderLeases(service, leasing, guards))
        self.nomfs = Nomfs(self.state, server, leasing, TERM_S)
        self.leasing = leasing
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.nomfs.run)
                nursery.start_soon(leasing.tend)
                nursery.start_soon(leasing.writer.run)
                await nursery.start(lambda *, task_status: server.run(task_status=task_status))
                for line in self.lines:
                    line.server = server
                self.server = server
                task_status.started()
        finally:
            service.disk.mounts.on_found = None
            leasing.close()

    async def stop(self) -> None:
        for line in self.lines:
            line.server = None
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def restart(self) -> None:
        for line in self.lines:
            line.reset()
        await self.stop()
        await self.start()

    async def mount(self, node_id: int) -> Mounted:
        mount = Mounted(self.nursery, Line(self.nursery, self.server), node_id)
        self.lines.append(mount.line)
        await mount.walk_to(self.path)
        return mount


class Mounted(TakenMount):
    """A mount of the owner, over a line that can be cut."""

    def __init__(self, nursery: trio.Nursery, line: Line, node_id: int) -> None:
        self.line = line
        self.peer = Peer(OWNER, ["a"], 723, local_node(node_id), SETTINGS, dial=line.dial)
        super().__init__(nursery, self.peer)
        nursery.start_soon(self.peer.run)
        nursery.start_soon(self.node.tend)
        nursery.start_soon(self.operations.recaller.run)
        nursery.start_soon(self.operations.ahead.run)

    async def walk_to(self, path: Path) -> None:
        self.file = await self.node.root()
        for name in path.parts[1:]:
            self.file = (await self.node.look_up(self.file, os.fsencode(name), ROOT)).handle

    async def written(self, fh: int, offset: int, data: bytes, flags: int = 0) -> int:
        """Returns the errno."""
        request = struct.pack("<QQIIQII", fh, offset, len(data), 0, 0, flags, 0) + data
        return (await self.asked(abi.WRITE, request))[0]

    async def read_all(self, fh: int) -> bytes:
        request = struct.pack("<QQIIQII", fh, 0, 32 << 10, abi.READ_LOCK_OWNER, 0, 0, 0)
        return (await self.asked(abi.READ, request))[1]

    async def size(self) -> int:
        return (await self.node.get_attributes(self.file)).attributes.size_bytes

    async def get_xattr_names(self) -> tuple[bytes, ...]:
        return await self.operations.listxattr(self.inode.id, _CONTEXT)

    async def set_xattr(self, name: bytes, value: bytes) -> None:
        await self.operations.setxattr(self.inode.id, name, value, _CONTEXT)

    async def release(self, fh: int) -> None:
        await self.asked(abi.RELEASE, struct.pack("<QIIQ", fh, 0, 0, 0))

    @property
    def mode(self) -> Mode:
        return self.inode.lease.mode
