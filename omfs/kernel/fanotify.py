"""Watching whole file systems: fanotify(7) with file handles and names (FAN_REPORT_DFID_NAME_TARGET, Linux 5.17).

An object in an event is given as a key: the file system's id (8 bytes) and the kernel handle with its head, as the
kernel lays them out, so that one slice of the buffer is the key.  `object_key` makes the same of a handle that was read
with kernel/handles.py.  Checked on 6.18 for ext4, tmpfs, and an overlay with index=on,nfs_export=on (files of the lower
layer before and after their copy-up): events carry exactly the handles that name_to_handle_at gives.  One exception: a
directory of the lower layer that is removed comes without a handle of its own, only with its name.

What the kernel does not tell: stores into a shared mapping, reads (atime), and changes of other machines on a network
file system.  Events of one object by one process are merged while they wait, their masks or-ed.

No policy: which events matter is known to export/localchanges.py, the caller.  Needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from omfs.kernel.libc import check, libc

MODIFY: Final = 0x2  # include/uapi/linux/fanotify.h
ATTRIB: Final = 0x4
CREATE: Final = 0x100
DELETE: Final = 0x200
OVERFLOW: Final = 0x4000
RENAME: Final = 0x10000000
ON_DIRECTORY: Final = 0x40000000
CHANGES: Final = MODIFY | ATTRIB | CREATE | DELETE | RENAME | ON_DIRECTORY

_CLOEXEC: Final = 1
_NONBLOCK: Final = 2
_REPORT_DFID_NAME_TARGET: Final = 0x200 | 0x400 | 0x800 | 0x1000
_MARK_ADD: Final = 1
_MARK_IGNORED: Final = 0x20
_MARK_IGNORED_SURV_MODIFY: Final = 0x40
_AT_FDCWD: Final = -100
_MARK_FILESYSTEM: Final = 0x100
_INFO_FID: Final = 1
_INFO_DFID_NAME: Final = 2
_INFO_DFID: Final = 3
_INFO_OLD_DFID_NAME: Final = 10
_INFO_NEW_DFID_NAME: Final = 12
_METADATA: Final = struct.Struct(
    "=IBBHQii"
)  # fanotify_event_metadata: length, version, -, its own length, mask, fd, pid
_INFO: Final = struct.Struct("=BxH8xI")  # fanotify_event_info_fid: type, length, file system id; bytes of the handle
_KEY_AT: Final = 4  # in an info record: the file system id, the handle's size, its type, the handle
_HANDLE_HEAD_BYTES: Final = 16  # of these, all but the handle
_VERSION: Final = 3
_READ_BYTES: Final = 1 << 16
_EVENT_MAX_BYTES: Final = 2048  # three records of a handle and a name each
_READS_MAX: Final = (
    128  # more than the longest queue: what was in it when we began is read, also under a constant stream
)

_KEY_HEAD: Final = struct.Struct("=8sIi")


class Event(NamedTuple):
    """What was done, by which process (0: of another PID namespace), to which object, under which name.

    *object*: None for a removed directory whose handle is gone.  *directory* and *name*: None for a change of an object
    whose name is unknown, and of a directory itself.  *new_directory* and *new_name*: of RENAME only.
    """

    mask: int
    pid: int
    object: bytes | None
    directory: bytes | None
    name: bytes | None
    new_directory: bytes | None = None
    new_name: bytes | None = None


def object_key(file_system_id: int, prepared: bytes) -> bytes:
    """The key of an object: statvfs's f_fsid and the handle as kernel/handles.py prepares it."""
    return file_system_id.to_bytes(8, "little") + prepared


def split_key(key: bytes) -> tuple[bytes, int, bytes]:
    """(file system id, handle type, handle bytes)."""
    file_system_id, size, kind = _KEY_HEAD.unpack_from(key)
    return file_system_id, kind, key[_KEY_HEAD.size : _KEY_HEAD.size + size]


class Watcher:
    """One fanotify group; *descriptor* is readable when there are events."""

    def __init__(self, descriptor: int = -1) -> None:
        """*descriptor*: of a group that exists already.  Raises OSError: EINVAL before Linux 5.17, EPERM."""
        if descriptor < 0:
            flags = ctypes.c_uint(_CLOEXEC | _NONBLOCK | _REPORT_DFID_NAME_TARGET)
            descriptor = check(libc.fanotify_init(flags, ctypes.c_uint(os.O_RDONLY | os.O_CLOEXEC)))
        self.descriptor = descriptor

    def close(self) -> None:
        os.close(self.descriptor)

    def mark(self, fd: int) -> None:
        """Watch the file system that *fd* (not O_PATH) is on; again does no harm.

        Raises OSError: ENODEV, EXDEV, EOPNOTSUPP where it has no id or no handles to report.
        """
        flags, mask = ctypes.c_uint(_MARK_ADD | _MARK_FILESYSTEM), ctypes.c_uint64(CHANGES)
        check(libc.fanotify_mark(self.descriptor, flags, mask, fd, None))

    def ignore(self, path: Path) -> None:
        """Tell nothing of what is done to this file itself.  Raises OSError."""
        flags = ctypes.c_uint(_MARK_ADD | _MARK_IGNORED | _MARK_IGNORED_SURV_MODIFY)
        mask = ctypes.c_uint64(MODIFY | ATTRIB)
        check(libc.fanotify_mark(self.descriptor, flags, mask, _AT_FDCWD, os.fsencode(path)))

    def read(self, own_pid: int = -1) -> list[Event]:
        """What has happened since the last call, without what process *own_pid* did; never blocks.

        An event with OVERFLOW stands for others that were lost.
        """
        events: list[Event] = []
        for _ in range(_READS_MAX):
            try:
                records = os.read(self.descriptor, _READ_BYTES)
            except BlockingIOError:
                break
            parse_events(records, own_pid, events)
            if len(records) < _READ_BYTES - _EVENT_MAX_BYTES:
                break
        return events


def parse_events(records: bytes, own_pid: int, events: list[Event]) -> None:
    """Append what *records* (as read(2) gave them) tell, but for the events of *own_pid*."""
    at = 0
    end = len(records)
    while at < end:
        length, version, _, metadata_bytes, mask, _, pid = _METADATA.unpack_from(records, at)
        if version != _VERSION:
            raise OSError(f"fanotify speaks version {version}")
        if pid != own_pid or mask & OVERFLOW:
            events.append(_event(records, at + metadata_bytes, at + length, mask, pid))
        at += length


def _event(records: bytes, at: int, end: int, mask: int, pid: int) -> Event:
    changed = directory = name = new_directory = new_name = None
    while at < end:
        kind, length, handle_bytes = _INFO.unpack_from(records, at)
        key_end = at + _KEY_AT + _HANDLE_HEAD_BYTES + handle_bytes
        if kind == _INFO_FID:
            changed = records[at + _KEY_AT : key_end]
        elif kind in (_INFO_DFID_NAME, _INFO_OLD_DFID_NAME, _INFO_DFID):
            directory = records[at + _KEY_AT : key_end]
            if kind != _INFO_DFID:
                name = records[key_end : records.index(b"\0", key_end)]
        elif kind == _INFO_NEW_DFID_NAME:
            new_directory = records[at + _KEY_AT : key_end]
            new_name = records[key_end : records.index(b"\0", key_end)]
        at += length
    if name == b"." or (name is None and changed is None):  # the directory itself
        return Event(mask, pid, directory, None, None)
    return Event(mask, pid, changed, directory, name, new_directory, new_name)
