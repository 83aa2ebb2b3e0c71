"""The control files of /mfs/proc: who may, what is well formed, and an errno for everything else.

`read` and `write` find the file (omfs/magic/controlfiles.py knows them all), look whether it may be read or written by
whom, and let processfiles.py or hpcfiles.py give or take the value.  hpc/decay is about the process that asks.  The
mount's kernel has looked at mode and owner already; here it is done again, for whoever asks on the control socket.
Invariant: a write that is refused has changed nothing.  Called by daemon.py.

errno: ENOENT no such file, node or guest; EACCES not readable or writable; EPERM not yours; EINVAL malformed or out of
range; ESRCH the process has ended; ENOSYS what this version can't do yet; EHOSTDOWN a node that is away.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import msgspec

from mignode.decay import is_in_force
from mignode.hpcfiles import HpcFiles
from mignode.processfiles import ProcessFiles
from omfs.errors import ControlError, OmfsError, RemoteFailure
from omfs.magic import controlfiles
from omfs.net import control

ANYBODY: Final = 0o002


class _Request(msgspec.Struct):
    """Both commands.  *pid*: the process of scope "process", who asks for scope "hpc"; *uid*: who reads or writes.

    *start_ticks*: of that process, 0 where the asker means whoever has the pid now.  *by*: the thread that waits in the
    write, 0 where that is none of this node: while it waits it can't be frozen, so its own move begins with the answer.
    """

    scope: str
    file: str
    pid: int = 0
    start_ticks: int = 0
    text: str = ""
    uid: int = -1
    by: int = 0


class Controls:
    """Answers the commands read_control and write_control."""

    def __init__(self, of_processes: ProcessFiles, of_node: HpcFiles) -> None:
        self._of_processes = of_processes
        self._of_node = of_node
        self.handlers: dict[str, control.Handler] = {"read_control": self._read, "write_control": self._write}

    async def _read(self, arguments: control.Arguments) -> dict[str, Any]:
        try:
            return {"text": await self.read(_request(arguments))}
        except (OmfsError, OSError) as error:
            return _refusal(error)

    async def _write(self, arguments: control.Arguments) -> dict[str, Any]:
        try:
            await self.write(_request(arguments))
        except (OmfsError, OSError) as error:
            return _refusal(error)
        return {}

    async def read(self, request: _Request) -> str:
        """The text of the file.  Raises RemoteFailure, OSError."""
        if (request.scope, request.file) == (controlfiles.HPC, controlfiles.GUESTS):
            return await self._of_node.guests()
        file, number = _find(request)
        if not file.is_readable:
            raise RemoteFailure(errno.EACCES)
        if request.scope == controlfiles.PROCESS:
            process = self._of_processes.find(request.pid, request.start_ticks)
            return file.kind.format(await self._of_processes.read(process, file.name, request.uid))
        folder = request.file.partition("/")[0]
        if folder == controlfiles.DECAY:  # of who asks
            asking = self._of_processes.find(request.pid, request.start_ticks)
            return file.kind.format(int(is_in_force(await self._of_processes.decay_of(asking), file.name)))
        return file.kind.format(await self._of_node.read(folder, number, file.name))

    async def write(self, request: _Request) -> None:
        """Raises RemoteFailure, OSError."""
        file, number = _find(request)
        if not file.is_writable:
            raise RemoteFailure(errno.EACCES)
        if request.scope == controlfiles.PROCESS:
            process = self._of_processes.find(request.pid, request.start_ticks)
            _check_allowed(request.uid, self._of_processes.owner_of(process))
            await self._of_processes.write(process, file.name, _parsed(file, request.text), request.by)
            return
        if not file.mode & ANYBODY:
            _check_allowed(request.uid, 0)
        folder, value = request.file.partition("/")[0], _parsed(file, request.text)
        if folder == controlfiles.DECAY:
            asking = self._of_processes.find(request.pid, request.start_ticks)
            await self._of_processes.trigger_decay(asking, file.name)
            return
        await self._of_node.write(folder, number, file.name, value, request.by)


def _request(arguments: control.Arguments) -> _Request:
    try:
        return msgspec.convert(arguments, _Request)
    except msgspec.ValidationError as error:
        raise ControlError(f"bad request: {error}") from None


def _find(request: _Request) -> controlfiles.Found:
    try:
        return controlfiles.find(request.scope, request.file)
    except KeyError:
        raise RemoteFailure(errno.ENOENT) from None


def _parsed(file: controlfiles.ControlFile, text: str) -> controlfiles.Value:
    try:
        return file.kind.parse(text)
    except ValueError as error:
        raise RemoteFailure(errno.EINVAL, str(error)) from None


def _check_allowed(uid: int, owner: int) -> None:
    if uid not in (0, owner):
        raise RemoteFailure(errno.EPERM)


def _refusal(error: OmfsError | OSError) -> dict[str, Any]:
    if isinstance(error, ControlError):
        raise error
    number = error.errno or errno.EIO
    return {"errno": number, "reason": str(error) if isinstance(error, OmfsError) else os.strerror(number)}
