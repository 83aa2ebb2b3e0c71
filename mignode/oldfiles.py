"""Files that an image names, and that are others by now: which may be, and what its user is told of the rest.

CRIU refuses to restore a tree if a file that it has open has another size by then, but for one that is only appended
to.  Of programs and libraries, and of what is only read, that is right: their user is told which file differs.  But
what the program had open for writing, it has gone on writing after the checkpoint, and a restart begins with that.

`reason_of` makes a line for the user of what CRIU says then, of files that are missing, too.

Images: files.img, CRIU's fdinfo.proto and regfile.proto (4.2; seen in real images).  Pure, but for `forget_sizes`;
WireError for what is no image.  Called by restarting.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mignode.criuimages import MAGIC_BYTES, as_bytes, as_number, changed, fields_of, image_of, messages_of

_FILES: Final = "files.img"
# Numbers of fields.
_REGULAR: Final = 3  # of file_entry
_FLAGS, _NAME, _SIZE = 2, 6, 8  # of reg_file_entry
_MISSING: Final = re.compile(r"Can't open file (.+?) on restore: ([^;]+)")
_OTHER: Final = re.compile(r"File (.+?) has bad ([\w-]+) (\w+) \(expect (\w+)\)")
_OTHER_BUILD: Final = re.compile(r"File (.+?) has bad build-ID")


def reason_of(text: str) -> str:
    """*text*: why CRIU could not restore.  Names are the guest's, CRIU leaves out their first slash."""
    if found := _MISSING.search(text):
        return f"it had /{found[1].lstrip('/')} open, which is not to be opened here: {found[2]}"
    if found := _OTHER.search(text):
        name, what, here, there = found.groups()
        return f"it had /{name.lstrip('/')} open, which is another one here: its {what} is {here}, and was {there}"
    if found := _OTHER_BUILD.search(text):
        return f"it had /{found[1].lstrip('/')} open, which is another one here: its build-ID differs"
    return text


def forget_sizes(images: Path) -> None:
    """In a directory.  For worker threads.  Raises OSError, WireError."""
    path = images / _FILES
    path.write_bytes(without_sizes(path.read_bytes()))


def without_sizes(image: bytes) -> bytes:
    """files.img, without those of what is written by any of its openings."""
    written = {name for regular in _regular_in(image) if (name := _written(regular))}
    sizeless = {_REGULAR: lambda regular: _without_size(as_bytes(regular), written)}
    return image_of(image[:MAGIC_BYTES], (changed(message, sizeless) for message in messages_of(image)))


def _regular_in(image: bytes) -> Iterator[bytes]:
    for message in messages_of(image):
        yield from (as_bytes(field.value) for field in fields_of(message) if field.number == _REGULAR)


def _written(regular: bytes) -> bytes:
    """Its name; b"" where it is only read."""
    flags, name = 0, b""
    for field in fields_of(regular):
        if field.number == _FLAGS:
            flags = as_number(field.value)
        elif field.number == _NAME:
            name = as_bytes(field.value)
    return name if flags & os.O_ACCMODE != os.O_RDONLY else b""


def _without_size(regular: bytes, written: set[bytes]) -> bytes:
    fields = list(fields_of(regular))
    if not any(field.number == _NAME and field.value in written for field in fields):
        return regular
    return b"".join(field.raw for field in fields if field.number != _SIZE)
