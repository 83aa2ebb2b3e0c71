"""FUSE requests that are answered at once, without a task, from what is known here under a lease.

    LOOKUP of a name that is not there     a directory of which all names are known (allnames.py)
    LOOKUP of a name that is there         what was fetched before anybody asked (ahead.py)
    GETATTR of a directory                 what the answer to our own change of its names said of it (Inode.attributes)
    GETATTR of a file that was just made   what CREATE's answer said; the kernel keeps nothing from there
    GETXATTR, LISTXATTR                    what the object was said not to have when it was looked up (Inode.bare)

The kernel caches these answers as it does the owner's, so each counts as told (tell_unasked): a recall that comes next
makes it forget them.  While a recall is under way nothing is answered here.  Everything else goes on to where it was
answered before.  Installed by takenops.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from omfs.mount import lowlevel_abi as abi
from omfs.mount.handlers import CACHED_S, Foundation
from omfs.mount.lowlevel import PASSED, Hook, Taken, Taker
from omfs.mount.xattrs import missing_errno
from omfs.wiretypes import Bare


def _named(operations: Foundation, hook: Hook, request: memoryview) -> bytes | None:
    name = abi.last_name(request)
    told = operations.told_ahead(name)
    if told is not None:
        number, attributes = told
        return abi.entry_reply(hook.unique, number, abi.attributes(number, attributes), CACHED_S, CACHED_S)
    return abi.absent_reply(hook.unique, CACHED_S) if operations.told_absent(hook.node_id, name) else None


def _attributes(operations: Foundation, hook: Hook, request: memoryview) -> bytes | None:
    attributes = operations.told_attributes(hook.node_id, hook.pid)
    if attributes is None:
        return None
    return abi.attr_reply(hook.unique, abi.attributes(hook.node_id, attributes), CACHED_S)


def _no_xattr(operations: Foundation, hook: Hook, request: memoryview) -> bytes | None:
    number = missing_errno(operations.bare(hook.node_id), abi.xattr_name(request), operations.has_labels)
    if not number:
        return None
    operations.counters.answered_xattrs += 1
    return abi.error_reply(hook.unique, number)


def _no_xattrs(operations: Foundation, hook: Hook, request: memoryview) -> bytes | None:
    if operations.bare(hook.node_id) is not Bare.OF_ALL:
        return None
    operations.counters.answered_xattrs += 1
    return abi.no_xattrs_reply(hook.unique, abi.xattr_room_bytes(request))


_KNOWN: Final[dict[int, Callable[[Foundation, Hook, memoryview], bytes | None]]] = {
    abi.LOOKUP: _named,
    abi.GETATTR: _attributes,
    abi.GETXATTR: _no_xattr,
    abi.LISTXATTR: _no_xattrs,
}


def answer_unasked(hook: Hook, operations: Foundation) -> None:
    """Try this first; the takers that are there already are next, then pyfuse3."""

    def first(opcode: int, then: Taker | None) -> Taker:
        known = _KNOWN[opcode]

        def take(hook: Hook, request: memoryview) -> Taken:
            message = known(operations, hook, request)
            if message is None:
                return PASSED if then is None else then(hook, request)
            hook.answer(message)
            return None

        return take

    for opcode in _KNOWN:
        hook.takers[opcode] = first(opcode, hook.takers.get(opcode))
