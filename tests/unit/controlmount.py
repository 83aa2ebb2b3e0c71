"""A real FUSE mount with /mfs/proc in it, served through the takers by a thread; the values are a fake's.

The root has "proc" and two plain files, which stand for what is not of /mfs/proc: whatever is asked of them comes to
`asked`.  INIT is answered with the flags of a real mount, so the kernel caches and checks as it does there.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from omfs.kernel import namespaces as ns
from omfs.mount import lowlevel_abi as abi
from omfs.mount.controltree import VIRTUAL_FROM
from omfs.mount.lowlevel import Hook, Passed, Taker
from omfs.mount.taker import taker
from omfs.mount.virtual import Target, VirtualTree, install_virtual

NOBODY: Final = 65534
MNT_FORCE: Final = 1
FORGETS: Final = (2, 42)
DO_READDIRPLUS: Final = 1 << 13
PLAIN: Final = {b"one": 21, b"two": 22}
_ATTRIBUTES: Final = struct.Struct("<6Q10I")


class FakeSource:
    """Remembers what was written.  *fail*: with what reads and writes of a path end; *held*: not before this."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], str] = {}
        self.reads: list[Target] = []
        self.readers: list[int] = []
        self.writes: list[tuple[Target, str, int]] = []
        self.writers: list[int] = []
        self.fail: dict[str, Exception] = {}
        self.held: dict[str, trio.Event] = {}
        self.is_held = threading.Event()

    async def read(self, target: Target, uid: int) -> bytes:
        self.reads.append(target)
        self.readers.append(uid)
        await self._pass(target)
        return self.values.get((target.path, target.pid), f"{target.pid}\n").encode()

    async def write(self, target: Target, text: str, uid: int, by: int) -> None:
        await self._pass(target)
        self.writes.append((target, text, uid))
        self.writers.append(by)
        self.values[target.path, target.pid] = text.removesuffix("\n") + "\n"

    async def _pass(self, target: Target) -> None:
        if target.path in self.held:
            self.is_held.set()
            await self.held[target.path].wait()
        await trio.lowlevel.checkpoint()  # as asking does: other requests come in between
        if target.path in self.fail:
            raise self.fail[target.path]


class ControlMount:
    """Mounted at *top* until `end`."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.proc = top / "proc"
        self.source = FakeSource()
        self.nodes = [1, 2]
        self.asked: list[int] = []
        self.hook = Hook()
        self.hook.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self.virtual = VirtualTree(self.source, lambda: self.nodes)
        for opcode, handler in {
            abi.LOOKUP: self._look_up, abi.GETATTR: self._get_attributes, abi.OPEN: self._open, abi.READ: self._read,
            abi.GETXATTR: self._no_xattr,
        }.items():  # fmt: skip
            self.hook.takers[opcode] = taker("a test's request", handler)
        install_virtual(self.hook, self.virtual)
        options = f"fd={self.hook.fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        ns.mount("test", str(top), "fuse", ns.MS_NOSUID | ns.MS_NODEV, options)
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)
        self._thread.start()
        top.stat()  # answered once INIT was

    def end(self) -> None:
        ns.unmount(str(self.top), ns.MNT_DETACH | MNT_FORCE)  # also where a test that failed left a file open
        self._thread.join()
        os.close(self.hook.fd)

    def start(self, *command: str, user: int = 0) -> subprocess.Popen[str]:
        """In the top directory, which others may not come by.

        By fork: with vfork (without user=), this process would wait for the new one, which waits for our thread.
        """
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.top, user=user, group=user, extra_groups=[], text=True, stdout=pipe, stderr=pipe
        )

    def run(self, command: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        """A shell command, to its end."""
        process = self.start("/bin/sh", "-c", command, user=user)
        out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def written(self) -> list[tuple[str, int, str]]:
        """Paths, pids and texts of the writes so far."""
        return [(target.path, target.pid, text) for target, text, _ in self.source.writes]

    # ------------------------------------------------------------ the rest of the mount

    async def _serve(self) -> None:
        fd = self.hook.fd
        with suppress(OSError):  # ENODEV: unmounted
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        request = os.read(fd, 2 << 20)
                    except BlockingIOError:
                        await trio.lowlevel.wait_readable(fd)
                        continue
                    except OSError:
                        nursery.cancel_scope.cancel()
                        return
                    nursery.start_soon(self._answer, request)

    async def _answer(self, request: bytes) -> None:
        """As loop.py does it: the task that looks at the hook first is the one that waits."""
        hook = self.hook
        _, hook.opcode, hook.unique, hook.node_id, hook.uid, hook.gid, hook.pid = abi.IN_HEADER.unpack_from(request)
        unique = hook.unique
        if hook.opcode in FORGETS:
            return
        if hook.opcode == abi.INIT:
            hook.answer(abi.reply(unique, _init_answer(memoryview(request))))
            return
        if hook.node_id < VIRTUAL_FROM:
            self.asked.append(hook.opcode)
        take: Taker | None = hook.takers.get(hook.opcode)
        taken = Passed() if take is None else take(hook, memoryview(request))
        if isinstance(taken, Passed):
            hook.answer(abi.error_reply(unique, errno.ENOSYS))
        elif taken is not None:
            await taken

    def _attributes(self, number: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if number == 1 else stat.S_IFREG | 0o666
        return _ATTRIBUTES.pack(number, 2, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    async def _look_up(self, request: memoryview, unique: int) -> bytes:
        name = abi.last_name(request)
        if name == b"proc":
            return abi.reply(unique, self.virtual.entry_of_top())
        number = PLAIN.get(name, 0)
        return (
            abi.entry_reply(unique, number, self._attributes(number), 0, 0) if number else abi.absent_reply(unique, 0)
        )

    async def _get_attributes(self, request: memoryview, unique: int) -> bytes:
        return abi.attr_reply(unique, self._attributes(self.hook.node_id), 0)

    async def _open(self, request: memoryview, unique: int) -> bytes:
        return abi.open_reply(unique, 1, abi.FOPEN_DIRECT_IO)

    async def _read(self, request: memoryview, unique: int) -> bytes:
        _, offset, size_bytes = abi.read_in(request)
        return abi.reply(unique, b"1\n"[offset : offset + size_bytes])

    async def _no_xattr(self, request: memoryview, unique: int) -> bytes:
        return abi.error_reply(unique, errno.ENODATA)


def _init_answer(request: memoryview) -> bytes:
    flags = (abi.WANTED_FLAGS | DO_READDIRPLUS) & abi.init_offered(request)
    head = struct.pack("<4IHHIIHHI", 7, 39, 1 << 17, flags & 0xFFFFFFFF, 512, 384, 1 << 20, 1, 256, 0, flags >> 32)
    return head + bytes(64 - len(head))
