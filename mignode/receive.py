"""A guest comes to this node: the destination's stages, which mirror those of migrate.py.

Until home has committed the copy here is held by CRIU and does not run; whatever fails before that leaves nothing
behind.  Who may run it when is decided by handover.Destination; this room does what it says.

Called by guesthouse.py, for the line that the source has brought.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import trio

from dfsa.guestfilter import filter_at_home, filter_for
from mignode import body as bodies
from mignode.body import Body, Prepared as FilesPrepared
from mignode.checkpoint import Criu, Restored as Held
from mignode.coming import end, give_back, wait_told_by_home
from mignode.desk import AnyDesk
from mignode.dirpositions import set_natively
from mignode.guest import Guest, tree_of
from mignode.guestfolder import GuestFolder
from mignode.guestlocks import ComingLocks, OwnLocks
from mignode.guests import Guests
from mignode.handover import Coming, Destination, Phase, Stay
from mignode.images import Images
from mignode.innerpids import last_before_guest, last_before_restore
from mignode.line import Line
from mignode.luggage import unpack
from mignode.processor import read_processor, unpack as unpack_processor, what_is_missing, without
from mignode.reach import check_reach
from mignode.registry import Registry
from mignode.rights import are_only
from mignode.stripping import strip
from mignode.traits import Traits, pid_in, world_of
from mignode.transit import (
    DECISION_S,
    FILES_S,
    PREPARE_S,
    REASON_MAX,
    RESTORE_S,
    SILENCE_S,
    Transit,
    expect,
    heard,
    kept_alive,
    say,
    within,
)
from mignode.unkept import give_back as give_back_unkept
from mignode.words import (
    Arrive,
    Declined,
    ImagesSent,
    NotRestored,
    Prepared,
    Release,
    Restored,
    Running,
    State,
)
from omfs.errors import CheckpointError, OmfsError, RemoteFailure
from omfs.kernel.credentials import Identity

_REACH_S: Final = 60.0  # thousands of files may be on other nodes

log: Final = logging.getLogger(__name__)


async def receive(line: Line, arrive: Arrive, transit: Transit, guests: Guests, registry: Registry) -> None:
    """Have the guest here when this returns, or nothing of it."""
    coming = Destination(transit.here, arrive.attempt)
    desk, faults = transit.desk.of(arrive.home), transit.faults
    try:
        async with AsyncExitStack() as undo:
            await undo.enter_async_context(kept_alive(line))
            # 1  May it?
            folder = GuestFolder(Path(transit.settings.run_dir), arrive.guest)
            _check(arrive, folder, transit)

            # 2  Its world is built, by an init that lives for it.
            traits = _enter(folder, arrive)
            undo.callback(_forget, folder, coming)
            faults.at("arrived")
            body = await _hatched(guests, folder, traits, transit)
            undo.push_async_callback(_discard, body, coming, OwnLocks(transit.run_dir, arrive.guest))
            faults.at("hatched")
            images = transit.images.make(arrive.guest)
            undo.callback(images.discard)
            await say(line, Prepared(transit.images.free_bytes))

            # 3  What it was comes over.  Whatever that says, it gets no more rights than its user has.
            expect(line, (await images.receive(line, transit.images.free_bytes, SILENCE_S))[0], ImagesSent)
            await _check_rights(arrive, images)
            faults.at("received")

            # 4  Its standard files are made anew, with what was in them.
            word, state = await heard(line, State)
            with within(FILES_S, f"node {transit.here} could not make its standard files"):
                files = await body.prepare_files(arrive.plan, bytes(state))
            faults.at("rebuilt")

            # 5  The copy is restored, and held; it is known here before it can ask for a magic name, or fork.
            guest = Guest(folder, traits, body, arrive.attempt, arrive.past)
            locks = ComingLocks(guest, images.path, transit.run_dir)
            held = await _restored_with(locks, coming, undo, guest, images, files, guests.nursery, transit)
            await _make_known(word.luggage, guest, transit, registry)
            _check_open(arrive, transit)  # it may have been blocked meanwhile; from here on the source decides
            coming.restored()
            faults.at("held")

            with trio.CancelScope(shield=True):
                # 6  Home decides; the source tells us, or home does.
                if await _wait_decided(line, coming, desk, transit, arrive) is not Coming.RELEASING:
                    return
                faults.at("decided")

                # -------------- IT IS OURS: home has committed, and nobody else may run it --------------

                # 7  It runs.
                if await _run(guest, held, locks, coming, desk, transit) is not Coming.RUNNING:
                    return

                # 8  The source may end its copy, and the guest finds its way home.
                guests.add(guest)
                with contextlib.suppress(OmfsError):
                    await say(line, Running())
    except (OmfsError, OSError) as error:
        await _refuse(line, arrive, error, coming)


async def _quietly(undo: Callable[[], Awaitable[None]]) -> None:
    with trio.CancelScope(shield=True):
        try:
            await undo()
        except (OmfsError, OSError) as error:
            log.warning("its locks: %s", error)


async def _refuse(line: Line, arrive: Arrive, error: OmfsError | OSError, coming: Destination) -> None:
    log.warning("guest %s can't come here: %s", arrive.guest, error)
    with contextlib.suppress(OmfsError, OSError), trio.move_on_after(SILENCE_S):
        await say(line, _refusal(error, coming))
        while True:  # a line that is closed while something comes in loses what was said
            await line.receive(SILENCE_S)


def _refusal(error: OmfsError | OSError, coming: Destination) -> Declined | NotRestored:
    text = error.strerror if isinstance(error, OSError) else str(error)
    reason = (text or str(error) or type(error).__name__)[:REASON_MAX]
    if coming.state is Coming.RESTORING:
        return Declined(error.errno or errno.EIO, reason)
    return NotRestored(reason)


# ---------------------------------------------------------------- before it is there


def _check(arrive: Arrive, folder: GuestFolder, transit: Transit) -> None:
    """Raises RemoteFailure."""
    _check_open(arrive, transit)
    _check_processor(arrive, transit)
    if folder.stay is not None:
        raise RemoteFailure(errno.EEXIST, "there is a copy of the guest here already")
    if arrive.uid == 0 and any(tree.root_squash for tree in transit.settings.trees if tree.path == "/"):
        raise RemoteFailure(errno.EPERM, "root's processes may not come here (root_squash)")
    if not transit.images.room_for(arrive.memory_bytes):
        raise RemoteFailure(errno.ENOMEM, f"no room for {arrive.memory_bytes >> 20} MiB of images")


def _enter(folder: GuestFolder, arrive: Arrive) -> Traits:
    """At home the folder is there: it has the record."""
    traits = Traits(
        name=arrive.guest, home=arrive.home, pid=pid_in(arrive.guest), uid=arrive.uid, gid=arrive.gid,
        groups=arrive.groups, hostname=arrive.hostname, command=arrive.command, plan=arrive.plan,
        root=arrive.root,
    )  # fmt: skip
    if folder.record is None:
        folder.make()
        folder.traits = traits
    folder.past = arrive.past
    folder.stay = Stay(Phase.ARRIVING, arrive.attempt)
    return traits


def _check_open(arrive: Arrive, transit: Transit) -> None:
    """Whoever is at home here may always come."""
    if arrive.home != transit.here and transit.is_blocked():
        raise RemoteFailure(errno.EAGAIN, "it takes no guests now (block)")


def _check_processor(arrive: Arrive, transit: Transit) -> None:
    """What its programs may have found at the source is here, too."""
    here = without(read_processor(), transit.faults.lacking())
    missing = what_is_missing(unpack_processor(arrive.processor), here)
    if missing and transit.settings.processor_check:
        raise RemoteFailure(errno.EOPNOTSUPP, missing)


async def _hatched(guests: Guests, folder: GuestFolder, traits: Traits, transit: Transit) -> Body:
    world = world_of(traits, transit.here, has_procview=transit.settings.procview)
    with within(PREPARE_S, f"node {transit.here} could not make its tree"):
        return await bodies.hatch(guests.hatchery, guests.nursery, folder.path, world)


def _forget(folder: GuestFolder, coming: Destination) -> None:
    if coming.state is not Coming.RUNNING:
        folder.leave()


async def _discard(body: Body, coming: Destination, locks: OwnLocks) -> None:
    if coming.state is not Coming.RUNNING:
        await end(body, locks)


async def _hold_locks(locks: ComingLocks, coming: Destination) -> None:
    """Before CRIU kills what it has restored."""
    if coming.state is not Coming.RUNNING:
        await locks.hold()


async def _restored_with(
    locks: ComingLocks, coming: Destination, undo: AsyncExitStack, guest: Guest, images: Images, files: FilesPrepared,
    nursery: trio.Nursery, transit: Transit,
) -> Held:  # fmt: skip
    """As `restored`; it has its locks, and nothing that its user may not have."""
    undo.push_async_callback(_quietly, locks.expect_no_more)
    async with locks.taken():
        held = await restored(undo, guest, images, files, nursery, transit)
        undo.push_async_callback(_hold_locks, locks, coming)
    await reach_checked(guest.body, guest.traits)
    return held


async def _make_known(luggage: bytes, guest: Guest, transit: Transit, registry: Registry) -> None:
    """No undo: where the copy is ended, the registry hears of each end.  Raises WireError, BodyLost, OSError."""
    pids, init = await guest.body.all_pids(), guest.body.pid
    await registry.arrived(unpack(luggage, pids, transit.here, root=guest.traits.root, init=init))


async def reach_checked(body: Body, traits: Traits) -> None:
    """Of a restored tree that is held; its user may have changed what is behind its paths.  Raises RemoteFailure."""
    pids = tuple((await body.all_pids()).values())
    user = Identity(traits.uid, traits.gid, traits.groups)
    with within(_REACH_S, "its files could not be looked at"):
        await trio.to_thread.run_sync(check_reach, body.pid, pids, user, abandon_on_cancel=True)


async def restored(
    undo: AsyncExitStack, guest: Guest, images: Images, files: FilesPrepared, nursery: trio.Nursery, transit: Transit
) -> Held:
    """The tree of the images, below a filter of ours."""
    body, traits = guest.body, guest.traits
    await trio.to_thread.run_sync(strip, images.path)
    await body.set_last_pid(last_before_restore(traits.root))
    filter_ = (filter_at_home if transit.here == traits.home else filter_for)(platform.machine())
    listening = partial(guest.answer_calls, nursery=nursery, restoring=True)
    start = body.start_below(filter_, listening, traits.uid, traits.gid)
    try:
        restoring = Criu(transit.criu, start).restore(
            images.fd, tree_of(files.external), RESTORE_S, inherited=files.inherited
        )
        held = await undo.enter_async_context(restoring)
    finally:
        for descriptor in files.inherited.values():
            os.close(descriptor)
    await body.given()
    await body.adopt(held.pid)
    pids = await body.all_pids()
    await trio.to_thread.run_sync(set_natively, tuple(pids.values()))
    await trio.to_thread.run_sync(give_back_unkept, images.path, tuple(pids.values()), traits.uid)
    await body.set_last_pid(last_before_guest(max(pids)))
    return held


async def _check_rights(arrive: Arrive, images: Images) -> None:
    """Raises RemoteFailure."""
    if not await trio.to_thread.run_sync(are_only, images.path, arrive.uid, arrive.gid, arrive.groups):
        raise RemoteFailure(errno.EPERM, "its images have rights that its user has not")


# ---------------------------------------------------------------- the decision


async def _wait_decided(line: Line, coming: Destination, desk: AnyDesk, transit: Transit, arrive: Arrive) -> Coming:
    """Until the source says what home has decided, or home does; or home is lost."""
    try:
        await say(line, Restored())  # where that fails the source may have heard it
        with within(DECISION_S, f"node {line.node_id} did not say what becomes of it"):
            await heard(line, Release)
        coming.release()
    except OmfsError as error:
        if isinstance(error, CheckpointError):  # it says Discard
            coming.discard()
    await wait_told_by_home(arrive.guest, coming, desk, transit.settings.guest_timeout_s)
    return coming.state


async def _run(
    guest: Guest, held: Held, locks: ComingLocks, coming: Destination, desk: AnyDesk, transit: Transit
) -> Coming:
    """Let it; where that fails, home is told that nobody runs it."""
    await _quietly(locks.expect_no_more)
    try:
        guest.folder.stay = Stay(Phase.HERE, coming.attempt)
        transit.faults.at("written")
        if guest.router is not None:
            guest.router.restored()
        await held.finish()
        coming.ran()
        transit.faults.at("let-run")
        await locks.settled()
    except (OmfsError, OSError) as error:
        log.error("guest %s was restored and does not run: %s", guest.name, error)
        await end(guest.body, OwnLocks(transit.run_dir, guest.name))
        coming.failed()
        await give_back(guest.name, coming, desk, transit.settings.guest_timeout_s)
    return coming.state
