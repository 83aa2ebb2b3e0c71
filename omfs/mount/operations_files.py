"""FUSE handlers about open files: open, create, read, write, flush, release, fsync.

A file that is opened for reading only is read through the page cache where the owner grants that (FileOpened.data);
all others are direct_io: every read and write goes to the owner.  As long as this mount has a file open for writing,
its data are under no lease here, and what its other readers have in the page cache is dropped at every change.  FLUSH
(one for each close(2)) is answered here, unless the closing process holds POSIX locks on the object.
Called by pyfuse3; takenops.py uses the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final

import trio
from pyfuse3 import EntryAttributes, FileInfo, RequestContext

from omfs import wire
from omfs.errors import OmfsError, RemoteFailure
from omfs.mount import lowlevel_abi as abi
from omfs.mount.callers import Context
from omfs.mount.handlers import Told, answering
from omfs.mount.inodes import Inode
from omfs.mount.opening import create_file, open_file, open_unknown
from omfs.mount.operations_names import NameOperations
from omfs.mount.remote import RemoteNode
from omfs.mount.remotefile import RemoteFile
from omfs.net.frames import Buffer

log = logging.getLogger(__name__)

_REGAIN_ATTEMPTS: Final = 6
_REGAIN_PAUSE_S: Final = 0.0005
_REGAIN_AGAIN_S: Final = 1.0  # after the owner did not grant data; somebody keeps the file open for writing there
_ASKS_THE_OWNER: Final = os.O_ACCMODE | os.O_TRUNC | os.O_NOATIME  # may be refused, or has effects there
_READERS_MAX: Final = 64  # of one file
_FMODE_EXEC: Final = 0x20  # include/linux/fs.h: the kernel opens it to execute it


class FileOperations(NameOperations):
    """Handlers about open files."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.files: dict[int, RemoteFile] = {}
        self._next_file = 1

    def number(self, file: RemoteFile, inode: Inode[RemoteNode]) -> int:
        """Number a file that was opened: by this the kernel names it from here on."""
        number, self._next_file = self._next_file, self._next_file + 1
        self.files[number] = file
        file.inode = inode
        return number

    def open_here(self, inode: Inode[RemoteNode], flags: int, context: Context) -> tuple[int, int] | None:
        """As `open_number`, of a file whose data are cached and that its owner let the caller open before: nobody is

        asked.  None: the owner must be.
        """
        if flags & _ASKS_THE_OWNER or not inode.lease.data or not inode.readers or inode.hold is None:
            return None
        caller, execute = self.callers.caller(context), bool(flags & _FMODE_EXEC)
        if inode.handle is None or (caller, execute) not in inode.readers:
            return None
        file = open_unknown(inode.owner, inode.handle, flags, caller, execute)
        file.is_cached = True
        self.counters.answered_opens += 1
        return self.number(file, inode), abi.FOPEN_KEEP_CACHE

    async def open_number(self, number: int, flags: int, context: Context) -> tuple[int, int]:
        """open(2) of an object: the number by which the kernel will name the open file, and FOPEN_ flags."""
        inode = self.object(number)
        opened_here = self.open_here(inode, flags, context)
        if opened_here is not None:
            return opened_here
        caller = self.callers.caller(context)  # before anything is waited for: *context* may be the hook's
        node, handle = await self.place(number)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            async with self.changing(inode, data=True):
                file, opened = await open_file(node, handle, flags, caller, bool(flags & _FMODE_EXEC))
                node.leases.granted(inode.lease, opened.serial, opened.mode, writer=file if file.is_written else None)
        else:
            file, opened = await open_file(node, handle, flags, caller, bool(flags & _FMODE_EXEC))
        fh = self.number(file, inode)
        had_data = inode.lease.data
        if not file.is_written and self._took_data(inode, opened):
            file.is_cached = True
            file.whole_hold = inode.hold
            if len(inode.readers) < _READERS_MAX:
                inode.readers |= {(caller, bool(flags & _FMODE_EXEC))}
            return fh, abi.FOPEN_KEEP_CACHE if had_data else 0
        return fh, abi.FOPEN_DIRECT_IO

    def _took_data(self, inode: Inode[RemoteNode], opened: wire.FileOpened) -> bool:
        """Whether the owner just granted that its data may be cached, and nobody writes it here."""
        granted = inode.owner.leases.granted(inode.lease, opened.serial, opened.mode)
        if not (granted and opened.data) or any(file.is_written for file in self._open_files(inode)):
            return False
        inode.lease.data = True
        return True

    @staticmethod
    def _open_files(inode: Inode[RemoteNode]) -> tuple[RemoteFile, ...]:
        return tuple(inode.owner.files.get(inode.handle, ())) if inode.handle is not None else ()

    def is_cached(self, fh: int) -> bool:
        """Whether the kernel reads this open file through its page cache."""
        file = self.files.get(fh)
        return file is not None and file.is_cached

    @staticmethod
    def is_alone(file: RemoteFile) -> bool:
        """Nobody else here has the object open, nor has the kernel pages of it."""
        if file.inode is None or file.inode.lease.data or file.has_pages:
            return False
        return len(file.node.files.get(file.handle, ())) == 1

    async def create_number(
        self, parent: Inode[RemoteNode], name: bytes, opened: tuple[RemoteFile, wire.FileCreated]
    ) -> tuple[Told, int]:
        """What the kernel is told of a file that was made, or was there and opened, and the number of the open file."""
        file, created = opened
        existing = self.inodes.known(parent.owner, created.handle)
        if existing is not None:
            existing.broken()
            await self._end_cached_data(existing)
        told = self.made(parent, name, created)
        inode = self.inodes.get(told.number)
        if file.is_written:
            parent.owner.leases.granted(inode.lease, created.serial, created.mode, writer=file)
        return told, self.number(file, inode)

    @contextlib.asynccontextmanager
    async def changing(self, inode: Inode[RemoteNode], data: bool) -> AsyncIterator[None]:
        """Around a request that changes the object: what is known of it here ends; of its *data* too.

        What the kernel itself has cached otherwise it looks after, unless nobody knows whether the change was made.
        """
        if inode.handle is not None:
            await inode.owner.open_unopened(inode.handle)
        inode.broken()
        inode.begin_change()  # the kernel keeps a directory locked during these, too
        with self.altering(inode):
            try:
                yield
            except RemoteFailure:
                raise
            except OmfsError:
                self.recaller.forget_soon(inode)
                raise
            finally:
                inode.end_change()
                inode.broken()
                if data:
                    await self._end_cached_data(inode)

    @contextlib.contextmanager
    def altering(self, inode: Inode[RemoteNode]) -> Iterator[None]:
        """Around a request that changes attributes: the kernel has none meanwhile, and keeps none that it is told.

        Other nodes may see the change before its answer is here, and from then on no program of ours may see what was
        before.  To be left in the step in which the kernel is answered.
        """
        inode.altering += 1
        if inode.altering == 1:
            self.recaller.void_attributes(inode)
        try:
            yield
        finally:
            inode.altering -= 1

    async def _end_cached_data(self, inode: Inode[RemoteNode]) -> None:
        """No page of it may stay, for it was changed through this mount, or is going to be."""
        had_data, inode.lease.data = inode.lease.data, False
        mapped = [file for file in self._open_files(inode) if file.has_pages and not file.is_written]
        for file in mapped:
            file.has_pages = False
        if had_data or mapped or inode.owner.is_cached(inode.handle):
            await self.recaller.drop_pages(inode)

    @contextlib.asynccontextmanager
    async def writing(self, file: RemoteFile, write: abi.WriteIn) -> AsyncIterator[None]:
        """As `changing_data`, around a WRITE.

        What comes from the page cache is what all who read it there see; dropping it would wait for this very answer.
        """
        assert file.inode is not None  # since it was numbered
        with self.altering(file.inode):
            try:
                yield
            finally:
                if write.write_flags & abi.WRITE_FROM_CACHE:
                    file.inode.broken()
                else:
                    await self._data_changed(file.inode)
                    if file.has_pages:  # read again since the kernel dropped them before it sent the write
                        await self.recaller.drop_pages(file.inode, write.offset, write.size_bytes)

    @contextlib.asynccontextmanager
    async def changing_data(self, file: RemoteFile) -> AsyncIterator[None]:
        """Around a request that changes data through this file; whether it did or nobody knows."""
        assert file.inode is not None  # since it was numbered
        with self.altering(file.inode):
            try:
                yield
            finally:
                await self._data_changed(file.inode)

    async def _data_changed(self, inode: Inode[RemoteNode]) -> None:
        inode.broken()
        await self._end_cached_data(inode)

    @answering
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        fh, open_flags = await self.open_number(inode, flags, ctx)
        return FileInfo(
            fh=fh,
            direct_io=bool(open_flags & abi.FOPEN_DIRECT_IO),
            keep_cache=bool(open_flags & abi.FOPEN_KEEP_CACHE),
        )

    @answering
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent, caller, umask = self.object(parent_inode), self.callers.caller(ctx), ctx.umask
        node, handle = await self.place(parent_inode)
        told, fh = await self.create_number(
            parent, name, await create_file(node, handle, name, mode, umask, flags, caller)
        )
        return FileInfo(fh=fh, direct_io=True, keep_cache=False), self.entry(told)

    @answering
    async def read(self, fh: int, off: int, size: int) -> Buffer:  # type: ignore[override]  # any buffer will do
        raw = self.current_request(abi.READ)
        return await self.read_blocks(self.files[fh], off, size, raw is not None and abi.read_fills_pages(raw))

    def read_blocks(
        self, file: RemoteFile, offset: int, size_bytes: int, fills_pages: bool
    ) -> Coroutine[Any, Any, Buffer]:
        """READ.  *fills_pages*: it is for the page cache."""
        if file.is_cached:
            return self.read_cached(file, offset, size_bytes)
        if fills_pages:
            return self.read_mapped(file, offset, size_bytes)
        return file.read(offset, size_bytes)

    def _may_keep_pages(self, inode: Inode[RemoteNode], file: RemoteFile) -> bool:
        if file.is_written:
            return file.unsent.is_allowed
        return not any(one.is_written for one in self._open_files(inode))

    async def read_mapped(self, file: RemoteFile, offset: int, size_bytes: int) -> Buffer:
        """A READ of pages of a mapping, of a file that is read(2) from its owner.

        What a program may change by itself, without a call, may stay while nobody else may look at the file; otherwise
        it has to come out at once.  What it only reads may stay while nobody changes the file.  Something is held in
        any case: who changes the file next waits until these pages are gone.
        """
        inode = file.inode
        assert inode is not None  # since it was numbered
        if file.is_written and not file.unsent.is_allowed:
            await file.unsent.ask_for_mapping()
        await self._hold_shared(inode)
        hold = inode.hold if self._may_keep_pages(inode, file) else None
        file.has_pages = inode.lease.told = True  # before: a recall that comes meanwhile has to forget them
        try:
            return await file.read(offset, size_bytes)
        finally:
            if hold is None or not self._may_keep_pages(inode, file) or inode.hold != hold:
                self.recaller.drop_pages_soon(inode, offset, size_bytes)

    @staticmethod
    async def _hold_shared(inode: Inode[RemoteNode]) -> None:
        """Some lease on the object, unless it is just being taken away, or the owner does not grant one."""
        for attempt in range(_REGAIN_ATTEMPTS):
            if inode.hold is not None or inode.lease.recalls or inode.handle is None or not inode.owner.leases.round:
                return
            if attempt:
                await trio.sleep(_REGAIN_PAUSE_S)
            got = await inode.owner.get_attributes(inode.handle)
            inode.owner.leases.granted(inode.lease, got.serial, got.mode)

    async def read_cached(self, file: RemoteFile, offset: int, size_bytes: int) -> Buffer:
        """A READ that fills pages.  They may stay if the data were under a lease from before it was asked until now.

        Never waits for long, nor for anything but the owner: a recall may be waiting for these pages.
        """
        inode = file.inode
        assert inode is not None  # since it was numbered
        if not inode.lease.data:
            await self._regain_data(inode, file)
            await self._hold_shared(inode)
        hold = inode.hold if inode.lease.data else None
        if hold is not None and hold == file.whole_hold and file.whole:
            return file.take_whole(offset, size_bytes)
        filled = trio.Event()
        if hold is None:
            inode.filling |= {filled}
        try:
            return await file.read(offset, size_bytes)
        finally:
            if hold is None or not inode.lease.data or inode.hold != hold:
                self.recaller.drop_pages_soon(inode, offset, size_bytes)
            inode.filling -= {filled}
            filled.set()

    async def _regain_data(self, inode: Inode[RemoteNode], file: RemoteFile) -> None:
        """The lease was recalled while the file is open: ask for it again, unless somebody writes the file here.

        Others who read it wait for the outcome: what is read without a lease could be seen by them too late.
        """
        if inode.regaining is not None:
            await inode.regaining.wait()
        if inode.lease.data or trio.current_time() < inode.regain_at_s or not inode.owner.leases.round:
            return
        if any(one.is_written for one in self._open_files(inode)):
            return
        regaining = inode.regaining = trio.Event()
        try:
            for attempt in range(_REGAIN_ATTEMPTS):
                if attempt:
                    await trio.sleep(_REGAIN_PAUSE_S)  # who writes a record and closes needs less
                if inode.lease.recalls:
                    return  # the owner waits for us: what is read now is current, and is dropped before it goes on
                if self._took_data(inode, await file.open_for_lease()):
                    return
            inode.regain_at_s = trio.current_time() + _REGAIN_AGAIN_S
        except OmfsError as error:
            log.debug("inode %d is read without a lease: %s", inode.id, error)
            inode.regain_at_s = trio.current_time() + _REGAIN_AGAIN_S
        finally:
            inode.regaining = None
            regaining.set()

    @answering
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Only without the hook; with it takenops.py answers WRITE."""
        file = self.files[fh]
        async with self.changing_data(file):
            return await file.write(None if file.appends else off, buf)

    @answering
    async def flush(self, fh: int) -> None:
        raw, file = self.current_request(abi.FLUSH), self.files[fh]
        try:
            await file.settle()
        finally:
            if raw is not None:
                await file.locks.release_ranges(abi.flush_lock_owner(raw))

    @answering
    async def release(self, fh: int) -> None:
        file = self.files.pop(fh, None)
        if file is not None:
            await file.close()

    @answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.files[fh].sync(datasync)
