"""What the FUSE kernel and a small file system say to each other: as many words as procview.py needs.  Pure.

Source: include/uapi/linux/fuse.h of Linux 6.18 (protocol 7.45).  The mount of omfs has words of its own
(omfs/mount/lowlevel_abi.py), which extend another library's; here nobody stands between.  Called by procview.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
STATFS: Final = 17
GETXATTR: Final = 22
LISTXATTR: Final = 23
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
CREATE: Final = 35
INTERRUPT: Final = 36
DESTROY: Final = 38
BATCH_FORGET: Final = 42
RENAME2: Final = 45

UNANSWERED: Final = frozenset({FORGET, BATCH_FORGET, INTERRUPT})
CHANGES: Final = frozenset({SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, LINK, CREATE})
REQUEST_BYTES: Final = 8192 + 4096  # FUSE_MIN_READ_BUFFER, and room: the kernel reads into nothing smaller

_MAJOR: Final = 7
_MINOR: Final = 31  # what these layouts are of; a later kernel speaks it
_MAX_WRITE: Final = 4096  # the least there is: nothing can be written
_PARALLEL_DIROPS: Final = 1 << 18
_CACHE_SYMLINKS: Final = 1 << 23
_BLOCK_BYTES: Final = 4096
_NAME_MAX: Final = 255

_IN: Final = struct.Struct("<IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding
_OUT: Final = struct.Struct("<IiQ")  # len, error, unique
_INIT_IN: Final = struct.Struct("<IIII")  # major, minor, max_readahead, flags
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHH32x")  # ... background, congestion, max_write, time_gran, max_pages, align
_ENTRY: Final = struct.Struct("<QQQQII")  # nodeid, generation, entry valid s, attr valid s, and their ns
_ATTR_HEAD: Final = struct.Struct("<QII")  # attr valid s, ns, dummy
_ATTR: Final = struct.Struct("<QQQqqqIIIIIIIIII")  # ino, size, blocks, 3 times s, 3 times ns, mode ... blksize, flags
_READ: Final = struct.Struct("<QQI")  # fh, offset, size, and more
_DIRENT: Final = struct.Struct("<QQII")  # ino, offset of the next, length of the name, type
_HANDLE: Final = struct.Struct("<Q")
_OPENED: Final = struct.Struct("<QII")  # fh, flags, padding
_STATFS_OUT: Final = struct.Struct("<QQQQQIII28x")  # blocks, free, available, files, free, block bytes, name, fragment


class Request(NamedTuple):
    """*uid* and *thread*: who asks.  The thread as the PID namespace of who made the mount has it; 0: it has none."""

    opcode: int
    unique: int
    node: int
    uid: int
    thread: int
    body: bytes


class Entry(NamedTuple):
    """A name in a listing; the next READDIR continues behind *position*."""

    position: int
    name: bytes
    inode: int
    mode: int


def request(message: bytes) -> Request:
    _, opcode, unique, node, uid, _, thread, _ = _IN.unpack_from(message)
    return Request(opcode, unique, node, uid, thread, message[_IN.size :])


def name_in(asked: Request) -> bytes:
    """Of a LOOKUP."""
    return asked.body.rstrip(b"\0")


def listing_in(asked: Request) -> tuple[int, int, int]:
    """Of a READDIR: what OPENDIR was answered, behind which position, and how many bytes there is room for."""
    opened, offset, size = _READ.unpack_from(asked.body)
    return opened, offset, size


def opened_in(asked: Request) -> int:
    """Of a RELEASEDIR: what OPENDIR was answered."""
    (opened,) = _HANDLE.unpack_from(asked.body)
    return int(opened)


def answer(unique: int, payload: bytes = b"") -> bytes:
    return _OUT.pack(_OUT.size + len(payload), 0, unique) + payload


def refusal(unique: int, errno: int) -> bytes:
    return _OUT.pack(_OUT.size, -errno, unique)


def agreement(asked: Request) -> bytes:
    """The answer to INIT."""
    _, _, read_ahead, offered = _INIT_IN.unpack_from(asked.body)
    flags = offered & (_PARALLEL_DIROPS | _CACHE_SYMLINKS)
    return answer(asked.unique, _INIT_OUT.pack(_MAJOR, _MINOR, read_ahead, flags, 0, 0, _MAX_WRITE, 1, 0, 0))


def attributes(inode: int, mode: int, uid: int, gid: int, links: int, at_s: int) -> bytes:
    """struct fuse_attr."""
    return _ATTR.pack(inode, 0, 0, at_s, at_s, at_s, 0, 0, 0, mode, links, uid, gid, 0, _BLOCK_BYTES, 0)


def found(unique: int, node: int, attributes: bytes, entry_s: int, attributes_ns: int) -> bytes:
    """The answer to LOOKUP; the kernel believes the name for *entry_s* and the attributes for *attributes_ns*."""
    seconds, nanoseconds = divmod(attributes_ns, 10**9)
    return answer(unique, _ENTRY.pack(node, 0, entry_s, seconds, 0, nanoseconds) + attributes)


def told(unique: int, attributes: bytes, attributes_ns: int) -> bytes:
    """The answer to GETATTR."""
    seconds, nanoseconds = divmod(attributes_ns, 10**9)
    return answer(unique, _ATTR_HEAD.pack(seconds, nanoseconds, 0) + attributes)


def done(asked: Request) -> bytes:
    return answer(asked.unique)


def opened(unique: int, number: int) -> bytes:
    """The answer to OPENDIR; the kernel caches no listing."""
    return answer(unique, _OPENED.pack(number, 0, 0))


def statistics(asked: Request) -> bytes:
    """The answer to STATFS: as of procfs, there is room for nothing."""
    return answer(asked.unique, _STATFS_OUT.pack(0, 0, 0, 0, 0, _BLOCK_BYTES, _NAME_MAX, _BLOCK_BYTES))


def listed(unique: int, entries: Iterable[Entry], room_bytes: int) -> bytes:
    """The answer to READDIR: as many as there is room for, from the first."""
    payload = bytearray()
    for one in entries:
        entry = _DIRENT.pack(one.inode, one.position, len(one.name), one.mode >> 12) + one.name
        entry += bytes(-len(entry) % 8)
        if len(payload) + len(entry) > room_bytes:
            break
        payload += entry
    return answer(unique, bytes(payload))
