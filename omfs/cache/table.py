"""The durable memory of an owner's leases: who holds what, kept in LMDB; the only user of lmdb.

Why: a daemon that was killed and started again must know which holders may have caches, so that a change waits for
them and for nobody else.  Here: the records and their file.  Not here: what a lease means (cache/rules.py), when one is
granted or recalled (owner.py); nothing is decided by this room.

Files in the directory: data.mdb and lock.mdb are LMDB's, `about` says format and boot id, damaged.mdb is a table that was
set aside.  LMDB runs without sync: whatever kills the daemon, every committed transaction is in the page cache and
whole, but a power cut may leave rubbish.  So a table of another boot is removed without being opened, which
is why the boot id is not inside it; and `about` is taken away while a table is examined at the start, so that one
that kills its reader is set aside at the next start.

Records: `sessions` session key -> number, node, last heard, software; `handles` handle and number -> mode, serial,
time; `holders` number and handle -> nothing; a session's number is never used again.  To forget a session is one
small transaction: leases of numbers without a session count as gone, `sweep` removes them piece by piece.

Invariants: all methods return without waiting, so no transaction spans an await; no read transaction stays open
between two calls or between two items of an iterator, so the map can grow at any time.  Called by the export
(LeaseTable, one per directory) and, in another process, by omfs-admin (LeaseReader).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import lmdb

from omfs.wiretypes import Mode

FORMAT: Final = 1
SESSION_KEY_BYTES: Final = 16
HANDLE_MAX_BYTES: Final = 255  # handles have at most 162 (export/handles.py), keys of LMDB 511
MAP_BYTES: Final = 64 << 20  # of address space, the file is as long as its contents; doubles by itself
SWEEP_LEASES: Final = 500  # of forgotten sessions, per call of `sweep`: about 2 ms

_BATCH: Final = 1000  # records per read transaction
_NUMBER: Final = struct.Struct(">I")
_LEASE: Final = struct.Struct(">BQQ")  # mode, serial, granted at (ns since the epoch)
_SESSION: Final = struct.Struct(">IIQ")  # number, node id, last heard (ns since the epoch); then the software
_NEXT_NUMBER: Final = b"next number"

log = logging.getLogger(__name__)


class Change(NamedTuple):
    """A lease that was granted, reduced, or (Mode.NONE) given back."""

    session: bytes
    handle: bytes
    mode: Mode
    serial: int


class Lease(NamedTuple):
    session: bytes
    handle: bytes
    mode: Mode
    serial: int
    granted_at_ns: int


class SessionNote(NamedTuple):
    key: bytes
    node_id: int
    software: str
    heard_ns: int


def read_boot_id() -> str:
    """The kernel's: a new one at every boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class LeaseReader:
    """Reads a table, whether or not its daemon runs.  OSError from everything that finds it unreadable."""

    def __init__(self, path: Path, boot_id: str, *, writable: bool = False) -> None:
        """Use `LeaseReader.read` or `LeaseTable.open`."""
        self.path = path
        self.boot_id = boot_id  # of the boot that the table belongs to
        with self._told_as_os_error():
            self._env: Any = lmdb.open(
                str(path), map_size=MAP_BYTES if writable else 0, readonly=not writable, create=writable,
                sync=False, readahead=False, max_dbs=4, mode=0o600,
            )  # fmt: skip
            self._sessions, self._handles, self._holders, self._meta = (
                self._env.open_db(name, create=writable) for name in (b"sessions", b"handles", b"holders", b"meta")
            )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open for reading only.  OSError, ENOENT where there is no table."""
        found_format, boot_id = _read_about(path)
        if found_format != FORMAT:
            raise OSError(errno.ENOENT if not found_format else errno.EPROTO, f"no lease table of format {FORMAT}")
        return cls(path, boot_id)

    def close(self) -> None:
        self._env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sessions(self) -> list[SessionNote]:
        """Every session that was noted and not forgotten."""
        with self._told_as_os_error(), self._reading() as txn:
            return list(self._session_notes(txn).values())

    def leases(self, handle: bytes | None = None, session: bytes | None = None) -> Iterator[Lease]:
        """All leases, or those on *handle*, or those of *session*, or (both) the one.

        Not a snapshot where leases change meanwhile: each of them is shown as it was at some moment of the iteration.
        """
        if session is not None:
            yield from self._leases_of(session, handle)
            return
        prefix = _by_handle(handle) if handle is not None else b""
        last = b""
        while True:
            found = []
            with self._told_as_os_error(), self._reading() as txn:
                keys = {number: note.key for number, note in self._session_notes(txn).items()}
                batch = list(_records(txn.cursor(self._handles), prefix, last))
                for key, value in batch:
                    holder = keys.get(_NUMBER.unpack_from(key, len(key) - _NUMBER.size)[0])
                    if holder is not None:
                        found.append(_lease(holder, key[1 : -_NUMBER.size], value))
            yield from found
            if len(batch) < _BATCH:
                return
            last = batch[-1][0]

    def _leases_of(self, session: bytes, handle: bytes | None) -> Iterator[Lease]:
        last = b""
        while True:
            with self._told_as_os_error(), self._reading() as txn:
                record = txn.get(session, db=self._sessions)
                if record is None:
                    return
                prefix = record[: _NUMBER.size]
                if handle is not None:
                    value = txn.get(_by_handle(handle) + prefix, db=self._handles)
                    found, batch = ([] if value is None else [_lease(session, handle, value)]), []
                else:
                    batch = [key[len(prefix) :] for key, _ in _records(txn.cursor(self._holders), prefix, last)]
                    values = [txn.get(_by_handle(each) + prefix, db=self._handles) for each in batch]
                    found = [_lease(session, each, value) for each, value in zip(batch, values, strict=True)]
            yield from found
            if len(batch) < _BATCH:
                return
            last = prefix + batch[-1]

    def _session_notes(self, txn: Any) -> dict[int, SessionNote]:
        notes = {}
        for key, value in txn.cursor(self._sessions):
            number, node_id, heard_ns = _SESSION.unpack_from(value)
            notes[number] = SessionNote(key, node_id, value[_SESSION.size :].decode(errors="replace"), heard_ns)
        return notes

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            txn = self._env.begin()
        except lmdb.MapResizedError:  # the daemon's map has grown; ours follows
            self._env.set_mapsize(0)
            txn = self._env.begin()
        with txn:
            yield txn

    @contextlib.contextmanager
    def _told_as_os_error(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, struct.error, ValueError) as error:
            raise _os_error(error, self.path) from error


class LeaseTable(LeaseReader):
    """The table of a running owner.

    *was_dropped*: there was a table and its content is lost, so a grace period must follow.  *was_made*: there was
    none at all.
    """

    was_dropped = False
    was_made = False

    def __init__(self, path: Path, boot_id: str) -> None:
        """Use `LeaseTable.open`."""
        super().__init__(path, boot_id, writable=True)
        self._numbers: dict[bytes, int] = {}
        self._unswept = 0  # numbers below it may have left leases behind; 0: nobody has
        try:
            with self._told_as_os_error():
                self._examine()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path, boot_id: str) -> LeaseTable:
        """The table in the directory *path*, made where there is none.  OSError where it can't be made."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        about, found = _read_about(path), (path / "data.mdb").exists()
        (path / "about").unlink(missing_ok=True)  # until it has proved readable
        table = None
        if found and about == (FORMAT, boot_id):
            try:
                table = cls(path, boot_id)
            except OSError as error:
                log.error("%s: the lease table is damaged and was set aside: %s", path, error.strerror)
                _set_aside(path)
        elif found and about[1] not in ("", boot_id):
            log.info("%s: the lease table is of before the last boot and was dropped", path)
            _remove(path)
        elif found:
            fault = f"is of format {about[0]}" if about[0] else "was not left whole"
            log.error("%s: the lease table %s and was set aside", path, fault)
            _set_aside(path)
        if table is None:
            _remove(path)  # a lock file without data, at least
            table = cls(path, boot_id)
            table.was_dropped, table.was_made = found, not found
        _write_about(path, boot_id)
        return table

    # ------------------------------------------------------------ changes

    def note(self, changes: Iterable[Change], now_ns: int | None = None) -> None:
        """Record what was granted and given back, in one transaction: all of it or (OSError) nothing.

        ValueError for a handle no owner makes, and for a grant to a session that was not noted; that a forgotten session
        gives something back is fine.
        """
        granted_at_ns = time.time_ns() if now_ns is None else now_ns
        puts, deletes = [], []
        for session, handle, mode, serial in changes:
            by_handle, number = _by_handle(handle), self._numbers.get(session)
            if number is None:
                if mode is not Mode.NONE:
                    raise ValueError("a grant to a session that was not noted")
                continue
            packed = _NUMBER.pack(number)
            keys = by_handle + packed, packed + handle
            if mode is Mode.NONE:
                deletes.append(keys)
                puts = [one for one in puts if one[0] != keys] if puts else puts
            else:
                puts.append((keys, _LEASE.pack(mode, serial, granted_at_ns)))
                if keys in deletes:
                    deletes.remove(keys)
        self._change(lambda txn: self._apply(txn, puts, deletes))

    def _apply(
        self, txn: Any, puts: list[tuple[tuple[bytes, bytes], bytes]], deletes: list[tuple[bytes, bytes]]
    ) -> None:
        for (by_handle, by_holder), value in puts:
            txn.put(by_handle, value, db=self._handles)
            txn.put(by_holder, b"", db=self._holders)
        for by_handle, by_holder in deletes:
            txn.delete(by_handle, db=self._handles)
            txn.delete(by_holder, db=self._holders)
