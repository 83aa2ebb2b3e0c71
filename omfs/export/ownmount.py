"""What this node's mount holds of another node's objects: that node asks us (omfs-admin check), we ask the mount.

A way of its own, beside the recalls: those carry one kind of answer, are repeated over every new connection, and a
holder that does not answer them loses its session.  The order among grants and recalls that they have is not needed
here: who compares counts only a difference that stays.

Called by service.py; the mount's end is mount/telling.py.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from omfs import wire
from omfs.errors import ControlError, NotRunning
from omfs.net.control import Arguments, ask

TELL_WITHIN_S: Final = 5.0
AUDIT_WITHIN_S: Final = 50.0  # the mount gives its reader less
R = TypeVar("R")


class OwnMount:
    """*run_dir*: where its control socket is."""

    def __init__(self, run_dir: Path) -> None:
        self._socket = run_dir / "mount.sock"

    async def tell_held(self, owner: int, request: wire.TellHeld) -> wire.HeldTold:
        """What is held of the objects of node *owner*.  OSError, ControlError."""
        arguments = {"node": owner, **msgspec.structs.asdict(request)}
        return await self._ask(wire.HeldTold, "tell_held", TELL_WITHIN_S, arguments)

    async def audit(self, owner: int, request: wire.AuditHeld) -> wire.HeldAudited:
        """What the kernel has cached of some of them.  OSError, ControlError."""
        arguments = {"node": owner, **msgspec.structs.asdict(request)}
        return await self._ask(wire.HeldAudited, "audit", AUDIT_WITHIN_S, arguments)

    async def _ask(self, shape: type[R], command: str, within_s: float, arguments: Arguments) -> R:
        try:
            reply = await ask(self._socket, command, deadline_s=within_s, **arguments)
            return msgspec.convert(reply.get("told"), shape)
        except NotRunning:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)) from None
        except msgspec.ValidationError as error:
            raise ControlError(f"{self._socket}: the mount speaks another version: {error}") from None
