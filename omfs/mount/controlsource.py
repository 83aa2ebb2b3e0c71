"""Where the values of /mfs/proc come from: mignode, and for hpc/admin/nomfs the node's own export.

Each is asked over its control socket, one line each way.  Who does not run is ENOTCONN, and the log says so once until
it answers again; who does not answer in time, or not as agreed, is EIO.  Here is no value and no meaning
(mignode/controls.py).  Built by daemon.py, called by virtual.py.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any, Final

from omfs.errors import ControlError, NotRunning, RemoteFailure
from omfs.magic import controlfiles
from omfs.mount.virtual import Target
from omfs.net import control

log = logging.getLogger(__name__)

MIGNODE_SOCKET: Final = "mignode.sock"
DEADLINE_S: Final = 10.0
BLOCKING_DEADLINE_S: Final = (
    control.HANDLER_DEADLINE_S - DEADLINE_S
)  # of what sends processes away; mignode ends sooner
_NOMFS: Final = (controlfiles.HPC, "admin/nomfs")
_ERRNO_MAX: Final = 511  # the kernel takes no other from a FUSE daemon (fs/fuse/dev.c)


class ControlSource:
    """Asks the daemons of this node."""

    def __init__(self, run_dir: Path) -> None:
        self._mignode = run_dir / MIGNODE_SOCKET
        self._export = run_dir / "export.sock"
        self._away: set[Path] = set()

    async def read(self, target: Target, uid: int) -> bytes:
        """As a reader with this uid gets it.  Raises RemoteFailure."""
        if target[:2] == _NOMFS:
            return controlfiles.FLAG.format(await self._nomfs()).encode()
        reply = await self._ask(self._mignode, "read_control", DEADLINE_S, **_named(target), uid=uid)
        text = reply.get("text")
        if not isinstance(text, str):
            raise _not_understood(self._mignode, reply)
        return text.encode()

    async def write(self, target: Target, text: str, uid: int, by: int) -> None:
        """*text* is well-formed; *uid*, *by*: who writes; a thread that waits for its own move can't be frozen for it.

        Raises RemoteFailure.
        """
        if target[:2] == _NOMFS:
            if uid != 0:  # as mignode checks it: the descriptor may have been root's
                raise RemoteFailure(errno.EPERM)
            await self._nomfs(on=controlfiles.FLAG.parse(text) == 1)
            return
        blocks = controlfiles.find(target.scope, target.path).file.blocks
        deadline_s = BLOCKING_DEADLINE_S if blocks else DEADLINE_S
        await self._ask(self._mignode, "write_control", deadline_s, **_named(target), text=text, uid=uid, by=by)

    async def _nomfs(self, **change: bool) -> int:
        deadline_s = (
            BLOCKING_DEADLINE_S if change else DEADLINE_S
        )  # others give back what they hold, within a lease term
        reply = await self._ask(self._export, "nomfs", deadline_s, **change)
        is_on = reply.get("on")
        if not isinstance(is_on, bool):
            raise _not_understood(self._export, reply)
        return int(is_on)

    async def _ask(self, path: Path, command: str, deadline_s: float, **arguments: object) -> control.Arguments:
        try:
            reply = await control.ask(path, command, deadline_s=deadline_s, **arguments)
        except NotRunning as error:
            if path not in self._away:
                self._away.add(path)
                log.warning("control files of /mfs/proc have no values: %s", error)
            raise RemoteFailure(errno.ENOTCONN) from None
        except ControlError as error:
            log.warning("%s: %s", command, error)
            raise RemoteFailure(errno.EIO) from None
        self._away.discard(path)
        number = reply.get("errno")
        if number is None:
            return reply
        if not isinstance(number, int) or not 1 <= number <= _ERRNO_MAX:
            raise _not_understood(path, reply)
        raise RemoteFailure(number, str(reply.get("reason", "")))


def _named(target: Target) -> dict[str, Any]:
    scope, path, pid, start_ticks = target
    return {"scope": scope, "file": path, "pid": pid, "start_ticks": start_ticks}


def _not_understood(path: Path, reply: control.Arguments) -> RemoteFailure:
    log.warning("%s: bad answer: %.200s", path, reply)
    return RemoteFailure(errno.EIO)
