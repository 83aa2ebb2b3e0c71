"""Notifications to the kernel of a FUSE mount: what it has cached of an inode or of a name is void.

They are written to the session's /dev/fuse descriptor (include/uapi/linux/fuse.h: fuse_out_header with unique 0 and the
code in its error field).  os.write releases the GIL, so a notification that blocks holds up only its own thread; but it
may wait for a request that only the daemon can answer, so what can block must never be sent from the trio thread:

* `inval_attributes` never blocks.
* `inval_inode` waits for each page of the range that is locked, that is: for READ requests in flight on it, and it
  writes dirty pages of shared mappings back first (WRITE requests).
* `inval_entry` takes the lock of the parent directory, which the kernel holds for the whole of a CREATE, UNLINK,
  RENAME ... in that directory (and shared for LOOKUP and READDIR): it waits until those are answered.
* `grow` waits for the last page of the file while that is locked.

No policy and no state: what is to be dropped, and when, is known to mount/recall.py.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from typing import Final

_INVAL_INODE: Final = 2  # enum fuse_notify_code
_INVAL_ENTRY: Final = 3
_STORE: Final = 4
_INODE: Final = struct.Struct("<IiQQqq")  # fuse_out_header; inode, offset, length
_ENTRY: Final = struct.Struct("<IiQQII")  # fuse_out_header; parent, length of the name, flags; then the name and a NUL
_STORE_OUT: Final = struct.Struct("<IiQQQII")  # fuse_out_header; inode, offset, length, padding; then the data
_UNREADABLE: Final = memoryview(mmap.mmap(-1, mmap.PAGESIZE, prot=0))[:1]  # PROT_NONE: who copies from it gets EFAULT
_INODE_BYTES: Final = _INODE.size
_ENTRY_BYTES: Final = _ENTRY.size


class Notifier:
    """Tells one mount's kernel side.  Any thread; the descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        """*fd*: the session's /dev/fuse."""
        self._fd = fd

    def inval_inode(self, number: int, offset: int = 0, size_bytes: int = 0) -> bool:
        """Drop the attributes and the pages of [offset, offset + size_bytes), 0 = to the end.  May block, see above.

        Of a directory: its attributes and its cached listing.  False when the kernel does not know the inode.
        Raises OSError: ENODEV, ENOTCONN after the unmount.
        """
        return self._tell(_INODE.pack(_INODE_BYTES, _INVAL_INODE, 0, number, offset, size_bytes))

    def inval_attributes(self, number: int) -> bool:
        """Drop only the attributes (and cached ACLs).  Never blocks.  Otherwise as `inval_inode`."""
        return self._tell(_INODE.pack(_INODE_BYTES, _INVAL_INODE, 0, number, -1, 0))

    def inval_entry(self, parent: int, name: bytes, expire: bool = False) -> bool:
        """Drop what *name* in this directory leads to (or does not), and the directory's attributes.  May block.

        *expire*: only have it looked up again at its next use (from Linux 6.2 on; before, it is dropped).  What is open
        there, or a current directory, keeps its path; but a look-up that is just being answered makes it valid again.
        Never for a name that something is mounted on: the kernel would take that mount off.  False when the kernel does
        not know the directory, or not the name.  Raises OSError: ENOTDIR when *parent* is none, ENAMETOOLONG.
        """
        head = _ENTRY.pack(_ENTRY_BYTES + len(name) + 1, _INVAL_ENTRY, 0, parent, len(name), int(expire))
        return self._tell(b"%b%b\0" % (head, name))

    def grow(self, number: int, size_bytes: int) -> bool:
        """The file is at least so long, whatever the kernel has heard meanwhile; no page of it changes.  May block.

        A GETATTR that is overtaken by a notification does not count, and then read(2) ends at an older size.
        The data of FUSE_NOTIFY_STORE do what no reply can: they move the end of the file (fuse_notify_store() in
        fs/fuse/dev.c, before it copies them; these here can't be copied).  False when the kernel does not know the
        inode.  Raises OSError as `inval_inode`.
        """
        head = _STORE_OUT.pack(_STORE_OUT.size + 1, _STORE, 0, number, size_bytes - 1, 1, 0)
        try:
            os.writev(self._fd, (head, _UNREADABLE))
        except OSError as error:
            if error.errno == errno.EFAULT:
                return True
            if error.errno == errno.ENOENT:
                return False
            raise
        raise AssertionError("the kernel has read what can't be read")

    def _tell(self, message: bytes) -> bool:
        try:
            os.write(self._fd, message)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True
