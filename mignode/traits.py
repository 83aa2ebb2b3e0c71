"""What is true of a guest wherever it runs: who it is, whose it is, and what its standard files are.

Made at home when mosrun asks, written into the guest's folder on each node, and sent along when it moves.  Data only.
Called by the rooms for guests.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dfsa.guestroot import World
from omfs.kernel.processes import Identity

MOUNT: Final = "/mfs"
FOLDERS: Final = "guests"  # below run_dir; one folder for each guest that is, or is at home, on this node


class Traits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*pid*: of the deputy at home.  *root*: of the guest's root in its own PID namespace: the same, unless it was
    restarted from an image; then it is what its first deputy had.

    *uid*, *gid*, *groups*: the user's.  *command*: of the root, to show.  *plan*: of its standard files, by mosrun.
    """

    name: str
    home: int
    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    hostname: str
    command: bytes
    plan: bytes
    root: int


def pid_in(name: str) -> int:
    """Of the deputy."""
    return int(name.split(".")[1])


def deputy_in(name: str) -> Identity:
    """The deputy, as its home knows it."""
    _, pid, start_ticks = map(int, name.split("."))
    return Identity(pid, start_ticks)


def world_of(traits: Traits, here: int, *, has_procview: bool = False) -> World:
    """What it sees on the node *here*."""
    root = "/" if here == traits.home else f"{MOUNT}/{traits.home}"
    return World(traits.home, here, root, MOUNT, traits.hostname, has_procview)
