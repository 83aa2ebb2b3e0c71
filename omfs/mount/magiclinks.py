"""/mfs/here, home, lastexec, selected and magic: symbolic links at the top of the mount, other ones for each caller.

Where one leads is decided at each LOOKUP of its name, for the process that asks (replica.py), so the kernel never keeps
the name.  What it is told of is one of a set of link objects, one for each name and node, which never change: it may
keep their attributes and targets for ever.  A caller goes on with the object of its own LOOKUP, whatever others are
told in between.  The target is relative ("2"), so it leads to the ordinary /mfs/<N>, wherever that is: its leases, its
bind and its errors are what programs meet there.

Needs the hook: without it there are no such names.  Installed by session.py; docs/adr/0009 says why links.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Final

from omfs import wire
from omfs.magic.names import Magic
from omfs.mount import lowlevel_abi as abi, lowlevel_abi_dirs as dirs
from omfs.mount.controltree import TOP, Spot
from omfs.mount.handlers import CACHED_S
from omfs.mount.inodes import ROOT_ID
from omfs.mount.listings import Name
from omfs.mount.lowlevel import PASSED, Hook, Taken, Taker
from omfs.mount.replica import Replica
from omfs.mount.taker import taker

PROC: Final = b"proc"
LINKS_FROM: Final = 1 << 17  # between the directories of nodes and the objects (inodes.py)
_NODES: Final = 1 << 16
_NAMES: Final = tuple(Magic)
_BY_NAME: Final = {name.value.encode(): name for name in _NAMES}
LINKS_UNTIL: Final = LINKS_FROM + len(_NAMES) * _NODES


def link_id(name: Magic, node_id: int) -> int:
    """The FUSE node id of the link that this name is where it leads to that node."""
    return LINKS_FROM + _NAMES.index(name) * _NODES + node_id


def listed() -> list[Name]:
    """The names as a listing of /mfs shows them, and proc (virtual.py)."""
    links = [Name(name.value.encode(), link_id(name, 0), stat.S_IFLNK >> 12) for name in _NAMES]
    return [*links, Name(PROC, Spot(TOP).node_id, dirs.DT_DIR)]


def _target(number: int) -> bytes:
    return b"%d" % ((number - LINKS_FROM) % _NODES)


def _attributes(number: int) -> bytes:
    size_bytes = len(_target(number))
    return abi.attributes(
        number, wire.Attributes(stat.S_IFLNK | 0o777, 1, 0, 0, 0, size_bytes, 0, 4096, 0, 0, 0, number)
    )


def _entry(unique: int, number: int) -> bytes:
    return abi.entry_reply(unique, number, _attributes(number), 0, CACHED_S)


def _answer(hook: Hook, request: memoryview) -> bytes:
    """What is asked about a link object."""
    unique, number = hook.unique, hook.node_id
    match hook.opcode:
        case abi.GETATTR:
            return abi.attr_reply(unique, _attributes(number), CACHED_S)
        case abi.READLINK:
            return abi.reply(unique, _target(number))
        case abi.GETXATTR:
            return abi.error_reply(unique, errno.ENODATA)
        case abi.LISTXATTR:
            return abi.no_xattrs_reply(unique, abi.xattr_room_bytes(request))
        case _:
            return abi.error_reply(unique, errno.EPERM)


def install_magic_links(hook: Hook, replica: Replica, entry_of_proc: Callable[[], bytes]) -> None:
    """Let the hook answer for them before whoever answers now.  *entry_of_proc*: a struct fuse_entry_out."""

    async def resolved(request: memoryview, unique: int) -> bytes:
        name, thread = _BY_NAME[abi.last_name(request)], hook.pid
        return _entry(unique, link_id(name, await replica.wait_resolved(name, thread)))

    resolve = taker("a magic name", resolved)

    def look_up(hook: Hook, request: memoryview) -> Taken:
        asked = abi.last_name(request)
        name = _BY_NAME.get(asked)
        if name is not None and not replica.is_empty:
            return resolve(hook, request)
        if name is not None:
            hook.answer(_entry(hook.unique, link_id(name, replica.own_id)))
        elif asked == PROC:
            hook.answer(abi.reply(hook.unique, entry_of_proc()))
        else:
            return PASSED
        return None

    for opcode in (abi.LOOKUP, abi.GETATTR, abi.SETATTR, abi.READLINK, abi.SETXATTR, abi.GETXATTR, abi.LISTXATTR):
        of_root = look_up if opcode == abi.LOOKUP else None
        hook.takers[opcode] = _first(of_root, hook.takers.get(opcode, _pass))


def _first(of_root: Taker | None, then: Taker) -> Taker:
    """*of_root*: what is asked in the top directory, unless that passes it on."""

    def take(hook: Hook, request: memoryview) -> Taken:
        number = hook.node_id
        if LINKS_FROM <= number < LINKS_UNTIL:
            hook.answer(_answer(hook, request))
            return None
        taken = PASSED if of_root is None or number != ROOT_ID else of_root(hook, request)
        return then(hook, request) if taken is PASSED else taken

    return take


def _pass(hook: Hook, request: memoryview) -> Taken:
    return PASSED
