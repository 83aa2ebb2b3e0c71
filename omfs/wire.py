"""Every message that travels between two nodes, and nothing else.

A frame is a 16-byte header, a msgpack body (a struct below) and bulk data beside it (net/frames.py).  Requests are
verb+noun, replies past tense; units are in the names; names are bytes without "/" (the owner checks); a handle is
opaque to all but its owner.  Unknown fields and types are refused.  Changes change PROTOCOL_VERSION and test_wire.py.
Leases come with replies (docs/leases.md): *mode* is what the holder may cache of the object, *parent_mode* of the
directory it was found in; *serial* grows with every grant and recall of a session, and a recall voids up to its own.
"""

from __future__ import annotations

from typing import Final, TypeAlias, Union

from omfs.wireleases import (
    AskLease as AskLease,
    Audited as Audited,
    AuditHeld as AuditHeld,
    Believed as Believed,
    HeldAudited as HeldAudited,
    HeldTold as HeldTold,
    LeaseGranted as LeaseGranted,
    LeaseReturned as LeaseReturned,
    RecallAll as RecallAll,
    RecallLease as RecallLease,
    RecallNames as RecallNames,
    ReturnLeases as ReturnLeases,
    TellHeld as TellHeld,
)
from omfs.wirenames import (
    DirectoryRead as DirectoryRead,
    Found as Found,
    NameMissing as NameMissing,
    NamesChanged as NamesChanged,
)
from omfs.wiretypes import (
    Attributes as Attributes,
    Bare as Bare,
    Caller as Caller,
    Entry as Entry,
    ExportInfo as ExportInfo,
    Lane as Lane,
    Message as Message,
    Mode as Mode,
    Standing as Standing,
)

PROTOCOL_VERSION: Final = 7


class Hello(Message, frozen=True, tag=True):
    """First message on every connection, holder to owner."""

    version: int
    software: str
    node_id: int
    wanted_node_id: int
    dfsa: bool
    map_digest: bytes
    session: bytes  # 16 random bytes, chosen once per mount
    lane: Lane


class Ping(Message, frozen=True, tag=True):
    """Are you there?  Also keeps the session alive."""


class CancelRequest(Message, frozen=True, tag=True):
    """Give up the waiting request with this id (a lock wait); it is answered with EINTR if still waiting."""

    request_id: int


class DescribeNode(Message, frozen=True, tag=True):  # for omfs-admin; *accounts*: with the users and groups
    accounts: bool = False


class AttachTree(Message, frozen=True, tag=True):  # the root of the owner's tree
    caller: Caller


class LookUp(Message, frozen=True, tag=True):
    parent: bytes
    name: bytes
    caller: Caller


class MakeNode(Message, frozen=True, tag=True):
    """mknod: a regular file, FIFO or socket; devices are refused with EPERM."""

    parent: bytes
    name: bytes
    mode: int
    umask: int
    caller: Caller


class MakeDirectory(Message, frozen=True, tag=True):
    parent: bytes
    name: bytes
    mode: int
    umask: int
    caller: Caller


class MakeSymlink(Message, frozen=True, tag=True):
    parent: bytes
    name: bytes
    target: bytes
    caller: Caller


class MakeLink(Message, frozen=True, tag=True):
    handle: bytes
    parent: bytes
    name: bytes
    caller: Caller


class RemoveName(Message, frozen=True, tag=True):
    """unlink, or rmdir where *directory*."""

    parent: bytes
    name: bytes
    directory: bool
    caller: Caller


class RenameName(Message, frozen=True, tag=True):
    """*flags*: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2 (renameat2(2))."""

    parent: bytes
    name: bytes
    new_parent: bytes
    new_name: bytes
    flags: int
    caller: Caller


class ReadLink(Message, frozen=True, tag=True):
    handle: bytes
    caller: Caller


class GetAttributes(Message, frozen=True, tag=True):
    handle: bytes


class SetAttributes(Message, frozen=True, tag=True):
    """None leaves a field alone.  *atime_now*/*mtime_now* mean the owner's clock (utimensat UTIME_NOW)."""

    handle: bytes
    caller: Caller
    open_id: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False


class CheckAccess(Message, frozen=True, tag=True):  # *mask* of R_OK 4, W_OK 2, X_OK 1
    handle: bytes
    mask: int
    caller: Caller


class StatFilesystem(Message, frozen=True, tag=True):
    handle: bytes


class GetXattr(Message, frozen=True, tag=True):
    handle: bytes
    name: bytes
    caller: Caller


class SetXattr(Message, frozen=True, tag=True):
    """*flags*: XATTR_CREATE 1, XATTR_REPLACE 2."""

    handle: bytes
    name: bytes
    value: bytes
    flags: int
    caller: Caller


class ListXattrs(Message, frozen=True, tag=True):
    handle: bytes
    caller: Caller


class RemoveXattr(Message, frozen=True, tag=True):
    handle: bytes
    name: bytes
    caller: Caller


class OpenFile(Message, frozen=True, tag=True):
    """*flags* as open(2).  *reclaim*: it was open before the owner restarted.  *execute*: to run it, needs x, not r.

    *wants_data*: where the data may be cached and are few (WHOLE_FILE_MAX_BYTES), all of them come beside the reply.
    """

    handle: bytes
    flags: int
    caller: Caller
    reclaim: bool = False
    execute: bool = False
    wants_data: bool = False


class CreateFile(Message, frozen=True, tag=True):
    """open(2) with O_CREAT of *name*; *flags* may carry O_EXCL and O_TRUNC."""

    parent: bytes
    name: bytes
    mode: int
    umask: int
    flags: int
    caller: Caller


class ReadBlocks(Message, frozen=True, tag=True):
    open_id: int
    offset: int
    size_bytes: int


class WriteBlocks(Message, frozen=True, tag=True):
    """Bulk data beside, written at *offset*.  *kill_set_id*: the writer may not keep the file's set-id bits.

    *behind*: the program was told that it is done, which holds only if the session still has it EXCLUSIVE (else EIO).
    """

    open_id: int
    offset: int
    kill_set_id: bool = False
    behind: bool = False


class AppendBlocks(Message, frozen=True, tag=True):
    """Bulk data beside: written at the end of the file, as one record.  *behind*: as for WriteBlocks."""

    open_id: int
    kill_set_id: bool = False
    behind: bool = False


class CloseFile(Message, frozen=True, tag=True):
    """Also ends the flock taken through this open id.  Directories too."""

    open_id: int


class CloseFiles(Message, frozen=True, tag=True):
    """Several without locks, at most WRITTEN_CLOSES_MAX of them for writing; what the owner doesn't know is skipped."""

    open_ids: tuple[int, ...]


class SyncFile(Message, frozen=True, tag=True):
    """fsync, or fdatasync where *data_only*.  Directories too."""

    open_id: int
    data_only: bool


class AllocateSpace(Message, frozen=True, tag=True):  # fallocate(2) with its *mode* bits
    open_id: int
    mode: int
    offset: int
    size_bytes: int


class SeekFile(Message, frozen=True, tag=True):  # lseek(2) with *whence* SEEK_DATA 3 or SEEK_HOLE 4
    open_id: int
    offset: int
    whence: int


class CopyRange(Message, frozen=True, tag=True):  # copy_file_range(2) between two files of the same owner
    source_open_id: int
    source_offset: int
    target_open_id: int
    target_offset: int
    size_bytes: int


class OpenDirectory(Message, frozen=True, tag=True):
    handle: bytes
    caller: Caller


class ReadDirectory(Message, frozen=True, tag=True):
    """Entries behind *cursor*, about *size_bytes* of them.  *bare*: somebody is going to ask for their ACLs."""

    open_id: int
    cursor: int
    size_bytes: int
    bare: bool = False


class Moving(Message, frozen=True):
    """Whose lock goes over to another node: the *process* of a guest, by its number there, in one *attempt* to move it.

    *descriptor*: of that process, where the lock is that of the open file behind it; -1 where it is the process's own.
    Said by the source of a lock that it has, and by the destination where it takes the same one for the copy.
    """

    attempt: str
    process: int
    descriptor: int = -1


class LockFile(Message, frozen=True, tag=True):
    """flock(2): *operation* LOCK_SH 1, LOCK_EX 2 or LOCK_UN 8; *wait* until it is free.

    *moving*: refused (EAGAIN) where it is not held already, by the sender or under that name.
    """

    open_id: int
    operation: int
    wait: bool
    moving: Moving | None = None


class LockRange(Message, frozen=True, tag=True):
    """POSIX lock of [start, end] (inclusive; 2**63-1 = to the end); *kind* F_RDLCK 0, F_WRLCK 1, F_UNLCK 2.

    *moving*: refused (EAGAIN) where it is not held already, by the sender or under that name.
    """

    open_id: int
    owner: int
    kind: int
    start: int
    end: int
    pid: int
    wait: bool
    moving: Moving | None = None


class ProbeRange(Message, frozen=True, tag=True):
    open_id: int
    owner: int
    kind: int
    start: int
    end: int


class ReleaseLocks(Message, frozen=True, tag=True):  # a process closed a descriptor: its POSIX locks there end
    open_id: int
    owner: int


class Failed(Message, frozen=True, tag=True):
    """The request was executed and failed.  *open_lost*: the open id is unknown here (the owner restarted)."""

    errno: int
    text: str = ""
    open_lost: bool = False


class Welcomed(Message, frozen=True, tag=True):
    """*instance* names this run of the owner's daemon; *resumed*: the session's opens, locks and replies are kept.

    *lease_term_s*: so long after the sending of the last message that was answered may the holder use its caches.
    """

    version: int
    software: str
    node_id: int
    instance: bytes
    resumed: bool
    lease_term_s: float


class Refused(Message, frozen=True, tag=True):  # answer to a Hello that does not fit; then the connection ends
    reason: str
    nomfs: bool = False  # nothing is wrong: the administrator of that node lets nobody in for now


class Ponged(Message, frozen=True, tag=True):
    """Here."""


class Done(Message, frozen=True, tag=True):
    """It succeeded and there is nothing more to say."""


class NodeDescribed(Message, frozen=True, tag=True):
    software: str
    version: int
    node_id: int
    hostname: str
    uptime_s: float
    clock_ns: int
    exports: tuple[ExportInfo, ...]
    sessions: int
    requests: int
    bytes_in: int
    bytes_out: int
    standing: Standing


class AttributesGot(Message, frozen=True, tag=True):
    attributes: Attributes
    serial: int = 0
    mode: Mode = Mode.NONE


class LinkRead(Message, frozen=True, tag=True):
    target: bytes


class FilesystemStatted(Message, frozen=True, tag=True):  # statvfs(3)
    block_size_bytes: int
    fragment_size_bytes: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    files_available: int
    name_max: int


class XattrGot(Message, frozen=True, tag=True):
    value: bytes


class XattrsListed(Message, frozen=True, tag=True):
    names: tuple[bytes, ...]


class FileOpened(Message, frozen=True, tag=True):
    """*data*: what is read may be cached under the lease; otherwise somebody here writes it without asking us."""

    open_id: int
    serial: int = 0
    mode: Mode = Mode.NONE
    data: bool = False


class FileCreated(Message, frozen=True, tag=True):
    """*parent*: as in Found."""

    open_id: int
    handle: bytes
    attributes: Attributes
    serial: int = 0
    mode: Mode = Mode.NONE
    parent_mode: Mode = Mode.NONE
    data: bool = False
    bare: Bare = Bare.UNKNOWN
    parent: Attributes | None = None


class BlocksRead(Message, frozen=True, tag=True):
    """The bulk data beside are what was read; fewer bytes than asked for mean the end of the file."""


class BlocksWritten(Message, frozen=True, tag=True):
    size_bytes: int


class SeekDone(Message, frozen=True, tag=True):
    offset: int


class RangeProbed(Message, frozen=True, tag=True):  # *kind* F_UNLCK: nobody is in the way; else the lock that is
    kind: int
    start: int
    end: int
    pid: int


Request: TypeAlias = Union[
    Hello, Ping, CancelRequest, DescribeNode,
    AttachTree, LookUp, MakeNode, MakeDirectory, MakeSymlink, MakeLink, RemoveName, RenameName, ReadLink,
    GetAttributes, SetAttributes, CheckAccess, StatFilesystem, GetXattr, SetXattr, ListXattrs, RemoveXattr,
    OpenFile, CreateFile, AskLease, ReadBlocks, WriteBlocks, AppendBlocks, CloseFile, CloseFiles, SyncFile,
    AllocateSpace, SeekFile, CopyRange, OpenDirectory, ReadDirectory,
    LockFile, LockRange, ProbeRange, ReleaseLocks, ReturnLeases, TellHeld, AuditHeld,
]  # fmt: skip

Recall: TypeAlias = Union[RecallLease, RecallNames, RecallAll]
"""What the owner asks of a holder."""

Reply: TypeAlias = Union[
    Failed, Welcomed, Refused, Ponged, Done, NodeDescribed, Found, AttributesGot, LinkRead, FilesystemStatted,
    XattrGot, XattrsListed, FileOpened, FileCreated, BlocksRead, BlocksWritten, SeekDone, DirectoryRead, RangeProbed,
    NameMissing, NamesChanged, LeaseReturned, LeaseGranted, HeldTold, HeldAudited,
]  # fmt: skip
