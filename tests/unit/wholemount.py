"""A node with its whole mount but FUSE and the network: programs' calls -> a small kernel -> takers -> a real owner.

`Node` has what a mount daemon has, joined to the owner of leaseroom.py without a line between them: requests are
executed at once, recalls arrive in order and are answered by the mount itself.  Its `Kernel` asks as Linux does: a
directory's attributes before any name in it, a LOOKUP for a name that it does not know, ACLs where somebody looks.
*asked* is what the owner was asked.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import trio
from pyfuse3 import FUSEError

from omfs import wire
from omfs.errors import NameAbsent, OmfsError, RemoteFailure
from omfs.kernel.fusenotify import Notifier
from omfs.mount import lowlevel_abi as abi, lowlevel_abi_dirs as dirs
from omfs.mount.inodes import directory_id
from omfs.mount.lowlevel import Hook, Passed
from omfs.mount.operations import Operations
from omfs.mount.remote import RemoteNode
from omfs.mount.takenlistings import install_listing_takers
from omfs.mount.takenops import install_takers
from omfs.net.peer import Peer
from omfs.net.server import Session
from tests.unit.kerneldirectory import parse
from tests.unit.leaseroom import HoldingSession, Room

OWNER: Final = 9
ACL: Final = b"system.posix_acl_access"
MKDIR, UNLINK, RMDIR, RENAME2, CREATE = abi.MKDIR, abi.UNLINK, abi.RMDIR, abi.RENAME2, abi.CREATE
_OUT: Final = struct.Struct("<IiQ")
_ENTRY: Final = struct.Struct("<QQQQII")


class Line:
    """The owner as a Peer, without a network.

    *held*: requests of this kind reach the owner when the event is set.  *late*: answers to them are taken then.
    """

    node_id = OWNER
    epoch = 0
    silent_s = 0.0
    state = "up"
    linger = None
    on_recall = on_recall_seen = on_lapse = None

    def __init__(self, room: Room, session: HoldingSession, nursery: trio.Nursery) -> None:
        self.asked: list[wire.Message] = []
        self.held: dict[type, trio.Event] = {}
        self.late: dict[type, trio.Event] = {}
        self.fail: dict[type, OmfsError] = {}
        self.lease_round = 1
        self._room = room
        self._session = session
        self._nursery = nursery
        session.ask_soon = self._recalled  # type: ignore[method-assign]

    async def call(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        return (await self.call_for_bulk(request, expect, bulk))[0]

    async def call_for_bulk(self, request: Any, expect: Any, bulk: Any = b"") -> Any:
        self.asked.append(request)
        if type(request) in self.held:
            await self.held[type(request)].wait()
        try:
            answer = self._room.under.answer(cast(Session, self._session), request, bulk)
            if not isinstance(answer, tuple):
                answer = await answer
        except (OSError, OmfsError) as error:
            raise RemoteFailure(error.errno or errno.EIO) from None
        if type(request) in self.late:
            await self.late[type(request)].wait()
        if type(request) in self.fail:
            raise self.fail[type(request)]
        reply, data = answer
        if isinstance(reply, wire.NameMissing):
            raise NameAbsent(reply.serial, reply.parent_mode)
        if isinstance(reply, wire.Failed):
            raise RemoteFailure(reply.errno)
        assert isinstance(reply, expect)
        return reply, data

    def _recalled(self, recall: wire.Recall, on_answer: Callable[[bool], None]) -> None:
        self._session.seen.append(recall)
        self.on_recall_seen(recall)  # type: ignore[misc]
        self._nursery.start_soon(self._recall, recall, on_answer)

    async def _recall(self, recall: wire.Recall, on_answer: Callable[[bool], None]) -> None:
        await self.on_recall(recall)  # type: ignore[misc]
        on_answer(True)


class Kernel:
    """What the kernel has cached of the mount, and the calls that programs make."""

    def __init__(self, hook: Hook, operations: Operations) -> None:
        self.attributes: dict[int, bytes] = {}  # struct fuse_attr, while valid
        self.names: dict[tuple[int, bytes], int] = {}  # node ids, 0: absent
        self.locks: dict[int, threading.Event] = {}  # directories that are locked, by who holds them, until it is set
        self.lag: trio.Event | None = None  # who made a file takes the answer then
        self._threads: dict[trio.lowlevel.Task, int] = {}
        self._hook = hook
        self._operations = operations
        self._answers: dict[int, bytes] = {}
        self._unique = 0
        hook.answer = self._answered  # type: ignore[method-assign]

    def stand_for(self, thread: int) -> None:
        """What this task asks from now on is asked by that thread."""
        self._threads[trio.lowlevel.current_task()] = thread

    def _answered(self, message: bytes) -> None:
        self._answers[_OUT.unpack_from(message)[2]] = message

    # ------------------------------------------------------------ what it is told to forget

    def inval_inode(self, number: int, offset: int = 0, size_bytes: int = 0) -> bool:
        return self.inval_attributes(number)

    def inval_attributes(self, number: int) -> bool:
        self.attributes.pop(number, None)
        return True

    def inval_entry(self, parent: int, name: bytes, expire: bool = False) -> bool:
        if parent in self.locks:
            self.locks[parent].wait()
        self.names.pop((parent, name), None)
        return True

    # ------------------------------------------------------------ requests

    async def ask(self, opcode: int, number: int, body: bytes = b"") -> bytes:
        """The answer behind its header; OSError."""
        hook = self._hook
        self._unique += 1
        unique = hook.unique = self._unique
        hook.opcode, hook.node_id, hook.uid, hook.gid = opcode, number, 0, 0
        hook.pid = self._threads.get(trio.lowlevel.current_task(), 0)
        if hook.pid in hook.on_next:
            hook.on_next.pop(hook.pid)()
        request = memoryview(bytes(abi.IN_HEADER_BYTES) + body)
        hook.request = request
        taken = hook.takers[opcode](hook, request)
        if isinstance(taken, Passed):
            return await self._pass(opcode, number, request)
        if taken is not None:
            await taken
        message = self._answers.pop(unique)
        _, error, _ = _OUT.unpack_from(message)
        if error:
            raise OSError(-error, os.strerror(-error))
        return message[_OUT.size :]

    async def _pass(self, opcode: int, number: int, request: memoryview) -> bytes:
        assert opcode == abi.GETXATTR
        try:
            return await self._operations.getxattr(number, abi.xattr_name(request), cast(Any, self._hook))
        except FUSEError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from None

    # ------------------------------------------------------------ calls of programs

    async def stat(self, number: int) -> tuple[Any, ...]:
        """(ino, size, blocks, atime, mtime, ctime s, their ns, mode, nlink ...)."""
        attr = self.attributes.get(number)
        if attr is None:
            answer = await self.ask(abi.GETATTR, number, bytes(16))
            attr = answer[16:]
            if struct.unpack_from("<Q", answer)[0]:
                self.attributes[number] = attr
        return struct.unpack("<QQQqqqIIIIIIIIII", attr)

    async def permit(self, directory: int) -> None:
        if directory != directory_id(OWNER):
            await self.stat(directory)

    async def look_up(self, directory: int, name: bytes) -> int:
        """The node id; FileNotFoundError."""
        await self.permit(directory)
        number = self.names.get((directory, name))
        if number is None:
            answer = await self.ask(abi.LOOKUP, directory, name + b"\0")
            number = self._learn(directory, name, answer)
        if not number:
            raise FileNotFoundError(errno.ENOENT, "absent")
        return number

    def _learn(self, directory: int, name: bytes, answer: bytes) -> int:
        number, _, entry_s, attr_s, _, _ = _ENTRY.unpack_from(answer)
        self.names.pop((directory, name), None)
        if entry_s:
            self.names[directory, name] = number
        self.attributes.pop(number, None)
        if attr_s:
            self.attributes[number] = answer[40:128]
        return int(number)

    async def is_there(self, directory: int, name: bytes) -> bool:
        try:
            return bool(await self.look_up(directory, name))
        except FileNotFoundError:
            return False

    async def walk(self, path: Path) -> int:
        number = directory_id(OWNER)
        for name in str(path).strip("/").split("/"):
            number = await self.look_up(number, os.fsencode(name))
        return number

    async def make(self, directory: int, name: bytes, data: bytes = b"") -> int:
        """creat(2), write(2) of *data* if there are any, close(2)."""
        await self.is_there(directory, name)
        body = struct.pack("<IIII", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, 0o022, 0) + name + b"\0"
        answer = await self.ask(CREATE, directory, body)
        if self.lag is not None:
            await self.lag.wait()
        self.attributes.pop(directory, None)
        number = self._learn(directory, name, answer)
        (fh,) = struct.unpack_from("<Q", answer, 128)
        if data:
            head = struct.pack("<QQIIQII", fh, 0, len(data), 0, 0, os.O_WRONLY, 0)
            await self.ask(abi.WRITE, number, head + data)
        await self.ask(abi.RELEASE, number, struct.pack("<QIIQ", fh, 0, 0, 0))
        return number

    async def make_directory(self, directory: int, name: bytes) -> int:
        await self.is_there(directory, name)
        answer = await self.ask(MKDIR, directory, struct.pack("<II", 0o755, 0o022) + name + b"\0")
        self.attributes.pop(directory, None)
        return self._learn(directory, name, answer)

    async def remove(self, directory: int, name: bytes) -> None:
        """unlink(2) or rmdir(2)."""
        number = await self.look_up(directory, name)
        is_directory = stat.S_ISDIR((await self.stat(number))[9])
        await self.ask(RMDIR if is_directory else UNLINK, directory, name + b"\0")
        self.inval_attributes(directory)
        self.inval_attributes(number)
        self.names.pop((directory, name), None)

    async def rename(self, directory: int, name: bytes, new_directory: int, new_name: bytes) -> None:
        number = await self.look_up(directory, name)
        await self.is_there(new_directory, new_name)
        body = struct.pack("<QII", new_directory, 0, 0) + name + b"\0" + new_name + b"\0"
        await self.ask(RENAME2, directory, body)
        for one in (directory, new_directory, number):
            self.inval_attributes(one)
        self.names.pop((new_directory, new_name), None)
        if (directory, name) in self.names:
            self.names[new_directory, new_name] = self.names.pop((directory, name))

    async def has_acl(self, number: int) -> bool:
        try:
            return bool(await self.ask(abi.GETXATTR, number, struct.pack("<II", 0, 0) + ACL + b"\0"))
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return False

    async def list_long(self, directory: int, size_bytes: int = 4096) -> list[bytes]:
        """ls -l: as many names as come at once, attributes and ACL of each of these, and so on."""
        await self.permit(directory)
        names: list[bytes] = []
        offset = 0
        while entries := parse(await self._read_directory(directory, offset, size_bytes), plus=True):
            offset = entries[-1].off
            some = [entry.name for entry in entries if entry.name not in (b".", b"..")]
            for name in some:
                number = await self.look_up(directory, name)
                await self.stat(number)
                await self.has_acl(number)
            names += some
        return names

    async def _read_directory(self, directory: int, offset: int, size_bytes: int) -> bytes:
        body = struct.pack("<QQIIQII", 0, offset, size_bytes, 0, 0, 0, 0)
        answer = await self.ask(dirs.READDIRPLUS, directory, body)
        at = 0
        for entry in parse(answer, plus=True):
            if entry.node_id:
                self._learn(directory, entry.name, answer[at : at + 128])
            at += 128 + entry.size_bytes
        return answer


class Node:
    """A mount; its `kernel` makes the calls."""

    def __init__(self, room: Room, node_id: int, nursery: trio.Nursery) -> None:
        _, self.session = room.holder(node_id)
        self.line = Line(room, self.session, nursery)
        self.remote = RemoteNode(cast(Peer, self.line))
        self.hook = Hook()
        self.hook.flags = abi.NO_OPENDIR_SUPPORT
        self.operations = Operations(self.hook, {OWNER: self.remote})
        self.kernel = Kernel(self.hook, self.operations)
        self.operations.recaller.attach(cast(Notifier, self.kernel))
        install_takers(self.hook, self.operations)
        install_listing_takers(self.hook, self.operations)
        self.operations.listings.on_uncached = self._nothing_to_drop
        nursery.start_soon(self.operations.recaller.run)
        nursery.start_soon(self.operations.ahead.run)

    async def _nothing_to_drop(self, number: int) -> None:
        """The listing is not cached by this kernel."""

    def asked(self) -> dict[str, int]:
        """How often the owner was asked for what, since the last call; closes are together and later."""
        counts: dict[str, int] = {}
        for request in self.line.asked:
            kind = type(request).__name__
            counts[kind] = counts.get(kind, 0) + 1
        self.line.asked.clear()
        return counts
