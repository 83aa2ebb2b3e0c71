"""Which remote object a FUSE node id stands for, and how long the kernel remembers it.

A node id is 63 bits of blake2b over (owner, handle), so st_ino is the same on every node and after every remount;
a collision takes the next free number.  The root is 1, the directory of node N is 1 + N; both are synthetic and
never forgotten.  An object stays in the table until the kernel has forgotten as many look-ups as it was given.
Pure bookkeeping: no I/O.  Called by operations*.py.
"""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from typing import Final, Generic, Protocol, TypeVar

from omfs.errors import StaleHandle

ROOT_ID: Final = 1
FIRST_OBJECT_ID: Final = 1 << 20  # node directories use 2..65536


class Owner(Protocol):
    """What the table needs of a remote node."""

    @property
    def node_id(self) -> int: ...


OwnerT = TypeVar("OwnerT", bound=Owner)


def directory_id(node_id: int) -> int:
    """The FUSE node id of /mfs/<node_id>."""
    return ROOT_ID + node_id


class Inode(Generic[OwnerT]):
    """One object that the kernel knows.  *handle* is None for the directory of a node: the root of its tree."""

    __slots__ = ("handle", "id", "lookups", "owner")

    def __init__(self, number: int, owner: OwnerT, handle: bytes | None) -> None:
        self.id = number
        self.owner = owner
        self.handle = handle
        self.lookups = 0


class InodeTable(Generic[OwnerT]):
    """All objects that the kernel knows; one per mount."""

    def __init__(self) -> None:
        self._by_id: dict[int, Inode[OwnerT]] = {}
        self._by_object: dict[tuple[Hashable, bytes], Inode[OwnerT]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add_directory(self, owner: OwnerT) -> Inode[OwnerT]:
        """Make the synthetic directory of a node."""
        inode = Inode(directory_id(owner.node_id), owner, None)
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

    def find(self, owner: OwnerT, handle: bytes) -> Inode[OwnerT]:
        """The inode of an object, made if need be; the caller counts the look-up when it tells the kernel."""
        key = (owner.node_id, handle)
        inode = self._by_object.get(key)
        if inode is None:
            inode = Inode(self._free_id(owner.node_id, handle), owner, handle)
            self._by_id[inode.id] = inode
            self._by_object[key] = inode
        else:
            inode.owner = owner  # the same node may have left the map and come back
        return inode

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
            self.drop(inode)

    def drop(self, inode: Inode[OwnerT]) -> None:
        """Forget an object that the kernel was told about and did not take, or has forgotten."""
        if inode.handle is not None:
            self._by_id.pop(inode.id, None)
            self._by_object.pop((inode.owner.node_id, inode.handle), None)
