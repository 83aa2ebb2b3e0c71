"""The images of a dump without the guest's filter, which CRIU would restore: there nobody would listen to it.

A guest runs below a filter of ours (dfsa/guestfilter.py).  CRIU dumps it like any other, and restored
from an image it would have no listener, so that all that it stops would fail with ENOSYS; and it would hide a new one,
since of two that stop a call the kernel takes the newer.  So it is taken out of the images, and the guest is restored
below a new one.

Filters that the program has put on itself stay.  Ours is known by its mark and by having been there first: a program
can't get rid of a filter of somebody else's by marking one of its own that came later.

In the images of CRIU 4.2 a thread names its oldest filter, and each filter the next newer one, which it calls "prev"
(ptrace(2) tells them from the newest on, and CRIU puts them on from the oldest on; seen in real images).  So a thread
that names ours is made to name the next one; ours stays in seccomp.img, where nobody names it.  A thread without a
filter in its image gets that of its process's first thread.

Images are CRIU's (its images/core.proto and seccomp.proto, 4.2).  What is not about filters is handed on byte by byte.

Pure: bytes in, bytes out; WireError for what is no image.  To be called by migrate, between the dump and the sending.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dfsa.guestfilter import MARK
from mignode.criuimages import (
    MAGIC_BYTES,
    as_bytes,
    as_number,
    field_of,
    fields_of,
    message_of,
    number_of,
    only_message,
)

# Numbers of fields.
_FILTERS: Final = 1  # of seccomp_entry
_CODE: Final = 1  # of seccomp_filter
_NEXT: Final = 2  # "prev"
_THREAD: Final = 5  # of core_entry
_MODE: Final = 11  # of thread_core_entry
_FILTER: Final = 12


def ours_in(seccomp: bytes) -> dict[int, int | None]:
    """What may be ours of the filters in seccomp.img, by place, and which one is next; None: none is."""
    filters = [field.value for field in fields_of(only_message(seccomp)) if field.number == _FILTERS]
    found: dict[int, int | None] = {}
    for place, filter_ in enumerate(filters):
        fields = {field.number: field.value for field in fields_of(as_bytes(filter_))}
        if as_bytes(fields.get(_CODE, b"")).endswith(MARK):
            found[place] = as_number(fields[_NEXT]) if _NEXT in fields else None
    return found


def core_without(core: bytes, ours: Mapping[int, int | None]) -> bytes:
    """core-<thread>.img: a thread whose first filter is one of *ours* has the next one as its first, or none."""
    return core[:MAGIC_BYTES] + message_of(
        b"".join(
            field_of(_THREAD, _thread_without(as_bytes(field.value), ours)) if field.number == _THREAD else field.raw
            for field in fields_of(only_message(core))
        )
    )


def _thread_without(thread: bytes, ours: Mapping[int, int | None]) -> bytes:
    fields = list(fields_of(thread))
    first = next((as_number(field.value) for field in fields if field.number == _FILTER), None)
    if first is None or first not in ours:
        return thread
    following = ours[first]
    if following is None:
        return b"".join(field.raw for field in fields if field.number not in (_MODE, _FILTER))
    named = number_of(_FILTER, following)
    return b"".join(named if field.number == _FILTER else field.raw for field in fields)
