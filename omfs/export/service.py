"""One handler per message: what the owner does for each request (net.server.Service).

Cheap requests are answered at once; what may take long returns a coroutine, which the server runs beside the others.
A handler finds the place its handle names (a forged handle ends there), chooses whom to act as, and lets the room
concerned make the system calls.  It keeps no file state of its own: opens and locks belong to the session.
The first walk of ARCHITECTURE.md passes here: server -> `_read` -> blocks -> back.

Invariant: HANDLERS has exactly the messages that net/ and underleases.py do not answer themselves (checked at import).
Errors leave as OSError or OmfsError and become wire.Failed in net/server.py.  Called by underleases.py; built by
daemon.py, which runs `tend` in its nursery; cli/export.py calls `prepare_process` before any thread exists.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, get_args

import trio

from omfs import wire
from omfs.config import LOCK_WAITERS_MAX, WRITTEN_CLOSES_MAX, Settings
from omfs.errors import ConfigError, OpenLost
from omfs.export import files as opening, metadata, names
from omfs.export.blocks import Blocks
from omfs.export.description import Description
from omfs.export.disk import Disk, Place, attributes_of, check_exportable, check_name
from omfs.export.files import Opened, OpenIds, SessionFiles, Share, holds_big_orphan, writable_of
from omfs.export.handles import Sealer, load_key
from omfs.export.listings import Leases, NoLeases, Reader, read_directory
from omfs.export.locks import Locks
from omfs.export.mounts import Mounts
from omfs.export.ownmount import OwnMount
from omfs.export.rangeowners import SessionLocks
from omfs.export.trees import ExportTrees
from omfs.kernel.credentials import CAP_SYS_RESOURCE, drop_effective_capability, require_root
from omfs.kernel.filelease import block_signals
from omfs.kernel.filelocks import install_wake_signal
from omfs.net.server import Answer, Buffer, Server, Session

MOUNT_SWEEP_S: Final = 2.5  # a mount's descriptor is dropped after one to two of these without use
DESCRIPTORS_SHARE: Final = 4  # one node may take the nth part of all descriptors,
WAITERS_SHARE: Final = 2  # and of the threads that wait for locks
LEASE_WAITERS_MAX: Final = 64  # threads that wait until a native program gives its kernel lease back (45 s at most)
ANSWERED_ELSEWHERE: Final = frozenset(
    {wire.Hello, wire.Ping, wire.CancelRequest, wire.ReturnLeases}
)  # net/, underleases.py

MaybeSlow: TypeAlias = Answer | Coroutine[Any, Any, Answer]
R = TypeVar("R")

_DONE: Final[Answer] = (wire.Done(), b"")


class Holder:
    """What one session has here.  *can_sendfile*: its bulk connection is plain."""

    __slots__ = ("files", "locks", "session")

    def __init__(self, session: Session, files: SessionFiles, locks: SessionLocks) -> None:
        self.session = session
        self.files = files
        self.locks = locks

    @property
    def can_sendfile(self) -> bool:
        bulk = self.session.bulk
        return bulk is not None and bulk.transport.can_sendfile


def prepare_process() -> None:
    """Make this process fit to serve: root, all descriptors it may have, no privilege that spares users their quota.

    Main thread, before other threads exist.  ConfigError when not root.
    """
    try:
        require_root()
    except OSError as error:
        raise ConfigError(f"omfs-export: {error.strerror}") from None
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    drop_effective_capability(CAP_SYS_RESOURCE)
    block_signals()


class ExportService:
    """The owner's side of everything that holders ask."""

    def __init__(self, settings: Settings, node_id: int) -> None:
        """ConfigError when something needed is missing.  Main thread (lock waits need a signal handler)."""
        install_wake_signal()
        self.node_id = node_id
        self.server: Server | None = None  # set by whoever builds both: it counts what DescribeNode tells
        self.trees = ExportTrees(settings.trees, os.path.realpath)
        self._mounts = Mounts()
        self.disk = Disk(Sealer(load_key(Path(settings.state_dir))), self.trees, self._mounts)
        check_exportable(self.disk)
        self.leases: Leases = NoLeases()  # set by underleases.py: entries of listings are granted one by one
        self._blocks = Blocks()
        self.locks = Locks()
        self._ids = OpenIds()
        self._shares: dict[int, Share] = {}  # by node id
        self._lease_waiters = trio.CapacityLimiter(LEASE_WAITERS_MAX)
        self.description = Description(node_id)
        self._own_mount = OwnMount(Path(settings.run_dir))

    async def tend(self) -> None:
        """Drop what is not used any more, until cancelled."""
        while True:
            await trio.sleep(MOUNT_SWEEP_S)
            self.drop_idle()

    def drop_idle(self) -> None:
        """Let go of mounts that were not used since the last call, so that they can be unmounted."""
        self.disk.leave_directories()
        self._mounts.drop_idle()

    def close(self) -> None:
        """Close the service's own descriptors; sessions must have ended."""
        self.disk.leave_directories()
        self._mounts.close()

    def exports(self) -> tuple[wire.ExportInfo, ...]:
        """The export trees that others can see."""
        return self.trees.describe()

    # ------------------------------------------------------------ for net/server.py

    def answer(self, session: Session, request: wire.Request, bulk: Buffer) -> MaybeSlow:
        """The reply, or a coroutine that returns it.  OSError, OmfsError."""
        holder = session.data or self.begin_session(session)
        return HANDLERS[type(request)](self, holder, request, bulk)

    def begin_session(self, session: Session) -> Holder:
        """Its first request has come.  OpenLost when the session has ended since."""
        if session.ended:
            raise OpenLost("the session ended")
        share = self._shares.get(session.node_id)
        if share is None:
            most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            share = Share(most // DESCRIPTORS_SHARE, LOCK_WAITERS_MAX // WAITERS_SHARE)
            self._shares[session.node_id] = share
        holder = session.data = Holder(
            session, SessionFiles(self._ids, share), self.locks.begin_session(share, session.key)
        )
        return holder

    def given_up(self, session: Session, reply: wire.Message) -> None:
        """The holder will never learn of this reply: what it opened is closed."""
        holder: Holder | None = session.data
        if holder is not None and isinstance(reply, wire.FileOpened | wire.FileCreated):
            with suppress(OpenLost):  # closed by then
                holder.files.remove(reply.open_id).close()

    def session_ended(self, session: Session) -> None:
        """Close what it had open and release its locks."""
        holder: Holder | None = session.data
        if holder is not None:
            session.data = None
            self.locks.end_session(holder.locks)
            holder.files.close_all()

    def _describe_node(self, holder: Holder, request: wire.DescribeNode, bulk: Buffer) -> Answer:
        return self.describe(request.accounts), b""

    def describe(self, accounts: bool) -> wire.NodeDescribed:
        """Who this node is; *accounts*: with its users and groups."""
        return self.description.tell(self.server, self.exports(), accounts)

    async def _tell_held(self, holder: Holder, request: wire.TellHeld, bulk: Buffer) -> Answer:
        return await self._own_mount.tell_held(holder.session.node_id, request), b""

    async def _audit_held(self, holder: Holder, request: wire.AuditHeld, bulk: Buffer) -> Answer:
        return await self._own_mount.audit(holder.session.node_id, request), b""

    # ------------------------------------------------------------ names

    def _attach_tree(self, holder: Holder, request: wire.AttachTree, bulk: Buffer) -> Answer:
        handle, status = self.disk.attach()
        return wire.Found(handle, attributes_of(status)), b""

    def _look_up(self, holder: Holder, request: wire.LookUp, bulk: Buffer) -> Answer:
        check_name(request.name)
        disk = self.disk
        parent = disk.locate(request.parent)
        fd = disk.directory(parent)
        try:
            handle, status = disk.look_up(fd, parent, request.name, parent.tree.identity_of(request.caller))
        except OSError:
            disk.must_exist(parent)
            raise
        return wire.Found(handle, attributes_of(status)), b""

    def _make_node(self, holder: Holder, request: wire.MakeNode, bulk: Buffer) -> Answer:
        return names.make_node(self.disk, request), b""

    def _make_directory(self, holder: Holder, request: wire.MakeDirectory, bulk: Buffer) -> Answer:
        return names.make_directory(self.disk, request), b""

    def _make_symlink(self, holder: Holder, request: wire.MakeSymlink, bulk: Buffer) -> Answer:
        return names.make_symlink(self.disk, request), b""

    def _make_link(self, holder: Holder, request: wire.MakeLink, bulk: Buffer) -> Answer:
        with self._object(holder, request.handle) as (place, fd):
            return names.make_link(self.disk, request, fd, place), b""

    def _remove_name(self, holder: Holder, request: wire.RemoveName, bulk: Buffer) -> MaybeSlow:
        try:
            return names.remove_name(self.disk, request).reply, b""
        except BlockingIOError:
            return self._free_slowly(names.remove_name, request)

    def _rename_name(self, holder: Holder, request: wire.RenameName, bulk: Buffer) -> MaybeSlow:
        try:
            return names.rename_name(self.disk, request).reply, b""
        except BlockingIOError:
            return self._free_slowly(names.rename_name, request)

    async def _free_slowly(self, change: Callable[[Disk, R, bool], names.Removed], request: R) -> Answer:
        """All of the work is here, so that nothing was done when this is never begun."""
        victim, reply = change(self.disk, request, True)
        if victim >= 0:
            await self._blocks.close(victim)
        return reply, b""

    def _read_link(self, holder: Holder, request: wire.ReadLink, bulk: Buffer) -> Answer:
        with self._object(holder, request.handle) as (place, fd):
            return names.read_link(fd, place), b""

    # ------------------------------------------------------------ attributes

    @contextmanager
    def _object(self, holder: Holder, handle: bytes) -> Iterator[tuple[Place, int]]:
        """(place, descriptor) of any object, also of one that is open here and has no name left."""
        place = self.disk.locate(handle)
        fd = holder.files.open_object(self.disk, place)
        try:
            yield place, fd
        finally:
            os.close(fd)

    def _get_attributes(self, holder: Holder, request: wire.GetAttributes, bulk: Buffer) -> Answer:
        disk = self.disk  # spelled out, not `_object`: this is the most frequent request
        fd = holder.files.open_object(disk, disk.locate(request.handle))
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return wire.AttributesGot(attributes_of(status)), b""

    def _set_attributes(self, holder: Holder, request: wire.SetAttributes, bulk: Buffer) -> MaybeSlow:
        writable = writable_of(holder.files, request)
        with self._object(holder, request.handle) as (place, fd):
            place.must_be_writable()
            if metadata.may_be_slow(fd, request):
                return self._set_attributes_slowly(holder, request)
            identity = place.tree.identity_of(request.caller)
            try:
                metadata.set_attributes(fd, writable.fd if writable else -1, place, identity, request, wait=False)
            except BlockingIOError:  # a kernel lease of a native program must be broken first
                return self._set_attributes_slowly(holder, request)
            return wire.AttributesGot(attributes_of(os.fstat(fd))), b""

    async def _set_attributes_slowly(self, holder: Holder, request: wire.SetAttributes) -> Answer:
        writable = writable_of(holder.files, request)
        with self._object(holder, request.handle) as (place, fd):
            identity = place.tree.identity_of(request.caller)
            file_fd = writable.fd if writable else -1
            change = partial(metadata.set_attributes, fd, file_fd, place, identity, request)
            try:
                if writable is None:
                    await self._blocks.run(change, False)
                else:
                    await self._blocks.in_thread(writable, change, False)
            except BlockingIOError:
                await trio.to_thread.run_sync(change, True, limiter=self._lease_waiters)
            return wire.AttributesGot(attributes_of(os.fstat(fd))), b""

    def _check_access(self, holder: Holder, request: wire.CheckAccess, bulk: Buffer) -> Answer:
        with self._object(holder, request.handle) as (place, fd):
            metadata.check_access(fd, place, place.tree.identity_of(request.caller), request.mask)
        return _DONE

    def _stat_filesystem(self, holder: Holder, request: wire.StatFilesystem, bulk: Buffer) -> Answer:
        with self._object(holder, request.handle) as (_, fd):
            return metadata.stat_filesystem(fd), b""

    def _get_xattr(self, holder: Holder, request: wire.GetXattr, bulk: Buffer) -> Answer:
        with self._object(holder, request.handle) as (place, fd):
            return wire.XattrGot(metadata.get_xattr(fd, place.tree.identity_of(request.caller), request.name)), b""

    def _set_xattr(self, holder: Holder, request: wire.SetXattr, bulk: Buffer) -> Answer:
        with self._object(holder, request.handle) as (place, fd):
            metadata.set_xattr(fd, place, place.tree.identity_of(request.caller), request)
        return _DONE

    def _list_xattrs(self, holder: Holder, request: wire.ListXattrs, bulk: Buffer) -> Answer:
        with self._object(holder, request.handle) as (place, fd):
            return wire.XattrsListed(metadata.list_xattrs(fd, place.tree.identity_of(request.caller))), b""

    def _remove_xattr(self, holder: Holder, request: wire.RemoveXattr, bulk: Buffer) -> Answer:
        with self._object(holder, request.handle) as (place, fd):
            metadata.remove_xattr(fd, place, place.tree.identity_of(request.caller), request.name)
        return _DONE

    # ------------------------------------------------------------ files

    def _open_file(self, holder: Holder, request: wire.OpenFile, bulk: Buffer) -> MaybeSlow:
        try:
            return opening.open_file(self.disk, holder.files, request), b""
        except BlockingIOError:
            return self._open_file_slowly(holder, request)

    def whole_file(self, opened: Opened) -> Buffer:
        """See Blocks.whole.  Nothing where it can't be read: who reads it is told why."""
        try:
            return self._blocks.whole(opened)
        except OSError:
            return b""

    async def _open_file_slowly(self, holder: Holder, request: wire.OpenFile) -> Answer:
        """A big file is truncated, or a native program has a kernel lease on it: wait until that is given back."""
        with self._object(holder, request.handle) as (place, fd):
            open_id = await self._wait_open(holder, place, fd, request)
        return wire.FileOpened(open_id), b""

    def _create_file(self, holder: Holder, request: wire.CreateFile, bulk: Buffer) -> MaybeSlow:
        try:
            return opening.create_file(self.disk, holder.files, request), b""
        except BlockingIOError:
            return self._create_file_slowly(holder, request)

    async def _create_file_slowly(self, holder: Holder, request: wire.CreateFile) -> Answer:
        """As `_open_file_slowly`, of the file that is there already."""
        found, _ = self._look_up(holder, wire.LookUp(request.parent, request.name, request.caller), b"")
        assert isinstance(found, wire.Found)
        with self._object(holder, found.handle) as (place, fd):
            open_id = await self._wait_open(holder, place, fd, request)
            return wire.FileCreated(open_id, found.handle, attributes_of(os.fstat(fd))), b""

    async def _wait_open(self, holder: Holder, place: Place, fd: int, request: wire.OpenFile | wire.CreateFile) -> int:
        identity = place.tree.identity_of(request.caller)
        if isinstance(request, wire.OpenFile) and request.execute:
            identity = opening.who_opens_to_execute(fd, identity)
        open_it = partial(opening.open_slowly, fd, request.flags, place, identity)
        try:
            opened = await self._blocks.run(open_it, False)
        except BlockingIOError:
            opened = await trio.to_thread.run_sync(open_it, True, limiter=self._lease_waiters)
        return holder.files.add(opened)

    def reopen_file(self, session: Session, request: wire.OpenFile, fd: int) -> Answer:
        """A reclaimed open whose descriptor of before a restart has been kept."""
        holder: Holder = session.data
        return opening.adopt_file(self.disk, holder.files, request, fd), b""

    def _ask_lease(self, holder: Holder, request: wire.AskLease, bulk: Buffer) -> Answer:
        holder.files.get(request.open_id)
        return wire.LeaseGranted(0, wire.Mode.NONE), b""  # completed by underleases.py

    def _read_blocks(self, holder: Holder, request: wire.ReadBlocks, bulk: Buffer) -> MaybeSlow:
        return self._blocks.read(holder.files, request, holder.can_sendfile)

    def _write_blocks(self, holder: Holder, request: wire.WriteBlocks, bulk: Buffer) -> MaybeSlow:
        return self._blocks.write(holder.files, request, bulk)

    def _append_blocks(self, holder: Holder, request: wire.AppendBlocks, bulk: Buffer) -> MaybeSlow:
        return self._blocks.append(holder.files, request, bulk)

    def _close_file(self, holder: Holder, request: wire.CloseFile, bulk: Buffer) -> MaybeSlow:
        if holds_big_orphan(holder.files.get(request.open_id)):
            return self._close_slowly(holder, (request.open_id,))
        self._end_open(holder, request.open_id).close()
        return _DONE

    def _close_files(self, holder: Holder, request: wire.CloseFiles, bulk: Buffer) -> MaybeSlow:
        known = holder.files.known(request.open_ids)
        if sum(opened.is_writable for opened in known.values()) > WRITTEN_CLOSES_MAX:
            raise OSError(errno.EINVAL, "too many that were open for writing")
        if any(holds_big_orphan(opened) for opened in known.values()):
            return self._close_slowly(holder, tuple(known))
        for open_id in known:
            self._end_open(holder, open_id).close()
        return _DONE

    def _end_open(self, holder: Holder, open_id: int) -> Opened:
        opened = holder.files.remove(open_id)
        if not holder.files.is_open(opened.place.handle):
            holder.locks.release_file(opened.place.handle)
        return opened

    async def _close_slowly(self, holder: Holder, open_ids: tuple[int, ...]) -> Answer:
        opens = [self._end_open(holder, open_id) for open_id in holder.files.known(open_ids)]
        for fd in [opened.give_up() for opened in opens]:
            if fd >= 0:
                await self._blocks.close(fd)
        return _DONE

    def _sync_file(self, holder: Holder, request: wire.SyncFile, bulk: Buffer) -> MaybeSlow:
        return self._blocks.sync(holder.files.get(request.open_id), request)

    def _allocate_space(self, holder: Holder, request: wire.AllocateSpace, bulk: Buffer) -> MaybeSlow:
        return self._blocks.allocate(holder.files.get(request.open_id), request)

    def _seek_file(self, holder: Holder, request: wire.SeekFile, bulk: Buffer) -> Answer:
        return self._blocks.seek(holder.files, request), b""

    def _copy_range(self, holder: Holder, request: wire.CopyRange, bulk: Buffer) -> MaybeSlow:
        source = holder.files.get(request.source_open_id)
        return self._blocks.copy(source, holder.files.get(request.target_open_id), request)

    # ------------------------------------------------------------ directories

    def _open_directory(self, holder: Holder, request: wire.OpenDirectory, bulk: Buffer) -> Answer:
        return opening.open_directory(self.disk, holder.files, request), b""

    async def _read_directory(self, holder: Holder, request: wire.ReadDirectory, bulk: Buffer) -> Answer:
        opened, listing = holder.files.get_directory(request.open_id)
        reader = Reader(holder.session.key, opened.identity, self.leases)
        with opened as fd:
            return await read_directory(self.disk, listing, fd, opened.place, reader, request), b""

    # ------------------------------------------------------------ locks

    def _lock_file(self, holder: Holder, request: wire.LockFile, bulk: Buffer) -> MaybeSlow:
        return self.locks.flocks.lock(holder.files, holder.locks.key, request)

    def _lock_range(self, holder: Holder, request: wire.LockRange, bulk: Buffer) -> MaybeSlow:
        return self.locks.lock_range(holder.files, holder.locks, request)

    def _probe_range(self, holder: Holder, request: wire.ProbeRange, bulk: Buffer) -> MaybeSlow:
        return self.locks.probe(holder.files, holder.locks, request)

    def _release_locks(self, holder: Holder, request: wire.ReleaseLocks, bulk: Buffer) -> Answer:
        holder.locks.release(holder.files.get(request.open_id).place.handle, request.owner)
        return _DONE


Handler: TypeAlias = Callable[[ExportService, Holder, Any, Buffer], MaybeSlow]

HANDLERS: Final[dict[type[Any], Handler]] = {
    wire.DescribeNode: ExportService._describe_node,
    wire.AttachTree: ExportService._attach_tree,
    wire.LookUp: ExportService._look_up,
    wire.MakeNode: ExportService._make_node,
    wire.MakeDirectory: ExportService._make_directory,
    wire.MakeSymlink: ExportService._make_symlink,
    wire.MakeLink: ExportService._make_link,
    wire.RemoveName: ExportService._remove_name,
    wire.RenameName: ExportService._rename_name,
    wire.ReadLink: ExportService._read_link,
    wire.GetAttributes: ExportService._get_attributes,
    wire.SetAttributes: ExportService._set_attributes,
    wire.CheckAccess: ExportService._check_access,
    wire.StatFilesystem: ExportService._stat_filesystem,
    wire.GetXattr: ExportService._get_xattr,
    wire.SetXattr: ExportService._set_xattr,
    wire.ListXattrs: ExportService._list_xattrs,
    wire.RemoveXattr: ExportService._remove_xattr,
    wire.OpenFile: ExportService._open_file,
    wire.CreateFile: ExportService._create_file,
    wire.AskLease: ExportService._ask_lease,
    wire.ReadBlocks: ExportService._read_blocks,
    wire.WriteBlocks: ExportService._write_blocks,
    wire.AppendBlocks: ExportService._append_blocks,
    wire.CloseFile: ExportService._close_file,
    wire.CloseFiles: ExportService._close_files,
    wire.SyncFile: ExportService._sync_file,
    wire.AllocateSpace: ExportService._allocate_space,
    wire.SeekFile: ExportService._seek_file,
    wire.CopyRange: ExportService._copy_range,
    wire.OpenDirectory: ExportService._open_directory,
    wire.ReadDirectory: ExportService._read_directory,
    wire.LockFile: ExportService._lock_file,
    wire.LockRange: ExportService._lock_range,
    wire.ProbeRange: ExportService._probe_range,
    wire.ReleaseLocks: ExportService._release_locks,
    wire.TellHeld: ExportService._tell_held,
    wire.AuditHeld: ExportService._audit_held,
}

if set(HANDLERS) | ANSWERED_ELSEWHERE != set(get_args(wire.Request)):
    raise TypeError("export/service.py does not have exactly one handler per message")
