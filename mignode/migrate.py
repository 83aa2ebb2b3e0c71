"""A guest leaves this node: the source's stages, one after the other; receive.py has the destination's.

The process is frozen from stage 3 on.  Each stage before the commit has its undo on one stack, so whatever fails there
leaves the guest running here, as if nothing had happened.  From the commit on it is the destination's, and what is here
is only waited for and killed.  Who may run it when is decided by handover.Source; this room does what it says.

Called by goto, by home's order over the link, and by who decides.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio

from mignode.bar import stopped_among
from mignode.cantmove import has_another_terminal, why
from mignode.checkpoint import Criu, Frozen
from mignode.desk import AnyDesk
from mignode.dirpositions import make_portable
from mignode.guest import Guest, tree_of
from mignode.guestlocks import OwnLocks, offer
from mignode.handover import Leaving, Source
from mignode.images import Images
from mignode.journey import Journey
from mignode.lasting import check_mobile, reasons_for
from mignode.leaving import KEPT, bar_tree, end, quietly_unbarred, stays, wait_committed, wait_settled
from mignode.line import Line, dial_line
from mignode.luggage import pack
from mignode.memorysize import memory_bytes
from mignode.processor import pack as pack_processor, read_processor
from mignode.reasons import Kind, Reason, told
from mignode.registry import Registry
from mignode.stopwatch import Stopwatch
from mignode.tcpstreams import fit_together
from mignode.transit import (
    CONNECT_S,
    DUMP_S,
    FILES_S,
    PREPARE_S,
    RESTORE_S,
    SENT_BYTES_PER_S,
    SILENCE_S,
    Transit,
    heard,
    kept_alive,
    say,
    within,
)
from mignode.unkept import note as note_unkept
from mignode.words import Arrive, Begin, Begun, Discard, Prepared, Release, Restored, Running, State
from omfs.errors import CriuEnded, MoveFailed, OmfsError, RemoteFailure, WireError
from omfs.kernel import processes

_LOOK_S: Final = 5.0
_ENDS_S: Final = 0.5  # it does so in microseconds; its init tells it then


async def migrate(
    guest: Guest, destination: int, transit: Transit, registry: Registry, report: Callable[[Journey], None]
) -> None:
    """Move it.  Raises OmfsError, OSError: it goes on here, unless the text says that nobody knows."""
    watch, faults = Stopwatch(transit.here, destination, report), transit.faults
    desk, patience_s = transit.desk.of(guest.traits.home), transit.settings.guest_timeout_s
    with guest.departing(), watch:
        async with AsyncExitStack() as undo:
            # 1  May it?  Home gives the journey a number, under which alone it can be committed.
            with watch.stage("looked whether it can move"):
                await _check(guest, transit)
                leaving = await _begun(guest, destination, desk, transit)
                faults.at("began")

            # 2  The destination builds the guest's world.
            with watch.stage("prepared a place there"):
                line = await _line_to(undo, destination, transit)
                arrival = await _arrival(guest, leaving)
                watch.expect(arrival.memory_bytes)
                await _ask_in(undo, line, arrival, leaving, transit)
                faults.at("prepared")

            # 3  It is frozen, and dumped; 4 what it is goes over, while CRIU still writes it.
            undo.push_async_callback(_stay, guest, leaving)
            with watch.stage("dumped and sent"):
                stopped = stopped_among(tuple((await guest.body.all_pids()).values()))
                frozen = await _dump_and_send(undo, guest, leaving, line, transit, watch, registry, arrival)
                faults.at("sent")

            # 5  The destination holds a copy, which does not run.
            with watch.stage("restored there"):
                with within(RESTORE_S, f"node {destination} did not restore it"):
                    await heard(line, Restored)
                leaving.restored()
                faults.at("restored")

            # 6  The copy here can't run any more by itself, whatever dies.  Then home writes down where the guest is.
            with watch.stage("committed"), trio.CancelScope(shield=True):
                await guest.body.keep(KEPT, [frozen.socket])
                faults.at("kept")
                await bar_tree(guest, leaving, stopped)
                faults.at("barred")
                if await wait_committed(guest, leaving, desk, patience_s, has_asked=False) is Leaving.UNDONE:
                    raise MoveFailed("home has not let it go: the other node asked before it was told")
                faults.at("committed")

            # ---------------- THE POINT OF NO RETURN: it is not ours any more, unless it is given back ----------------
            # 7  The destination lets its copy run, and says so to home, or to us.
            with watch.stage("released"), trio.CancelScope(shield=True):
                await _release(leaving, line)
                if await wait_settled(guest, leaving, desk, patience_s) is Leaving.UNDONE:
                    raise MoveFailed(f"node {destination} could not run it, and gave it back")
                watch.ran()
                faults.at("ran")

            # 8  The copy here is killed, and nothing of the guest is left.
            with watch.stage("ended here"):
                await end(guest, transit.run_dir)
            _check_lost(leaving, destination, watch)


# ---------------------------------------------------------------- before it is frozen


async def _check(guest: Guest, transit: Transit) -> None:
    """Raises RemoteFailure(EROFS) with the reasons."""
    found = None
    with trio.move_on_after(_LOOK_S):
        found = await reasons_of(guest)
    if found is None:
        raise RemoteFailure(errno.EROFS, "the process could not be looked at: it is waiting for a node that is silent")
    if found:
        raise RemoteFailure(errno.EROFS, told(found))


async def reasons_of(guest: Guest, limiter: trio.CapacityLimiter | None = None) -> list[Reason]:
    """Why a guest that runs here can't move; looks at it in a thread.

    Raises OmfsError, ProcessLookupError.
    """
    outer = await guest.body.outer_root()
    if guest.rooted:
        return reasons_for(guest.rooted)
    return await trio.to_thread.run_sync(
        _look_at, outer, guest.body.pid, guest.filters, abandon_on_cancel=True, limiter=limiter
    )


def _look_at(root: int, init: int, filters: int) -> list[Reason]:
    process = processes.identify(root)
    if process is None:
        raise ProcessLookupError(errno.ESRCH, "the process has ended")
    return why(process, _relayed_by(init), filters)


async def _begun(guest: Guest, destination: int, desk: AnyDesk, transit: Transit) -> Source:
    begun = await desk.ask(Begin(guest.name, guest.epoch, destination))
    assert isinstance(begun, Begun)
    return Source(transit.here, begun.attempt, guest.epoch)


async def _line_to(undo: AsyncExitStack, node: int, transit: Transit) -> Line:
    """Kept alive until *undo* closes it."""
    line = await dial_line(transit.standing, transit.settings, node, CONNECT_S)
    undo.callback(line.close)
    await undo.enter_async_context(kept_alive(line))
    return line


def _relayed_by(init: int) -> list[str]:
    """The inner ends of its standard files, as /proc/<pid>/fd has them: its init takes the others along."""
    folder = f"/proc/{init}/fd"
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"{folder}/{name}"))
    return [target for target in found if target.startswith(("pipe:[", "/dev/pts/"))]


async def _arrival(guest: Guest, leaving: Source) -> Arrive:
    traits = guest.traits
    pids = await guest.body.all_pids()
    memory = await _memory_bytes(pids.values())
    return Arrive(
        guest=traits.name,
        attempt=leaving.attempt,
        epoch=guest.epoch,
        home=traits.home,
        hostname=traits.hostname,
        command=traits.command,
        uid=traits.uid,
        gid=traits.gid,
        groups=traits.groups,
        processes=len(pids),
        memory_bytes=memory,
        processor=pack_processor(read_processor()),
        plan=traits.plan,
        root=traits.root,
        past=guest.past,
    )


async def _memory_bytes(pids: Iterable[int]) -> int:
    """The kernel walks through all of it, and waits for who changes its mappings.  Raises MoveFailed."""
    with within(_LOOK_S, "its memory could not be looked at"):
        return await trio.to_thread.run_sync(memory_bytes, tuple(pids), abandon_on_cancel=True)


def _check_room(transit: Transit, memory_bytes: int) -> None:
    """Raises RemoteFailure: images are sent while they are written, but nobody knows how fast."""
    if not transit.images.room_for(memory_bytes):
        raise RemoteFailure(errno.ENOMEM, f"no room for {memory_bytes >> 20} MiB of images here (images_max_bytes)")


async def _ask_in(undo: AsyncExitStack, line: Line, arrival: Arrive, leaving: Source, transit: Transit) -> None:
    """Until there is a place for it.  Raises OmfsError."""
    _check_room(transit, arrival.memory_bytes)
    undo.push_async_callback(_discard, line, leaving)
    await say(line, arrival)
    with within(PREPARE_S, f"node {line.node_id} did not prepare a place"):
        await heard(line, Prepared)


# ---------------------------------------------------------------- its images


async def _dump_and_send(
    undo: AsyncExitStack, guest: Guest, leaving: Source, line: Line, transit: Transit, watch: Stopwatch,
    registry: Registry, arrival: Arrive,
) -> Frozen:  # fmt: skip
    """CRIU holds it when this returns; *undo* gets what lets it run again."""
    images = transit.images.make(guest.name)
    undo.callback(images.discard)
    criu = Criu(transit.criu, guest.body.starting(guest.traits.uid, guest.traits.gid))
    tree = tree_of(await guest.body.external_files())
    async with _sending(images, line, watch, DUMP_S + arrival.memory_bytes / SENT_BYTES_PER_S) as is_written:
        watch.freeze()
        guest.is_frozen = True
        try:
            frozen = await undo.enter_async_context(criu.dump(guest.body.root, images.fd, tree, DUMP_S))
        except CriuEnded:
            await _check_survived(guest, watch)
            raise
        undo.push_async_callback(_thaw, guest)
        transit.faults.at("dumped")
        check_mobile(guest.rooted)
        await _check_terminals(guest)
        undo.push_async_callback(_keep_locks, guest, leaving, transit)
        await offer(guest, leaving.attempt, images.path, transit.run_dir)
        with trio.CancelScope(shield=True), within(FILES_S, "its standard files could not be frozen"):
            state = await guest.body.freeze_files()
        numbers = await guest.body.all_pids()
        pids, luggage = tuple(numbers.values()), pack(registry, numbers, guest.traits.home)
        await trio.to_thread.run_sync(fit_together, images.path, pids)
        await trio.to_thread.run_sync(make_portable, images.path, pids)
        await trio.to_thread.run_sync(note_unkept, images.path, pids)
        is_written.set()
    await say(line, State(luggage), state)
    return frozen


async def _check_survived(guest: Guest, watch: Stopwatch) -> None:
    """Where CRIU was killed in the middle: a process that just had its code run ends by that.  Raises MoveFailed."""
    with trio.move_on_after(_ENDS_S):
        status = await guest.body.wait_root_ended()
        watch.lost()
        raise MoveFailed(f"it has ended ({_how(status)}): criu was killed while it was dumped")


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"status {code}"


async def _check_terminals(guest: Guest) -> None:
    """As it is frozen: which it has opened as /dev/tty since it was looked at.  Raises RemoteFailure(EROFS)."""
    pids = tuple((await guest.body.all_pids()).values())
    relayed = _relayed_by(guest.body.pid)
    if await trio.to_thread.run_sync(has_another_terminal, pids, relayed):
        raise RemoteFailure(errno.EROFS, Kind.OWN_TERMINAL.value)


@asynccontextmanager
async def _sending(images: Images, line: Line, watch: Stopwatch, enough_s: float) -> AsyncIterator[trio.Event]:
    """Images go out from now on, until all is written (the event that this gives) and sent.  Raises OmfsError."""
    is_written = trio.Event()
    failures: list[Exception] = []

    async def send(stop: trio.CancelScope) -> None:
        try:
            with within(enough_s, f"node {line.node_id} did not take its images"):
                await images.send(line, is_written, SILENCE_S, watch.sent)
        except MoveFailed as error:
            failures.append(error)
            stop.cancel()
        except (OSError, WireError) as error:
            failures.append(MoveFailed(f"node {line.node_id}: {error}"))
            stop.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, nursery.cancel_scope)
        try:
            yield is_written
        except Exception as error:  # out of the nursery, which would wrap it
            failures.insert(0, error)
            nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _discard(line: Line, leaving: Source) -> None:
    """TELL_DISCARD, unless it has left."""
    with trio.CancelScope(shield=True), contextlib.suppress(OmfsError):
        if leaving.state is not Leaving.DONE:
            await say(line, Discard("it stays where it was"))


async def _thaw(guest: Guest) -> None:
    """While CRIU still holds it; nothing where it has left."""
    if guest.has_departed:
        return
    await quietly_unbarred(guest)


async def _keep_locks(guest: Guest, leaving: Source, transit: Transit) -> None:
    """While it is still frozen; nothing where it may have left."""
    if not leaving.is_in_doubt and leaving.state is not Leaving.DONE:
        await OwnLocks(transit.run_dir, guest.name).settled()


async def _stay(guest: Guest, leaving: Source) -> None:
    """CRIU has undone the dump; nothing where it has left."""
    if guest.has_departed:
        return
    with trio.CancelScope(shield=True), contextlib.suppress(OmfsError, OSError):
        stays(guest, leaving.epoch)
        await guest.body.keep(KEPT, ())


async def _release(leaving: Source, line: Line) -> None:
    """Where home has committed; where the destination does not answer, home knows."""
    if leaving.state is not Leaving.COMMITTED:
        return
    with contextlib.suppress(OmfsError), within(RESTORE_S, f"node {line.node_id} does not say that it runs"):
        await say(line, Release())
        await heard(line, Running)
        leaving.running()


def _check_lost(leaving: Source, destination: int, watch: Stopwatch) -> None:
    """Raises MoveFailed where it runs nowhere."""
    if leaving.is_lost:
        watch.lost()
        raise MoveFailed(f"it has ended: node {destination} or its home was lost")
