"""omfs-admin drop and check: what is held of this node's objects, and leases end because an administrator says so.

An object is named by a path of this node or by its handles, a holder by its node id; all wait until everything was
given back.  What is only told (`guards`, `owned`) changes nothing.
Called by daemon.py for the control socket.
"""

from __future__ import annotations

import os

import msgspec

from omfs.cache.parts import is_in_part
from omfs.errors import ControlError
from omfs.export.guards import Guards
from omfs.export.leasing import Leasing
from omfs.kernel.handles import HandleReader, prepare_handle
from omfs.net.control import Arguments, GuardsReply, Owned, OwnedReply


class _OfPart(msgspec.Struct):
    session: bytes
    part: int
    parts: int


class Dropper:
    """Handlers of the control socket; they raise ControlError."""

    def __init__(self, leasing: Leasing, guards: Guards) -> None:
        self._leasing = leasing
        self._guards = guards
        self._reader = HandleReader()

    async def drop(self, arguments: Arguments) -> dict[str, int]:
        """The handler of "drop": {"path": ...}, {"handles": [base64]} or {"node": N} -> {"recalled": leases}."""
        path, node_id, handles = arguments.get("path"), arguments.get("node"), arguments.get("handles")
        if isinstance(path, str):
            return {"recalled": await self._drop_object(path)}
        if isinstance(node_id, int):
            return {"recalled": await self._leasing.drop_node(node_id)}
        if handles is not None:
            return {"recalled": await self._guards.take_back(_handles(handles))}
        raise ControlError("drop needs a path, handles or a node")

    async def guards(self, _: Arguments) -> GuardsReply:
        """The handler of "guards"."""
        return GuardsReply(tuple(self._guards.broken()))

    async def forget(self, arguments: Arguments) -> dict[str, int]:
        """The handler of "forget": {"sessions": [hex]} -> {"removed": leases}; for sessions that are no more."""
        try:
            keys = [bytes.fromhex(text) for text in arguments["sessions"]]
        except (KeyError, TypeError, ValueError):
            raise ControlError("forget needs the keys of sessions") from None
        return {"removed": self._leasing.forget_unknown(keys)}

    async def owned(self, arguments: Arguments) -> OwnedReply:
        """The handler of "owned": what a session holds, one of several parts (cache/parts.py)."""
        try:
            asked = msgspec.convert(arguments, _OfPart)
        except msgspec.ValidationError as error:
            raise ControlError(f"owned: {error}") from None
        if not 0 <= asked.part < asked.parts:
            raise ControlError(f"there is no part {asked.part} of {asked.parts}")
        owner = self._leasing.owner
        recalled = {recall.handle for recall in owner.recalls_at(asked.session)}
        return OwnedReply(
            tuple(
                Owned(
                    one.handle, one.serial, one.mode, self._guards.keeps_writers_out(one.handle), one.handle in recalled
                )
                for one in owner.leases_of(asked.session)
                if is_in_part(one.handle, asked.part, asked.parts)
            )
        )

    async def _drop_object(self, path: str) -> int:
        return await self._guards.take_back(self._leasing.index.handles_of(self._key(path)))

    def _key(self, path: str) -> bytes:
        """As localchanges.py makes it."""
        try:
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror}") from None
        try:
            kind, data, _ = self._reader.read(fd)
            return os.fstatvfs(fd).f_fsid.to_bytes(8, "little") + prepare_handle(kind, data)
        except OSError as error:
            raise ControlError(f"{path}: it has no handle, so it can't be leased: {error.strerror}") from None
        finally:
            os.close(fd)


def _handles(told: object) -> tuple[bytes, ...]:
    try:
        return msgspec.convert(told, tuple[bytes, ...])
    except msgspec.ValidationError as error:
        raise ControlError(f"handles: {error}") from None
