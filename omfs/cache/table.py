"""The durable memory of an owner's leases: who holds what, kept in LMDB; the only user of lmdb.

Why: a daemon that was killed and started again must know which holders may have caches, so that a change waits for
them and for nobody else.  Here: the records and their file.  Not here: what a lease means (cache/rules.py), when one is
granted or recalled (owner.py); nothing is decided by this room.

Files in the directory: data.mdb and lock.mdb are LMDB's, `about` says format and boot id, damaged.mdb is a table that
was set aside.  LMDB runs without sync: whatever kills the daemon, every committed transaction is in the page cache and
whole, but a power cut may leave rubbish.  So a table of another boot is removed without being opened, which
is why the boot id is not inside it; and `about` is taken away while a table is examined at the start, so that one
that kills its reader is set aside at the next start.

Records: `sessions` session key -> number, node, last heard, software; `handles` handle and number -> mode, serial,
time; `holders` number and handle -> nothing; a session's number is never used again.  To forget all leases of a session
is one small transaction: those of numbers without a session count as gone, `sweep` removes them piece by piece.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import lmdb

from omfs.cache.owner import Change, SessionKey
from omfs.wiretypes import Mode

DIRECTORY: Final = "leases"  # in state_dir
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
_BEHIND: Final = b"behind"

R = TypeVar("R")

log = logging.getLogger(__name__)


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
        with contextlib.ExitStack() as undo, self._told_as_os_error():
            self._env: Any = lmdb.open(
                str(path), map_size=MAP_BYTES if writable else 0, readonly=not writable, create=writable,
                sync=False, readahead=False, max_dbs=4, mode=0o600,
            )  # fmt: skip
            undo.callback(self._env.close)
            if writable:
                self._lengthen()
            self._sessions, self._handles, self._holders, self._meta = (
                self._env.open_db(name, create=writable) for name in (b"sessions", b"handles", b"holders", b"meta")
            )
            undo.pop_all()

    @property
    def size_bytes(self) -> int:
        """Of the table on disk, with its free pages."""
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def _lengthen(self) -> None:
        """Pages that a cut file lacks read as zeros, which LMDB refuses; behind the end they would be a SIGBUS."""
        file, whole = self.path / "data.mdb", self.size_bytes
        if file.stat().st_size < whole:
            os.truncate(file, whole)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open for reading only.  OSError, ENOENT where there is no table."""
        found_format, boot_id, _ = _read_about(path)
        if not found_format:
            raise FileNotFoundError(errno.ENOENT, "no lease table")
        if found_format != FORMAT:
            raise OSError(errno.EPROTO, f"a lease table of format {found_format}, not {FORMAT}")
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
        prefix = b"" if handle is None else _by_handle(handle)
        if session is not None:
            yield from self._leases_of(session, handle, prefix)
            return
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

    def _leases_of(self, session: bytes, handle: bytes | None, by_handle: bytes) -> Iterator[Lease]:
        last = b""
        while True:
            with self._told_as_os_error(), self._reading() as txn:
                record = txn.get(session, db=self._sessions)
                if record is None:
                    return
                prefix = record[: _NUMBER.size]
                if handle is not None:
                    value = txn.get(by_handle + prefix, db=self._handles)
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

    *was_dropped*: there was a table and its content is lost, so a grace period must follow; until `end_grace` it is
    dropped again by whoever opens it.  *was_made*: there was none at all.
    """

    was_dropped = False
    was_made = False

    def __init__(self, path: Path, boot_id: str, *, is_new: bool) -> None:
        """Use `LeaseTable.open`."""
        super().__init__(path, boot_id, writable=True)
        self._numbers: dict[SessionKey, int] = {}
        self._unswept = 0  # numbers below it may have left leases behind; 0: nobody has
        self._in_grace = False
        self.was_behind = False  # when it was opened: its sessions may hold more than it says
        try:
            if is_new:
                self._change(lambda txn: txn.put(_NEXT_NUMBER, _NUMBER.pack(0), db=self._meta))
            with self._told_as_os_error():
                self._examine()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path, boot_id: str) -> LeaseTable:
        """The table in the directory *path*, made where there is none.  OSError where it can't be made."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = any((path / name).exists() for name in ("data.mdb", "about"))
        about = _read_about(path)
        (path / "about").unlink(missing_ok=True)  # until it has proved readable
        table = None
        if found and about == (FORMAT, boot_id, False):
            try:
                table = cls(path, boot_id, is_new=False)
            except OSError as error:
                log.error("%s: the lease table is damaged and was set aside: %s", path, error.strerror)
                _set_aside(path)
        elif found and about[1] not in ("", boot_id):
            log.info("%s: the lease table is of before the last boot and was dropped", path)
            _remove(path)
        elif found and about == (FORMAT, boot_id, True):
            log.info("%s: the lease table is of a daemon that ended in its grace and was dropped", path)
            _remove(path)
        elif found:
            fault = f"is of format {about[0]}" if about[0] else "was not left whole"
            log.error("%s: the lease table %s and was set aside", path, fault)
            _set_aside(path)
        if table is None:
            _remove(path)  # a lock file without data, at least
            table = cls(path, boot_id, is_new=True)
            table.was_dropped, table.was_made = found, not found
        _write_about(path, boot_id, in_grace=table.was_dropped)
        table._in_grace = table.was_dropped
        return table

    def end_grace(self) -> None:
        """Whoever held what was lost has dropped it.  Where that can't be noted now it is tried again."""
        if self._in_grace:
            with contextlib.suppress(OSError):
                _write_about(self.path, self.boot_id, in_grace=False)
                self._in_grace = False

    # ------------------------------------------------------------ changes

    def note(self, changes: Iterable[Change], now_ns: int | None = None) -> None:
        """Record what was granted and given back, in this order and one transaction: all of it or (OSError) nothing.

        ValueError for a handle no owner makes, and for a grant to a session that was not noted; that a forgotten
        session gives something back is fine.
        """
        granted_at_ns = time.time_ns() if now_ns is None else now_ns
        records = []
        for session, handle, mode, serial in changes:
            by_handle, number = _by_handle(handle), self._numbers.get(session)
            if number is None:
                if mode is not Mode.NONE:
                    raise ValueError("a grant to a session that was not noted")
                continue
            packed = _NUMBER.pack(number)
            value = b"" if mode is Mode.NONE else _LEASE.pack(mode, serial, granted_at_ns)
            records.append((by_handle + packed, packed + handle, value))
        if records:
            self._change(lambda txn: self._write(txn, records))

    def _write(self, txn: Any, records: list[tuple[bytes, bytes, bytes]]) -> None:
        for by_handle, by_holder, value in records:
            if value:
                txn.put(by_handle, value, db=self._handles)
                txn.put(by_holder, b"", db=self._holders)
            else:
                txn.delete(by_handle, db=self._handles)
                txn.delete(by_holder, db=self._holders)

    def note_behind(self, is_behind: bool) -> None:
        """Whether more is granted than is written here.  It stays so when the daemon is killed: `was_behind`."""

        def write(txn: Any) -> None:
            if is_behind:
                txn.put(_BEHIND, b"", db=self._meta)
            else:
                txn.delete(_BEHIND, db=self._meta)

        self._change(write)

    def note_session(self, key: bytes, node_id: int, software: str, heard_ns: int) -> None:
        """A session began, or was heard; before its first lease.  OSError."""
        if len(key) != SESSION_KEY_BYTES:
            raise ValueError(f"a session key has {SESSION_KEY_BYTES} bytes, not {len(key)}")
        number = self._numbers.get(key)

        def write(txn: Any) -> int:
            mine = number
            if mine is None:
                mine = _take_number(txn, self._meta)
            txn.put(key, _SESSION.pack(mine, node_id, heard_ns) + software.encode(), db=self._sessions)
            return mine

        self._numbers[key] = self._change(write)

    def note_heard(self, heard_ns: Mapping[bytes, int]) -> None:
        """When sessions were heard last, all in one transaction; forgotten ones are passed over.  OSError."""

        def write(txn: Any) -> None:
            for key, at_ns in heard_ns.items():
                value = txn.get(key, db=self._sessions)
                if value is not None:
                    number, node_id, _ = _SESSION.unpack_from(value)
                    txn.put(key, _SESSION.pack(number, node_id, at_ns) + value[_SESSION.size :], db=self._sessions)

        self._change(write)

    def forget_session(self, key: bytes) -> None:
        """It ended: it has no leases any more.  The records themselves are removed by `sweep`.  OSError."""
        number = self._numbers.get(key)
        if number is not None:
            self._change(lambda txn: txn.delete(key, db=self._sessions))
            del self._numbers[key]
            self._unswept = max(self._unswept, number + 1)

    def forget_leases(self, key: bytes) -> None:
        """It goes on, but nothing that it holds: its term is over, or it returned everything.  As `forget_session`."""
        before = self._numbers.get(key)
        if before is None:
            return

        def write(txn: Any) -> int:
            mine = _take_number(txn, self._meta)
            value = txn.get(key, db=self._sessions)
            txn.put(key, _NUMBER.pack(mine) + value[_NUMBER.size :], db=self._sessions)
            return mine

        self._numbers[key] = self._change(write)
        self._unswept = max(self._unswept, before + 1)

    def sweep(self, most: int = SWEEP_LEASES) -> int:
        """Remove up to *most* leases of forgotten sessions, in one transaction; how many it was.  OSError."""
        return self._change(lambda txn: self._sweep(txn, most)) if self._unswept else 0

    def _sweep(self, txn: Any, most: int) -> int:
        live = set(self._numbers.values())
        cursor = txn.cursor(self._holders)
        removed = 0
        found = cursor.first()
        while found and removed < most:
            key = cursor.key()
            number = _NUMBER.unpack_from(key)[0]
            if number >= self._unswept:
                break
            if number in live:
                found = cursor.set_range(_NUMBER.pack(number + 1))
                continue
            txn.delete(_by_handle(key[_NUMBER.size :]) + key[: _NUMBER.size], db=self._handles)
            found = cursor.delete() and bool(cursor.key())  # now at the next record, without a key at the end
            removed += 1
        if removed < most:
            self._unswept = 0
        return removed

    # ------------------------------------------------------------ the file

    def _change(self, write: Callable[[Any], R]) -> R:
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    result = write(txn)
            except lmdb.MapFullError:  # the transaction left no trace
                self._grow()
            except lmdb.Error as error:
                raise _os_error(error, self.path) from error
            else:
                return result

    def _grow(self) -> None:
        with self._told_as_os_error():
            self._env.reader_check()  # an omfs-admin that was killed may hold on to old pages
            self._env.set_mapsize(2 * self._env.info()["map_size"])

    def _examine(self) -> None:
        """Read every record once.  lmdb.Error, struct.error, ValueError, OSError for a table that is not whole."""
        self._env.reader_check()
        with self._env.begin() as txn:
            notes = self._session_notes(txn)
            self._numbers = {note.key: number for number, note in notes.items()}
            if max(notes, default=-1) >= (next_number := _next_number(txn, self._meta)):
                raise ValueError("a session without a number of its own")
            self._unswept = next_number
            self.was_behind = txn.get(_BEHIND, db=self._meta) is not None
            leases = 0
            for key, value in txn.cursor(self._handles):
                lease = _lease(b"", key[1 : -_NUMBER.size], value)
                if txn.get(key[-_NUMBER.size :] + lease.handle, db=self._holders) is None:
                    raise ValueError("a lease without its holder")
                leases += 1
            if txn.stat(self._holders)["entries"] != leases:
                raise ValueError("a holder without its lease")


# ---------------------------------------------------------------- records


def _by_handle(handle: bytes) -> bytes:
    """The handle with its length before it: no other handle's records begin like this."""
    if not 0 < len(handle) <= HANDLE_MAX_BYTES:
        raise ValueError(f"a handle of {len(handle)} bytes; the table takes 1 to {HANDLE_MAX_BYTES}")
    return b"%c%b" % (len(handle), handle)


def _lease(session: bytes, handle: bytes, value: bytes) -> Lease:
    mode, serial, granted_at_ns = _LEASE.unpack(value)
    return Lease(session, handle, Mode(mode), serial, granted_at_ns)


def _records(cursor: Any, prefix: bytes, last: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Up to _BATCH records whose keys begin with *prefix*, behind the key *last*."""
    found = cursor.set_range(last or prefix) if last or prefix else cursor.first()
    if found and last and cursor.key() == last:
        found = cursor.next()
    count = 0
    while found and count < _BATCH and cursor.key().startswith(prefix):
        yield cursor.item()
        count += 1
        found = cursor.next()


def _take_number(txn: Any, meta: Any) -> int:
    number = _next_number(txn, meta)
    txn.put(_NEXT_NUMBER, _NUMBER.pack(number + 1), db=meta)
    return number


def _next_number(txn: Any, meta: Any) -> int:
    return int(_NUMBER.unpack(txn.get(_NEXT_NUMBER, default=b"", db=meta))[0])


# ---------------------------------------------------------------- files


def _read_about(path: Path) -> tuple[int, str, bool]:
    """Format and boot id of the table in *path*, and whether it is in its grace; (0, "") where that is not said."""
    try:
        words = (path / "about").read_text(errors="replace").split()
    except FileNotFoundError:
        return 0, "", False
    match words:
        case ["format", number, "boot", boot_id, *grace] if number.isascii() and number.isdigit():
            return int(number), boot_id, grace == ["grace"]
        case _:
            return 0, "", False


def _write_about(path: Path, boot_id: str, *, in_grace: bool) -> None:
    new = path / "about.new"
    new.write_text(f"format {FORMAT}\nboot {boot_id}\n" + "grace\n" * in_grace)
    new.replace(path / "about")


def _set_aside(path: Path) -> None:
    """Keep a table that can't be used, for whoever wants to know why; the one before it goes."""
    with contextlib.suppress(FileNotFoundError):
        (path / "data.mdb").replace(path / "damaged.mdb")
    _remove(path)


def _remove(path: Path) -> None:
    for name in ("data.mdb", "lock.mdb"):
        (path / name).unlink(missing_ok=True)


def _os_error(error: Exception, path: Path) -> OSError:
    if isinstance(error, lmdb.DiskError):
        return OSError(errno.ENOSPC, f"{path}: {error}")
    return OSError(errno.EIO, f"{path}: {error}")
