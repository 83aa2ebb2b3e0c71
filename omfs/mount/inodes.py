"""Which remote object a FUSE node id stands for, and how long the kernel remembers it.

A node id is 63 bits of blake2b over (owner, handle), so st_ino is the same on every node and after every remount;
a collision takes the next free number.  The root is 1, the directory of node N is 1 + N; both are synthetic and
never forgotten.  An object stays in the table until the kernel has forgotten as many look-ups as it was given; with it
goes its lease.  Pure bookkeeping: no I/O.  Called by operations*.py and recall.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from omfs.cache.holder import Lease
from omfs.errors import StaleHandle
from omfs.mount.xattrs import Xattrs
from omfs.wiretypes import Caller

if TYPE_CHECKING:
    import trio

    from omfs.mount.flights import Flight
    from omfs.wiretypes import Attributes, Bare

ROOT_ID: Final = 1
FIRST_OBJECT_ID: Final = 1 << 20  # node directories use 2..65536
_NONE: Final[frozenset[Any]] = frozenset()  # what nearly all objects have of five sets, which would take 1 KiB


class Leases(Protocol):
    """What the table needs of the leases of a remote node (HeldLeases)."""

    @property
    def root(self) -> Lease: ...
    @property
    def round(self) -> int: ...
    @property
    def moves(self) -> int: ...
    @property
    def name_changes(self) -> int: ...
    def new_lease(self, handle: bytes) -> Lease: ...
    def drop_lease(self, handle: bytes, lease: Lease) -> None: ...


class Owner(Protocol):
    """What the table needs of a remote node."""

    @property
    def node_id(self) -> int: ...
    @property
    def leases(self) -> Leases: ...


OwnerT = TypeVar("OwnerT", bound=Owner)


def directory_id(node_id: int) -> int:
    """The FUSE node id of /mfs/<node_id>."""
    return ROOT_ID + node_id


class Inode(Generic[OwnerT]):
    """One object that the kernel knows.  *handle* is None for the directory of a node: the root of its tree.

    *breaks* counts when something that was known of it ceased to hold.  *xattrs*: known under the lease.
    *bare*: what it does not have, with the `hold_of_names` under which that is so.
    *filling*: READs under way that fill pages without a data lease.  *dropping*: recall.py makes the kernel forget such
    pages.  *readers*: who was let to open it for reading under the data lease, and whether to execute it.
    """

    __slots__ = (
        "_attributes", "altering", "bare", "breaks", "changes", "changing", "dropping", "filling", "flights",
        "forgetting", "handle", "id", "is_directory", "lease", "lookups", "owner", "readers", "regain_at_s",
        "regaining", "wakes", "xattrs",
    )  # fmt: skip

    def __init__(self, number: int, owner: OwnerT, handle: bytes | None, lease: Lease) -> None:
        self.id = number
        self.owner = owner
        self.handle = handle
        self.lease = lease
        self.lookups = 0
        self.is_directory = handle is None
        self.breaks = 0
        self.xattrs: Xattrs | None = None
        self.readers: frozenset[tuple[Caller, bool]] = _NONE
        self.bare: tuple[tuple[int, int], Bare] | None = None
        self._attributes: tuple[tuple[int, int, int], Attributes] | None = None
        self.filling: frozenset[trio.Event] = _NONE  # set when it is answered; then it is in `dropping`
        self.dropping: frozenset[trio.Event] = _NONE  # set when a thread has done so
        self.regain_at_s = 0.0  # operations_files.py
        self.regaining: trio.Event | None = None  # set when it is known whether data may be cached again
        self.changing = 0  # calls of ours under way that change names here: the kernel keeps the directory locked
        self.changes = 0  # how many began
        self.altering = 0  # calls of ours under way that change its attributes: the kernel is to have none
        self.flights: tuple[Flight, ...] = ()  # and those that change names here; flights.py
        self.wakes: frozenset[trio.Event] = _NONE  # see `wake`
        self.forgetting: frozenset[trio.Event] = _NONE  # set when names are that the owner was told are; recall.py

    @property
    def hold(self) -> tuple[int, int] | None:
        """None where nothing is held.  The same before a question and after its answer: the answer may be kept."""
        round_ = self.owner.leases.round
        return (round_, self.breaks) if round_ and self.lease.is_held else None

    @property
    def hold_of_names(self) -> tuple[int, int] | None:
        """None where nothing is held; another one when another node may have changed it since, or its names."""
        return self.hold_of_names_in(self.owner.leases.round)

    def hold_of_names_in(self, round_: int) -> tuple[int, int] | None:
        """The same, of the round that is now."""
        return (round_, self.lease.void) if round_ and self.lease.is_held else None

    def keep_attributes(self, attributes: Attributes) -> None:
        """Of a directory, or a file that was just made, as they are now, by an answer that has just been granted."""
        hold = self.hold
        self._attributes = None if hold is None else ((*hold, self._calls_elsewhere), attributes)

    @property
    def attributes(self) -> Attributes | None:
        """Those, if they are known and the kernel may be told now, to keep them."""
        if self._attributes is None:
            return None
        hold, attributes = self._attributes
        now = self.hold
        if now is None or self.forgetting or hold != (*now, self._calls_elsewhere):
            return None
        return attributes

    @property
    def _calls_elsewhere(self) -> int:
        """How many calls of ours have begun that may change its attributes and are not calls on it."""
        return self.owner.leases.moves if self.is_directory else self.owner.leases.name_changes

    def begin_change(self) -> int:
        """A call of ours that changes names here is sent to the owner.

        Returns what `was_alone` wants to hear, 0 where another one is under way.
        """
        self.changing += 1
        self.changes += 1
        self._attributes = None
        self.wake()
        return self.changes if self.changing == 1 else 0

    def was_alone(self, change: int) -> bool:
        """Whether no other call of ours changed it meanwhile: then what the answer shows is what is there."""
        return change == self.changes

    def wake(self) -> None:
        """Such a call has begun, or a file that was read through the page cache is closed: recall.py may go on."""
        for event in self.wakes:
            event.set()
        self.wakes = _NONE

    def end_change(self) -> None:
        self.changing -= 1

    def broken(self) -> None:
        """What is known of it besides its names does not hold any more, or may not: it is being changed."""
        self.breaks += 1
        self.xattrs = None
        self.readers = _NONE
        self._attributes = None


class InodeTable(Generic[OwnerT]):
    """All objects that the kernel knows; one per mount."""

    def __init__(self) -> None:
        self._by_id: dict[int, Inode[OwnerT]] = {}
        self._by_owner: dict[int, dict[bytes, Inode[OwnerT]]] = {}  # by node id and handle
        self.forgotten = 0
        """Objects that the kernel has forgotten: what was asked of one before may be older than a change of it."""
        self._noted: dict[int, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add_directory(self, owner: OwnerT) -> Inode[OwnerT]:
        """Make the synthetic directory of a node."""
        inode = Inode(directory_id(owner.node_id), owner, None, owner.leases.root)
        self._by_id[inode.id] = inode
        return inode

    def remove_directory(self, node_id: int) -> None:
        """The node is no longer in the map; its objects stay until the kernel forgets them."""
        self._by_id.pop(directory_id(node_id), None)

    def get(self, number: int) -> Inode[OwnerT]:
        """The object behind a node id; StaleHandle if there is none (any more)."""
        try:
            return self._by_id[number]
        except KeyError:
            raise StaleHandle(f"node id {number} is unknown") from None

    def peek(self, number: int) -> Inode[OwnerT] | None:
        """As `get`, without an exception."""
        return self._by_id.get(number)

    def find(self, owner: OwnerT, handle: bytes) -> Inode[OwnerT]:
        """The inode of an object, made if need be; the caller counts the look-up when it tells the kernel."""
        objects = self._by_owner.get(owner.node_id)
        if objects is None:
            objects = self._by_owner[owner.node_id] = {}
        inode = objects.get(handle)
        if inode is None:
            inode = Inode(self._free_id(owner.node_id, handle), owner, handle, owner.leases.new_lease(handle))
            self._by_id[inode.id] = objects[handle] = inode
        elif inode.owner is not owner:  # the same node left the map and came back
            inode.owner, inode.lease = owner, owner.leases.new_lease(handle)
            inode.broken()
        return inode

    def known(self, owner: OwnerT, handle: bytes) -> Inode[OwnerT] | None:
        """The inode of an object of this owner, if the kernel knows it."""
        inode = self._by_owner.get(owner.node_id, {}).get(handle)
        return inode if inode is not None and inode.owner is owner else None

    def directory(self, owner: OwnerT) -> Inode[OwnerT] | None:
        """The directory of this owner, unless it left the map."""
        inode = self._by_id.get(directory_id(owner.node_id))
        return inode if inode is not None and inode.owner is owner else None

    def of_owner(self, owner: OwnerT) -> Iterator[Inode[OwnerT]]:
        """All that the kernel knows of this owner, its directory among them."""
        directory = self.directory(owner)
        if directory is not None:
            yield directory
        for inode in self._by_owner.get(owner.node_id, {}).values():
            if inode.owner is owner:
                yield inode

    def _free_id(self, node_id: int, handle: bytes) -> int:
        digest = blake2b(handle, digest_size=8, salt=node_id.to_bytes(4, "little")).digest()
        number = int.from_bytes(digest, "little") >> 1
        while number < FIRST_OBJECT_ID or number in self._by_id:
            number = (number + FIRST_OBJECT_ID) & (2**63 - 1)
        return number

    def forget(self, number: int, lookups: int) -> None:
        """The kernel drops *lookups* of its references; unknown and synthetic ids are ignored."""
        inode = self._by_id.get(number)
        if inode is None or inode.handle is None:
            return
        inode.lookups -= lookups
        if inode.lookups <= 0:
            self.forgotten += 1
            for noted in self._noted.values():
                noted.add(inode.handle)
            self.drop(inode)

    @contextmanager
    def noting_forgotten(self) -> Iterator[set[bytes]]:
        """The handles of what the kernel forgets meanwhile."""
        noted: set[bytes] = set()
        self._noted[id(noted)] = noted
        try:
            yield noted
        finally:
            del self._noted[id(noted)]

    def drop(self, inode: Inode[OwnerT]) -> None:
        """Forget an object that the kernel was told about and did not take, or has forgotten."""
        if inode.handle is not None:
            self._by_id.pop(inode.id, None)
            objects = self._by_owner.get(inode.owner.node_id, {})
            if objects.pop(inode.handle, None) is not None:
                inode.owner.leases.drop_lease(inode.handle, inode.lease)
            if not objects:
                self._by_owner.pop(inode.owner.node_id, None)
