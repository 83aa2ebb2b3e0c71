"""The images of trees on their way: a root-only tmpfs, a directory in it per migration, and the way from node to node.

`send` streams: while CRIU still writes it reads the pages of memory that are there already, and gives their room back
as they go out, so a large process is never staged whole at the source.  All other images are small and may be written
in any order; they follow when the dump has said that all is written.  `receive` takes the pieces of each file in order,
checks them, and never makes anything but plain files of these names in this one directory.

On a plain line each piece has a CRC-32, against what networks and programs spoil; against forgery no hash would help
there, as whoever can change the data can change the hash.  With TLS every record is authenticated, and another sum of
the same bytes would find nothing more.  Measured here, seconds of processor for 500 MB at source + destination: TLS
0.8 + 1.2 (with a CRC 1.2 + 1.3), of which TLS itself 0.7 + 0.9; plain, with its CRC, 0.7 + 0.75.  In MB/s: CRC-32 of
zlib 2400, SHA-256 with the processor's help 860, BLAKE2b 210, AES-256-GCM 1060.  Files are read and written in threads
beside the line, some pieces ahead.

Faults: OSError (the line, ENOSPC), WireError (pieces that do not fit), ImagesDamaged.  What it does not do: know what
is in an image; end a half-sent transfer but by the line.  Called by migrate and receive; saving.py and restarting.py
have a file for a line.
"""

from __future__ import annotations

import errno
import os
import shutil
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import trio

from mignode.words import Image, ImagePiece, ImagesSent, Word
from omfs.config import BULK_MAX_BYTES
from omfs.errors import ImagesDamaged, WireError
from omfs.kernel import namespaces as ns
from omfs.kernel.objects import allocate
from omfs.net.frames import Buffer

PIECE_BYTES: Final = BULK_MAX_BYTES  # 4 MiB: a sixth less work than with 1 MiB on plain lines, the same with TLS
FILES_MAX: Final = 20_000  # a process has about ten
_AHEAD: Final = 4  # pieces between thread and line
_GROWN_S: Final = 0.002  # until it is looked again what CRIU has written: one piece, at the speed of memory
_PAGES: Final = "pages-"  # CRIU's name for what is large, and only appended to
_PUNCH_HOLE: Final = 0x3  # fallocate(2): FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class Outlet(Protocol):
    """Where images go: a line.Line, or a file that is made."""

    @property
    def is_authenticated(self) -> bool:
        """No piece needs a sum of its own."""

    async def send(self, word: ImagePiece | ImagesSent, bulk: Buffer = b"", *, deadline_s: float) -> None:
        """When it returns it is on its way."""


class Inlet(Protocol):
    """Where images come from: the same."""

    @property
    def is_authenticated(self) -> bool:
        """As Outlet has it."""

    async def receive(self, deadline_s: float) -> tuple[Word, Buffer]:
        """The next word, and its bytes."""


Progress = Callable[[int], None]
"""Is told how many bytes have gone out, or come, so far."""


def _ignore(_: int) -> None:
    pass


class ImageRoom:
    """The tmpfs that all images of this node are in; never on a disk, and nobody but root looks into it.

    It has no place in the tree of mounts: it is there as long as we are, or a CRIU that has a directory of it.
    """

    def __init__(self, run_dir: Path, limit_bytes: int) -> None:
        self._place = run_dir / "images"
        self._limit_bytes = limit_bytes
        self._fd = -1

    def open(self) -> None:
        """Make it.  Raises OSError."""
        self._place.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = f"mode=700,size={self._limit_bytes}"
        ns.mount("omfs-images", str(self._place), "tmpfs", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC, options)
        try:
            self._fd = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            ns.unmount(str(self._place), ns.MNT_DETACH)
            self._place.rmdir()

    def close(self) -> None:
        """Safe to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def path(self) -> Path:
        """For this process only."""
        return Path(f"/proc/self/fd/{self._fd}")

    @property
    def free_bytes(self) -> int:
        status = os.statvfs(self._fd)
        return status.f_bavail * status.f_frsize

    def room_for(self, size_bytes: int) -> bool:
        return size_bytes <= self.free_bytes

    def make(self, name: str) -> Images:
        """An empty directory; what was there of that name is removed.  Raises OSError."""
        path = self.path / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return Images(path)


@asynccontextmanager
async def error_unwrapped() -> AsyncIterator[None]:
    """A nursery wraps what the line or the thread raises; the caller wants the one error."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


class _Piece(NamedTuple):
    word: ImagePiece
    data: Buffer


class Images:
    """The images of one tree; *fd* is their directory, for CRIU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def discard(self) -> None:
        """Remove them; safe to repeat."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            shutil.rmtree(self.path, ignore_errors=True)

    # ------------------------------------------------------------ sending

    async def send(self, line: Outlet, is_written: trio.Event, deadline_s: float, progress: Progress = _ignore) -> int:
        """All there is, and what comes until *is_written*; how many bytes that was.

        *deadline_s*: for each piece.  Raises OSError, WireError.
        """
        sent_bytes = 0
        pieces, readable = trio.open_memory_channel[_Piece](_AHEAD)
        reading = _Reading(self.fd, needs_sums=not line.is_authenticated)
        async with error_unwrapped(), trio.open_nursery() as nursery:
            nursery.start_soon(self._read, reading, is_written, pieces)
            async with readable:
                async for word, data in readable:
                    await line.send(word, data, deadline_s=deadline_s)
                    sent_bytes += len(data)
                    progress(sent_bytes)
        await line.send(ImagesSent(reading.images()), deadline_s=deadline_s)
        return sent_bytes

    async def _read(self, reading: _Reading, is_written: trio.Event, pieces: trio.MemorySendChannel[_Piece]) -> None:
        async with pieces:
            while not is_written.is_set():
                await reading.put_grown(pieces, at_least=PIECE_BYTES, prefix=_PAGES)
                with trio.move_on_after(_GROWN_S):
                    await is_written.wait()
            await reading.put_grown(pieces, at_least=1, prefix="")

    # ------------------------------------------------------------ receiving

    async def receive(
        self, line: Inlet, limit_bytes: int, deadline_s: float, progress: Progress = _ignore
    ) -> tuple[Word, int]:
        """Until the first word that is no piece: ImagesSent, checked, or what the source says instead; and the bytes.

        *deadline_s*: for silence.  Raises OSError, WireError, ImagesDamaged.
        """
        writing = _Writing(self.fd, limit_bytes, needs_sums=not line.is_authenticated)
        arriving, pieces = trio.open_memory_channel[_Piece](_AHEAD)
        word: Word
        async with error_unwrapped(), trio.open_nursery() as nursery:
            nursery.start_soon(self._write, writing, pieces)
            async with arriving:
                while True:
                    word, bulk = await line.receive(deadline_s)
                    if not isinstance(word, ImagePiece):
                        break
                    await arriving.send(_Piece(word, bulk))
                    progress(writing.total_bytes)
        if isinstance(word, ImagesSent):
            writing.check_all(word.images)
        writing.close()
        return word, writing.total_bytes

    async def _write(self, writing: _Writing, pieces: trio.MemoryReceiveChannel[_Piece]) -> None:
        try:
            async for piece in pieces:
                await trio.to_thread.run_sync(writing.write, piece)
        except BaseException:
            writing.close()
            raise


class _Reading:
    """The source's files, as far as they have been read."""

    def __init__(self, directory: int, *, needs_sums: bool) -> None:
        self._directory = directory
        self._needs_sums = needs_sums
        self._done: dict[str, int] = {}

    def images(self) -> tuple[Image, ...]:
        return tuple(Image(name, size) for name, size in self._done.items())

    async def put_grown(self, pieces: trio.MemorySendChannel[_Piece], at_least: int, prefix: str) -> None:
        """What has come since, where that is *at_least* so many bytes."""
        for name in sorted(os.listdir(self._directory)):
            if not name.startswith(prefix):
                continue
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                offset = self._done.setdefault(name, 0)
                while (left := os.fstat(fd).st_size - offset) >= at_least:
                    piece = await trio.to_thread.run_sync(self._read, fd, name, offset, min(left, PIECE_BYTES))
                    offset += len(piece.data)
                    self._done[name] = offset
                    await pieces.send(piece)
            finally:
                os.close(fd)

    def _read(self, fd: int, name: str, offset: int, size_bytes: int) -> _Piece:
        """In a thread.  Its room is given back at once: who fails later sends nothing again."""
        data = bytearray(size_bytes)
        if os.preadv(fd, [data], offset) != size_bytes:
            raise OSError(errno.EIO, f"{name} has become shorter")
        allocate(fd, _PUNCH_HOLE, offset, size_bytes)
        return _Piece(ImagePiece(name, offset, zlib.crc32(data) if self._needs_sums else None), data)


class _Writing:
    """The destination's files, as far as they have come."""

    def __init__(self, directory: int, limit_bytes: int, *, needs_sums: bool) -> None:
        self.total_bytes = 0
        self._needs_sums = needs_sums
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._sizes: dict[str, int] = {}
        self._name = ""  # of the file that is open
        self._fd = -1

    def write(self, piece: _Piece) -> None:
        """In a thread.  Raises OSError, WireError, ImagesDamaged."""
        word, data = piece
        if self._needs_sums and zlib.crc32(data) != word.crc32:
            raise ImagesDamaged(f"{word.name} was damaged on its way, at byte {word.offset}")
        size = self._sizes.get(word.name, 0)
        if word.offset != size or not data:
            raise WireError(f"a piece of {word.name} at byte {word.offset}, but {size} are here")
        self.total_bytes += len(data)
        if self.total_bytes > self._limit_bytes:
            raise OSError(errno.ENOSPC, f"more than the {self._limit_bytes} bytes of images that were agreed upon")
        self._open(word.name)
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._fd, view, word.offset + len(data) - len(view)) :]
        self._sizes[word.name] = size + len(data)

    def check_all(self, images: tuple[Image, ...]) -> None:
        """The files are these, whole; empty ones are made now."""
        wanted = {image.name: image.size_bytes for image in images}
        if {name: size for name, size in wanted.items() if size} != self._sizes or len(wanted) != len(images):
            raise ImagesDamaged("the images that came are not those that were sent")
        for name, size in wanted.items():
            if not size:
                self._open(name)
                self._sizes[name] = 0

    def _open(self, name: str) -> None:
        if name == self._name:
            return
        if name not in self._sizes and len(self._sizes) >= FILES_MAX:
            raise WireError(f"more than {FILES_MAX} images")
        self.close()
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if name not in self._sizes:
            flags |= os.O_CREAT | os.O_EXCL
        self._fd = os.open(name, flags, 0o600, dir_fd=self._directory)
        self._name = name

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._name = -1, ""
