"""FUSE handlers about open files: open, create, read, write, flush, release, fsync.

Files are opened direct_io: every read and write goes to the owner.  FLUSH (one for each close(2)) is answered here,
unless the closing process holds POSIX locks on the object.  Called by pyfuse3; takenops.py uses `files` and
`write_data`.
"""

from __future__ import annotations

from typing import Any, Final

from pyfuse3 import EntryAttributes, FileInfo, RequestContext

from omfs.mount import lowlevel_abi as abi
from omfs.mount.callers import Context
from omfs.mount.handlers import answering
from omfs.mount.operations_names import NameOperations
from omfs.mount.remotefile import RemoteFile, create_file, open_file
from omfs.net.frames import Buffer

_FMODE_EXEC: Final = 0x20  # include/linux/fs.h: the kernel opens it to execute it


class FileOperations(NameOperations):
    """Handlers about open files."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.files: dict[int, RemoteFile] = {}
        self._next_file = 1

    def number(self, file: RemoteFile) -> int:
        """Number a file that was opened: by this the kernel names it from here on."""
        number, self._next_file = self._next_file, self._next_file + 1
        self.files[number] = file
        return number

    async def open_number(self, inode: int, flags: int, context: Context) -> int:
        """open(2) of an object: the number by which the kernel will name the open file."""
        caller = self.callers.caller(context)  # before anything is waited for: *context* may be the hook's
        node, handle = await self.place(inode)
        return self.number(await open_file(node, handle, flags, caller, bool(flags & _FMODE_EXEC)))

    @answering
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return _direct(await self.open_number(inode, flags, ctx))

    @answering
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        node, parent = await self.place(parent_inode)
        file, attributes = await create_file(node, parent, name, mode, ctx.umask, flags, self.callers.caller(ctx))
        return _direct(self.number(file)), self.entry(node, file.handle, attributes)

    @answering
    async def read(self, fh: int, off: int, size: int) -> Buffer:  # type: ignore[override]  # any buffer will do
        return await self.files[fh].read(off, size)

    @answering
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Only without the hook; with it takenops.py answers WRITE."""
        file = self.files[fh]
        return await (file.append(buf) if file.appends else file.write(off, buf))

    @answering
    async def flush(self, fh: int) -> None:
        raw = self.current_request(abi.FLUSH)
        if raw is not None:
            await self.files[fh].release_ranges(abi.flush_lock_owner(raw))

    @answering
    async def release(self, fh: int) -> None:
        file = self.files.pop(fh, None)
        if file is not None:
            await file.close()

    @answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.files[fh].sync(datasync)


def _direct(number: int) -> FileInfo:
    return FileInfo(fh=number, direct_io=True, keep_cache=False)
