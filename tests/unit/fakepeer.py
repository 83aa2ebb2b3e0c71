"""An owner as mount/remote.py sees it, without a network: what the tests of remote files and their locks stand on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import trio

from omfs import wire
from omfs.errors import NodeDown, OmfsError, OpenLost
from omfs.mount.opening import open_file
from omfs.mount.remote import RemoteNode
from omfs.mount.remotefile import RemoteFile

ATTRIBUTES = wire.Attributes(0o100644, 1, 0, 0, 0, 5, 8, 4096, 0, 0, 0, 9)
USER = wire.Caller(1000, 1000)


class FakePeer:
    """An owner that can restart, go away, and give locks to somebody else."""

    node_id = 2
    silent_s = 0.0
    linger = None
    lease_round = 0
    on_recall = on_recall_seen = on_lapse = None

    def __init__(self) -> None:
        self.state = "up"
        self.epoch = 0
        self.asked: list[wire.Message] = []
        self.opens: set[int] = set()
        self.refuse: dict[type, OmfsError] = {}
        self.before: Callable[[wire.Message], None] | None = None
        self.silence = False
        self._next = 100

    def restart(self) -> None:
        self.opens.clear()
        self.epoch += 1
        self._next += 1000

    async def call(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        return (await self.call_for_bulk(request, expect, bulk))[0]

    async def call_for_bulk(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        await trio.lowlevel.checkpoint()
        if self.silence:
            await trio.sleep_forever()
        if self.before is not None:
            self.before(request)
        if self.state == "down":
            raise NodeDown("down")
        self.asked.append(request)
        for name in ("open_id", "source_open_id", "target_open_id"):
            used = getattr(request, name, None)
            if used is not None and used not in self.opens:
                raise OpenLost("restarted")
        if type(request) in self.refuse:
            raise self.refuse[type(request)]
        if isinstance(request, wire.CloseFile):
            self.opens.remove(request.open_id)
        if isinstance(request, wire.CloseFiles):
            self.opens.difference_update(request.open_ids)
        return self._reply(request, bulk)

    def _reply(self, request: Any, bulk: Any) -> tuple[wire.Message, bytes]:
        match request:
            case wire.OpenFile() | wire.OpenDirectory() | wire.CreateFile():
                self._next += 1
                self.opens.add(self._next)
                if isinstance(request, wire.CreateFile):
                    return wire.FileCreated(self._next, b"new", ATTRIBUTES), b""
                return wire.FileOpened(self._next), b""
            case wire.ReadBlocks():
                return wire.BlocksRead(), b"data"
            case wire.WriteBlocks() | wire.AppendBlocks():
                return wire.BlocksWritten(len(bulk)), b""
            case wire.CopyRange():
                return wire.BlocksWritten(request.size_bytes), b""
            case wire.GetAttributes() | wire.SetAttributes():
                return wire.AttributesGot(ATTRIBUTES), b""
            case wire.AttachTree():
                return wire.Found(b"root", ATTRIBUTES), b""
            case wire.ReadDirectory():
                return wire.DirectoryRead((), True), b""
            case wire.RemoveName() | wire.RenameName():
                return wire.NamesChanged(()), b""
            case _:
                return wire.Done(), b""

    def of(self, kind: type) -> list[Any]:
        return [request for request in self.asked if type(request) is kind]


async def opened(node: RemoteNode, flags: int = os.O_RDWR) -> RemoteFile:
    return (await open_file(node, b"handle", flags, USER))[0]
