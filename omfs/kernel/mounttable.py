"""The kernel's table of mounts, and which of them are trees that a node shows to others.  Pure.

Source of the format: proc(5), /proc/pid/mountinfo.  A *real tree* holds files of this machine: the kernel's own
pseudo file systems are left out (the original showed no /proc), and so are file systems that another machine
serves: mounted on each node they mean the same everywhere, and a dead server must not stall this owner.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

OMFS_TYPE: Final = b"fuse.omfs"
PROCVIEW_TYPE: Final = b"fuse.procview"  # a guest's /proc (dfsa/procview.py)

_PSEUDO: Final = frozenset(
    b"autofs binder binfmt_misc bpf cgroup cgroup2 configfs cpuset debugfs devpts devtmpfs efivarfs functionfs "
    b"fuse fusectl hugetlbfs mqueue nsfs pipefs proc pstore resctrl rpc_pipefs securityfs selinuxfs smackfs "
    b"sockfs sysfs tracefs xenfs".split()
)
_SERVED_ELSEWHERE: Final = frozenset(
    b"9p afs ceph cifs coda gfs2 lustre ncpfs nfs nfs4 nfsd ocfs2 orangefs smb3 smbfs".split()
)
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


class MountLine(NamedTuple):
    """One mount: where it is, what is mounted and of which type."""

    mount_id: int
    parent_id: int
    device: bytes  # major:minor
    root: bytes  # the directory of the file system that is mounted
    mountpoint: bytes
    fstype: bytes
    options: bytes = b""  # of this mount, not of the file system: "rw,nosuid"
    super_options: bytes = b""  # of the file system


def parse_mountinfo(text: bytes) -> list[MountLine]:
    """The lines of mountinfo in order (a later one covers an earlier one at the same place).

    ValueError when a line is not in the format of proc(5).
    """
    return [_parse_line(line) for line in text.split(b"\n") if line]  # not splitlines: the kernel escapes only \n


def _parse_line(line: bytes) -> MountLine:
    fields = line.split(b" ")
    try:
        separator = fields.index(b"-", 6)
        return MountLine(
            int(fields[0]),
            int(fields[1]),
            fields[2],
            _unescape(fields[3]),
            _unescape(fields[4]),
            fields[separator + 1],
            fields[5],
            fields[-1],
        )
    except (ValueError, IndexError):
        raise ValueError(f"not a line of mountinfo: {line!r}") from None


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline and backslash are written as three octal digits."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def is_real_tree(fstype: bytes) -> bool:
    """Whether mounts of *fstype* belong to the node's tree (fuse only on a block device: ntfs, exfat)."""
    return fstype not in _PSEUDO and fstype not in _SERVED_ELSEWHERE and not fstype.startswith(b"fuse.")


def is_answered_here(fstype: bytes) -> bool:
    """Whether this kernel answers a stat of a file there alone: no server and no daemon that could be silent."""
    return fstype not in _SERVED_ELSEWHERE and fstype != b"fuse" and not fstype.startswith(b"fuse.")


def real_trees_within_reach(lines: Iterable[MountLine]) -> list[MountLine]:
    """The real trees that a walk through real trees only can come to.

    What is mounted below /dev, /proc or an oMFS can't be reached, nor what something was mounted over later, on its
    mountpoint's way: opening such a mountpoint would ask another file system, our own /mfs, perhaps.  (A mount may
    lie on an automount point, at the same place.)
    """
    table = {line.mount_id: line for line in lines}
    taken = {(line.parent_id, line.mountpoint) for line in table.values() if line.mount_id != line.parent_id}
    return [line for line in table.values() if is_real_tree(line.fstype) and _is_within_reach(line, table, taken)]


def _is_within_reach(line: MountLine, table: dict[int, MountLine], taken: set[tuple[int, bytes]]) -> bool:
    above = table.get(line.parent_id)
    while above is not None and above is not line:
        if not is_real_tree(above.fstype) and above.mountpoint != line.mountpoint:
            return False
        if any((line.parent_id, path) in taken for path in _ancestors(line.mountpoint)):
            return False  # on the same mount, over a directory on the way
        line, above = above, table.get(above.parent_id)
    return True


def _ancestors(path: bytes) -> Iterable[bytes]:
    while path != b"/":
        path = posixpath.dirname(path)
        yield path
