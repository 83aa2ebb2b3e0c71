"""FUSE handlers about attributes: getattr, setattr, access, statfs and extended attributes.

The kernel checks access to what it has cached (default_permissions, ACLs included); the owner does so for whatever it
is asked, as the user.  Times set to "now" are the owner's clock.  Called by pyfuse3.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, SetattrFields, StatvfsData

from omfs import wire
from omfs.errors import RemoteFailure
from omfs.kernel.callers import asks_xattrs
from omfs.mount import lowlevel_abi as abi
from omfs.mount.flights import in_flight
from omfs.mount.handlers import answering
from omfs.mount.inodes import ROOT_ID, Inode
from omfs.mount.operations_files import FileOperations
from omfs.mount.remote import RemoteNode
from omfs.mount.xattrs import ACL_NAMES, KEPT_ERRORS, LABEL, Xattrs

T = TypeVar("T")


class AttributeOperations(FileOperations):
    """Handlers about attributes; ftruncate goes through the open file."""

    @answering
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if inode == ROOT_ID:
            return self.root_entry()
        if self.is_local(inode):
            return self.self_entry()
        known = self.inodes.get(inode)
        thread = ctx.pid
        if in_flight(known, thread):
            await self.flights.wait_landed(known, thread)
        if known.forgetting:
            await self.recaller.wait_forgotten(known, thread)
        if known.handle is None:
            of_root = await known.owner.get_root_attributes()
            entry = self.directory_entry(known)
            entry.attr_timeout = self.attributes_s(known, of_root) if of_root is not None else 0
            return entry
        got = await known.owner.get_attributes(known.handle)
        return self.shown(inode, got.attributes, self.attributes_s(known, got))

    @answering
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        raw = self.current_request(abi.SETATTR)
        valid = 0 if raw is None else abi.setattr_valid(raw)
        atime_now, mtime_now = bool(valid & abi.SETATTR_ATIME_NOW), bool(valid & abi.SETATTR_MTIME_NOW)
        known = self.object(inode)
        node, handle = await self.place(inode)
        request = wire.SetAttributes(
            handle,
            self.callers.caller(ctx),
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size_bytes=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime and not atime_now else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime and not mtime_now else None,
            atime_now=atime_now,
            mtime_now=mtime_now,
        )
        file = None if fh is None or not fields.update_size else self.files.get(fh)
        async with self.changing(known, data=fields.update_size):
            if file is not None:
                return self.shown(inode, await file.set_attributes(request))
            return self.shown(inode, await node.set_attributes(request))

    @answering
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        if self.is_local(inode):
            return not mode & os.W_OK
        node, handle = await self.place(inode)
        await node.check_access(handle, mode, self.callers.caller(ctx))
        return True

    @answering
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        raw = self.current_request(abi.STATFS)
        told = StatvfsData()
        told.f_bsize = told.f_frsize = 4096
        told.f_namemax = 255
        if raw is None or self.is_local(self.hook.node_id):
            return told  # /mfs has no space of its own
        node, handle = await self.place(self.hook.node_id)
        found = await node.stat_filesystem(handle)
        told.f_bsize = found.block_size_bytes
        told.f_frsize = found.fragment_size_bytes
        told.f_blocks = found.blocks
        told.f_bfree = found.blocks_free
        told.f_bavail = found.blocks_available
        told.f_files = found.files
        told.f_ffree = found.files_free
        told.f_favail = found.files_available
        told.f_namemax = found.name_max
        return told

    # ------------------------------------------------------------ extended attributes

    @answering
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raw = self.current_request(abi.SETXATTR)
        if raw is not None:
            # pyfuse3 asks for it before a setxattr with flags; the owner obeys the flags itself, in one step.
            if abi.setxattr_flags(raw) & os.XATTR_CREATE:
                raise FUSEError(pyfuse3.ENOATTR)
            return b""
        if self.is_local(inode):
            raise FUSEError(pyfuse3.ENOATTR)
        known, by_root, caller = self.object(inode), ctx.uid == 0, self.callers.caller(ctx)
        hold = known.hold
        if hold is not None and known.xattrs is not None:
            answer = known.xattrs.value(by_root, name)
            if answer is not None:
                self.counters.answered_xattrs += 1
                return _value(name, answer)
        try:
            answer = await _asked(known, lambda handle: known.owner.get_xattr(handle, name, caller), ctx.pid, name)
            self.has_labels |= name == LABEL
        except RemoteFailure as error:
            if error.errno not in KEPT_ERRORS:
                raise
            answer = error.errno
        if hold is not None and known.hold == hold:
            _xattrs(known).keep_value(by_root, name, answer)
        return _value(name, answer)

    @answering
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        raw = self.current_request(abi.SETXATTR)
        flags = 0 if raw is None else abi.setxattr_flags(raw)
        known, caller = self.object(inode), self.callers.caller(ctx)
        node, handle = await self.place(inode)
        self.xattr_changes += 1
        self.has_labels |= name == LABEL
        known.bare = None
        try:
            async with self.changing(known, data=False):
                await node.set_xattr(handle, name, value, flags, caller)
        finally:
            self.xattr_changes += 1
            known.bare = None

    @answering
    async def listxattr(self, inode: int, ctx: RequestContext) -> tuple[bytes, ...]:
        if self.is_local(inode):
            return ()
        known, by_root, caller = self.object(inode), ctx.uid == 0, self.callers.caller(ctx)
        hold = known.hold
        if hold is not None and known.xattrs is not None:
            names = known.xattrs.names(by_root)
            if names is not None:
                self.counters.answered_xattrs += 1
                return names
        names = await _asked(known, lambda handle: known.owner.list_xattrs(handle, caller), ctx.pid)
        self.has_labels |= LABEL in names
        if hold is not None and known.hold == hold:
            _xattrs(known).keep_names(by_root, names)
        return names

    @answering
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        known, caller = self.object(inode), self.callers.caller(ctx)
        node, handle = await self.place(inode)
        async with self.changing(known, data=False):
            await node.remove_xattr(handle, name, caller)


async def _asked(known: Inode[RemoteNode], ask: Callable[[bytes], Awaitable[T]], thread: int, name: bytes = b"") -> T:
    """What *ask* learns by the handle of *known*.

    `ls -l /mfs` asks for ACL and label of each node's root and is not to wait for nodes that are away.  But the kernel
    asks for the ACL, too, where somebody walks through a root, who waits for the node as for what is below.
    """
    if known.handle is not None:
        return await ask(known.handle)
    return await known.owner.ask_of_root(ask, lambda: name in ACL_NAMES and not asks_xattrs(thread))


def _xattrs(inode: Inode[RemoteNode]) -> Xattrs:
    if inode.xattrs is None:
        inode.xattrs = Xattrs()
    return inode.xattrs


def _value(name: bytes, answer: bytes | int) -> bytes:
    """*answer* of the owner as the kernel shall have it."""
    if isinstance(answer, bytes):
        return answer
    if answer == errno.EOPNOTSUPP and name in ACL_NAMES:
        # No ACLs on that file system: the kernel would refuse every access because it can't check.
        raise FUSEError(errno.ENODATA)
    raise FUSEError(answer)
