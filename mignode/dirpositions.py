"""How far a guest has read its directories: on its way from node to node that is a number of names.

The kernel's position in a directory is the file system's own number (ext4: a hash of the name), through /mfs it is that
of an entry in a listing of this mount (omfs/mount/listings.py).  Neither means anything to the other: a program that
goes on listing would begin anew, or miss names.  Both tell names in the order of the owner's directory, so:

- at the source, what was read natively becomes that place in a listing of no mount, in the images (`make_portable`).  A
  mount goes on at that place of a listing of its own; so it does with what another mount has begun;
- at the destination, what is read natively there is set to the place behind as many names (`set_natively`).

Where names came and went since, some may be told twice or left out, as POSIX allows for these alone; here it may be
their neighbours.  Not put right: what telldir(3) has returned.

Images: files.img, CRIU's fdinfo.proto and regfile.proto (4.2).
Called by migrate.py, saving.py and receive.py.
"""

from __future__ import annotations

import contextlib
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mignode.criuimages import MAGIC_BYTES, as_bytes, as_number, changed, fields_of, image_of, messages_of
from omfs.config import LISTING_POSITION_MASK
from omfs.kernel.descriptors import copied_from
from omfs.kernel.directories import read_entries
from omfs.kernel.mounttable import is_real_tree
from omfs.kernel.processes import mounts_of, read_file
from omfs.kernel.procobjects import parse_fdinfo

_FILES: Final = "files.img"
_DOTS: Final = 2  # places of "." and ".." in a listing of /mfs
# Numbers of fields.
_REGULAR: Final = 3  # of file_entry
_POSITION, _NAME = 3, 6  # of reg_file_entry
_GONE: Final = (FileNotFoundError, ProcessLookupError)


class _Reading(NamedTuple):
    """A directory of this node's own tree that somebody has begun to read."""

    pid: int
    number: int
    position: int


def make_portable(images: Path, pids: Iterable[int]) -> None:
    """Of a dumped tree that is held.  For worker threads.  Raises OSError, WireError."""
    places: dict[tuple[bytes, int], int] = {}
    for one in _readings(pids):
        name = os.fsencode(os.readlink(f"/proc/{one.pid}/fd/{one.number}"))
        if (name, one.position) not in places:
            with _copy(one) as copy:
                places[name, one.position] = _DOTS + _names_before(copy, one.position)
    if places:
        path = images / _FILES
        path.write_bytes(with_positions(path.read_bytes(), places))


def with_positions(image: bytes, places: Mapping[tuple[bytes, int], int]) -> bytes:
    """files.img; *places*: by name and position what that is to be.  Pure.  Raises WireError."""
    return image_of(
        image[:MAGIC_BYTES],
        (
            changed(message, {_REGULAR: lambda regular: _placed(as_bytes(regular), places)})
            for message in messages_of(image)
        ),
    )


def set_natively(pids: Iterable[int]) -> None:
    """Of a restored tree that is held.  For worker threads.  Raises OSError."""
    for one in list(_readings(pids)):  # before any is set: several may be of one opening
        with _copy(one) as copy:
            names = max((one.position & LISTING_POSITION_MASK) - _DOTS, 0)
            os.lseek(copy, _position_behind(copy, names), os.SEEK_SET)


def _placed(regular: bytes, places: Mapping[tuple[bytes, int], int]) -> bytes:
    has = {field.number: field.value for field in fields_of(regular)}
    place = places.get((as_bytes(has[_NAME]), as_number(has[_POSITION])))
    return regular if place is None else changed(regular, {_POSITION: lambda _: place})


def _readings(pids: Iterable[int]) -> Iterator[_Reading]:
    for pid in pids:
        with contextlib.suppress(*_GONE):
            mounts = {number for number, line in mounts_of(pid).items() if is_real_tree(line.fstype)}
            for number in os.listdir(f"/proc/{pid}/fdinfo"):
                info = parse_fdinfo(read_file(f"/proc/{pid}/fdinfo/{number}"))
                if info.position > 0 and info.mount_id in mounts and _is_directory(f"/proc/{pid}/fd/{number}"):
                    yield _Reading(pid, int(number), info.position)


def _is_directory(path: str) -> bool:
    """The flags of the opening don't tell: CRIU leaves O_DIRECTORY out."""
    return stat.S_ISDIR(os.stat(path).st_mode)


@contextlib.contextmanager
def _copy(one: _Reading) -> Iterator[int]:
    copy = copied_from(one.pid, one.number)
    try:
        yield copy
    finally:
        os.close(copy)


def _names_before(directory: int, position: int) -> int:
    """How many names come until there; where none is at that position any more, those that sort before, or all."""
    cursors = list(_cursors(directory))
    if position in cursors:
        return cursors.index(position) + 1
    return bisect_right(cursors, position) if cursors == sorted(cursors) else len(cursors)


def _position_behind(directory: int, names: int) -> int:
    cursor = 0
    for count, at in enumerate(_cursors(directory), 1):
        if count > names:
            break
        cursor = at
    return cursor


def _cursors(directory: int) -> Iterator[int]:
    """Of its names, from the first to the last, read by an opening of our own; none where it was removed."""
    own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with contextlib.suppress(FileNotFoundError):
            while entries := read_entries(own):
                yield from (entry.cursor for entry in entries)
    finally:
        os.close(own)
