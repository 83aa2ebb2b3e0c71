"""Which names are known to be absent, without a mount: directories that come back, bounds, and listings in pieces."""

from __future__ import annotations

from typing import Any

from omfs.cache.holder import Lease
from omfs.mount.allnames import AllNames
from omfs.mount.listings import Listings, Name
from omfs.wiretypes import Mode


class Directory:
    """As much of an Inode as is looked at."""

    def __init__(self, number: int = 1) -> None:
        self.id = number
        self.lease = Lease()
        self.hold_of_names: tuple[int, int] | None = (1, 0)


def test_a_directory_that_came_back_is_another_one() -> None:
    known: Any = AllNames()
    known.know(Directory(), [b"a"])
    assert not known.is_absent(Directory(), b"b"), "same number, same round: but the kernel forgot it in between"
    assert len(known) == 0


def test_a_name_that_is_too_long_is_no_absent_one() -> None:
    known: Any = AllNames()
    directory = Directory()
    known.know(directory, [])
    assert known.is_absent(directory, b"n" * 255)
    assert not known.is_absent(directory, b"n" * 256), "ENAMETOOLONG: the owner says so"


def test_what_is_not_held_is_not_known() -> None:
    known: Any = AllNames()
    directory = Directory()
    directory.hold_of_names = None
    known.know(directory, [])
    assert len(known) == 0
    known.may_exist(directory, b"a")
    known.removed(directory, b"a")
    known.end(directory)


def test_names_count_until_they_are_gone() -> None:
    known: Any = AllNames(names_max=20)
    first, second = Directory(1), Directory(2)
    known.know(first, [])
    for number in range(8):
        known.may_exist(first, b"%d" % number)
        known.may_exist(first, b"%d" % number)
    for number in range(8):
        known.removed(first, b"%d" % number)
        known.removed(first, b"%d" % number)
    known.know(second, [b"%d" % number for number in range(12)])
    assert known.is_absent(first, b"x"), "4 + 0 and 4 + 12 names"
    known.know(Directory(3), [])
    assert not known.is_absent(second, b"x"), "not used for longest"
    assert known.is_absent(first, b"x")


def pieces(*holds: object, at_end: bool = True) -> bool:
    """Whether a listing in such pieces is known to be all."""
    listings = Listings()
    snapshot, _ = listings.find(1, None, 0)
    for index, hold in enumerate(holds):
        snapshot.note_hold(hold)
        names = [Name(b"%d" % index, index, 8)]
        listings.extend(snapshot, names, Mode.SHARED, at_end=at_end and index == len(holds) - 1, cursor=index)
    return snapshot.knows_all


def test_a_listing_is_all_if_it_was_held_from_beginning_to_end() -> None:
    assert pieces((1, 0), (1, 0))
    assert not pieces((1, 0), (1, 7)), "recalled in between"
    assert not pieces((1, 0), None, (1, 0)), "something was left out"
    assert not pieces(None, (1, 0))
    assert not pieces((1, 0), at_end=False)
