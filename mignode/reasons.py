"""A reason why a process can't move: what kind, and what its user reads in /mfs/proc/<pid>/cantmove.  Pure.

Called by eligible.py and eligiblefiles.py, who find them, and processfiles.py, who shows them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

TEXT_MAX_CHARACTERS: Final = 4000  # what cantmove holds, and some
_NAME_MAX_CHARACTERS: Final = 200


class Kind(enum.Enum):
    """What stands in the way; docs/migration.md has a row for each.  The value is what anybody may read."""

    ENDED = "has ended"
    NOT_LOOKED_AT = "could not be looked at"
    KERNEL_THREAD = "is a part of the kernel"
    NO_GUEST = "was not started by mosrun"
    HALF_ENDED = "runs on after its first thread has ended"
    TRACED = "is traced"
    RIGHTS = "has the rights of several users"
    FILTER = "filters its system calls"
    SANDBOX = "has confined itself (Landlock)"
    SEGMENTS = "has set segments of its own (modify_ldt)"
    LOCKED_MEMORY = "has too much memory locked"
    THREADS = "has threads that don't share their descriptors"
    NAMESPACE = "uses other namespaces"
    SESSION = "belongs to a session of others"
    TERMINAL = "has a terminal of others"
    MAPPING = "has memory mapped that can't move"
    SYSV_MEMORY = "shares System V memory with this machine"
    PLACE = "uses a file that only this machine has"
    REMOVED = "uses a directory that was removed"
    CONTROL_FILE = "has a control file of a process open"
    OWN_TERMINAL = "has a terminal of its own open by its other name"
    DEVICE = "has a device open"
    KERNEL_OBJECT = "holds a kernel object that can't move"
    LEASE = "holds a file lease"
    LOCK = "holds a file lock"
    WATCH = "watches files by inotify"
    PIDFD = "holds a pidfd of a process outside"
    PIPE = "holds a pipe whose other end is outside"
    FIFO = "holds only one end of a FIFO"
    SOCKET = "holds a socket of a kind that can't move"
    UNIX_SOCKET = "holds a unix socket whose other end is outside"
    CONNECTION = "holds a connection with outside"
    PORT = "can be reached at a port or name"


class Reason(NamedTuple):
    """*text* goes on where "the process" begins, and has names in it that concern its user only.

    *about*: which object it is, to know it again.
    """

    kind: Kind
    text: str
    about: str = ""


def where(process: int, descriptor: int = -1) -> str:
    """Behind a text, in parentheses: which descriptor, and of which process where it is not the first (then 0)."""
    said = [f"descriptor {descriptor}"] if descriptor >= 0 else []
    said += [f"process {process}"] if process else []
    return f" ({' of '.join(said)})" if said else ""


def without_names(found: Iterable[Reason]) -> list[Reason]:
    """For other users: what files and services somebody uses is not theirs to know."""
    return list(dict.fromkeys(Reason(one.kind, one.kind.value) for one in found))


def told(found: Sequence[Reason], max_characters: int = TEXT_MAX_CHARACTERS) -> str:
    """Joined by ", ", as openMosix had it; where they are too many, how many more there are."""
    text = ", ".join(one.text for one in found)
    if len(text) <= max_characters:
        return text
    said: list[str] = []
    left = max_characters - len(f", and {len(found)} more")
    while (left := left - len(found[len(said)].text) - len(", ")) >= 0:  # it ends: all together are too many
        said.append(found[len(said)].text)
    return ", ".join([*said, f"and {len(found) - len(said)} more"])


def named(name: str) -> str:
    """A name that a process chose, fit for a line: what can't be printed is escaped, and a long one is cut."""
    text = name
    if not name.isprintable():
        text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in name)
    return text if len(text) <= _NAME_MAX_CHARACTERS else f"{text[:_NAME_MAX_CHARACTERS]}..."
