"""A checkpoint of a guest: it is dumped where it runs, goes on at once, and what it was becomes a file of its user.

The program stands still only while CRIU writes into memory; then CRIU is told that the dump has failed, which lets the
tree go on as if nothing had happened, and the images go out while it runs.  The file itself is not written here: its
bytes go to mosrun, which writes as the user that it is, so no path of a user's is ever opened by root.

Nothing goes out that its user could not have read: a process of the guest with other rights, or one that hides its
memory from its user, makes it fail.  So do a file lock, which another would have by then, and an open file that has
lost its name but has others, of which CRIU keeps only a link that ends with the dump.

`save` runs where the guest does; `Saving` is home's, for mosrun.  Called by door.py and guesthouse.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import trio

from mignode.checkpoint import Criu
from mignode.criuimages import as_number, fields_of, messages_of
from mignode.deputies import Deputies, Deputy
from mignode.deputystream import DeputyStream
from mignode.deputywords import ImageBytes as BytesForMosrun, ImageTaken as TakenForMosrun, TakeImage as AskedByMosrun
from mignode.dirpositions import make_portable
from mignode.guest import Guest, tree_of
from mignode.guestlocks import are_held
from mignode.guests import Guests
from mignode.imagefile import Head, Record, Writer
from mignode.images import Images, error_unwrapped
from mignode.journey import Journey, State as JourneyState
from mignode.lasting import check_mobile
from mignode.leaving import quietly_unbarred
from mignode.line import ALIVE_INTERVAL_S, Line, dial_line
from mignode.memorysize import memory_bytes
from mignode.migrate import reasons_of
from mignode.processor import pack, read_processor
from mignode.reasons import Kind, told
from mignode.rights import are_only
from mignode.seal import sealed
from mignode.tcpstreams import fit_together
from mignode.traits import deputy_in
from mignode.transit import CONNECT_S, DUMP_S, FILES_S, REASON_MAX, SILENCE_S, Transit, expect, within
from mignode.unkept import note as note_unkept
from mignode.words import Declined, ImageBytes, ImageTaken, State, StillHere, TakeImage, Word
from omfs.config import SOFTWARE
from omfs.errors import BodyLost, HandoverRefused, NodeDown, OmfsError, RemoteFailure, WireError
from omfs.kernel.processes import identify, read_file
from omfs.net.frames import Buffer

PIECE_S: Final = 60.0  # until mosrun has written some MiB: to a slow disk, perhaps of another node
_LOOK_S: Final = 10.0
_SHOWN_BYTES: Final = 4096  # of a command line
_NAMELESS_IMAGE: Final = "remap-fpath.img"
_REMAP_KIND: Final = 3  # number of a field of RemapFilePathEntry (CRIU 4.2, remap-file-path.proto)
_LINKED: Final = 0  # its value: by a link in the file system

Sink = Callable[[Buffer], Awaitable[None]]
"""Takes the next bytes of the file; returns when there is room for more."""


class _File:
    """The file as images.Outlet; each piece in it has its own sum."""

    is_authenticated = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._writer = Writer()

    async def send(self, word: Record, bulk: Buffer = b"", *, deadline_s: float) -> None:
        try:
            with trio.fail_after(deadline_s):
                await self._sink(self._writer.head_of(word, len(bulk)))
                if bulk:
                    await trio.to_thread.run_sync(self._writer.passed, bulk)
                    await self._sink(bulk)
        except trio.TooSlowError:
            raise TimeoutError(errno.ETIMEDOUT, f"nobody took the image for {deadline_s:g} s") from None

    @property
    def digest(self) -> bytes:
        return self._writer.digest()


class _Dumped(NamedTuple):
    state: bytes
    frozen_s: float


async def save(guest: Guest, every_s: int, transit: Transit, sink: Sink) -> float:
    """The guest runs here.  How long it stood still.  Raises OmfsError, OSError: it runs on, and the file is none.

    RemoteFailure(EAGAIN): it is on its way to another node, or was just now.
    """
    await guest.wait_settled()
    try:
        return await _saved(guest, every_s, transit, sink)
    except (HandoverRefused, ProcessLookupError, BodyLost):
        raise RemoteFailure(errno.EAGAIN, "it was on its way to another node, or has ended") from None


async def _saved(guest: Guest, every_s: int, transit: Transit, sink: Sink) -> float:
    with within(_LOOK_S, "the process could not be looked at"):
        if found := await reasons_of(guest):
            raise RemoteFailure(errno.EROFS, told(found))
    pids = await guest.body.all_pids()
    head = await trio.to_thread.run_sync(_head_of, guest, pids, every_s, transit)
    if not transit.images.room_for(head.memory_bytes):
        raise RemoteFailure(errno.ENOMEM, f"no room for {head.memory_bytes >> 20} MiB of images (images_max_bytes)")
    images = transit.images.make(f"{guest.name}.image")
    try:
        file = _File(sink)
        await file.send(head, deadline_s=PIECE_S)
        dumped = await _dump_and_send(guest, images, transit, file)
        await file.send(State(), dumped.state, deadline_s=PIECE_S)
        seal = sealed(file.digest, transit.standing.identity, Path(transit.settings.config_dir))
        await file.send(seal, deadline_s=PIECE_S)
    finally:
        images.discard()
    return dumped.frozen_s


def _head_of(guest: Guest, pids: Mapping[int, int], every_s: int, transit: Transit) -> Head:
    """For worker threads.  Raises RemoteFailure, ProcessLookupError."""
    traits = guest.traits
    try:
        root = pids[guest.body.root]
        hiding = [inner for inner, outer in pids.items() if os.stat(f"/proc/{outer}").st_uid != traits.uid]
        command = read_file(f"/proc/{root}/cmdline")[:_SHOWN_BYTES]
    except (KeyError, FileNotFoundError, ProcessLookupError):
        raise RemoteFailure(errno.EAGAIN, "its processes come and go") from None
    if hiding:
        raise RemoteFailure(errno.EPERM, f"process {hiding[0]} of it hides its memory from its user")
    return Head(
        guest=traits.name, home=traits.home, node=transit.here, cluster=transit.standing.identity.cluster,
        software=SOFTWARE, processor=pack(read_processor()), uid=traits.uid, gid=traits.gid, groups=traits.groups,
        root=traits.root, arguments=tuple(command.rstrip(b"\0").split(b"\0")), taken_s=int(time.time()),
        every_s=every_s, processes=len(pids), memory_bytes=memory_bytes(pids.values()), plan=traits.plan,
    )  # fmt: skip


async def _dump_and_send(guest: Guest, images: Images, transit: Transit, file: _File) -> _Dumped:
    """Its memory goes out while CRIU writes it, the rest when it runs again and all was found good."""
    is_good = trio.Event()
    async with error_unwrapped(), trio.open_nursery() as nursery:
        nursery.start_soon(_send, images, file, is_good)
        dumped = await _dump(guest, images, transit)
        await trio.to_thread.run_sync(_check, guest, images)
        is_good.set()
    return dumped


async def _send(images: Images, file: _File, is_good: trio.Event) -> None:
    await images.send(file, is_good, PIECE_S)


async def _dump(guest: Guest, images: Images, transit: Transit) -> _Dumped:
    criu = Criu(transit.criu, guest.body.starting(guest.traits.uid, guest.traits.gid))
    tree = tree_of(await guest.body.external_files())
    with guest.saving():
        since_s = trio.current_time()
        async with criu.dump(guest.body.root, images.fd, tree, DUMP_S):
            try:
                transit.faults.at("saving")
                check_mobile(guest.rooted)
                pids = tuple((await guest.body.all_pids()).values())
                if await are_held(transit.mount, pids, images.path):
                    raise RemoteFailure(errno.EROFS, Kind.LOCK.value)
                with trio.CancelScope(shield=True), within(FILES_S, "its standard files could not be frozen"):
                    state = await guest.body.freeze_files()
                await trio.to_thread.run_sync(fit_together, images.path, pids)
                await trio.to_thread.run_sync(make_portable, images.path, pids)
                await trio.to_thread.run_sync(note_unkept, images.path, pids)
            finally:
                await quietly_unbarred(guest)
        return _Dumped(state, trio.current_time() - since_s)


def _check(guest: Guest, images: Images) -> None:
    """For worker threads.  Raises RemoteFailure."""
    traits = guest.traits
    if not are_only(images.path, traits.uid, traits.gid, traits.groups):
        raise RemoteFailure(errno.EPERM, "a process of it has other rights than its user")
    with contextlib.suppress(FileNotFoundError):
        if has_linked((images.path / _NAMELESS_IMAGE).read_bytes()):
            raise RemoteFailure(errno.EROFS, "an open file of it was removed, and has another name still")


def has_linked(image: bytes) -> bool:
    """Whether one of its open files without a name has others.  Pure.  Raises WireError."""
    for message in messages_of(image):
        kinds = [as_number(field.value) for field in fields_of(message) if field.number == _REMAP_KIND]
        if kinds in ([], [_LINKED]):
            return True
    return False


# ---------------------------------------------------------------- asked by its home


async def save_for_home(line: Line, asked: TakeImage, guests: Guests, transit: Transit) -> None:
    """The guest's home wants it, on a line of its own."""

    async def sink(data: Buffer) -> None:
        await line.send(ImageBytes(), data, deadline_s=PIECE_S)

    guest = guests.get(asked.guest)
    answer: ImageTaken | Declined
    async with error_unwrapped(), trio.open_nursery() as nursery:
        nursery.start_soon(_keep_alive, line)
        try:
            if guest is None or guest.traits.home != line.node_id:
                raise RemoteFailure(errno.EAGAIN, "it does not run here")
            answer = ImageTaken(await save(guest, asked.every_s, transit, sink))
        except (OmfsError, OSError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            answer = Declined(error.errno or errno.EIO, (text or type(error).__name__)[:REASON_MAX])
        await line.send(answer, deadline_s=PIECE_S)
        nursery.cancel_scope.cancel()


async def _keep_alive(line: Line) -> None:
    """More patient than the line's own: what is sent waits as long as mosrun writes."""
    while True:
        await trio.sleep(ALIVE_INTERVAL_S)
        await line.send(StillHere(), deadline_s=PIECE_S)


# ---------------------------------------------------------------- its home


class Saving:
    """For the guests that are at home here.  *transit*: raises ConfigError where this machine has no CRIU."""

    def __init__(
        self, guests: Guests, deputies: Deputies, transit: Callable[[], Transit],
        report: Callable[[Deputy, Journey], None],
    ) -> None:  # fmt: skip
        self._guests = guests
        self._deputies = deputies
        self._transit = transit
        self._report = report

    async def take(self, stream: DeputyStream, asked: AskedByMosrun) -> None:
        """mosrun gets the bytes, and nobody else: not even its user's other programs may look into a guest so.

        Raises OmfsError, OSError.
        """

        async def sink(data: Buffer) -> None:
            await stream.tell(BytesForMosrun(bytes(data)))

        deputy = self._deputies.get(asked.guest)
        if deputy is None:
            raise ProcessLookupError(errno.ESRCH, "its program has ended")
        process = await trio.to_thread.run_sync(identify, stream.pid)
        if process != deputy_in(deputy.traits.name) or stream.uid != deputy.traits.uid:
            raise PermissionError(errno.EPERM, "that is another process's program")
        try:
            frozen_s = await self._taken(deputy, asked.every_s, sink)
        except (OmfsError, OSError) as error:
            self.failed(deputy, str(error))
            raise
        await stream.tell(TakenForMosrun(frozen_s))

    def failed(self, deputy: Deputy, reason: str) -> None:
        """Also where mosrun could not write it: said in the journey."""
        node = deputy.way.node_id if deputy.way is not None else deputy.traits.home
        self._report(deputy, Journey(node, node, JourneyState.STAYED, reason=f"no checkpoint: {reason}"))

    async def _taken(self, deputy: Deputy, every_s: int, sink: Sink) -> float:
        transit = self._transit()
        if not await deputy.wait_way() or deputy.way is None:
            raise NodeDown("the node where it runs does not answer")
        guest = self._guests.get(deputy.traits.name)
        if guest is not None and deputy.way.node_id == transit.here:
            return await save(guest, every_s, transit, sink)
        line = await dial_line(transit.standing, transit.settings, deputy.way.node_id, CONNECT_S)
        try:
            await line.send(TakeImage(deputy.traits.name, every_s), deadline_s=SILENCE_S)
            while isinstance((heard := await line.receive(SILENCE_S))[0], ImageBytes):
                await sink(heard[1])
            return _taken_in(line, heard[0])
        except (OSError, WireError) as error:
            raise NodeDown(f"node {line.node_id}: {error}") from None
        finally:
            line.close()


def _taken_in(line: Line, word: Word) -> float:
    if isinstance(word, Declined):  # with its errno: EAGAIN is tried again
        raise RemoteFailure(word.errno, word.reason)
    return expect(line, word, ImageTaken).frozen_s
