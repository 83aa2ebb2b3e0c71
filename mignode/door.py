"""guests.sock: mosrun comes in, says what it wants to have run, and stays as the deputy.

Anybody may connect; who it is the kernel says, and what its program has is read from /proc (birthright.py), so nothing
that it says gives a right.  It may want a program run, an image gone on with (restarting.py), or one taken (saving.py),
for which it comes by a connection of its own.  A mosrun whose connection was lost with an earlier mignode comes back by
the name of its guest, and is believed if it is that process still.
What it does not do: know the guest's body (guests.py), where it goes (firstplace.py, moves.py).
Called by guesthouse.py.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from dfsa.guestfilter import filter_at_home
from mignode import birthright, body as bodies
from mignode.bodywords import Program
from mignode.deputies import Deputies, Deputy
from mignode.deputystream import DeputyStream
from mignode.deputywords import (
    SOCKET,
    Attend,
    Attended,
    Called,
    NotKept,
    Refused,
    Relayed,
    Restart,
    Run,
    Started,
    TakeImage,
)
from mignode.firstplace import FirstPlace
from mignode.guest import Guest
from mignode.guestfolder import GuestFolder
from mignode.guests import Guests
from mignode.handover import Phase, Record, Stay
from mignode.innerpids import last_before_guest
from mignode.mosrunoptions import Options
from mignode.record import guest_name
from mignode.restarting import Restarts
from mignode.saving import PIECE_S, Saving
from mignode.traits import Traits, world_of
from omfs.errors import OmfsError, WireError
from omfs.kernel import processes
from omfs.net import control
from omfs.standing import Standing

ASK_WITHIN_S: Final = 20.0  # a connection that says nothing
_COMMAND_MAX_BYTES: Final = 64
_EVERYBODY: Final = 0o666

log: Final = logging.getLogger(__name__)


class Door:
    """Makes guests and deputies."""

    def __init__(
        self,
        standing: Standing,
        run_dir: Path,
        guests: Guests,
        deputies: Deputies,
        *,
        has_procview: bool = False,
        first_place: FirstPlace | None = None,
        saving: Saving | None = None,
        restarts: Restarts | None = None,
    ) -> None:
        self._standing = standing
        self._run_dir = run_dir
        self._guests = guests
        self._deputies = deputies
        self._has_procview = has_procview
        self._first_place = first_place
        self._saving = saving
        self._restarts = restarts

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled.  Raises ConfigError where it can't listen."""
        path = self._run_dir / SOCKET
        listener = trio.SocketListener(control.open_listener(path))
        os.chmod(path, _EVERYBODY)
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve, [listener])
            task_status.started()

    async def _serve(self, sock: trio.SocketStream) -> None:
        stream = DeputyStream(sock)
        async with sock, trio.open_nursery() as nursery:
            nursery.start_soon(stream.speak)
            try:
                await self._converse(stream)
            except WireError as error:
                log.warning("process %d: %s", stream.pid, error)
            except Exception:
                log.exception("the connection of process %d", stream.pid)
            nursery.cancel_scope.cancel()

    async def _converse(self, stream: DeputyStream) -> None:
        word = None
        with trio.move_on_after(ASK_WITHIN_S):
            word = await stream.hear()
        try:
            match word:
                case Run():
                    deputy = await self._begin(stream, word)
                    stream.say(Started(deputy.traits.name))
                case Restart():
                    deputy = await self._restart(stream, word)
                case TakeImage():
                    await self._take_image(stream, word)
                    return
                case Attend():
                    deputy = await self._find(stream, word)
                    stream.say(Attended())
                case _:
                    return
        except (OmfsError, OSError) as error:
            await _refuse(stream, error)
            return
        deputy.attach(stream)
        while (said := await stream.hear()) is not None:
            match said:
                case Relayed(frame):
                    deputy.relayed(frame)
                case Called():
                    stream.called(said)
                case _:
                    raise WireError(f"mosrun says {type(said).__name__}")
        if deputy.detach(stream):  # not where it is we who end: the next mignode is looked for
            self._deputies.lost(deputy)

    async def _find(self, stream: DeputyStream, word: Attend) -> Deputy:
        """Raises ProcessLookupError, PermissionError."""
        deputy = self._deputies.get(word.guest)
        if deputy is None:
            raise ProcessLookupError(errno.ESRCH, "its program has ended")
        process = await trio.to_thread.run_sync(processes.identify, deputy.traits.pid)
        if (
            process is None
            or guest_name(self._standing.local.node_id, *process) != word.guest
            or stream.uid != deputy.traits.uid
        ):
            raise PermissionError(errno.EPERM, "that is another process's guest")
        return deputy

    async def _begin(self, stream: DeputyStream, run: Run) -> Deputy:
        """Raises OSError: _OfProgram as execvp(3) has it, others where we can't."""
        own, pid = self._standing.local.node_id, stream.pid
        candidates = self._first_place.candidates(run.options) if self._first_place is not None else []
        process, right = await trio.to_thread.run_sync(_look_at, stream)
        traits = Traits(
            name=guest_name(own, *process), home=own, pid=pid, root=pid, uid=right.uids[0], gid=right.gids[0],
            groups=right.groups, hostname=os.uname().nodename, plan=msgspec.msgpack.encode(run.plan),
            command=os.path.basename(run.program)[:_COMMAND_MAX_BYTES],
        )  # fmt: skip
        right = msgspec.structs.replace(right, ignored=run.ignored, blocked=run.blocked)
        program = Program(run.program, run.arguments, run.environment, run.directory, pid, right)
        folder = GuestFolder(self._run_dir, traits.name)
        folder.make()
        try:
            folder.traits = traits
            world = world_of(traits, own, has_procview=self._has_procview)
            body = await bodies.hatch(self._guests.hatchery, self._guests.nursery, folder.path, world)
            try:
                if self._first_place is not None:
                    await self._first_place.inherit(traits, body.pid)
                folder.record, folder.stay = Record(own), Stay(Phase.HERE, 1)
                await body.set_last_pid(last_before_guest(pid))
                guest = Guest(folder, traits, body, epoch=1)
                listening = partial(guest.answer_calls, nursery=self._guests.nursery)
                await body.run(program, traits.plan, filter_at_home(platform.machine()), listening)
            except OSError as error:
                raise _OfProgram(error.errno, error.strerror) from None
            finally:
                if not body.root:
                    with trio.CancelScope(shield=True):
                        await body.end()
        except BaseException:
            folder.remove()
            raise
        return await self._settled(guest, run.options, candidates, is_new=True)

    async def _settled(
        self, guest: Guest, options: Options, candidates: Collection[int], *, is_new: bool = False
    ) -> Deputy:
        """It runs, and is known.  *is_new*: it is none of an image, which goes on here unless told otherwise."""
        deputy = self._deputies.add(Deputy(guest.traits))
        self._guests.add(guest)
        if self._first_place is not None:
            try:
                await self._first_place.settle(deputy, guest, options, candidates, is_new=is_new)
            except (OmfsError, OSError):
                await self._end(guest)
                raise
        return deputy

    async def _restart(self, stream: DeputyStream, asked: Restart) -> Deputy:
        """It is told that it has started.  Raises OmfsError, OSError."""
        if self._restarts is None:
            raise OSError(errno.ENOSYS, "nothing can be restarted here")
        candidates = self._first_place.candidates(asked.options) if self._first_place is not None else []
        process, right = await trio.to_thread.run_sync(_look_at, stream)
        guest, has_input, warning = await self._restarts.begin(stream, process, right)
        deputy = await self._settled(guest, asked.options, candidates)
        stream.say(Started(guest.name, has_input, warning))
        return deputy

    async def _take_image(self, stream: DeputyStream, asked: TakeImage) -> None:
        """Raises OmfsError, OSError."""
        if self._saving is None:
            raise OSError(errno.ENOSYS, "nothing can be saved here")
        await self._saving.take(stream, asked)
        with trio.move_on_after(PIECE_S):
            said = await stream.hear()
            deputy = self._deputies.get(asked.guest)
            if isinstance(said, NotKept) and deputy is not None:
                self._saving.failed(deputy, said.reason)

    async def _end(self, guest: Guest) -> None:
        """It could not begin where it was to."""
        guest.has_departed = True
        await guest.body.end()
        self._deputies.remove(guest.name)
        guest.folder.remove()


async def _refuse(stream: DeputyStream, error: OmfsError | OSError) -> None:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    stream.say(Refused(error.errno or errno.EIO, reason, isinstance(error, _OfProgram)))
    await stream.finish()


class _OfProgram(OSError):
    """execvp(3) of the program failed."""


def _look_at(stream: DeputyStream) -> tuple[processes.Identity, birthright.Birthright]:
    """For worker threads.  Raises OSError."""
    process = processes.identify(stream.pid)
    if process is None or process.pid != stream.pid:
        raise ProcessLookupError(errno.ESRCH, f"process {stream.pid} is not shown here")
    return process, birthright.read(stream.pid, stream.uid, stream.gid)
