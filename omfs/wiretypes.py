"""What the messages of wire.py are made of: the base of all structs, and the values that several messages carry.

Like wire.py, nothing but names and types: no I/O, no behaviour.  Handles are opaque to all but their owner; times
are ns since the epoch by the owner's clock.
"""

from __future__ import annotations

import enum

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of all structs on the wire: positional fields, immutable."""


class Lane(enum.IntEnum):
    """Which of a peer's two connections this is: small requests never wait behind bulk data."""

    SMALL = 0
    BULK = 1


class Mode(enum.IntEnum):
    """What a holder may cache of an object (DESIGN "Leases"); ordered: a greater one includes the smaller."""

    NONE = 0
    SHARED = 1  # attributes, names, xattrs and data
    EXCLUSIVE = 2  # and writes not yet sent to the owner


class Bare(enum.IntEnum):
    """Which extended attributes an object is known not to have; ordered: a greater one includes the smaller."""

    UNKNOWN = 0
    OF_ACCESS = 1  # no ACL and no capabilities
    OF_ALL = 2  # none at all, whoever asks


class Caller(Message, frozen=True):
    """Who asks: the credentials of the calling process on its own node (uids are the same everywhere)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class Attributes(Message, frozen=True):
    """An object's metadata as the owner's kernel tells it (statx); times in ns since the epoch, owner's clock."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    blocks: int  # of 512 bytes
    block_size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Entry(Message, frozen=True):
    """One name of a directory; *cursor* continues the listing behind it (the owner's d_off); *mode*: see Found."""

    name: bytes
    cursor: int
    handle: bytes
    attributes: Attributes
    mode: Mode = Mode.NONE
    bare: Bare = Bare.UNKNOWN

    @property
    def is_name_only(self) -> bool:
        """Who asked may read the directory, but not search it (export/listings.py): no object has blocks of 0 bytes."""
        return self.attributes.block_size_bytes == 0


class Standing(Message, frozen=True):
    """What must fit on all nodes of a cluster, for omfs-admin check; users and groups only where asked for."""

    map_digest: bytes
    dfsa: bool
    certificate_expires_s: int  # since the epoch; 0: sec=none
    users_digest: bytes
    groups_digest: bytes
    users: tuple[tuple[bytes, int], ...] = ()
    groups: tuple[tuple[bytes, int], ...] = ()


class ExportInfo(Message, frozen=True):
    """One exported subtree and its options."""

    path: bytes
    read_only: bool
    root_squash: bool
