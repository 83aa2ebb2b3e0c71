"""What the kernel may keep of a listing: names under the lease of the directory, objects under their own.

The rules of listings.py filled in with leases (heldleases.py).  Set by operations_names.py.
"""

from __future__ import annotations

import stat

from omfs import wire
from omfs.mount.handlers import CACHED_S, may_keep_attributes
from omfs.mount.inodes import Inode
from omfs.mount.listings import Policy
from omfs.mount.remote import RemoteNode
from omfs.wiretypes import Mode


class LeasePolicy(Policy):
    """As leases allow."""

    def directory_mode(self, directory: Inode[RemoteNode], read: wire.DirectoryRead) -> Mode:
        is_granted = directory.owner.leases.granted(directory.lease, read.serial, read.mode)
        return read.mode if is_granted else Mode.NONE

    def names_valid_s(self, directory: Inode[RemoteNode], read: wire.DirectoryRead) -> int:
        names = [entry.name for entry in read.entries]
        return CACHED_S if directory.owner.leases.may_name_all(directory.lease, read.serial, read.mode, names) else 0

    def attributes_valid_s(self, inode: Inode[RemoteNode], read: wire.DirectoryRead, entry: wire.Entry) -> int:
        inode.is_directory = stat.S_ISDIR(entry.attributes.mode)
        is_granted = may_keep_attributes(inode) and inode.owner.leases.granted_too(inode.lease, read.serial, entry.mode)
        return CACHED_S if is_granted else 0
