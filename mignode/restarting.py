"""A guest goes on from an image: a new guest of this node, with a new deputy, whose processes were dumped before.

The image comes from mosrun, so from a file of its user, and is not believed: it must bear the seal of a node of this
cluster (seal.py) before CRIU sees any of it, its processes may have no other rights than who asks now (rights.py), and
nothing open that he could not open himself (reach.py).

There are never two of one program by accident: its home is asked whether it still runs, and all others whether they
have it; only where home is silent, nobody can say it of others that are silent, too.  mosrun has the file locked
meanwhile.

Inside, processes have the numbers that they had, so the root's is its first deputy's; at home it has the number of
the new mosrun.  What else is new: its home, and so the tree that it sees as /, the host's name, the settings of who
restarts it.  Called by door.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple

import trio

from mignode import body as bodies, bodyfiles
from mignode.birthright import Birthright
from mignode.body import Body
from mignode.deputystream import DeputyStream
from mignode.deputywords import ImageBytes
from mignode.desk import Desk
from mignode.firstplace import FirstPlace
from mignode.guest import Guest
from mignode.guestfolder import GuestFolder
from mignode.guests import Guests
from mignode.handover import NOBODY, Phase, Record, Stay, gone
from mignode.imagefile import Found, Head, Reader, Seal
from mignode.images import Images
from mignode.line import Line, dial_line
from mignode.oldfiles import forget_sizes, reason_of
from mignode.processor import read_processor, unpack, what_is_missing
from mignode.reach import hold_to
from mignode.receive import reach_checked, restored
from mignode.record import guest_name
from mignode.rights import are_only
from mignode.saving import PIECE_S
from mignode.seal import check_seal
from mignode.traits import Traits, pid_in, world_of
from mignode.transit import CONNECT_S, FILES_S, PREPARE_S, SILENCE_S, Transit, located, within
from mignode.words import ImagePiece, ImagesSent, IsHere, Located, State, WhereIs, Word
from omfs.errors import CheckpointError, ImagesDamaged, NodeDown, OmfsError, RemoteFailure, WireError
from omfs.kernel import carried
from omfs.kernel.processes import Identity
from omfs.net.frames import Buffer

_NOBODY_ASKED: Final = 1  # an attempt that is never open, so the question changes nothing
_COMMAND_MAX_BYTES: Final = 64


class Restarted(NamedTuple):
    """*has_input*: its standard input had not ended.  *warning*: for its user, or ""."""

    guest: Guest
    has_input: bool
    warning: str


class _FromMosrun:
    """The file as images.Inlet."""

    is_authenticated = False

    def __init__(self, stream: DeputyStream) -> None:
        self._stream = stream
        self._reader = Reader()
        self._found: deque[Found] = deque()
        self._is_over = False

    async def next(self, deadline_s: float) -> Found:
        """Raises OSError, ImagesDamaged where nothing more comes."""
        while not self._found:
            self._found += await self._hear(deadline_s)
            if self._is_over:
                raise ImagesDamaged("it is damaged (its records are in disorder)")
        return self._found.popleft()

    async def _hear(self, deadline_s: float) -> list[Found]:
        word = None
        with trio.move_on_after(deadline_s):
            word = await self._stream.hear()
        if not isinstance(word, ImageBytes):
            raise BrokenPipeError(errno.EPIPE, "mosrun has ended, or says nothing")
        if not word.data:
            self._reader.end()
            self._is_over = True
        return list(self._reader.arrived(word.data))

    async def finish(self, deadline_s: float) -> None:
        """All of it has come, and mosrun says nothing more of it.  Raises OSError, ImagesDamaged."""
        while not self._is_over:
            self._found += await self._hear(deadline_s)
        if self._found:
            raise ImagesDamaged("it is damaged (its records are in disorder)")

    async def receive(self, deadline_s: float) -> tuple[Word, Buffer]:
        """One of those between head and seal."""
        record, data, _ = await self.next(deadline_s)
        if not isinstance(record, ImagePiece | ImagesSent | State):
            raise ImagesDamaged("it is damaged (its records are in disorder)")
        return record, data


class Restarts:
    """On this node.  *transit*: raises ConfigError where this machine has no CRIU."""

    def __init__(
        self, guests: Guests, desk: Desk, transit: Callable[[], Transit], first_place: FirstPlace | None
    ) -> None:
        self._guests = guests
        self._desk = desk
        self._transit = transit
        self._first_place = first_place

    async def begin(self, stream: DeputyStream, process: Identity, right: Birthright) -> Restarted:
        """For the mosrun at the other end.  Nothing of it is here where OmfsError or OSError is raised."""
        transit, file = self._transit(), _FromMosrun(stream)
        head = (await file.next(PIECE_S)).record
        if not isinstance(head, Head):
            raise ImagesDamaged("it is damaged (it does not begin with its head)")
        _check_head(head, right, transit)
        warning = await self._wait_known_ended(head, transit)
        name = guest_name(transit.here, *process)
        async with AsyncExitStack() as undo:
            images = transit.images.make(f"{name}.image")
            undo.callback(images.discard)
            state = await _received(file, images, head, transit)
            await _check(images, head, right)
            new_state, has_input = bodyfiles.restarted(state)
            traits = _traits_of(name, process, head, right, transit)
            guest = await self._run(undo, traits, right, images, new_state, transit)
        return Restarted(guest, has_input, warning)

    # ------------------------------------------------------------ whether it still runs

    async def _wait_known_ended(self, head: Head, transit: Transit) -> str:
        """A warning where nobody can say.  Raises RemoteFailure(EBUSY).

        A home that was booted anew has forgotten a guest that another node may still have, for a moment.
        """
        silent = []
        try:
            question = WhereIs(head.guest, _NOBODY_ASKED)
            answer = located(await self._desk.of(head.home).ask(question))
            if answer.node != NOBODY:
                pid = pid_in(head.guest)
                raise RemoteFailure(errno.EBUSY, f"its program still runs: process {pid} of node {head.home}")
        except NodeDown:
            silent.append(head.home)
        found: dict[int, bool | None] = {transit.here: self._guests.get(head.guest) is not None}
        async with trio.open_nursery() as nursery:
            for node in transit.standing.node_map.nodes:
                if node not in (head.home, transit.here):
                    nursery.start_soon(_ask_for, node, head.guest, transit, found)
        for node, has_it in sorted(found.items()):
            if has_it:
                raise _still_there(node, transit)
            if silent and has_it is None:
                silent.append(node)
        return (
            f"{_named(silent)} not answer: if its program still runs there, there are two of it now" if silent else ""
        )

    # ------------------------------------------------------------ making it

    async def _run(
        self, undo: AsyncExitStack, traits: Traits, right: Birthright, images: Images, state: bytes, transit: Transit
    ) -> Guest:
        has_run = False
        folder = GuestFolder(Path(transit.settings.run_dir), traits.name)
        folder.make()
        undo.callback(lambda: None if has_run else folder.remove())
        folder.traits = traits
        world = world_of(traits, transit.here, has_procview=transit.settings.procview)
        with within(PREPARE_S, "its tree could not be made"):
            body = await bodies.hatch(self._guests.hatchery, self._guests.nursery, folder.path, world)

        async def end_body() -> None:
            if not has_run:
                with trio.CancelScope(shield=True), contextlib.suppress(OmfsError):
                    await body.end()

        undo.push_async_callback(end_body)
        if self._first_place is not None:
            await self._first_place.inherit(traits, body.pid)
        folder.record, folder.stay = Record(transit.here), Stay(Phase.HERE, 1)
        with within(FILES_S, "its standard files could not be made"):
            files = await body.prepare_files(traits.plan, state)
        guest = Guest(folder, traits, body, epoch=1)
        try:
            held = await restored(undo, guest, images, files, self._guests.nursery, transit)
        except CheckpointError as error:
            raise CheckpointError(reason_of(str(error))) from None
        await _held_back(body, traits, right)
        with trio.CancelScope(shield=True):
            if guest.router is not None:
                guest.router.restored()
            await held.finish()
            has_run = True
        return guest


def _check_head(head: Head, right: Birthright, transit: Transit) -> None:
    """Whether it is his who asks; the images themselves are looked at later.  Raises RemoteFailure."""
    if set(right.uids) != {head.uid}:
        raise RemoteFailure(errno.EPERM, f"its program was user {head.uid}'s: only that user can go on with it")
    if set(right.gids) != {head.gid}:
        raise RemoteFailure(errno.EPERM, f"its program had the group {head.gid}: newgrp to it first")
    if not set(head.groups) <= {*right.groups, head.gid}:
        raise RemoteFailure(errno.EPERM, "its program had groups that you are not in (any more)")
    if right.no_new_privileges or (head.uid == 0 and right.permitted != carried.capabilities()[1]):
        raise RemoteFailure(errno.EPERM, "who restarts it has less rights than its user (no_new_privs, capabilities)")
    missing = what_is_missing(unpack(head.processor), read_processor())
    if missing and transit.settings.processor_check:
        raise RemoteFailure(errno.EOPNOTSUPP, f"this node can't go on with it: {missing}")


def _traits_of(name: str, process: Identity, head: Head, right: Birthright, transit: Transit) -> Traits:
    command = os.path.basename(head.arguments[0] if head.arguments else b"")[:_COMMAND_MAX_BYTES]
    return Traits(
        name=name, home=transit.here, pid=process.pid, root=head.root, uid=right.uids[0], gid=right.gids[0],
        groups=right.groups, hostname=os.uname().nodename, plan=head.plan, command=command,
    )  # fmt: skip


async def _received(file: _FromMosrun, images: Images, head: Head, transit: Transit) -> bytes:
    """The state of its standard files; the images are in their directory, whole, and made by one of us."""
    if not transit.images.room_for(head.memory_bytes):
        raise RemoteFailure(errno.ENOMEM, f"no room for {head.memory_bytes >> 20} MiB of images (images_max_bytes)")
    word, _ = await images.receive(file, transit.images.free_bytes, PIECE_S)
    state, data, _ = await file.next(PIECE_S)
    seal, _, digest = await file.next(PIECE_S)
    if not isinstance(word, ImagesSent) or not isinstance(state, State) or not isinstance(seal, Seal):
        raise ImagesDamaged("it is damaged (its records are in disorder)")
    identity, config = transit.standing.identity, Path(transit.settings.config_dir)
    await trio.to_thread.run_sync(check_seal, seal, digest, identity, config)
    await file.finish(PIECE_S)
    return data


async def _check(images: Images, head: Head, right: Birthright) -> None:
    """Raises RemoteFailure, CheckpointError."""
    if not await trio.to_thread.run_sync(are_only, images.path, head.uid, head.gid, right.groups):
        raise RemoteFailure(errno.EPERM, "its processes have rights that you have not")
    await trio.to_thread.run_sync(forget_sizes, images.path)


async def _held_back(body: Body, traits: Traits, right: Birthright) -> None:
    """The tree is there, and does not run.  Raises RemoteFailure where it has what its user may not have."""
    pids = tuple((await body.all_pids()).values())
    await reach_checked(body, traits)
    await trio.to_thread.run_sync(hold_to, right, pids)


# ---------------------------------------------------------------- other nodes


def _still_there(node: int, transit: Transit) -> RemoteFailure:
    timeout_s = transit.settings.guest_timeout_s
    return RemoteFailure(
        errno.EBUSY,
        f"its program still runs on node {node}, which ends it when its home was silent for {timeout_s:.0f} s",
    )


async def _ask_for(node: int, guest: str, transit: Transit, found: dict[int, bool | None]) -> None:
    """None: it does not answer."""
    found[node] = None
    try:
        line = await dial_line(transit.standing, transit.settings, node, CONNECT_S)
        try:
            await line.send(IsHere(guest), deadline_s=SILENCE_S)
            word, _ = await line.receive(SILENCE_S)
            if isinstance(word, Located):
                found[node] = word.node != NOBODY
        finally:
            line.close()
    except (OmfsError, OSError, WireError):
        return


async def say_whether_here(line: Line, asked: IsHere, guests: Guests, here: int) -> None:
    """Another node wants to restart it."""
    guest = guests.get(asked.guest)
    answer = gone(0) if guest is None else Located(0, guest.epoch, here, True)
    await line.send(answer, deadline_s=SILENCE_S)


def _named(nodes: Sequence[int]) -> str:
    if len(nodes) == 1:
        return f"node {nodes[0]} does"
    return f"nodes {', '.join(map(str, nodes[:-1]))} and {nodes[-1]} do"
