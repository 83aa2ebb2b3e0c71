"""Opening and making files and directories at their owner, or without asking it where that is allowed."""

from __future__ import annotations

import os
from typing import Final

from omfs import wire
from omfs.mount.remote import RemoteNode
from omfs.mount.remotefile import UNOPENED, RemoteFile

_KEPT_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME | os.O_NONBLOCK
"""What of open(2)'s flags means something to the owner; it does its own caching and has no descriptors to inherit."""


async def open_file(
    node: RemoteNode, handle: bytes, flags: int, caller: wire.Caller, execute: bool = False
) -> tuple[RemoteFile, wire.FileOpened]:
    """Open an existing object; *flags* as open(2).  *execute*: to run it, which asks for x, not for r."""
    flags &= _KEPT_FLAGS
    node.counters.asked_opens += 1
    await node.drain(handle)
    request = wire.OpenFile(handle, flags, caller, execute=execute, wants_data=not flags & (os.O_ACCMODE | os.O_TRUNC))
    opened, data = await node.ask_for_bulk(request, wire.FileOpened)
    file = RemoteFile(node, handle, opened.open_id, caller, flags & ~os.O_TRUNC, execute=execute)
    file.whole = bytes(data)
    return file, opened


def open_unknown(node: RemoteNode, handle: bytes, flags: int, caller: wire.Caller, execute: bool) -> RemoteFile:
    """Open a file that is cached here, without a message: *caller* was let to open it so under the lease that holds.

    The owner is told as soon as it must know: where a page is not there, and before the file may change or go.
    """
    return RemoteFile(node, handle, UNOPENED, caller, flags & _KEPT_FLAGS, execute=execute)


async def create_file(
    node: RemoteNode, parent: bytes, name: bytes, mode: int, umask: int, flags: int, caller: wire.Caller
) -> tuple[RemoteFile, wire.FileCreated]:
    """open(2) with O_CREAT."""
    flags &= _KEPT_FLAGS | os.O_EXCL
    created = await node.ask(wire.CreateFile(parent, name, mode, umask, flags, caller), wire.FileCreated)
    kept = flags & ~(os.O_TRUNC | os.O_EXCL)
    return RemoteFile(node, created.handle, created.open_id, caller, kept), created


async def open_directory(node: RemoteNode, handle: bytes, caller: wire.Caller) -> RemoteFile:
    opened = await node.ask(wire.OpenDirectory(handle, caller), wire.FileOpened)
    return RemoteFile(node, handle, opened.open_id, caller, 0, directory=True)
