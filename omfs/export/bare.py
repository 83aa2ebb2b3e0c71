"""What the owner can tell of an object or directory beside its attributes, so that nobody need ask for it.

`bare_of`: which extended attributes it does not have, as `ls -l` and many permission checks would ask for its ACL.
`lists_all`: whether a directory has no names but those that a listing shows.  Both only on file systems that are known
to tell: elsewhere names may be found in another case (vfat), or when somebody asks for them (autofs), and attributes
may be listed by none.  Measured on 6.18 with ext4: `bare_of` takes 0.6 us of an open file and 5 us through its O_PATH
descriptor, where an entry of a listing costs 13; `lists_all` 2 us.
Called by names.py, files.py and listings.py, as root.
"""

from __future__ import annotations

import os
from typing import Final

from omfs.export.mounts import Mount
from omfs.kernel.directories import folds_case
from omfs.kernel.objects import reopen
from omfs.wiretypes import Bare

TELLING: Final = frozenset({b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"f2fs", b"tmpfs", b"overlay"})
"""File systems whose listings show all names, but for folded case, and whose attributes are all listed."""

_OF_ACCESS: Final = frozenset({"system.posix_acl_access", "system.posix_acl_default", "security.capability"})


def bare_of(mount: Mount, opened: int | bytes) -> Bare:
    """Of a descriptor, or the `link_path` of an O_PATH one.  Never fails: what can't be told is unknown."""
    if mount.line.fstype not in TELLING:
        return Bare.UNKNOWN
    try:
        names = os.listxattr(opened)
    except OSError:
        return Bare.UNKNOWN
    if not names:
        return Bare.OF_ALL
    return Bare.OF_ACCESS if _OF_ACCESS.isdisjoint(names) else Bare.UNKNOWN


def lists_all(mount: Mount, fd: int) -> bool:
    """Of the open directory *fd* (O_PATH will not do).  Never fails: what can't be told is not so."""
    try:
        return mount.line.fstype in TELLING and not folds_case(fd)
    except OSError:
        return False


def children_list_all(mount: Mount, fd: int) -> bool:
    """Of what is made in the directory *fd* (O_PATH will do): a new directory folds case if its parent does."""
    try:
        opened = reopen(fd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return lists_all(mount, opened)
    finally:
        os.close(opened)
