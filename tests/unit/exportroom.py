"""What the tests of export/ stand on: a service without a network, and file systems of several kinds to serve."""

from __future__ import annotations

import inspect
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from omfs import wire
from omfs.config import Settings, Tree
from omfs.errors import OmfsError
from omfs.export.service import ExportService
from omfs.net.server import Session

ROOT = wire.Caller(0, 0)
ANN = wire.Caller(1000, 1000)
BOB = wire.Caller(1001, 1001)
BOB_IN_STAFF = wire.Caller(1001, 1001, (1001, 50))
STAFF = 50

R = TypeVar("R", bound=wire.Message)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Inside, this process can open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open("/", os.O_PATH) for _ in range(count + 1)]
    for fd in free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def refused(number: int) -> Iterator[None]:
    """What is done inside must fail with this errno."""
    with pytest.raises((OSError, OmfsError)) as caught:
        yield
    assert caught.value.errno == number, caught.value


class FakeSession:
    """As much of net.server.Session as the service looks at."""

    def __init__(self, node_id: int = 2, can_sendfile: bool = False) -> None:
        self.node_id = node_id
        self.key = bytes([node_id]) * 16
        self.data: Any = None
        self.ended = False
        self.bulk = SimpleNamespace(transport=SimpleNamespace(can_sendfile=can_sendfile))


class Asker:
    """A holder that asks the service directly, as one user."""

    def __init__(self, service: ExportService, session: FakeSession, caller: wire.Caller = ROOT) -> None:
        self.service = service
        self.session = session
        self.caller = caller

    def act_as(self, caller: wire.Caller) -> Asker:
        return Asker(self.service, self.session, caller)

    def begin(self, request: wire.Message, bulk: bytes | bytearray = b"") -> Any:
        """What the server gets: the answer, or work that has not begun."""
        return self.service.answer(cast(Session, self.session), cast(Any, request), bulk)

    async def ask(self, request: wire.Message, bulk: bytes | bytearray = b"") -> tuple[wire.Message, Any]:
        answer = self.begin(request, bulk)
        if inspect.iscoroutine(answer):
            answer = await answer
        assert isinstance(answer, tuple)
        return answer

    async def get(self, request: wire.Message, expect: type[R], bulk: bytes | bytearray = b"") -> R:
        reply, _ = await self.ask(request, bulk)
        assert type(reply) is expect
        return reply

    def end(self) -> None:
        self.session.ended = True
        self.service.session_ended(cast(Session, self.session))

    # ------------------------------------------------------------ in fewer words

    async def look_up(self, parent: bytes, name: bytes | str) -> wire.Found:
        return await self.get(wire.LookUp(parent, os.fsencode(name), self.caller), wire.Found)

    async def walk(self, path: Path | str) -> wire.Found:
        """Step by step from the root, as root: the callers' kernel has checked the way already."""
        found = await self.get(wire.AttachTree(ROOT), wire.Found)
        for name in str(path).strip("/").split("/"):
            found = await self.get(wire.LookUp(found.handle, os.fsencode(name), ROOT), wire.Found)
        return found

    async def open(self, handle: bytes, flags: int = os.O_RDONLY, reclaim: bool = False) -> int:
        return (await self.get(wire.OpenFile(handle, flags, self.caller, reclaim), wire.FileOpened)).open_id

    async def create(
        self, parent: bytes, name: bytes | str, flags: int = os.O_RDWR, mode: int = 0o666, umask: int = 0o022
    ) -> wire.FileCreated:
        request = wire.CreateFile(parent, os.fsencode(name), mode, umask, flags, self.caller)
        return await self.get(request, wire.FileCreated)

    async def make_directory(self, parent: bytes, name: bytes | str, mode: int = 0o777) -> wire.Found:
        return await self.get(wire.MakeDirectory(parent, os.fsencode(name), mode, 0o022, self.caller), wire.Found)

    async def remove(self, parent: bytes, name: bytes | str, directory: bool = False) -> None:
        await self.get(wire.RemoveName(parent, os.fsencode(name), directory, self.caller), wire.NamesChanged)

    async def rename(self, parent: bytes, name: str, new_parent: bytes, new_name: str, flags: int = 0) -> None:
        request = wire.RenameName(parent, name.encode(), new_parent, new_name.encode(), flags, self.caller)
        await self.get(request, wire.NamesChanged)

    async def read(self, open_id: int, offset: int = 0, size_bytes: int = 4096) -> bytes:
        reply, bulk = await self.ask(wire.ReadBlocks(open_id, offset, size_bytes))
        assert type(reply) is wire.BlocksRead
        return bytes(bulk)

    async def write(self, open_id: int, offset: int, data: bytes) -> int:
        return (await self.get(wire.WriteBlocks(open_id, offset), wire.BlocksWritten, data)).size_bytes

    async def close(self, open_id: int) -> None:
        await self.get(wire.CloseFile(open_id), wire.Done)

    async def attributes(self, handle: bytes) -> wire.Attributes:
        return (await self.get(wire.GetAttributes(handle), wire.AttributesGot)).attributes

    async def change(self, handle: bytes, **fields: Any) -> wire.Attributes:
        request = wire.SetAttributes(handle, self.caller, **fields)
        return (await self.get(request, wire.AttributesGot)).attributes

    async def list(self, handle: bytes, size_bytes: int = 65536) -> dict[bytes, wire.Entry]:
        """The whole directory, however many requests that takes; no name twice."""
        open_id = (await self.get(wire.OpenDirectory(handle, self.caller), wire.FileOpened)).open_id
        found: dict[bytes, wire.Entry] = {}
        cursor = 0
        while True:
            part = await self.get(wire.ReadDirectory(open_id, cursor, size_bytes), wire.DirectoryRead)
            for entry in part.entries:
                assert entry.name not in found
                found[entry.name] = entry
                cursor = entry.cursor
            if part.at_end:
                break
            assert part.entries
        await self.close(open_id)
        return found


@contextmanager
def serving(state: Path, *trees: Tree) -> Iterator[ExportService]:
    """A service with its key in *state*."""
    service = ExportService(Settings(state_dir=str(state), trees=trees), node_id=1)
    try:
        yield service
    finally:
        service.close()


# ---------------------------------------------------------------- file systems


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """`mount ARGUMENTS place`, taken off whatever happens."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *arguments, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def file_system(kind: str, room: Path) -> Iterator[Path]:
    """A directory on ext4 (a loop-mounted image), tmpfs, or an overlay like a lab node's root (upper layer on ext4)."""
    with ExitStack() as stack:
        if kind == "tmpfs":
            yield stack.enter_context(mounted(room / "tmpfs", "-t", "tmpfs", "omfs-test"))
            return
        image = room / "image"
        with image.open("wb") as file:
            file.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", str(image)], check=True)
        ext4 = stack.enter_context(mounted(room / "ext4", "-o", "loop,acl,user_xattr", str(image)))
        if kind == "ext4":
            yield ext4
            return
        lower = room / "lower"
        (lower / "below").mkdir(parents=True)
        (lower / "below" / "file").write_bytes(b"from the lower layer")
        for layer in ("upper", "work"):
            (ext4 / layer).mkdir()
        options = f"lowerdir={lower},upperdir={ext4 / 'upper'},workdir={ext4 / 'work'},nfs_export=on,index=on"
        yield stack.enter_context(mounted(room / "overlay", "-t", "overlay", "overlay", "-o", options))
