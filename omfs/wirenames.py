"""The replies about names and directories (wire.py has the requests).

A change of names brings along what its directories look like after it: the holder's kernel asks for that at once, and
would have to ask the owner.  It counts only under the lease that the reply grants on the directory.
"""

from __future__ import annotations

from omfs.wiretypes import Attributes, Entry, Message, Mode


class Found(Message, frozen=True, tag=True):
    """A name's object (LookUp, AttachTree and everything that makes a name).

    *parent*: the directory after a name was made in it.  *lists_all*: of a directory just made: it is empty, and
    nothing can be found in it that a listing would not show.
    """

    handle: bytes
    attributes: Attributes
    serial: int = 0
    mode: Mode = Mode.NONE
    parent_mode: Mode = Mode.NONE
    parent: Attributes | None = None
    lists_all: bool = False


class NameMissing(Message, frozen=True, tag=True):
    """LookUp: no such name, and the holder may remember that."""

    serial: int
    parent_mode: Mode


class NamesChanged(Message, frozen=True, tag=True):
    """RemoveName, RenameName: it is done.  *parents*: the directories after it, in the request's order, each once.

    *modes*: of these directories.
    """

    parents: tuple[Attributes, ...]
    serial: int = 0
    modes: tuple[Mode, ...] = ()


class DirectoryRead(Message, frozen=True, tag=True):
    """*mode* of the directory; each entry has its own.

    *lists_all*: nothing was left out of this piece that a LookUp could find.
    """

    entries: tuple[Entry, ...]
    at_end: bool
    serial: int = 0
    mode: Mode = Mode.NONE
    lists_all: bool = False
