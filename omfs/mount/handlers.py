"""What all FUSE handlers share: the nodes, the table of inodes, who asks, and how errors become errno.

`answering` is the one decorator around every handler: an OmfsError becomes its errno, anything else a logged EIO,
because an exception that escapes a pyfuse3 handler ends the mount.  `Foundation` is the base of the operation families
(operations_*.py).  No handler lives here.

Here is also said how long the kernel may use what it is told (`found`, `made`, `absent_s`, `attributes_s`): for ever
under a lease, else for this answer only.  Names may always stay under the directory's lease.  Attributes may stay only
with LOOKUP, GETATTR and READDIRPLUS: the kernel discards those that were overtaken by a notification, while it takes
what comes with CREATE, MKDIR, LINK, SETATTR ... whatever it heard meanwhile (fuse_iget() without an attr_version).
"""

from __future__ import annotations

import errno
import functools
import logging
import stat
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError

from omfs import wire
from omfs.errors import NameAbsent, OmfsError
from omfs.mount.ahead import Ahead
from omfs.mount.allnames import AllNames
from omfs.mount.callers import Callers
from omfs.mount.counters import Counters
from omfs.mount.flights import in_flight
from omfs.mount.inodes import ROOT_ID, Inode, InodeTable
from omfs.mount.lowlevel import Hook
from omfs.mount.movinglocks import MovingLocks
from omfs.mount.remote import RemoteNode
from omfs.wiretypes import Mode

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

NODE_NAME_TIMEOUT_S: Final = 86400.0  # names of nodes change only with the map, which tells the kernel itself
CACHED_S: Final = 1 << 30  # for ever: what is under a lease is recalled, it does not run out
_UNKNOWN_DIRECTORY: Final = wire.Attributes(stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 0)


def answering(handler: F) -> F:
    """Turn what a handler raises into an answer for the kernel."""

    @functools.wraps(handler)
    async def answer(*arguments: Any) -> Any:
        try:
            return await handler(*arguments)
        except FUSEError:
            raise
        except OmfsError as error:
            log.debug("%s: %s", handler.__name__, error)
            raise FUSEError(error.errno) from None
        except Exception:
            log.exception("%s failed", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return answer  # type: ignore[return-value]


class Told(NamedTuple):
    """An object that the kernel is told of, which counts as one look-up: for how long its name and attributes hold."""

    number: int
    attributes: wire.Attributes
    entry_s: int
    attr_s: int
    was_known: bool  # to the kernel, before this


class Foundation(pyfuse3.Operations):
    """State of one mount, and how objects are shown to the kernel."""

    supports_dot_lookup = False  # a forgotten node id can't be found again by number
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        hook: Hook,
        nodes: dict[int, RemoteNode],
        self_id: int | None = None,
        counters: Counters | None = None,
    ) -> None:
        """*self_id*: this node, where /mfs/<self> is a bind (dfsa=1) and not in *nodes*."""
        super().__init__()
        self.counters = counters if counters is not None else Counters()
        self.hook = hook
        self.nodes = nodes
        self.self_id = self_id
        self.callers = Callers()
        self.moving_locks = MovingLocks(nodes)
        self.inodes: InodeTable[RemoteNode] = InodeTable()
        self.all_names = AllNames()
        self.ahead = Ahead(self.inodes, self.all_names)
        self.xattr_changes = 0  # calls of ours that set one, begun or ended: what was asked before does not count
        self.has_labels = False  # an SELinux label was seen or set through this mount
        for node in nodes.values():
            self.inodes.add_directory(node)

    # ------------------------------------------------------------ objects

    def is_local(self, number: int) -> bool:
        """/mfs itself, or the place where /mfs/<self> is laid over: nobody is asked about them."""
        return number == ROOT_ID or (self.self_id is not None and number == ROOT_ID + self.self_id)

    def object(self, number: int) -> Inode[RemoteNode]:
        """The object behind a FUSE node id.  Raises StaleHandle; EPERM for /mfs itself."""
        if self.is_local(number):
            raise FUSEError(errno.EPERM)
        return self.inodes.get(number)

    async def place(self, number: int) -> tuple[RemoteNode, bytes]:
        """The owner and handle behind a FUSE node id.  Raises as `object`."""
        inode = self.object(number)
        return inode.owner, inode.handle if inode.handle is not None else await inode.owner.root()

    def found(self, parent: Inode[RemoteNode], name: bytes, found: wire.Found) -> Told:
        """For LOOKUP.  As all of these: in the step in which the answer came, and then the kernel is answered."""
        told, inode = self._told(parent, name, found)
        return told._replace(attr_s=attributes_kept_s(inode, found.serial, found.mode))

    def note_bare(self, inode: Inode[RemoteNode], bare: wire.Bare, asked_at: int, round_: int) -> None:
        """An answer that has just been granted says what the object does not have.

        *asked_at*: `xattr_changes` when it was asked for.  *round_*: of the leases, now.
        """
        if bare and asked_at == self.xattr_changes:
            hold = inode.hold_of_names_in(round_)
            inode.bare = None if hold is None else (hold, bare)

    def bare(self, number: int) -> wire.Bare:
        """Which extended attributes the object does not have, as far as that is known now."""
        inode = self.inodes.peek(number)
        if inode is None or inode.bare is None:
            return wire.Bare.UNKNOWN
        hold, bare = inode.bare
        return bare if hold == inode.hold_of_names else wire.Bare.UNKNOWN

    def made(self, parent: Inode[RemoteNode], name: bytes, found: wire.Found | wire.FileCreated) -> Told:
        """For whatever makes a name."""
        told, inode = self._told(parent, name, found)
        is_granted = parent.owner.leases.granted(inode.lease, found.serial, found.mode)
        if is_granted and not told.was_known:  # so it is new, or was not changed by us since
            if isinstance(found, wire.FileCreated):
                self.note_bare(inode, found.bare, self.xattr_changes, inode.owner.leases.round)
                inode.keep_attributes(found.attributes)
            elif inode.is_directory:
                inode.keep_attributes(found.attributes)
                if found.lists_all:
                    self.all_names.know(inode, ())
        return told

    def told_attributes(self, number: int, thread: int) -> wire.Attributes | None:
        """Attributes that the kernel may be told now without asking, for ever."""
        inode = self.inodes.peek(number)
        if inode is None or inode.attributes is None or in_flight(inode, thread):
            return None
        return self.attributes_unasked(inode)

    def attributes_unasked(self, inode: Inode[RemoteNode]) -> wire.Attributes | None:
        """The same where it is known what is in flight, for so long as that allows."""
        attributes = inode.attributes
        if attributes is None or not inode.owner.leases.tell_unasked(inode.lease):
            return None
        self.counters.answered_attributes += 1
        return attributes

    def told_absent(self, number: int, name: bytes) -> bool:
        """Whether the kernel may be told without asking that there is no such name, for ever."""
        directory = self.inodes.peek(number)
        if directory is None or not self.all_names.is_absent(directory, name):
            return False
        is_told = directory.owner.leases.may_name_unasked(directory.lease, name)
        self.counters.answered_look_ups += is_told
        return is_told

    def told_ahead(self, name: bytes) -> tuple[int, wire.Attributes] | None:
        """For the LOOKUP that the hook has now: node id and attributes of what has this name, if the kernel may be
        told now without asking, for ever.  It counts as one look-up."""
        directory = self.inodes.peek(self.hook.node_id)
        told = None if directory is None else self.ahead.take(directory, name, self.callers.caller(self.hook))
        self.counters.answered_look_ups += told is not None
        return told

    def _told(
        self, parent: Inode[RemoteNode], name: bytes, found: wire.Found | wire.FileCreated
    ) -> tuple[Told, Inode[RemoteNode]]:
        inode = self.inodes.find(parent.owner, found.handle)
        was_known = inode.lookups > 0
        inode.lookups += 1
        inode.is_directory = stat.S_ISDIR(found.attributes.mode)
        may_stay = parent.owner.leases.may_name(parent.lease, found.serial, found.parent_mode, name)
        return Told(inode.id, found.attributes, CACHED_S if may_stay else 0, 0, was_known), inode

    @staticmethod
    def absent_s(parent: Inode[RemoteNode], name: bytes, absent: NameAbsent) -> int:
        """For a LOOKUP that found nothing."""
        mode = Mode(absent.parent_mode)
        return CACHED_S if parent.owner.leases.may_name(parent.lease, absent.serial, mode, name) else 0

    @staticmethod
    def attributes_s(inode: Inode[RemoteNode], got: wire.AttributesGot) -> int:
        """For GETATTR."""
        return attributes_kept_s(inode, got.serial, got.mode)

    @staticmethod
    def entry(told: Told) -> EntryAttributes:
        """What was told, for pyfuse3."""
        entry = filled(EntryAttributes(), told.number, told.attributes)
        entry.entry_timeout = told.entry_s
        entry.attr_timeout = told.attr_s
        return entry

    @staticmethod
    def shown(number: int, attributes: wire.Attributes, attr_s: int = 0) -> EntryAttributes:
        """Attributes of an object that the kernel knows already."""
        entry = filled(EntryAttributes(), number, attributes)
        entry.attr_timeout = attr_s
        return entry

    def directory_entry(self, inode: Inode[RemoteNode]) -> EntryAttributes:
        """/mfs/<N>, from what was last seen of it."""
        entry = filled(EntryAttributes(), inode.id, inode.owner.root_attributes or _UNKNOWN_DIRECTORY)
        entry.entry_timeout = NODE_NAME_TIMEOUT_S
        return entry

    def self_entry(self) -> EntryAttributes:
        """What /mfs/<self> is laid over."""
        assert self.self_id is not None
        entry = filled(EntryAttributes(), ROOT_ID + self.self_id, _UNKNOWN_DIRECTORY)
        entry.entry_timeout = entry.attr_timeout = NODE_NAME_TIMEOUT_S
        return entry

    def root_entry(self) -> EntryAttributes:
        """/mfs itself."""
        entry = filled(EntryAttributes(), ROOT_ID, _UNKNOWN_DIRECTORY)
        entry.st_mode = stat.S_IFDIR | 0o555
        entry.st_nlink = 2 + len(self.node_ids())
        entry.attr_timeout = entry.entry_timeout = NODE_NAME_TIMEOUT_S
        return entry

    def node_ids(self) -> list[int]:
        ids = set(self.nodes)
        if self.self_id is not None:
            ids.add(self.self_id)
        return sorted(ids)

    def current_request(self, opcode: int) -> memoryview | None:
        """The request being answered as the kernel sent it; only before the handler's first await.

        None where the hook is not installed, or it is of another kind.
        """
        return self.hook.request if self.hook.installed and self.hook.opcode == opcode else None

    @staticmethod
    def same_node(first: RemoteNode, second: RemoteNode) -> RemoteNode:
        """Both objects' owner; EXDEV if there are two."""
        if first.node_id != second.node_id:
            raise FUSEError(errno.EXDEV)
        return first

    async def forget(self, inode_list: Any) -> None:
        for number, lookups in inode_list:
            self.inodes.forget(number, lookups)


def may_keep_attributes(inode: Inode[RemoteNode]) -> bool:
    """Whether the kernel may keep attributes at all, where they are granted.

    Not while a call of ours is changing them, or names of the directory, nor where it reads the file through its
    page cache and the data are under no lease any more: it would read no further than the size that it knows, and a
    native program may be appending.
    """
    return not (inode.altering or inode.flights or (not inode.lease.data and inode.owner.is_cached(inode.handle)))


def attributes_kept_s(inode: Inode[RemoteNode], serial: int, mode: Mode) -> int:
    """How long it may keep those that come with this grant."""
    is_granted = may_keep_attributes(inode) and inode.owner.leases.granted(inode.lease, serial, mode)
    return CACHED_S if is_granted else 0


def filled(entry: EntryAttributes, number: int, attributes: wire.Attributes) -> EntryAttributes:
    """*entry* with the owner's attributes, which hold for this answer only."""
    entry.st_ino = number
    entry.entry_timeout = 0
    entry.attr_timeout = 0
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size_bytes
    entry.st_blocks = attributes.blocks
    entry.st_blksize = attributes.block_size_bytes
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    return entry
