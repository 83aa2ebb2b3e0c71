"""omfs-admin drop and check --repair: leases end because an administrator says so.

An object is named by a path of this node, a holder by its node id; both wait until everything was given back.
Called by daemon.py for the control socket.
"""

from __future__ import annotations

import os

from omfs.cache.owner import Need
from omfs.cache.rules import Use
from omfs.errors import ControlError
from omfs.export.leasing import Leasing
from omfs.kernel.handles import HandleReader, prepare_handle
from omfs.net.control import Arguments

_NOBODY = b""  # no session's key


class Dropper:
    """Handlers of the control socket; they raise ControlError."""

    def __init__(self, leasing: Leasing) -> None:
        self._leasing = leasing
        self._reader = HandleReader()

    async def drop(self, arguments: Arguments) -> dict[str, int]:
        """The handler of "drop": {"path": ...} or {"node": N} -> {"recalled": leases}."""
        path, node_id = arguments.get("path"), arguments.get("node")
        if isinstance(path, str):
            return {"recalled": await self._drop_object(path)}
        if isinstance(node_id, int):
            return {"recalled": await self._leasing.drop_node(node_id)}
        raise ControlError("drop needs a path or a node")

    async def forget(self, arguments: Arguments) -> dict[str, int]:
        """The handler of "forget": {"sessions": [hex]} -> {"removed": leases}; for sessions that are no more."""
        try:
            keys = [bytes.fromhex(text) for text in arguments["sessions"]]
        except (KeyError, TypeError, ValueError):
            raise ControlError("forget needs the keys of sessions") from None
        return {"removed": self._leasing.forget_unknown(keys)}

    async def _drop_object(self, path: str) -> int:
        handles = self._leasing.handles_of(self._key(path))
        needs = tuple(Need(handle, Use.CHANGE, everybody=True) for handle in handles)
        count = sum(len(self._leasing.owner.holders_of(handle)) for handle in handles)
        async with self._leasing.recalled(_NOBODY, needs):
            return count

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
