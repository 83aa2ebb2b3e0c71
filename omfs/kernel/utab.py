"""Tell umount(8) that our mount has a helper, through libmount's own table (/run/mount/utab).

umount(8) looks for /sbin/umount.TYPE only after it has read the mount table, and it skips that when statfs(2) names a
type (util-linux 2.37 and later: "fuse" for every FUSE mount).  A utab entry with `uhelper=` makes it call
/sbin/umount.fuse.omfs, which takes the binds below the mount off first.  The file's format is libmount's own, so
libmount writes it.  Source: util-linux libmount API, "Tables update".  Called by mount/session.py.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any, Final

_HELPER: Final = b"uhelper=fuse.omfs"

log = logging.getLogger(__name__)


def note_mount(source: bytes, target: bytes) -> None:
    """Record the mount; where that can't be done a plain umount says "busy" and umount -R works, so only a warning."""
    library = _library()
    if library is None:
        return
    entry = library.mnt_new_fs()
    try:
        library.mnt_fs_set_source(entry, source)
        library.mnt_fs_set_target(entry, target)
        library.mnt_fs_set_root(entry, b"/")
        library.mnt_fs_append_options(entry, _HELPER)
        _update(library, None, entry)
    finally:
        library.mnt_unref_fs(entry)


def forget_mount(target: bytes) -> None:
    """The mount is gone."""
    library = _library()
    if library is not None:
        _update(library, target, None)


def _update(library: Any, target: bytes | None, entry: int | None) -> None:
    update = library.mnt_new_update()
    try:
        status = library.mnt_update_set_fs(update, ctypes.c_ulong(0), target, entry)
        if status == 0:
            status = library.mnt_update_table(update, None)
        if status < 0:
            log.warning("umount(8)'s table was not updated (libmount: %d); use umount -R", status)
    finally:
        library.mnt_free_update(update)


def _library() -> Any:
    try:
        library = ctypes.CDLL("libmount.so.1", use_errno=True)
    except OSError as error:
        log.warning("umount(8) is not told of its helper, use umount -R: %s", error)
        return None
    pointer = ctypes.c_void_p
    library.mnt_new_fs.restype = library.mnt_new_update.restype = pointer
    for name in ("mnt_fs_set_source", "mnt_fs_set_target", "mnt_fs_set_root", "mnt_fs_append_options"):
        getattr(library, name).argtypes = [pointer, ctypes.c_char_p]
    library.mnt_unref_fs.argtypes = library.mnt_free_update.argtypes = [pointer]
    library.mnt_update_set_fs.argtypes = [pointer, ctypes.c_ulong, ctypes.c_char_p, pointer]
    library.mnt_update_table.argtypes = [pointer, pointer]
    return library
