"""The FUSE operations that pyfuse3 does not know, taken out of its stream by the hook: locks, fallocate, lseek,
copy_file_range; WRITE, because pyfuse3 drops its flags and copies its data; and the most frequent ones (LOOKUP,
GETATTR, OPEN, small READ, FLUSH without locks, RELEASE, and those that make, move and remove names), because the
short road saves a tenth of their time.

Each handler reads the kernel's own request and sends the kernel's own answer (lowlevel_abi.py).  The request stays
intact until the handler has ended.  Called by the hook, run by loop.py.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from omfs.errors import NameAbsent
from omfs.mount import lowlevel_abi as abi
from omfs.mount.flights import in_flight
from omfs.mount.handlers import CACHED_S, Foundation
from omfs.mount.inodes import FIRST_OBJECT_ID, ROOT_ID
from omfs.mount.justtold import JustTold
from omfs.mount.lowlevel import PASSED, Hook, Taken, Taker
from omfs.mount.opening import create_file
from omfs.mount.operations_files import FileOperations
from omfs.mount.ranges import Range
from omfs.mount.taker import taker
from omfs.mount.unasked import answer_unasked

log = logging.getLogger(__name__)

_FLOCK_OPERATIONS: Final = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}

Handler = Callable[[FileOperations, memoryview, int], Awaitable[bytes]]
"""(operations, request, unique) -> the answer."""


async def _write(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    write = abi.write_in(request)
    file = operations.files[write.fh]
    data = request[abi.WRITE_HEADER_BYTES : abi.WRITE_HEADER_BYTES + write.size_bytes]
    async with operations.writing(file, write):
        size_bytes = await file.unsent.write(
            _place(write),
            data,
            _kills_set_id(write),
            may_ask=not write.write_flags & abi.WRITE_FROM_CACHE,
            must_arrive=_is_synchronous(write),
        )
    return abi.write_reply(unique, size_bytes)


def _take_write(operations: FileOperations, write_slowly: Taker) -> Taker:
    def take_write(hook: Hook, request: memoryview) -> Taken:
        """Under an EXCLUSIVE lease a write is answered here, unless something must be waited for."""
        write = abi.write_in(request)
        file = operations.files.get(write.fh)
        if file is None or file.inode is None or _is_synchronous(write):
            return write_slowly(hook, request)
        if not write.write_flags & abi.WRITE_FROM_CACHE and not operations.is_alone(file):
            return write_slowly(hook, request)
        unsent = file.unsent
        if unsent.has_failed or not unsent.is_allowed or not unsent.has_room(write.size_bytes):
            return write_slowly(hook, request)
        data = request[abi.WRITE_HEADER_BYTES : abi.WRITE_HEADER_BYTES + write.size_bytes]
        is_ready = unsent.put(_place(write), data, _kills_set_id(write))
        file.inode.broken()
        hook.answer(abi.write_reply(hook.unique, write.size_bytes))
        return _let_senders_run() if is_ready else None

    return take_write


async def _let_senders_run() -> None:
    await trio.lowlevel.checkpoint()  # else a row of large writes would leave them no time


def _place(write: abi.WriteIn) -> int | None:
    """Where it goes; None: to the end of the file.

    By the flags of now, not of open(2): fcntl(F_SETFL) may have changed O_APPEND.  What comes from the page cache (a
    shared mmap) has its place.
    """
    appends = write.open_flags & os.O_APPEND and not write.write_flags & abi.WRITE_FROM_CACHE
    return None if appends else write.offset


def _is_synchronous(write: abi.WriteIn) -> bool:
    """O_SYNC, O_DSYNC, or a mount with -o sync: the kernel says so with each write."""
    return bool(write.open_flags & os.O_DSYNC)


def _kills_set_id(write: abi.WriteIn) -> bool:
    return bool(write.write_flags & abi.WRITE_KILL_SUIDGID)


async def _flush(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    await operations.files[abi.file_number(request)].settle()
    return abi.reply(unique)


def _look_up(just_told: JustTold) -> Handler:
    async def look_up(operations: FileOperations, request: memoryview, unique: int) -> bytes:
        hook = operations.hook
        thread, name, caller = hook.pid, abi.last_name(request), operations.callers.caller(hook)
        parent = operations.object(hook.node_id)
        node, handle = await operations.place(hook.node_id)
        try:
            found = await node.look_up(handle, name, caller)
            known = operations.inodes.known(node, found.handle)
            if known is not None:
                await operations.recaller.wait_settled(known)
            told = operations.found(parent, name, found)
            operations.ahead.missed(parent, caller)
        except NameAbsent as absent:
            absent_s = operations.absent_s(parent, name, absent)
            operations.ahead.missed_absent(parent, caller)
            if not absent_s:
                raise
            return abi.absent_reply(unique, absent_s)
        attr = abi.attributes(told.number, told.attributes)
        if told.was_known and told.entry_s:
            operations.recaller.looked_up(parent.id, name)
        if not told.attr_s:
            just_told.note(thread, told.number, attr)
        return abi.entry_reply(unique, told.number, attr, told.entry_s, told.attr_s)

    return look_up


async def _get_attributes(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    inode, fh = operations.inodes.get(operations.hook.node_id), abi.getattr_file_number(request)
    thread = operations.hook.pid
    assert inode.handle is not None  # the directory of a node is not taken
    if in_flight(inode, thread):
        await operations.flights.wait_landed(inode, thread)
        known = operations.attributes_unasked(inode)  # by the answer to the call that was in flight
        if known is not None:
            return abi.attr_reply(unique, abi.attributes(inode.id, known), 0 if inode.flights else CACHED_S)
    if inode.forgetting:
        await operations.recaller.wait_forgotten(inode, thread)
    got = await inode.owner.get_attributes(inode.handle)
    await operations.recaller.wait_settled(inode)
    if fh is not None and operations.is_cached(fh):
        await operations.recaller.grow(inode, got.attributes.size_bytes)
    return abi.attr_reply(unique, abi.attributes(inode.id, got.attributes), operations.attributes_s(inode, got))


async def _remove(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    hook = operations.hook
    await operations.remove(
        hook.node_id, abi.last_name(request), hook.opcode == abi.RMDIR, operations.callers.caller(hook), hook.pid
    )
    return abi.reply(unique)


async def _rename(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    hook = operations.hook
    wanted = abi.rename_in(request) if hook.opcode == abi.RENAME else abi.rename2_in(request)
    caller, thread = operations.callers.caller(hook), hook.pid
    await operations.move(hook.node_id, wanted.name, wanted.new_parent, wanted.new_name, wanted.flags, caller, thread)
    return abi.reply(unique)


def _make_directory(just_told: JustTold) -> Handler:
    async def make_directory(operations: FileOperations, request: memoryview, unique: int) -> bytes:
        hook = operations.hook
        thread, number = hook.pid, hook.node_id
        wanted, caller = abi.mkdir_in(request), operations.callers.caller(hook)
        parent = operations.object(number)
        node, handle = await operations.place(number)
        making = node.make_directory(handle, wanted.name, stat.S_IMODE(wanted.mode), wanted.umask, caller)
        found = await operations.changing_names(making, thread, (number, wanted.name))
        told = operations.made(parent, wanted.name, found)
        attr = abi.attributes(told.number, told.attributes)
        just_told.note(thread, told.number, attr)  # who makes a directory goes into it
        return abi.entry_reply(unique, told.number, attr, told.entry_s, told.attr_s)

    return make_directory


def _create(just_told: JustTold) -> Handler:
    async def create(operations: FileOperations, request: memoryview, unique: int) -> bytes:
        hook = operations.hook
        thread, number = hook.pid, hook.node_id
        wanted, caller = abi.create_in(request), operations.callers.caller(hook)
        parent = operations.object(number)
        node, handle = await operations.place(number)
        creating = create_file(node, handle, wanted.name, wanted.mode, wanted.umask, wanted.flags, caller)
        opened = await operations.changing_names(creating, thread, (number, wanted.name))
        told, fh = await operations.create_number(parent, wanted.name, opened)
        attr = abi.attributes(told.number, told.attributes)
        just_told.note(thread, told.number, attr)  # the kernel checks access to what it has just made
        return abi.create_reply(unique, told.number, attr, told.entry_s, fh)

    return create


async def _release(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    file = operations.files.pop(abi.file_number(request), None)
    if file is not None:
        await file.close()
    return abi.reply(unique)


def _take_release(operations: FileOperations) -> Taker:
    release_slowly = _taker(operations, _release)

    def take_release(hook: Hook, request: memoryview) -> Taken:
        """A file that was only read is closed here, without a task."""
        number = abi.file_number(request)
        file = operations.files.get(number)
        if file is not None:
            if not file.closes_at_once:
                return release_slowly(hook, request)
            del operations.files[number]
            file.close_here()
        hook.answer(abi.reply(hook.unique))
        return None

    return take_release


async def _open(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    hook = operations.hook
    fh, flags = await operations.open_number(hook.node_id, abi.open_flags(request), hook)
    return abi.open_reply(unique, fh, flags)


async def _read(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    fh, offset, size_bytes = abi.read_in(request)
    reading = operations.read_blocks(operations.files[fh], offset, size_bytes, abi.read_fills_pages(request))
    return abi.reply(unique, bytes(await reading))


async def _set_lock(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    wait = operations.hook.opcode == abi.SETLKW
    lock = abi.lock_in(request)
    file = operations.files[lock.fh]
    if lock.lock_flags & abi.LOCK_IS_FLOCK:
        await file.locks.lock_file(_FLOCK_OPERATIONS[lock.kind], wait)
    else:
        new = Range(lock.start, lock.end, lock.kind, lock.pid)
        moving = None if lock.kind == fcntl.F_UNLCK else operations.moving_locks.moving(lock.pid)
        await file.locks.lock_range(lock.owner, new, wait, moving)
    return abi.reply(unique)


async def _get_lock(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    lock = abi.lock_in(request)
    file = operations.files[lock.fh]
    if operations.moving_locks.is_mark(file, lock.owner, lock.start):
        return abi.lock_reply(unique, lock.start, lock.end, fcntl.F_UNLCK, 0)
    found = await file.locks.probe_range(lock.owner, lock.kind, lock.start, lock.end)
    return abi.lock_reply(unique, found.start, found.end, found.kind, found.pid)


async def _fallocate(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    wanted = abi.fallocate_in(request)
    file = operations.files[wanted.fh]
    async with operations.changing_data(file):
        await file.allocate(wanted.mode, wanted.offset, wanted.size_bytes)
    return abi.reply(unique)


async def _lseek(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    wanted = abi.lseek_in(request)
    return abi.number_reply(unique, await operations.files[wanted.fh].seek(wanted.offset, wanted.whence))


async def _copy_range(operations: FileOperations, request: memoryview, unique: int) -> bytes:
    is_64 = operations.hook.opcode == abi.COPY_FILE_RANGE_64
    wanted = abi.copy_in(request)
    source, target = operations.files[wanted.source_fh], operations.files[wanted.target_fh]
    Foundation.same_node(source.node, target.node)  # EXDEV: the kernel or the program copies
    size_bytes = min(wanted.size_bytes, _COPY_MAX_BYTES)
    async with operations.changing_data(target):
        copied = await source.copy_to(wanted.source_offset, target, wanted.target_offset, size_bytes)
    return abi.number_reply(unique, copied) if is_64 else abi.write_reply(unique, copied)


_READ_TAKEN_MAX_BYTES: Final = 32 << 10  # more is worth pyfuse3's way, which does not copy it once more
_COPY_MAX_BYTES: Final = 64 << 20  # so that one call does not keep the owner's thread for minutes
_HANDLERS: Final[dict[int, Handler]] = {
    abi.UNLINK: _remove,
    abi.RENAME: _rename,
    abi.RENAME2: _rename,
    abi.SETLK: _set_lock,
    abi.SETLKW: _set_lock,
    abi.GETLK: _get_lock,
    abi.FALLOCATE: _fallocate,
    abi.LSEEK: _lseek,
    abi.COPY_FILE_RANGE: _copy_range,
    abi.COPY_FILE_RANGE_64: _copy_range,
}


def install_takers(hook: Hook, operations: FileOperations) -> None:
    """Let the hook take these operations out of pyfuse3's stream."""
    just_told = JustTold(hook.next_answers)
    for opcode, handler in _HANDLERS.items():
        hook.takers[opcode] = _taker(operations, handler)
    hook.takers[abi.CREATE] = _taker(operations, _create(just_told))
    hook.takers[abi.MKDIR] = _taker(operations, _make_directory(just_told))
    look_up, flush = _taker(operations, _look_up(just_told)), _taker(operations, _flush)
    get_attributes = _taker(operations, _get_attributes)

    def take_look_up(hook: Hook, request: memoryview) -> Taken:
        return PASSED if operations.is_local(hook.node_id) else look_up(hook, request)

    def take_get_attributes(hook: Hook, request: memoryview) -> Taken:
        number = hook.node_id
        attr = just_told.take(hook.pid, number)
        if attr is not None and operations.may_tell_now(number, hook.pid):
            hook.answer(abi.attr_reply(hook.unique, attr, 0))
            return None
        return PASSED if number < FIRST_OBJECT_ID else get_attributes(hook, request)

    def take_flush(hook: Hook, request: memoryview) -> Taken:
        file = operations.files.get(abi.file_number(request))
        if file is None or file.locks.is_range_locked:
            return PASSED
        if not file.is_settled:
            return flush(hook, request)
        hook.answer(abi.reply(hook.unique))
        return None

    open_ = _taker(operations, _open)

    def take_open(hook: Hook, request: memoryview) -> Taken:
        inode = operations.inodes.peek(hook.node_id)
        opened = None if inode is None else operations.open_here(inode, abi.open_flags(request), hook)
        if opened is None:
            return open_(hook, request)
        hook.answer(abi.open_reply(hook.unique, *opened))
        return None

    read = _taker(operations, _read)

    def take_read(hook: Hook, request: memoryview) -> Taken:
        return PASSED if abi.read_in(request)[2] > _READ_TAKEN_MAX_BYTES else read(hook, request)

    remove = _taker(operations, _remove)

    def take_rmdir(hook: Hook, request: memoryview) -> Taken:
        return PASSED if hook.node_id == ROOT_ID else remove(hook, request)

    hook.takers[abi.RMDIR] = take_rmdir
    hook.takers[abi.FLUSH] = take_flush
    hook.takers[abi.RELEASE] = _take_release(operations)
    hook.takers[abi.OPEN] = take_open
    hook.takers[abi.WRITE] = _take_write(operations, _taker(operations, _write))
    hook.takers[abi.READ] = take_read
    hook.takers[abi.LOOKUP] = take_look_up
    hook.takers[abi.GETATTR] = take_get_attributes
    answer_unasked(hook, operations)


def _taker(operations: FileOperations, handler: Handler) -> Taker:
    return taker(handler.__name__, functools.partial(handler, operations))
