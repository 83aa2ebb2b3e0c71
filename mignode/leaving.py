"""What the source of a handover does when handover.Source says so: bar, ask, thaw, kill.

The same for a migration that goes its way (migrate.py) and for one that another mignode has left half done
(recovery.py).  While a dump is held, the guest's init has CRIU's socket as well (`KEPT`), so the death of mignode
decides nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio

from mignode.bar import bar, is_held, lift_bar
from mignode.body import Body
from mignode.criutalk import Worker, decide_kept
from mignode.desk import AnyDesk
from mignode.guest import Guest
from mignode.guestlocks import OwnLocks
from mignode.handover import Leaving, Phase, Source, Stay
from mignode.transit import ASK_AGAIN_S, located
from mignode.words import Commit, WhereIs
from omfs.errors import OmfsError, RemoteFailure

KEPT: Final = "criu"
_UNDO_S: Final = 30.0  # for a CRIU to undo a dump, or a restore; then it is killed, which does the same
_KILLED_S: Final = 5.0

log: Final = logging.getLogger(__name__)


async def bar_tree(guest: Guest, leaving: Source, stopped: tuple[int, ...]) -> None:
    """BAR.  *stopped*: who was stopped before the dump.

    Raises RemoteFailure where CRIU has let go of it, so that it may have run since it was dumped.
    """
    guest.folder.stay = Stay(Phase.LEAVING, guest.epoch, leaving.attempt, stopped)
    pids = tuple((await guest.body.all_pids()).values())
    bar(pids)
    if not pids or not await trio.to_thread.run_sync(is_held, pids):
        leaving.failed()
        raise RemoteFailure(errno.EIO, "criu let go of the process too early")
    leaving.barred()


async def unbar_tree(guest: Guest) -> None:
    """The first half of THAW, while CRIU still holds it, if it does; nothing where it is not barred.

    Raises OmfsError, OSError.
    """
    stay = guest.folder.stay
    if stay is not None and stay.phase is Phase.LEAVING:
        lift_bar(tuple((await guest.body.all_pids()).values()), stay.stopped)
    if guest.body.is_frozen:
        await guest.body.thaw_files()


async def undo_kept(body: Body) -> None:
    """The second half, of a dump that an earlier mignode has begun: CRIU undoes it, whatever it was at.

    When this returns no CRIU is left in there.  Raises OmfsError, OSError.
    """
    if KEPT in body.kept:
        for descriptor in await body.fetch(KEPT):
            try:
                with contextlib.suppress(OSError):  # it has ended
                    decide_kept(descriptor, finish=False)
            finally:
                os.close(descriptor)
        await body.keep(KEPT, ())
    await wait_commands_ended(body.running())


async def wait_commands_ended(commands: Mapping[int, Worker]) -> None:
    """CRIUs of an earlier mignode: nobody hears them any more, so each of them ends soon; if not, it is killed."""
    for command in list(commands.values()):
        with trio.move_on_after(_UNDO_S):
            await command.wait()
            continue
        command.kill()
        with trio.move_on_after(_KILLED_S):
            await command.wait()


def stays(guest: Guest, epoch: int) -> None:
    """The end of THAW, when CRIU holds nothing any more: it runs here, which is written down.  Raises OSError."""
    guest.epoch = epoch
    stay = Stay(Phase.HERE, epoch)
    if guest.folder.stay != stay:
        guest.folder.stay = stay


async def end(guest: Guest, run_dir: Path) -> None:
    """KILL and FORGET: nothing of it is here any more."""
    with trio.CancelScope(shield=True):
        guest.has_departed = True
        async with OwnLocks(run_dir, guest.name).handed_on():
            await guest.body.end()
        guest.folder.leave()


async def wait_committed(
    guest: Guest, leaving: Source, desk: AnyDesk, patience_s: float, *, has_asked: bool
) -> Leaving:
    """Until home has answered: COMMITTED, UNDONE, or DONE where home is lost or the guest lives elsewhere.

    *has_asked*: an earlier mignode, so the commit is not asked for again.
    """
    question: Commit | WhereIs = (WhereIs if has_asked else Commit)(guest.name, leaving.attempt)
    lost_s = trio.current_time() + patience_s
    while leaving.state is Leaving.ASKING:
        if not await _ask(leaving, desk, question):
            question = WhereIs(guest.name, leaving.attempt)
            if trio.current_time() > lost_s:
                leaving.home_lost()
    return leaving.state


async def wait_settled(guest: Guest, leaving: Source, desk: AnyDesk, patience_s: float) -> Leaving:
    """Until home says that the destination runs it (DONE) or has given it back (UNDONE), or home is lost (DONE)."""
    lost_s = trio.current_time() + patience_s
    while leaving.state is Leaving.COMMITTED:
        if await _ask(leaving, desk, WhereIs(guest.name, leaving.attempt)):
            lost_s = trio.current_time() + patience_s
        elif trio.current_time() > lost_s:
            leaving.home_lost()
    return leaving.state


async def _ask(leaving: Source, desk: AnyDesk, question: Commit | WhereIs) -> bool:
    """False: no answer.  Not too often."""
    try:
        answer = await desk.ask(question)
    except (OmfsError, OSError) as error:
        log.info("no answer whether the guest has left: %s", error)
        await trio.sleep(ASK_AGAIN_S)
        return False
    leaving.located(located(answer))
    if leaving.is_in_doubt and isinstance(question, WhereIs):
        await trio.sleep(ASK_AGAIN_S)
    return True


async def quietly_unbarred(guest: Guest) -> None:
    """For an undo, which must go on to its end; where it fails the guest has ended."""
    with trio.CancelScope(shield=True):
        try:
            await unbar_tree(guest)
        except (OmfsError, OSError) as error:
            log.warning("guest %s: %s", guest.name, error)
