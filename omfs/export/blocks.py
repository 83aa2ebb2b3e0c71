"""Reading and writing open files.

What the page cache can do at once is done at once, in the trio thread: handing 1 MiB to a worker thread costs as
much of this thread's time as copying it (measured: 90 us), and more than doubles the answer's.  What must wait for
the disk goes to worker threads.  A read knows beforehand where the file system has RWF_NOWAIT; otherwise (overlay,
tmpfs, and all writes, which the kernel may throttle) the last ones tell: after a slow transfer the file's next ones
take a thread, until a good many in a row were fast.  Writes run under the identity that opened the file, so that
quotas and reserved blocks are the kernel's own.  On a plain connection large reads are
FileSlices.

Invariant: a read shorter than asked for means the end of the file.  Called by export/service.py.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias, TypeVar

import trio

from omfs import wire
from omfs.config import BULK_LANE_FROM_BYTES, BULK_MAX_BYTES, WHOLE_FILE_MAX_BYTES
from omfs.export.files import Opened, SessionFiles
from omfs.kernel import objects
from omfs.kernel.credentials import Identity
from omfs.net.server import Answer, Buffer, FileSlice

IO_THREADS_MAX: Final = 32  # disks do not get faster by more; beyond it requests queue
INLINE_MAX_BYTES: Final = 1 << 20  # what FUSE asks for at most
SLOW_READ_S: Final = 0.001  # a read that took longer came from the disk
SLOW_WRITE_S: Final = 0.005  # a write that took longer was throttled
SUSPECTS: Final = 64  # so many transfers take the thread after a slow one
COPY_RANGE_MAX_BYTES: Final = 64 << 20  # per request, so that it can be cancelled and shows progress
COPY_STEP_BYTES: Final = 4 << 20
OFFSET_MAX: Final = (1 << 63) - 1

_COPY_BY_HAND: Final = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_DONE: Final = wire.Done()
_BLOCKS_READ: Final = wire.BlocksRead()

MaybeSlow: TypeAlias = Answer | Coroutine[Any, Any, Answer]
T = TypeVar("T")


class Blocks:
    """The data of open files."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(IO_THREADS_MAX)

    async def in_thread(self, opened: Opened, call: Callable[..., T], *args: Any) -> T:
        """Run *call* with its arguments in a worker thread; the descriptor stays open meanwhile."""
        with opened:
            return await self.run(call, *args)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """The same without an open id: *args* must stay valid until it returns."""
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)

    async def close(self, fd: int) -> None:
        """Give up the last reference to a big file: freeing its blocks takes the disk a while.  Not cancellable."""
        with trio.CancelScope(shield=True):
            await self.run(os.close, fd)

    # ------------------------------------------------------------ reading

    def read(self, files: SessionFiles, request: wire.ReadBlocks, can_sendfile: bool) -> MaybeSlow:
        """At most BULK_MAX_BYTES; EINVAL beyond."""
        opened = files.get(request.open_id)
        offset, size_bytes = request.offset, request.size_bytes
        if not 0 <= size_bytes <= BULK_MAX_BYTES or not 0 <= offset <= OFFSET_MAX - size_bytes:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if opened.listing is not None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if size_bytes >= BULK_LANE_FROM_BYTES and can_sendfile and opened.is_readable:
            here = max(0, min(size_bytes, os.fstat(opened.fd).st_size - offset))
            if here >= BULK_LANE_FROM_BYTES and _is_cached(opened, offset, here):
                return _BLOCKS_READ, FileSlice(opened.fd, offset, here)
        if size_bytes <= INLINE_MAX_BYTES:
            data = _read_at_once(opened, offset, size_bytes)
            if data is not None:
                return _BLOCKS_READ, data
        return self._read_in_thread(opened, offset, size_bytes)

    @staticmethod
    def whole(opened: Opened) -> Buffer:
        """All data of a file, if they are few and can be had at once; else nothing."""
        data = _read_at_once(opened, 0, WHOLE_FILE_MAX_BYTES) if opened.is_readable else None
        return b"" if data is None or len(data) == WHOLE_FILE_MAX_BYTES else data

    async def _read_in_thread(self, opened: Opened, offset: int, size_bytes: int) -> Answer:
        return _BLOCKS_READ, await self.in_thread(opened, _read_timed, opened, offset, size_bytes)

    def seek(self, files: SessionFiles, request: wire.SeekFile) -> wire.SeekDone:
        """SEEK_DATA and SEEK_HOLE; ENXIO beyond the end."""
        if request.whence not in (os.SEEK_DATA, os.SEEK_HOLE) or not -OFFSET_MAX <= request.offset <= OFFSET_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return wire.SeekDone(os.lseek(files.get(request.open_id).fd, request.offset, request.whence))

    # ------------------------------------------------------------ writing

    def write(self, files: SessionFiles, request: wire.WriteBlocks, bulk: Buffer) -> MaybeSlow:
        """pwrite; may write less when the disk is full."""
        opened = files.get(request.open_id)
        opened.place.must_be_writable()
        if not 0 <= request.offset <= OFFSET_MAX - len(bulk):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if request.kill_set_id and opened.is_writable:
            _kill_set_id(opened.fd)
        if _takes_long(opened, bulk):
            return self._write_in_thread(opened, _write, bulk, request.offset)
        return wire.BlocksWritten(_write(opened, bulk, request.offset)), b""

    def append(self, files: SessionFiles, request: wire.AppendBlocks, bulk: Buffer) -> MaybeSlow:
        """Write behind whatever is the end now, as one record: the kernel holds the inode's lock meanwhile."""
        opened = files.get(request.open_id)
        opened.place.must_be_writable()
        if request.kill_set_id and opened.is_writable:
            _kill_set_id(opened.fd)
        if _takes_long(opened, bulk):
            return self._write_in_thread(opened, _append, bulk)
        return wire.BlocksWritten(_append(opened, bulk)), b""

    async def _write_in_thread(self, opened: Opened, call: Callable[..., int], bulk: Buffer, *args: int) -> Answer:
        written = await self.in_thread(opened, call, opened, bulk, *args)
        return wire.BlocksWritten(written), b""

    async def sync(self, opened: Opened, request: wire.SyncFile) -> Answer:
        """fsync or fdatasync; also of directories."""
        await self.in_thread(opened, os.fdatasync if request.data_only else os.fsync, opened.fd)
        return _DONE, b""

    async def allocate(self, opened: Opened, request: wire.AllocateSpace) -> Answer:
        """fallocate with any mode that the file system knows."""
        opened.place.must_be_writable()
        size = (request.mode, request.offset, request.size_bytes)
        if not all(0 <= number <= OFFSET_MAX for number in size) or request.mode >= 1 << 31:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        await self.in_thread(opened, _allocate, opened.fd, opened.identity, *size)
        return _DONE, b""

    async def copy(self, source: Opened, target: Opened, request: wire.CopyRange) -> Answer:
        """copy_file_range of at most COPY_RANGE_MAX_BYTES; 0 at the end of the source."""
        target.place.must_be_writable()
        offsets = (request.source_offset, request.target_offset, request.size_bytes)
        if not all(0 <= number <= OFFSET_MAX for number in offsets):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        size_bytes = min(request.size_bytes, COPY_RANGE_MAX_BYTES)
        with source:
            done = await self.in_thread(
                target,
                _copy,
                source.fd,
                request.source_offset,
                target.fd,
                request.target_offset,
                size_bytes,
                target.identity,
            )
        return wire.BlocksWritten(done), b""


# ---------------------------------------------------------------- reading, in whatever thread


def _read_at_once(opened: Opened, offset: int, size_bytes: int) -> Buffer | None:
    """The data if they are in the page cache, else None."""
    mount = opened.place.mount
    if mount.has_nowait:
        buffer = bytearray(size_bytes)
        try:
            got = os.preadv(opened.fd, (buffer,), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            mount.has_nowait = False
        else:
            if got == size_bytes:
                return buffer
            # Short: the end of the file, or of what is cached.
            return memoryview(buffer)[:got] if offset + got >= os.fstat(opened.fd).st_size else None
    if opened.suspects:
        return None
    return _read_timed(opened, offset, size_bytes)


def _is_cached(opened: Opened, offset: int, size_bytes: int) -> bool:
    """Whether all of this can be read without waiting, judged by its two ends and its middle; False if unknown."""
    mount = opened.place.mount
    if mount.line.fstype == b"tmpfs":
        return True
    if not mount.has_nowait:
        return False
    byte = bytearray(1)
    try:
        return all(
            os.preadv(opened.fd, (byte,), at, os.RWF_NOWAIT) == 1
            for at in (offset + size_bytes - 1, offset, offset + size_bytes // 2)
        )
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        mount.has_nowait = False
        return False


def _read_timed(opened: Opened, offset: int, size_bytes: int) -> bytes:
    begun_s = time.perf_counter()
    data = _read_fully(opened.fd, offset, size_bytes)
    _note_time(opened, time.perf_counter() - begun_s > SLOW_READ_S)
    return data


def _note_time(opened: Opened, was_slow: bool) -> None:
    """Called in any thread; a count that is off by one or two does no harm."""
    if was_slow:
        opened.suspects = SUSPECTS
    elif opened.suspects:
        opened.suspects -= 1


def _read_fully(fd: int, offset: int, size_bytes: int) -> bytes:
    """Read on until the end of the file: a short read may also be a signal or the sector before a bad one."""
    data = os.pread(fd, size_bytes, offset)
    while data and len(data) < size_bytes:
        more = os.pread(fd, size_bytes - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


# ---------------------------------------------------------------- writing, in whatever thread


def _takes_long(opened: Opened, bulk: Buffer) -> bool:
    is_synchronous = opened.flags & (os.O_SYNC | os.O_DSYNC)
    return bool(len(bulk) > INLINE_MAX_BYTES or opened.suspects or is_synchronous)


def _kill_set_id(fd: int) -> None:
    """Take the set-id bits off, as the kernel does before a write (setattr_should_drop_suidgid), also where root
    opened the file: whoever writes need not be who opened it."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    drop = mode & stat.S_ISUID | (mode & stat.S_ISGID if mode & stat.S_IXGRP else 0)
    if drop:
        os.fchmod(fd, mode & ~drop)


def _write(opened: Opened, bulk: Buffer, offset: int) -> int:
    begun_s = time.perf_counter()
    with opened.identity:
        written = os.pwrite(opened.fd, bulk, offset)
    _note_time(opened, time.perf_counter() - begun_s > SLOW_WRITE_S)
    return written


def _append(opened: Opened, bulk: Buffer) -> int:
    begun_s = time.perf_counter()
    with opened.identity:
        written = os.pwritev(opened.fd, (bulk,), 0, os.RWF_APPEND)
    _note_time(opened, time.perf_counter() - begun_s > SLOW_WRITE_S)
    return written


def _allocate(fd: int, identity: Identity, mode: int, offset: int, size_bytes: int) -> None:
    with identity:
        objects.allocate(fd, mode, offset, size_bytes)


def _copy(
    source_fd: int, source_offset: int, target_fd: int, target_offset: int, size_bytes: int, identity: Identity
) -> int:
    """Copy in steps until done, the source ends, the request is cancelled or (after the first) a step fails."""
    step = _copy_step
    done = 0
    while done < size_bytes:
        try:
            with identity:
                now = step(
                    source_fd,
                    source_offset + done,
                    target_fd,
                    target_offset + done,
                    min(size_bytes - done, COPY_STEP_BYTES),
                )
        except OSError as error:
            if done:
                break
            same_file = os.path.sameopenfile(source_fd, target_fd)
            if step is _copy_by_hand or error.errno not in _COPY_BY_HAND or same_file:
                raise
            step = _copy_by_hand
            continue
        if not now:
            break
        done += now
        try:
            trio.from_thread.check_cancelled()
        except trio.Cancelled:
            break  # tell how far it came
    return done


def _copy_step(source_fd: int, source_offset: int, target_fd: int, target_offset: int, size_bytes: int) -> int:
    return os.copy_file_range(source_fd, target_fd, size_bytes, source_offset, target_offset)


def _copy_by_hand(source_fd: int, source_offset: int, target_fd: int, target_offset: int, size_bytes: int) -> int:
    """Between file systems the kernel does not copy; it still needs no network."""
    return os.pwrite(target_fd, os.pread(source_fd, size_bytes, source_offset), target_offset)
