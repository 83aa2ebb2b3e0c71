"""The part of the FUSE kernel protocol that the hook reads and writes itself: opcodes, INIT flags, layouts.

Pure constants and pure packing.  Source: include/uapi/linux/fuse.h of Linux 6.18 (protocol 7.45); the kernel keeps
these layouts stable, unlike libfuse's own structs, and that is why the hook works on them.  Used by lowlevel.py
and takenops.py.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from omfs import wire

# Opcodes.
LOOKUP: Final = 1
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
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
SETXATTR: Final = 21
GETXATTR: Final = 22
LISTXATTR: Final = 23
REMOVEXATTR: Final = 24
FLUSH: Final = 25
INIT: Final = 26
GETLK: Final = 31
SETLK: Final = 32
SETLKW: Final = 33
ACCESS: Final = 34
RELEASEDIR: Final = 29
CREATE: Final = 35
INTERRUPT: Final = 36
FALLOCATE: Final = 43
RENAME2: Final = 45
LSEEK: Final = 46
COPY_FILE_RANGE: Final = 47
COPY_FILE_RANGE_64: Final = 53

NOBODY_WAITS_FOR: Final = frozenset({RELEASE, RELEASEDIR})

# INIT flags (flags | flags2 << 32).
POSIX_LOCKS: Final = 1 << 1
ATOMIC_O_TRUNC: Final = 1 << 3
EXPORT_SUPPORT: Final = 1 << 4
DONT_MASK: Final = 1 << 6
SPLICE_WRITE: Final = 1 << 7
SPLICE_MOVE: Final = 1 << 8
SPLICE_READ: Final = 1 << 9
FLOCK_LOCKS: Final = 1 << 10
AUTO_INVAL_DATA: Final = 1 << 12
READDIRPLUS_AUTO: Final = 1 << 14
WRITEBACK_CACHE: Final = 1 << 16
PARALLEL_DIROPS: Final = 1 << 18
HANDLE_KILLPRIV: Final = 1 << 19
POSIX_ACL: Final = 1 << 20
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
EXPLICIT_INVAL_DATA: Final = 1 << 25
HANDLE_KILLPRIV_V2: Final = 1 << 28
SETXATTR_EXT: Final = 1 << 29
INIT_EXT: Final = 1 << 30
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36

WANTED_FLAGS: Final = (
    POSIX_LOCKS  # the hook answers GETLK, SETLK and SETLKW
    | FLOCK_LOCKS
    | ATOMIC_O_TRUNC
    | DONT_MASK  # umask or default ACL: the owner's kernel decides
    | PARALLEL_DIROPS
    | NO_OPENDIR_SUPPORT  # only the kernel's word counts: it understands ENOSYS for OPENDIR
    | EXPLICIT_INVAL_DATA  # the page cache is ours to invalidate
    | POSIX_ACL  # what is cached is checked here, with ACLs; it switches on default_permissions
    | CACHE_SYMLINKS  # the target of a symlink never changes
    | HANDLE_KILLPRIV_V2  # the owner drops set-id bits and capabilities; no GETXATTR before every write
    | INIT_EXT
    | DIRECT_IO_ALLOW_MMAP  # else a shared mmap of a direct_io file is ENODEV
)
UNWANTED_FLAGS: Final = (
    AUTO_INVAL_DATA  # contradicts EXPLICIT_INVAL_DATA
    | WRITEBACK_CACHE  # with it the kernel ignores another node's size and mtime
    | SPLICE_READ | SPLICE_WRITE | SPLICE_MOVE  # two more system calls per small request
    | HANDLE_KILLPRIV
    | SETXATTR_EXT  # another layout of SETXATTR
    | EXPORT_SUPPORT  # a forgotten node id can't be found again by number
    | READDIRPLUS_AUTO
)  # fmt: skip
MAX_BACKGROUND: Final = 512
CONGESTION_THRESHOLD: Final = 384
READ_AHEAD_BYTES: Final = 1 << 20  # the kernel takes the lesser of this and the device's read_ahead_kb (session.py)

# struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid
IN_HEADER: Final = struct.Struct("<IIQQIII")
IN_HEADER_BYTES: Final = 40
_OUT_HEADER: Final = struct.Struct("<IiQ")  # len, error, unique

FOPEN_DIRECT_IO: Final = 1
FOPEN_KEEP_CACHE: Final = 2
LOCK_IS_FLOCK: Final = 1  # FUSE_LK_FLOCK
_GETATTR_FH: Final = 1  # FUSE_GETATTR_FH
READ_LOCK_OWNER: Final = 2  # FUSE_READ_LOCKOWNER
WRITE_FROM_CACHE: Final = 1  # FUSE_WRITE_CACHE
WRITE_KILL_SUIDGID: Final = 4
SETATTR_MODE: Final = 1 << 0
SETATTR_UID: Final = 1 << 1
SETATTR_GID: Final = 1 << 2
SETATTR_ATIME_NOW: Final = 1 << 7
SETATTR_MTIME_NOW: Final = 1 << 8

WRITE_HEADER_BYTES: Final = IN_HEADER_BYTES + 40
_WRITE_IN: Final = struct.Struct("<QQIIQI")  # fh, offset, size, write_flags, lock_owner, flags
_GETATTR_IN: Final = struct.Struct("<IIQ")  # getattr_flags, dummy, fh
_READ_IN: Final = struct.Struct("<QQI")  # fh, offset, size, and more
_LOCK_IN: Final = struct.Struct("<QQQQIII")  # fh, owner, start, end, type, pid, lk_flags
_FALLOCATE_IN: Final = struct.Struct("<QQQI")  # fh, offset, length, mode
_LSEEK_IN: Final = struct.Struct("<QQI")  # fh, offset, whence
_COPY_IN: Final = struct.Struct("<QQQQQQ")  # fh_in, off_in, nodeid_out, fh_out, off_out, len
_INTERRUPT_IN: Final = struct.Struct("<Q")
_CREATE_IN: Final = struct.Struct("<IIII")  # flags, mode, umask, open_flags; then the name
_MKDIR_IN: Final = struct.Struct("<II")  # mode, umask; then the name
_RENAME_IN: Final = struct.Struct("<Q")  # newdir; then both names
_RENAME2_IN: Final = struct.Struct("<QII")  # newdir, flags, padding; then both names
_ATTR: Final = struct.Struct("<QQQqqqIIIIIIIIII")  # ino, size, blocks, 3 times s, 3 times ns, mode ... blksize, flags
_ENTRY: Final = struct.Struct("<QQQQII")  # nodeid, generation, entry valid s, attr valid s, and their ns
_OPEN: Final = struct.Struct("<QIi")  # fh, open_flags, backing_id
_STATFS: Final = struct.Struct("<QQQQQIII28x")  # blocks, free, available, files, free, block bytes, name, fragment
_ATTR_HEAD: Final = struct.Struct("<QII")  # attr valid s, ns, dummy


class WriteIn(NamedTuple):
    fh: int
    offset: int
    size_bytes: int
    write_flags: int
    lock_owner: int
    open_flags: int


class LockIn(NamedTuple):
    fh: int
    owner: int
    start: int
    end: int
    kind: int
    pid: int
    lock_flags: int


class CreateIn(NamedTuple):
    name: bytes
    flags: int
    mode: int
    umask: int


class RenameIn(NamedTuple):
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int


class FallocateIn(NamedTuple):
    fh: int
    offset: int
    size_bytes: int
    mode: int


class LseekIn(NamedTuple):
    fh: int
    offset: int
    whence: int


class CopyIn(NamedTuple):
    source_fh: int
    source_offset: int
    target_node_id: int
    target_fh: int
    target_offset: int
    size_bytes: int


def write_in(request: memoryview) -> WriteIn:
    return WriteIn._make(_WRITE_IN.unpack_from(request, IN_HEADER_BYTES))


def lock_in(request: memoryview) -> LockIn:
    return LockIn._make(_LOCK_IN.unpack_from(request, IN_HEADER_BYTES))


def create_in(request: memoryview) -> CreateIn:
    flags, mode, umask, _ = _CREATE_IN.unpack_from(request, IN_HEADER_BYTES)
    return CreateIn(bytes(request[IN_HEADER_BYTES + _CREATE_IN.size : -1]), flags, mode, umask)


def mkdir_in(request: memoryview) -> CreateIn:
    mode, umask = _MKDIR_IN.unpack_from(request, IN_HEADER_BYTES)
    return CreateIn(bytes(request[IN_HEADER_BYTES + _MKDIR_IN.size : -1]), 0, mode, umask)


def rename_in(request: memoryview) -> RenameIn:
    (new_parent,) = _RENAME_IN.unpack_from(request, IN_HEADER_BYTES)
    return _renamed(request, _RENAME_IN.size, new_parent, 0)


def rename2_in(request: memoryview) -> RenameIn:
    new_parent, flags, _ = _RENAME2_IN.unpack_from(request, IN_HEADER_BYTES)
    return _renamed(request, _RENAME2_IN.size, new_parent, flags)


def _renamed(request: memoryview, head_bytes: int, new_parent: int, flags: int) -> RenameIn:
    name, new_name = bytes(request[IN_HEADER_BYTES + head_bytes : -1]).split(b"\0")
    return RenameIn(name, new_parent, new_name, flags)


def fallocate_in(request: memoryview) -> FallocateIn:
    return FallocateIn._make(_FALLOCATE_IN.unpack_from(request, IN_HEADER_BYTES))


def lseek_in(request: memoryview) -> LseekIn:
    return LseekIn._make(_LSEEK_IN.unpack_from(request, IN_HEADER_BYTES))


def copy_in(request: memoryview) -> CopyIn:
    return CopyIn._make(_COPY_IN.unpack_from(request, IN_HEADER_BYTES))


def interrupted_unique(request: memoryview) -> int:
    """Of an INTERRUPT: the request that is no longer wanted."""
    return int(_INTERRUPT_IN.unpack_from(request, IN_HEADER_BYTES)[0])


def last_name(request: memoryview) -> bytes:
    """Of a LOOKUP, UNLINK or RMDIR: the name, which ends with a NUL."""
    return bytes(request[IN_HEADER_BYTES:-1])


def other_node_id(request: memoryview) -> int:
    """Of a RENAME or RENAME2: the node id of the new directory; of a LINK: of the object."""
    return int(struct.unpack_from("<Q", request, IN_HEADER_BYTES)[0])


def setattr_valid(request: memoryview) -> int:
    """Of a SETATTR: the FATTR_ bits, with the *_NOW ones that pyfuse3 replaces by this node's clock."""
    return int(struct.unpack_from("<I", request, IN_HEADER_BYTES)[0])


def setxattr_flags(request: memoryview) -> int:
    """Of a SETXATTR: XATTR_CREATE 1, XATTR_REPLACE 2."""
    return int(struct.unpack_from("<I", request, IN_HEADER_BYTES + 4)[0])


def xattr_name(request: memoryview) -> bytes:
    """Of a GETXATTR (struct fuse_getxattr_in, then the name, which ends with a NUL)."""
    return bytes(request[IN_HEADER_BYTES + 8 : -1])


def xattr_room_bytes(request: memoryview) -> int:
    """Of a GETXATTR or LISTXATTR: how much the caller has room for; 0: it asks for the size."""
    return int(struct.unpack_from("<I", request, IN_HEADER_BYTES)[0])


def open_flags(request: memoryview) -> int:
    """Of an OPEN: open(2)'s flags, and FMODE_EXEC."""
    return int(struct.unpack_from("<I", request, IN_HEADER_BYTES)[0])


def read_in(request: memoryview) -> tuple[int, int, int]:
    """Of a READ: (fh, offset, size)."""
    fh, offset, size_bytes = _READ_IN.unpack_from(request, IN_HEADER_BYTES)
    return fh, offset, size_bytes


def read_fills_pages(request: memoryview) -> bool:
    """Of a READ: it is for the page cache, not for a program's own buffer (fs/fuse/file.c: those name a lock owner)."""
    return not struct.unpack_from("<I", request, IN_HEADER_BYTES + _READ_IN.size)[0] & READ_LOCK_OWNER


def getattr_file_number(request: memoryview) -> int | None:
    """Through which open file the kernel asks, as it does for a read(2) or lseek(2) that comes to the file's end."""
    flags, _, fh = _GETATTR_IN.unpack_from(request, IN_HEADER_BYTES)
    return int(fh) if flags & _GETATTR_FH else None


def file_number(request: memoryview) -> int:
    """Of a FLUSH or RELEASE: which open file."""
    return int(struct.unpack_from("<Q", request, IN_HEADER_BYTES)[0])


def flush_lock_owner(request: memoryview) -> int:
    """Of a FLUSH: whose POSIX locks end."""
    return int(struct.unpack_from("<Q", request, IN_HEADER_BYTES + 16)[0])


def reply(unique: int, payload: bytes = b"") -> bytes:
    """A successful answer."""
    return _OUT_HEADER.pack(16 + len(payload), 0, unique) + payload


def error_reply(unique: int, errno: int) -> bytes:
    return _OUT_HEADER.pack(16, -errno, unique)


def write_reply(unique: int, size_bytes: int) -> bytes:
    return reply(unique, struct.pack("<II", size_bytes, 0))


def number_reply(unique: int, number: int) -> bytes:
    """For LSEEK and COPY_FILE_RANGE_64."""
    return reply(unique, struct.pack("<Q", number))


def lock_reply(unique: int, start: int, end: int, kind: int, pid: int) -> bytes:
    return reply(unique, struct.pack("<QQII", start, end, kind, pid))


def attributes(number: int, told: wire.Attributes) -> bytes:
    """struct fuse_attr of the object with this FUSE node id."""
    atime_s, atime_ns = divmod(told.atime_ns, 1_000_000_000)
    mtime_s, mtime_ns = divmod(told.mtime_ns, 1_000_000_000)
    ctime_s, ctime_ns = divmod(told.ctime_ns, 1_000_000_000)
    return _ATTR.pack(
        number, told.size_bytes, told.blocks, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns,
        told.mode, told.nlink, told.uid, told.gid, told.rdev, told.block_size_bytes, 0,
    )  # fmt: skip


def entry_reply(unique: int, number: int, attr: bytes, entry_s: int, attr_s: int) -> bytes:
    """For LOOKUP (struct fuse_entry_out), and how long name and attributes hold; 0: for this answer only."""
    head = _ENTRY.pack(number, 0, entry_s, attr_s, 0, 0)
    return _OUT_HEADER.pack(16 + _ENTRY.size + len(attr), 0, unique) + head + attr


def absent_reply(unique: int, entry_s: int) -> bytes:
    """For a LOOKUP that found nothing, where that holds for *entry_s*."""
    return reply(unique, _ENTRY.pack(0, 0, entry_s, 0, 0, 0) + bytes(_ATTR.size))


def attr_reply(unique: int, attr: bytes, attr_s: int) -> bytes:
    """For GETATTR (struct fuse_attr_out), and how long it holds."""
    return _OUT_HEADER.pack(16 + _ATTR_HEAD.size + len(attr), 0, unique) + _ATTR_HEAD.pack(attr_s, 0, 0) + attr


def empty_statfs_reply(unique: int) -> bytes:
    """For STATFS (struct fuse_kstatfs) of what takes no space."""
    return reply(unique, _STATFS.pack(0, 0, 0, 0, 0, 4096, 255, 4096))


def no_xattrs_reply(unique: int, room_bytes: int) -> bytes:
    """For LISTXATTR of an object that has none: the empty list, or its size (struct fuse_getxattr_out)."""
    return reply(unique, b"" if room_bytes else bytes(8))


def open_reply(unique: int, fh: int, flags: int) -> bytes:
    """For OPEN (struct fuse_open_out) with FOPEN_ *flags*."""
    return reply(unique, _OPEN.pack(fh, flags, 0))


def create_reply(unique: int, number: int, attr: bytes, entry_s: int, fh: int) -> bytes:
    """For CREATE: what LOOKUP and OPEN (FOPEN_DIRECT_IO) would answer."""
    return reply(unique, _ENTRY.pack(number, 0, entry_s, 0, 0, 0) + attr + _OPEN.pack(fh, FOPEN_DIRECT_IO, 0))


def init_offered(request: memoryview) -> int:
    """Of an INIT: the flags that the kernel knows."""
    flags, more = struct.unpack_from("<II", request, IN_HEADER_BYTES + 12)
    return int(flags | more << 32 if flags & INIT_EXT else flags)


def adjust_init_reply(answer: memoryview, offered: int) -> int:
    """Set our flags and limits in libfuse's answer to INIT (struct fuse_init_out, *answer*); returns the flags."""
    (flags,) = struct.unpack_from("<I", answer, 12)
    (more,) = struct.unpack_from("<I", answer, 32) if flags & INIT_EXT else (0,)
    flags |= more << 32
    flags = (flags | (WANTED_FLAGS & offered)) & ~UNWANTED_FLAGS
    struct.pack_into("<IIHH", answer, 8, READ_AHEAD_BYTES, flags & 0xFFFFFFFF, MAX_BACKGROUND, CONGESTION_THRESHOLD)
    if flags & INIT_EXT:
        struct.pack_into("<I", answer, 32, flags >> 32)
    return int(flags)
