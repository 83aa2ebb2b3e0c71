"""Who may cache what beside whom: the two tables of leases, and nothing else.

    held by another | the request looks | changes the object | changes a name in it
    ----------------+-------------------+--------------------+---------------------
    NONE            | -                 | -                  | -
    SHARED          | -                 | gives it back      | forgets the name
    EXCLUSIVE       | flushes, SHARED   | gives it back      | gives it back

A directory that is changed itself (chmod) only loses its attributes and its listing at the others: its names are as
before.  Who asks for EXCLUSIVE asks as one who changes.  Nothing is granted on an object that is being changed.

Pure.  Used by owner.py and holder.py; explained in docs/leases.md.
"""

from __future__ import annotations

import enum
from typing import Final

from omfs.wiretypes import Mode


class Use(enum.IntEnum):
    """What a request does to an object."""

    LOOK = 0  # reads its attributes, names or data
    CHANGE = 1  # changes its attributes or data
    CHANGE_DIRECTORY = 2  # changes the attributes of a directory
    NAME = 3  # makes, removes or replaces a name in this directory


class Demand(enum.IntEnum):
    """What another holder must do before the request may be executed."""

    NOTHING = 0
    FORGET_NAMES = 1  # the names in question, the listing and the attributes; it keeps its lease
    SHARE = 2  # send what it has buffered and go on with SHARED
    GIVE_BACK = 3


DEMANDS: Final[dict[tuple[Use, Mode], Demand]] = {
    (Use.LOOK, Mode.NONE): Demand.NOTHING,
    (Use.LOOK, Mode.SHARED): Demand.NOTHING,
    (Use.LOOK, Mode.EXCLUSIVE): Demand.SHARE,
    (Use.CHANGE, Mode.NONE): Demand.NOTHING,
    (Use.CHANGE, Mode.SHARED): Demand.GIVE_BACK,
    (Use.CHANGE, Mode.EXCLUSIVE): Demand.GIVE_BACK,
    (Use.CHANGE_DIRECTORY, Mode.NONE): Demand.NOTHING,
    (Use.CHANGE_DIRECTORY, Mode.SHARED): Demand.FORGET_NAMES,
    (Use.CHANGE_DIRECTORY, Mode.EXCLUSIVE): Demand.GIVE_BACK,
    (Use.NAME, Mode.NONE): Demand.NOTHING,
    (Use.NAME, Mode.SHARED): Demand.FORGET_NAMES,
    (Use.NAME, Mode.EXCLUSIVE): Demand.GIVE_BACK,
}


def may_hold(mode: Mode, others: Mode) -> bool:
    """Whether one may hold *mode* while the greatest mode of all others is *others*."""
    if mode is Mode.EXCLUSIVE:
        return others is Mode.NONE
    return mode is Mode.NONE or others is not Mode.EXCLUSIVE
