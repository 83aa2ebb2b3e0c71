"""/mfs/proc: the requests of the FUSE kernel for node ids from VIRTUAL_FROM on, answered here.

Names, modes and owners come from controltree.py and from /proc; so names can be listed without mignode.  Values come
from a Source: what is read is asked for when a reader begins (at offset 0) and stays the same while it reads on; one
write(2) is one value, at offset 0 or in append mode, and its writer is told what became of it.  Who may, decides the
kernel (default_permissions) by mode and owner, which are told anew for each call; a file is root's, or its process's.

No entry and no attribute is cached but of directories that are always the same.  `self` leads to an object for each
process, for its target is cached for ever (CACHE_SYMLINKS).  ENOSYS is never answered by this room: the kernel would
take it to be said of the whole mount.  Invariants: nothing is awaited between looking at the hook and keeping what is
needed of it; a file of a process that has ended answers ESRCH, also when another one has its pid.

Installed by session.py (`install_virtual`), in front of the other takers; the names in the root are not answered here.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple, Protocol, TypeVar

import trio
from pyfuse3 import FUSEError

from omfs.errors import OmfsError
from omfs.kernel.processes import Identity, identify, owner_of, processes
from omfs.magic import controlfiles
from omfs.mount import controltree as tree, lowlevel_abi as abi, lowlevel_abi_dirs as dirs
from omfs.mount.callers import Callers
from omfs.mount.controltree import VIRTUAL_FROM, Spot
from omfs.mount.handlers import CACHED_S
from omfs.mount.lowlevel import PASSED, Hook, Taken, Taker
from omfs.mount.takenlistings import page_dropper
from omfs.mount.taker import taker
from omfs.wiretypes import Attributes

log = logging.getLogger(__name__)

T = TypeVar("T")

_BLOCK_BYTES: Final = 4096
THREADS_MAX: Final = 256  # that look at processes; one may wait for an execve, which may wait for a silent owner
_NO_UID: Final = -1  # which guests there are is everybody's to know
_NOBODY: Final = Identity(0, 0)  # a caller that is not shown here


class Target(NamedTuple):
    """A control file.  *pid*, *start_ticks*: of the process that it belongs to, in scope "hpc" of the caller."""

    scope: str
    path: str
    pid: int
    start_ticks: int


class Source(Protocol):
    """Where the values are.  Raises OmfsError.  *uid*: who asks; *by*: the thread that writes, 0 if not shown here."""

    async def read(self, target: Target, uid: int) -> bytes: ...
    async def write(self, target: Target, text: str, uid: int, by: int) -> None: ...


class _Open:
    """An open control file, and what its reader reads."""

    def __init__(self, spot: Spot) -> None:
        self.spot = spot
        self.text: bytes | None = None


Handler = Callable[[Hook, memoryview, int], Awaitable[bytes]]
"""(hook, request, unique) -> the answer."""


class VirtualTree:
    """Answers for one mount."""

    def __init__(self, source: Source, nodes: Callable[[], Iterable[int]]) -> None:
        """*nodes*: the ids of all nodes, for hpc/nodes."""
        self._source = source
        self._nodes = nodes
        self._files: dict[int, _Open] = {}
        self._next_file = 1
        self._began_ns = time.time_ns()
        self._callers = Callers()
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self._waiting: dict[int, tuple[int, trio.CancelScope]] = {}  # by request: the thread, and how to end it
        self.drop_listing: Callable[[int], Awaitable[None]] = _not_cached
        self.handlers: dict[int, Handler] = {
            abi.LOOKUP: self._look_up,
            abi.GETATTR: self._get_attributes,
            abi.SETATTR: self._set_attributes,
            abi.READLINK: self._read_link,
            abi.OPEN: self._open,
            abi.READ: self._read,
            abi.WRITE: self._write,
            abi.RELEASE: self._release,
            abi.STATFS: self._stat_filesystem,
            abi.LISTXATTR: self._list_xattrs,
            dirs.READDIR: self._read_directory,
            dirs.READDIRPLUS: self._read_directory,
            **{opcode: _done for opcode in (abi.FLUSH, abi.FSYNC, dirs.FSYNCDIR, abi.ACCESS)},
            **{opcode: functools.partial(_refused, number) for opcode, number in _REFUSALS.items()},
        }

    def entry_of_top(self) -> bytes:
        """What the kernel is told of "proc" in the root (struct fuse_entry_out), for `abi.reply`."""
        top = Spot(tree.TOP)
        return dirs.known_entry(top.node_id, self._told(top, (0, 0)), CACHED_S, CACHED_S)

    async def _identify(self, thread: int) -> Identity | None:
        return await self._aside(identify, thread)

    async def _aside(self, look: Callable[..., T], *arguments: object) -> T:
        """Who looks at a process may have to wait for it, and it for this mount (kernel/processes.py)."""
        return await trio.to_thread.run_sync(look, *arguments, limiter=self._threads, abandon_on_cancel=True)

    # ------------------------------------------------------------ names and attributes

    async def _look_up(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        directory, name, thread = tree.spot_of(hook.node_id), abi.last_name(request), hook.pid
        found = await self._find(directory, name, thread, unique)
        if found is None:
            raise FUSEError(errno.ENOENT)
        valid_s = CACHED_S if found.kind in tree.UNCHANGING else 0
        return abi.entry_reply(unique, found.node_id, await self._attributes(found), valid_s, valid_s)

    async def _find(self, directory: Spot, name: bytes, thread: int, unique: int) -> Spot | None:
        found = tree.named(directory, name)
        if found is not None:
            # The caller waits for us, so it is in no execve, and is looked at without a thread: many ask at once.
            return found if found.kind != tree.SELF else _of_process(tree.SELF, identify(thread))
        number = tree.number_of(name)
        if directory.kind == tree.TOP:
            identity = await self._identify(number) if number else None
            return _of_process(tree.PROCESS, identity) if identity and identity.pid == number else None
        if number and number in await self._numbers(directory, thread, unique):
            return Spot(tree.NUMBERED[directory.kind], number)
        return None

    async def _numbers(self, directory: Spot, thread: int, unique: int) -> Iterable[int]:
        match directory.kind:
            case tree.TOP:
                return processes()
            case tree.NODES:
                return self._nodes()
            case tree.GUESTS:
                asker = await self._identify(thread) or _NOBODY
                target = Target(controlfiles.HPC, controlfiles.GUESTS, *asker)
                try:
                    lines = await self._value(self._source.read(target, _NO_UID), thread, unique)
                except OmfsError as error:  # mignode knows of none, or does not run: then there are none
                    log.debug("guests: %s", error)
                    return ()
                return {tree.number_of(line) for line in lines.splitlines()} - {0}
        return ()

    async def _attributes(self, spot: Spot) -> bytes:
        """struct fuse_attr.  Raises FUSEError: ESRCH."""
        return self._told(spot, await self._aside(_owner_of, spot) if spot.of_process else (0, 0))

    def _told(self, spot: Spot, owner: tuple[int, int]) -> bytes:
        uid, gid = owner
        links, at_ns = 2 if stat.S_ISDIR(spot.mode) else 1, self._began_ns
        told = Attributes(spot.mode, links, uid, gid, 0, 0, 0, _BLOCK_BYTES, at_ns, at_ns, at_ns, spot.inode)
        return abi.attributes(spot.inode, told)

    async def _get_attributes(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        hook.next_answers.pop(hook.pid, None)  # justtold.py: that was for this request, had it been for another object
        return abi.attr_reply(unique, await self._attributes(tree.spot_of(hook.node_id)), 0)

    async def _set_attributes(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        """Sizes (`echo >` truncates) and times are accepted, as in procfs, and not kept."""
        if abi.setattr_valid(request) & (abi.SETATTR_MODE | abi.SETATTR_UID | abi.SETATTR_GID):
            raise FUSEError(errno.EPERM)
        return abi.attr_reply(unique, await self._attributes(tree.spot_of(hook.node_id)), 0)

    async def _read_link(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        return abi.reply(unique, b"%d" % tree.spot_of(hook.node_id).number)

    async def _read_directory(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        node_id, thread, is_plus = hook.node_id, hook.pid, hook.opcode == dirs.READDIRPLUS
        _, offset, size_bytes = abi.read_in(request)
        directory, reply = tree.spot_of(node_id), dirs.DirectoryReply(size_bytes, is_plus)
        for entry in tree.listing(directory, await self._numbers(directory, thread, unique), offset):
            if not reply.add(entry.inode, entry.mode >> 12, entry.name, entry.position):
                break
        if not len(reply) and directory.kind not in tree.LISTED_ALIKE:
            await self.drop_listing(node_id)
        return reply.message(unique)

    async def _stat_filesystem(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        return abi.empty_statfs_reply(unique)

    async def _list_xattrs(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        return abi.no_xattrs_reply(unique, abi.xattr_room_bytes(request))

    # ------------------------------------------------------------ values

    async def _open(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        spot, how = tree.spot_of(hook.node_id), abi.open_flags(request) & os.O_ACCMODE
        file = spot.file
        assert file is not None  # a directory is opened by OPENDIR
        if (how != os.O_WRONLY and not file.is_readable) or (how != os.O_RDONLY and not file.is_writable):
            raise FUSEError(errno.EACCES)  # for root, too: the kernel asks only whether others may
        fh, self._next_file = self._next_file, self._next_file + 1
        self._files[fh] = _Open(spot)
        return abi.open_reply(unique, fh, abi.FOPEN_DIRECT_IO)

    async def _release(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        self._files.pop(abi.file_number(request), None)
        return abi.reply(unique)

    async def _read(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        thread, uid, (fh, offset, size_bytes) = hook.pid, hook.uid, abi.read_in(request)
        file = self._files[fh]
        target = await self._aside(_target, file.spot, thread)
        if file.text is None or not offset:
            file.text = await self._value(self._source.read(target, uid), thread, unique)
        return abi.reply(unique, file.text[offset : offset + size_bytes])

    async def _write(self, hook: Hook, request: memoryview, unique: int) -> bytes:
        thread, uid, write = hook.pid, hook.uid, abi.write_in(request)
        spot = self._files[write.fh].spot
        data = request[abi.WRITE_HEADER_BYTES : abi.WRITE_HEADER_BYTES + write.size_bytes]
        continues = write.offset and not write.open_flags & os.O_APPEND
        # What comes from the page cache (a shared mapping) says nothing of who wrote it.
        if continues or write.write_flags & abi.WRITE_FROM_CACHE:
            raise FUSEError(errno.EINVAL)
        assert spot.file is not None
        try:
            text = bytes(data).decode()
            spot.file.kind.parse(text)
        except ValueError as error:
            log.debug("%s: %s", spot.file.name, error)
            raise FUSEError(errno.EINVAL) from None
        target = await self._aside(_target, spot, thread)
        await self._value(self._source.write(target, text, uid, thread), thread, unique)
        return abi.write_reply(unique, write.size_bytes)

    async def _value(self, asking: Awaitable[T], thread: int, unique: int) -> T:
        """Wait for the Source; where the caller is killed, no longer."""
        with trio.CancelScope() as scope:
            self._waiting[unique] = thread, scope
            try:
                return await asking
            finally:
                del self._waiting[unique]
        raise FUSEError(errno.EINTR)

    def interrupt(self, unique: int) -> bool:
        """A signal came for who made this request; whether it is one of ours."""
        if unique not in self._waiting:
            return False
        thread, scope = self._waiting[unique]
        if self._callers.is_being_killed(thread):
            scope.cancel()
        return True


def _of_process(kind: int, identity: Identity | None) -> Spot | None:
    return None if identity is None else Spot(kind, identity.pid, tree.ticks_of(identity.start_ticks))


def _process_of(spot: Spot) -> Identity:
    """The process that an object belongs to.  Raises FUSEError: ESRCH."""
    identity = identify(spot.number)
    if identity is None or identity.pid != spot.number or tree.ticks_of(identity.start_ticks) != spot.ticks:
        raise FUSEError(errno.ESRCH)
    return identity


def _owner_of(spot: Spot) -> tuple[int, int]:
    """User and group.  Raises FUSEError: ESRCH."""
    try:
        return owner_of(_process_of(spot))
    except ProcessLookupError:
        raise FUSEError(errno.ESRCH) from None


def _target(spot: Spot, thread: int) -> Target:
    identity = _process_of(spot) if spot.of_process else identify(thread) or _NOBODY
    return Target(*tree.address_of(spot), *identity)


async def _not_cached(node_id: int) -> None:
    """Of a listing that no kernel has."""


async def _done(hook: Hook, request: memoryview, unique: int) -> bytes:
    return abi.reply(unique)


async def _refused(number: int, hook: Hook, request: memoryview, unique: int) -> bytes:
    return abi.error_reply(unique, number)


_REFUSALS: Final = {  # as procfs does, but for its memory-only locks
    abi.CREATE: errno.ENOENT,
    abi.MKNOD: errno.ENOENT,
    abi.MKDIR: errno.ENOENT,
    abi.SYMLINK: errno.ENOENT,
    abi.LINK: errno.ENOENT,
    abi.UNLINK: errno.EPERM,
    abi.RMDIR: errno.EPERM,
    abi.RENAME: errno.EPERM,
    abi.RENAME2: errno.EPERM,
    abi.GETXATTR: errno.ENODATA,  # EOPNOTSUPP of an ACL would refuse every access
    abi.SETXATTR: errno.EOPNOTSUPP,
    abi.REMOVEXATTR: errno.EOPNOTSUPP,
    abi.FALLOCATE: errno.EOPNOTSUPP,
    abi.LSEEK: errno.EINVAL,  # SEEK_DATA, SEEK_HOLE
    abi.COPY_FILE_RANGE: errno.EXDEV,  # the kernel reads and writes instead
    abi.COPY_FILE_RANGE_64: errno.EXDEV,
    abi.GETLK: errno.ENOLCK,
    abi.SETLK: errno.ENOLCK,
    abi.SETLKW: errno.ENOLCK,
}
_OTHERS: Final[dict[int, Callable[[memoryview], int]]] = {
    abi.LINK: abi.other_node_id,
    abi.RENAME: abi.other_node_id,
    abi.RENAME2: abi.other_node_id,
    abi.COPY_FILE_RANGE: lambda request: abi.copy_in(request).target_node_id,
    abi.COPY_FILE_RANGE_64: lambda request: abi.copy_in(request).target_node_id,
}
"""Requests that name a second object."""


# ---------------------------------------------------------------- between kernel and tree


def install_virtual(hook: Hook, virtual: VirtualTree) -> None:
    """Let *virtual* answer what is for its node ids; everything else goes where it went before."""
    virtual.drop_listing = page_dropper(hook)
    for opcode, handler in virtual.handlers.items():
        then = hook.takers.get(opcode, _pass)
        if opcode in _OTHERS:
            then = _within(_OTHERS[opcode], then)
        name = f"request {opcode} in /mfs/proc"
        hook.takers[opcode] = _divided(taker(name, functools.partial(handler, hook)), then)
    hook.takers[abi.INTERRUPT] = _interrupting(virtual, hook.takers.get(abi.INTERRUPT, _pass))


def _divided(ours: Taker, then: Taker) -> Taker:
    def take(hook: Hook, request: memoryview) -> Taken:
        return ours(hook, request) if hook.node_id >= VIRTUAL_FROM else then(hook, request)

    return take


def _within(other: Callable[[memoryview], int], then: Taker) -> Taker:
    """For an object outside of /mfs/proc: the other one must be so, too."""

    def take(hook: Hook, request: memoryview) -> Taken:
        if other(request) < VIRTUAL_FROM:
            return then(hook, request)
        hook.answer(abi.error_reply(hook.unique, errno.EXDEV))
        return None

    return take


def _interrupting(virtual: VirtualTree, then: Taker) -> Taker:
    def take(hook: Hook, request: memoryview) -> Taken:
        return None if virtual.interrupt(abi.interrupted_unique(request)) else then(hook, request)

    return take


def _pass(hook: Hook, request: memoryview) -> Taken:
    return PASSED
