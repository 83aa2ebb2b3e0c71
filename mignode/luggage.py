"""What the registry knows of a guest's processes, packed for the next node: by their numbers inside, which stay.

Packed while they are frozen, unpacked before they run again: nobody forks, executes or chooses anything in between.
Called by migrate.py and receive.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec.structs import replace

from mignode.book import Entry, Settings
from mignode.registry import Registry
from omfs.errors import WireError
from omfs.kernel import processes
from omfs.magic.places import Place


class Packed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*pid*: inside.  *image*: its exec identity, which goes along in its memory."""

    pid: int
    home: int
    lastexec: int
    image: Annotated[str, msgspec.Meta(max_length=32)]
    selected: int
    magic: int
    settings: Settings


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[Packed, ...]).decode


def pack(registry: Registry, pids: Mapping[int, int], home: int) -> bytes:
    """*pids*: outer ones by inner."""
    return _encode([one for inner, outer in pids.items() if (one := _packed(registry, inner, outer, home)) is not None])


def _packed(registry: Registry, inner: int, outer: int, home: int) -> Packed | None:
    process = processes.identify(outer)
    if process is None:
        return None
    place, settings = registry.departing(process)
    settings = replace(settings, nmigs=settings.nmigs + 1)
    return Packed(inner, home, place.lastexec, place.image, place.selected, place.magic, settings)


def unpack(luggage: bytes, pids: Mapping[int, int], here: int, *, root: int, init: int) -> list[Entry]:
    """For the registry of this node.  Raises WireError.

    *root*: its number inside.  *init*, an outer pid: whose parent ends is its child then, and where no forks are told
    has what it has; so it has what a child of the root would have.
    """
    try:
        packed = _decode(luggage)
    except msgspec.MsgspecError as error:
        raise WireError(f"what is known of a guest's processes: {error}") from None
    found = {one.pid: entry for one in packed if (entry := _entry(one, pids.get(one.pid, 0), here)) is not None}
    process = processes.identify(init)
    if process is not None and root in found:
        return [*found.values(), found[root].passed_to(process)]
    return list(found.values())


def _entry(one: Packed, outer: int, here: int) -> Entry | None:
    process = processes.identify(outer) if outer else None
    if process is None:
        return None
    place = Place(*process, one.home, here, one.lastexec, one.image, one.selected, one.magic)
    return Entry(place, one.settings)
