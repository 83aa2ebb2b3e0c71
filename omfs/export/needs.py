"""What a request does to which objects, before it is executed: the uses that others may be in the way of.

NEEDS: requests that change something, open a file, or want it EXCLUSIVE.  `looked_at`: those that show an object, in
whose way only an EXCLUSIVE holder can be.  Who reads or seeks in an open file needs nothing: while anybody but an
EXCLUSIVE holder has it open there is none (kernel/filelease.py).  The objects behind names are looked up now, as the
caller; a name that can't be found is left to the request itself, which fails with the right error.  What a native
program changes between this look and the request is told by localchanges.py.

Called by export/underleases.py, only where somebody may be in the way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from omfs import wire
from omfs.cache.owner import Need
from omfs.cache.rules import Use
from omfs.errors import OmfsError
from omfs.export.disk import Disk, check_name
from omfs.export.files import SessionFiles, writable_of
from omfs.export.handles import is_directory, is_regular

_WRITES: Final = os.O_ACCMODE | os.O_TRUNC

NeedsOf: TypeAlias = Callable[[Disk, SessionFiles, Any], tuple[Need, ...]]
"""(disk, what the session has open, request) -> needs; OSError and OmfsError where the request itself would fail."""


def _changed(handle: bytes) -> Need:
    return Need(handle, Use.CHANGE_DIRECTORY if is_directory(handle) else Use.CHANGE)


def _found(disk: Disk, directory: bytes, name: bytes, caller: wire.Caller) -> bytes | None:
    """The handle of the object that has this name, if there is one to be found."""
    try:
        check_name(name)
        parent = disk.locate(directory)
        return disk.look_up(disk.directory(parent), parent, name, parent.tree.identity_of(caller))[0]
    except (OSError, OmfsError):
        return None


def _new_name(disk: Disk, files: SessionFiles, request: Any) -> tuple[Need, ...]:
    return (Need(request.parent, Use.NAME, request.name),)


def _make_link(disk: Disk, files: SessionFiles, request: wire.MakeLink) -> tuple[Need, ...]:
    return Need(request.parent, Use.NAME, request.name), _changed(request.handle)


def _remove_name(disk: Disk, files: SessionFiles, request: wire.RemoveName) -> tuple[Need, ...]:
    victim = _found(disk, request.parent, request.name, request.caller)
    if victim is None:
        return ()
    return Need(request.parent, Use.NAME, request.name), _changed(victim)


def _rename_name(disk: Disk, files: SessionFiles, request: wire.RenameName) -> tuple[Need, ...]:
    moved = _found(disk, request.parent, request.name, request.caller)
    if moved is None:
        return ()
    needs = [
        Need(request.parent, Use.NAME, request.name),
        Need(request.new_parent, Use.NAME, request.new_name),
        _changed(moved),
    ]
    replaced = _found(disk, request.new_parent, request.new_name, request.caller)
    if replaced is not None and replaced != moved:
        needs.append(_changed(replaced))
    return tuple(needs)


def _opened(handle: bytes, flags: int) -> tuple[Need, ...]:
    if not is_regular(handle):
        return ()  # and can't be opened
    return (Need(handle, Use.LOOK if flags & _WRITES == os.O_RDONLY else Use.CHANGE),)


def _create_file(disk: Disk, files: SessionFiles, request: wire.CreateFile) -> tuple[Need, ...]:
    existing = None if request.flags & os.O_EXCL else _found(disk, request.parent, request.name, request.caller)
    return (Need(request.parent, Use.NAME, request.name),) if existing is None else _opened(existing, request.flags)


def _open_file(disk: Disk, files: SessionFiles, request: wire.OpenFile) -> tuple[Need, ...]:
    """A reclaimed open was there before; nobody may wait for it who must reopen files before he gives anything back."""
    return () if request.reclaim else _opened(request.handle, request.flags)


def _ask_lease(disk: Disk, files: SessionFiles, request: wire.AskLease) -> tuple[Need, ...]:
    opened = files.get(request.open_id)
    return (Need(opened.place.handle, Use.CHANGE),) if opened.is_writable else ()


def _object(disk: Disk, files: SessionFiles, request: Any) -> tuple[Need, ...]:
    return (_changed(request.handle),)


def _open_object(disk: Disk, files: SessionFiles, request: Any) -> tuple[Need, ...]:
    return (Need(files.get(request.open_id).place.handle, Use.CHANGE),)


def _copy_range(disk: Disk, files: SessionFiles, request: wire.CopyRange) -> tuple[Need, ...]:
    return (Need(files.get(request.target_open_id).place.handle, Use.CHANGE),)


NEEDS: Final[dict[type[Any], NeedsOf]] = {
    wire.MakeNode: _new_name,
    wire.MakeDirectory: _new_name,
    wire.MakeSymlink: _new_name,
    wire.MakeLink: _make_link,
    wire.RemoveName: _remove_name,
    wire.RenameName: _rename_name,
    wire.CreateFile: _create_file,
    wire.OpenFile: _open_file,
    wire.AskLease: _ask_lease,
    wire.SetAttributes: _object,
    wire.SetXattr: _object,
    wire.RemoveXattr: _object,
    wire.WriteBlocks: _open_object,
    wire.AppendBlocks: _open_object,
    wire.AllocateSpace: _open_object,
    wire.CopyRange: _copy_range,
}


def opens(request: wire.Request, files: SessionFiles) -> tuple[bytes, Use] | None:
    """The regular file that is opened, or cut off by its path, and for what; of CreateFile its first need tells.

    Guards (guards.py) on it must go first, or our own open would wait for ourselves.
    """
    match request:
        case wire.OpenFile(handle, flags):
            return handle, Use.LOOK if flags & _WRITES == os.O_RDONLY else Use.CHANGE
        case wire.SetAttributes(handle) if request.size_bytes is not None and writable_of(files, request) is None:
            return handle, Use.CHANGE
        case wire.LockRange():
            return files.get(request.open_id).place.handle, Use.LOOK
    return None


_SHOWING: Final = frozenset({wire.GetAttributes, wire.GetXattr, wire.ListXattrs, wire.CheckAccess})


def looked_at(request: Any, disk: Disk) -> bytes | None:
    """The object that the request shows, if it is one of which others may have newer data."""
    kind = type(request)
    if kind in _SHOWING:
        handle: bytes = request.handle
        return handle
    if kind is wire.LookUp:
        return _found(disk, request.parent, request.name, request.caller)
    return None
