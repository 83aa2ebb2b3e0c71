"""How the kernel is told to forget: one order for each object, in whatever thread; each call may wait.

Names first, then attributes and pages: why is told in recall.py, which decides what is forgotten and calls this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, NamedTuple

from omfs.kernel.fusenotify import Notifier

log = logging.getLogger(__name__)

_BARRIER: Final = b"\xff" * 256  # longer than any owner's names


class Doomed(NamedTuple):
    """What the kernel shall forget of one inode, besides its attributes."""

    number: int
    names: tuple[bytes, ...]  # of a directory
    dropped: frozenset[bytes]  # those of them that must be dropped for real
    is_directory: bool
    pages: bool


def forget(notifier: Notifier, doomed: Doomed) -> bool:
    """False: the kernel does not know the object.  The one order that is right."""
    number = doomed.number
    try:
        if doomed.is_directory:
            for name in doomed.names or (_BARRIER,):
                notifier.inval_entry(number, name, expire=name not in doomed.dropped)
        if doomed.is_directory or doomed.pages:
            return notifier.inval_inode(number)
        return notifier.inval_attributes(number)
    except OSError as error:  # unmounted
        log.debug("inode %d: %s", number, error)
        return True


def lock_once(notifier: Notifier, number: int) -> None:
    """Returns when everybody has let the directory go who had it locked."""
    try:
        notifier.inval_entry(number, _BARRIER, expire=True)
    except OSError as error:  # unmounted
        log.debug("inode %d: %s", number, error)


def forget_each(notifier: Notifier, several: Iterable[Doomed]) -> list[int]:
    """Returns those that the kernel does not know."""
    return [doomed.number for doomed in several if not forget(notifier, doomed)]


def forget_attributes(notifier: Notifier, numbers: list[int]) -> None:
    try:
        for number in numbers:
            notifier.inval_attributes(number)
    except OSError as error:  # unmounted
        log.debug("attributes: %s", error)


def drop_pages(notifier: Notifier, number: int, offset: int, size_bytes: int) -> None:
    try:
        notifier.inval_inode(number, offset, size_bytes)
    except OSError as error:  # unmounted
        log.debug("pages of inode %d: %s", number, error)
