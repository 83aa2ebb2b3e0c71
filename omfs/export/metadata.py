"""Attributes, access, extended attributes and file system figures of an object, as the calling user.

Every function gets an open descriptor (O_PATH will do) of the object; nothing is named by a path but
/proc/self/fd/N.  Extended attributes go through the `xattr` package, but for the listing: its names are any bytes,
which the package can't decode.  What a caller who is not root must not gain through this daemon's remaining
capabilities (trusted.*, security.*) is refused here.  ACLs are the attributes system.posix_acl_*.

Raises OSError as the kernel does.  Blocks: called by export/service.py, in a thread where it may take long.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

import xattr

from omfs import wire
from omfs.export.disk import Place
from omfs.kernel import objects
from omfs.kernel.credentials import ID_MAX, Identity

XATTR_NAME_MAX_BYTES: Final = 255
XATTR_VALUE_MAX_BYTES: Final = 65536
XATTR_CREATE: Final = 1  # xattr(7), as on the wire; the package has numbers of its own
XATTR_REPLACE: Final = 2
SLOW_TRUNCATION_BYTES: Final = 16 << 20  # cutting off more than this is left to a thread
SIZE_MAX_BYTES: Final = (1 << 63) - 1
NS: Final = 10**9
TIME_MAX_NS: Final = ((1 << 63) - 1) * NS

_READ_ONLY_MATTERS: Final = (stat.S_IFREG >> 12, stat.S_IFDIR >> 12, stat.S_IFLNK >> 12)


# ---------------------------------------------------------------- attributes


def set_attributes(
    fd: int, file_fd: int, place: Place, identity: Identity, request: wire.SetAttributes, wait: bool
) -> None:
    """Size first (it needs the old mode), then owner, mode and times, which the others would change.

    *file_fd*: the caller's own descriptor, open for writing, or -1.  Unless *wait*, BlockingIOError when a native
    program's kernel lease is in the way of a truncation.
    """
    with identity:
        if request.size_bytes is not None:
            _truncate(fd, file_fd, place, request.size_bytes, wait)
        path = objects.link_path(fd)
        if request.uid is not None or request.gid is not None:
            os.chown(path, _id_or_minus_one(request.uid), _id_or_minus_one(request.gid))
        if request.mode is not None:
            os.chmod(path, request.mode & 0o7777)
        atime = _time(request.atime_ns, request.atime_now)
        mtime = _time(request.mtime_ns, request.mtime_now)
        if atime[1] != objects.UTIME_OMIT or mtime[1] != objects.UTIME_OMIT:
            objects.set_times(fd, atime, mtime)


def may_be_slow(fd: int, request: wire.SetAttributes) -> bool:
    """Whether this truncation frees so much that it belongs in a thread."""
    return request.size_bytes is not None and os.fstat(fd).st_size - request.size_bytes > SLOW_TRUNCATION_BYTES


def _truncate(fd: int, file_fd: int, place: Place, size_bytes: int, wait: bool) -> None:
    if not 0 <= size_bytes <= SIZE_MAX_BYTES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if file_fd >= 0:
        os.ftruncate(file_fd, size_bytes)
        return
    if not place.is_regular:
        number = errno.EISDIR if place.is_directory else errno.EINVAL
        raise OSError(number, os.strerror(number))
    writable = objects.reopen(fd, os.O_WRONLY | os.O_CLOEXEC | (0 if wait else os.O_NONBLOCK))
    try:
        os.ftruncate(writable, size_bytes)
    finally:
        os.close(writable)


def _id_or_minus_one(number: int | None) -> int:
    if number is None:
        return -1
    if not 0 <= number <= ID_MAX:
        raise OSError(errno.EINVAL, "user or group id out of range")
    return number


def _time(time_ns: int | None, now: bool) -> tuple[int, int]:
    if now:
        return 0, objects.UTIME_NOW
    if time_ns is None:
        return 0, objects.UTIME_OMIT
    if abs(time_ns) > TIME_MAX_NS:
        raise OSError(errno.EINVAL, "time out of range")
    return time_ns // NS, time_ns % NS


def check_access(fd: int, place: Place, identity: Identity, mask: int) -> None:
    """access(2): EACCES, EROFS."""
    if not 0 <= mask <= os.R_OK | os.W_OK | os.X_OK:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if mask & os.W_OK and place.file_type in _READ_ONLY_MATTERS:
        place.must_be_writable()
    with identity:
        objects.check_access(fd, mask)


def stat_filesystem(fd: int) -> wire.FilesystemStatted:
    """statvfs of the mount that the object is on."""
    found = os.fstatvfs(fd)
    return wire.FilesystemStatted(
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_namemax,
    )


# ---------------------------------------------------------------- extended attributes


def _check_xattr_name(name: bytes) -> None:
    if not 0 < len(name) <= XATTR_NAME_MAX_BYTES:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    if b"\0" in name:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _check_xattr_change(place: Place, identity: Identity, name: bytes) -> None:
    _check_xattr_name(name)
    place.must_be_writable()
    if identity.uid != 0 and name.startswith((b"trusted.", b"security.")):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def get_xattr(fd: int, identity: Identity, name: bytes) -> bytes:
    """ENODATA where there is none (also for trusted.* unless root asks, as the kernel has it)."""
    _check_xattr_name(name)
    if identity.uid != 0 and name.startswith(b"trusted."):
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    with identity:
        return bytes(xattr.getxattr(objects.link_path(fd), name))


def set_xattr(fd: int, place: Place, identity: Identity, request: wire.SetXattr) -> None:
    """EEXIST with XATTR_CREATE, ENODATA with XATTR_REPLACE, EPERM for what only root may."""
    _check_xattr_change(place, identity, request.name)
    if len(request.value) > XATTR_VALUE_MAX_BYTES:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    if request.flags & ~(XATTR_CREATE | XATTR_REPLACE):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    options = 0
    if request.flags & XATTR_CREATE:
        options |= xattr.XATTR_CREATE
    if request.flags & XATTR_REPLACE:
        options |= xattr.XATTR_REPLACE
    with identity:
        xattr.setxattr(objects.link_path(fd), request.name, request.value, options)


def list_xattrs(fd: int, identity: Identity) -> tuple[bytes, ...]:
    """All names that this caller may see."""
    with identity:
        names = tuple(os.fsencode(name) for name in os.listxattr(objects.link_path(fd)))
    if identity.uid == 0:
        return names
    return tuple(name for name in names if not name.startswith(b"trusted."))


def remove_xattr(fd: int, place: Place, identity: Identity, name: bytes) -> None:
    """ENODATA where there is none."""
    _check_xattr_change(place, identity, name)
    with identity:
        xattr.removexattr(objects.link_path(fd), name)
