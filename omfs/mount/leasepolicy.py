"""What the kernel may keep of a listing: names under the lease of the directory, objects under their own.

The rules of listings.py filled in with leases (heldleases.py).  Set by operations_names.py.
"""

from __future__ import annotations

import stat

from omfs import wire
from omfs.mount.handlers import CACHED_S, attributes_kept_s
from omfs.mount.inodes import Inode
from omfs.mount.listings import Policy
from omfs.mount.remote import RemoteNode
from omfs.wiretypes import Mode


class LeasePolicy(Policy):
    """As leases allow."""

    def directory_mode(self, directory: Inode[RemoteNode], read: wire.DirectoryRead) -> Mode:
        is_granted = directory.owner.leases.granted(directory.lease, read.serial, read.mode)
        return read.mode if is_granted else Mode.NONE

    def entry_valid_s(
        self, directory: Inode[RemoteNode], read: wire.DirectoryRead, entry: wire.Entry, inode: Inode[RemoteNode]
    ) -> tuple[int, int]:
        leases = directory.owner.leases
        inode.is_directory = stat.S_ISDIR(entry.attributes.mode)
        may_name = leases.may_name(directory.lease, read.serial, read.mode, entry.name)
        return CACHED_S if may_name else 0, attributes_kept_s(inode, read.serial, entry.mode)
