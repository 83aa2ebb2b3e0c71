"""What /mfs/here, home, lastexec, selected and magic mean for one process, and how that is explained.

The names are symbolic links at the top of the mount (docs/adr/0009); a node's id is all that is decided here.  What is
known of the process comes as its `Place` (places.py), None for an ordinary one.  Nothing is checked: a node that is not
in the map or down stays what it is, and the link leads to what is not there.

    name     | an ordinary process | otherwise
    ---------+---------------------+----------------------------------------------------------------------------
    here     | this node           | where it runs
    home     | this node           | where it was born
    lastexec | this node           | where it did its last execve: as noted, or where it runs if it did one since
    selected | this node           | what it wrote to its /proc/self/selected, or an ancestor before the fork; home
             |                     | where nobody wrote anything (or 0)
    magic    | this node           | creating: where it runs; else where it last created something through magic, or
             |                     | where it runs if nothing says otherwise

Sources: openMosix HOWTO for the names; the defaults are ours.  Pure.  Called by the mount.
"""

from __future__ import annotations

import enum

from omfs.magic.places import Place


class Magic(enum.StrEnum):
    """The names, as they appear at the top of the mount."""

    HERE = "here"
    HOME = "home"
    LASTEXEC = "lastexec"
    SELECTED = "selected"
    MAGIC = "magic"


def resolve(name: Magic, place: Place | None, image: str, own_id: int, creates: bool) -> int:
    """The id of the node that *name* is for this process.

    *image*: the exec identity that it has now.  *creates*: the system call that asks may create a file.
    """
    if place is None:
        return own_id
    match name:
        case Magic.HERE:
            return place.here
        case Magic.HOME:
            return place.home
        case Magic.LASTEXEC:
            return place.lastexec if image == place.image else place.here
        case Magic.SELECTED:
            return place.selected or place.home
        case _:  # MAGIC
            return place.here if creates else place.magic or place.here


def is_news(place: Place | None) -> bool:
    """Whether a creation through magic, now, changes what magic means for this process afterwards.

    If so the registry must be told (Book.created) and waited for, before the name is answered.
    """
    return place is not None and place.magic not in (0, place.here)


def explain(name: Magic, place: Place | None, image: str, own_id: int, creates: bool) -> str:
    """Why `resolve` says what it says: one sentence without its full stop."""
    if place is None:
        return f"the process is an ordinary one: it was born at node {own_id}, runs there and never chose another"
    node = resolve(name, place, image, own_id, creates)
    match name:
        case Magic.HERE:
            return f"the process runs at node {node} now"
        case Magic.HOME:
            return f"the process was born at node {node}"
        case Magic.LASTEXEC if image == place.image:
            return f"the process did its last execve at node {node}, and none since"
        case Magic.LASTEXEC:
            return f"the process did an execve since it runs at node {node}"
        case Magic.SELECTED if place.selected:
            return f"node {node} was written to its file selected, by the process or by an ancestor before the fork"
        case Magic.SELECTED:
            return f"nothing was written to its file selected, so it is its home, node {node}"
        case _ if creates:  # MAGIC
            return f"a file that the process creates through magic is made where it runs, at node {node}"
        case _ if place.magic:
            return f"what the process last created through magic, if anything, is at node {node}"
        case _:
            return f"the process has created nothing through magic elsewhere, so it is where it runs, node {node}"
