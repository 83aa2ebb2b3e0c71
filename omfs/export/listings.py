"""Listing a directory piece by piece, each name with its handle and attributes.

The cursors are the kernel's own (d_off), so a listing goes on where it stopped, also after the directory changed,
and 100,000 names cost 100,000 steps.  A name that vanished meanwhile is left out, and so is what is hidden; on a mount
point the mounted root is shown, as a look-up would.

Who may read a directory but not search it sees the names, as everywhere, and no more: such an entry has its type and
inode number, and a handle that is none, only a number for the holder to know it by.  Called by export/service.py.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, NamedTuple, Protocol

import trio

from omfs import wire
from omfs.cache.owner import Need
from omfs.config import READDIR_REPLY_BYTES
from omfs.errors import StaleHandle
from omfs.export.bare import lists_all
from omfs.export.disk import Disk, Place, attributes_of
from omfs.kernel.credentials import Identity
from omfs.kernel.directories import DT_BLK, DT_CHR, DirectoryEntry, read_entries

CURSOR_MAX: Final = (1 << 63) - 1
ENTRY_OVERHEAD_BYTES: Final = 80  # attributes and framing of an entry in the reply, besides name and handle
AT_ONCE: Final = 48  # entries looked up before others get their turn (about half a millisecond)

_NOT_THERE: Final = (errno.ENOENT, errno.ESTALE, errno.EREMOTE)  # vanished or hidden; /mfs
_OUR_TROUBLE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

log = logging.getLogger(__name__)


class Leases(Protocol):
    """Of leasing.py, what a listing needs."""

    def grant(self, key: bytes, handles: Sequence[bytes]) -> tuple[int, list[wire.Mode]]:
        """The serial of the grant to this session, and what it may cache of each."""

    def newer_elsewhere(self, key: bytes, handles: Iterable[bytes]) -> tuple[Need, ...]: ...
    def is_returning(self, key: bytes) -> bool: ...
    def recalled(self, key: bytes, needs: tuple[Need, ...]) -> AbstractAsyncContextManager[None]: ...


class NoLeases:
    """Nothing is granted, and nobody has newer data than the disk."""

    def grant(self, key: bytes, handles: Sequence[bytes]) -> tuple[int, list[wire.Mode]]:
        return 0, [wire.Mode.NONE] * len(handles)

    def newer_elsewhere(self, key: bytes, handles: Iterable[bytes]) -> tuple[Need, ...]:
        return ()

    def is_returning(self, key: bytes) -> bool:
        return False

    def recalled(self, key: bytes, needs: tuple[Need, ...]) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class Reader(NamedTuple):
    """Who reads: the session's key, and as whom it opened the directory."""

    key: bytes
    identity: Identity
    leases: Leases


class _LeftOut(enum.Enum):
    """An entry that is not shown: a LookUp says that it is not there, or something else."""

    ABSENT = enum.auto()
    UNCLEAR = enum.auto()


_ABSENT: Final = _LeftOut.ABSENT
_UNCLEAR: Final = _LeftOut.UNCLEAR


class Listing:
    """The position of one open directory: entries that were read but not asked for yet, and the cursor before them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._cursor = 0
        self._pending: list[DirectoryEntry] = []  # the next one last

    def take(self, cursor: int, size_bytes: int, handle_bytes: int) -> tuple[list[DirectoryEntry], bool]:
        """(entries behind *cursor* for about *size_bytes* of reply, whether those are the last).  OSError."""
        if not 0 <= cursor <= CURSOR_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if cursor != self._cursor or cursor == 0:
            self._pending = []
            self._cursor = os.lseek(self._fd, cursor, os.SEEK_SET)
        taken: list[DirectoryEntry] = []
        while size_bytes > 0:
            if not self._pending:
                self._pending = read_entries(self._fd)[::-1]
                if not self._pending:
                    return taken, True
            entry = self._pending.pop()
            size_bytes -= len(entry.name) + handle_bytes + ENTRY_OVERHEAD_BYTES
            taken.append(entry)
            self._cursor = entry.cursor
        return taken, False


async def read_directory(
    disk: Disk,
    listing: Listing,
    fd: int,
    place: Place,
    reader: Reader,
    request: wire.ReadDirectory,
) -> wire.DirectoryRead:
    """The next entries behind the request's cursor, as the reader sees them; at least one unless *at_end*.

    The directory is granted before its names are read and each object in the step in which it is looked at; the reply
    has the first serial, so that every recall since makes void what it concerns.
    """
    serial, (mode,) = reader.leases.grant(reader.key, (place.handle,))
    shows_all = lists_all(place.mount, fd)
    size_bytes = min(max(request.size_bytes, 1), READDIR_REPLY_BYTES)
    cursor = request.cursor
    while True:
        taken, at_end = listing.take(cursor, size_bytes, len(place.handle))
        entries: list[wire.Entry] = []
        for start in range(0, len(taken), AT_ONCE):
            if start:
                await trio.lowlevel.checkpoint()
            found = await _entries(disk, fd, place, reader, taken[start : start + AT_ONCE], request.bare)
            shows_all &= found.is_clear
            entries.extend(found.entries)
        if entries or at_end:
            return wire.DirectoryRead(tuple(entries), at_end, serial, mode, shows_all)
        cursor = taken[-1].cursor


class _Found(NamedTuple):
    """*is_clear*: whoever is left out is not there."""

    entries: list[wire.Entry]
    is_clear: bool


async def _entries(
    disk: Disk, fd: int, place: Place, reader: Reader, raws: list[DirectoryEntry], with_bare: bool
) -> _Found:
    """Described and granted in one step, when whoever has newer data of any of them has sent those.

    But after a restart a node can't drop its caches while its kernel keeps a directory locked that it lists, and others
    may wait for that: it is told what the disk has, without leases on what is newer elsewhere.
    """
    key, leases = reader.key, reader.leases

    def described() -> tuple[_Found, tuple[Need, ...]]:
        found = [_describe(disk, fd, place, reader.identity, raw, with_bare) for raw in raws]
        entries = [entry for entry in found if isinstance(entry, wire.Entry)]
        is_clear = not any(entry is _UNCLEAR for entry in found)
        return _Found(entries, is_clear), leases.newer_elsewhere(key, [entry.handle for entry in entries])

    found, needs = described()
    while needs and not leases.is_returning(key):
        async with leases.recalled(key, needs):
            found, needs = described()  # inside, so that it does not begin anew with the same ones
            if not needs:
                return _granted(found, reader)
    return _granted(found, reader)


def _granted(found: _Found, reader: Reader) -> _Found:
    entries = found.entries
    _, modes = reader.leases.grant(reader.key, [entry.handle for entry in entries])
    granted = [
        entry
        if mode is wire.Mode.NONE
        else wire.Entry(entry.name, entry.cursor, entry.handle, entry.attributes, mode, entry.bare)
        for entry, mode in zip(entries, modes, strict=True)
    ]
    return _Found(granted, found.is_clear)


def _describe(
    disk: Disk, fd: int, place: Place, identity: Identity, raw: DirectoryEntry, with_bare: bool
) -> wire.Entry | _LeftOut:  # fmt: skip
    if raw.kind in (DT_CHR, DT_BLK):
        return _ABSENT
    try:
        bare = wire.Bare.UNKNOWN
        if with_bare:
            handle, status, bare = disk.look_up_bare(fd, place, raw.name, identity)
        else:
            handle, status = disk.look_up(fd, place, raw.name, identity)
    except StaleHandle:
        return _UNCLEAR  # a mount that went away meanwhile
    except OSError as error:
        if error.errno == errno.EACCES:
            return _name_only(place, raw)
        if error.errno not in _NOT_THERE:
            if error.errno in _OUR_TROUBLE:
                raise
            log.warning("%s of %s is left out of a listing: %s", raw.name, place.mount.line.mountpoint, error.strerror)
        return _ABSENT if error.errno == errno.ENOENT else _UNCLEAR
    return wire.Entry(raw.name, raw.cursor, handle, attributes_of(status), bare=bare)


def _name_only(place: Place, raw: DirectoryEntry) -> wire.Entry:
    attributes = wire.Attributes(raw.kind << 12, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, raw.inode)
    # Shorter than any handle, so it is refused like a forged one.
    return wire.Entry(raw.name, raw.cursor, place.mount.stable_id + raw.inode.to_bytes(8, "little"), attributes)
