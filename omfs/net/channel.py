"""One connection that speaks frames, the same for both ends.

`send` may be called by any task: it sends straight from there (no writer task, no queue: that is what makes a round
trip cheap) and waits only for its turn or for the socket.  `receive` belongs to one reader task.  Requests and
replies may go both ways.  What it does not do: match replies to requests, reconnect, decide.

Invariants: frames are never interleaved; a frame that was begun is finished or the connection is closed; after close()
every send and receive raises an OSError.  Called by net/peer.py, net/server.py and mignode/line.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Final, TypeAlias

import trio

from omfs import wire
from omfs.config import BULK_LANE_FROM_BYTES, BULK_MAX_BYTES, META_MAX_BYTES
from omfs.net.frames import REPLY_BIT, Buffer, Decode, Frame, FrameReader, encode
from omfs.net.sockets import RECORDS_MAX_BYTES
from omfs.net.transport import FileSlice, Transport

Bulk: TypeAlias = Buffer | FileSlice

JOINED_MAX_BYTES: Final = 15 << 10  # up to here bulk data are copied behind the head: one send, one TLS record
TURN_BYTES: Final = 512 << 10  # so much may be moved before other tasks get their turn (about half a millisecond)
STRANGER_META_MAX_BYTES: Final = 4 << 10  # before Hello was accepted: a Hello has about 200
_ZEROS: Final = bytes(64 << 10)


class Channel:
    """Frames over a transport.  *bytes_in*, *bytes_out*: totals.  *at_holder*: this end is the holder's.

    *decode*: for other messages than the file system's.
    """

    def __init__(self, transport: Transport, *, at_holder: bool = False, decode: Decode | None = None) -> None:
        self.name = transport.name
        self.transport = transport
        self.bytes_in = 0
        self.bytes_out = 0
        self._heard_s = trio.current_time()
        self._has_heard = False  # since _heard_s
        self.closed_because = ""
        self.comes_soon: Callable[[int], bool] | None = None
        """Waits a moment, blocking the process: whether this descriptor has the next frame (net/server.py)."""
        self._reader = FrameReader(STRANGER_META_MAX_BYTES, 0, at_holder=at_holder, decode=decode)
        self._drained = True  # nothing is known to wait in the transport
        self._busy = False  # a task owns the sending side
        self._turn = trio.lowlevel.ParkingLot()

    @property
    def heard_s(self) -> float:
        """Trio time by which the last byte had come; looked at every second or so, as a clock per frame costs time."""
        if self._has_heard:
            self._has_heard = False
            self._heard_s = trio.current_time()
        return self._heard_s

    def assume_heard(self) -> None:
        """Measure silence anew: it was this process that did not run."""
        self._has_heard = True

    def admit(self, lane: wire.Lane) -> None:
        """The other side is known now: allow frames of full size for this lane."""
        self._reader.meta_max = META_MAX_BYTES
        self._reader.bulk_max = BULK_MAX_BYTES if lane is wire.Lane.BULK else BULK_LANE_FROM_BYTES

    def close(self, reason: str) -> None:
        """Close at once; *reason* goes to whoever still sends or receives.  Only the first reason counts."""
        if not self.closed_because:
            self.closed_because = reason
            self.transport.close()
            self._turn.unpark_all()

    # ------------------------------------------------------------ receiving

    async def receive(self) -> list[Frame]:
        """The next frames, at least one.  Raises OSError when the connection is lost, WireError for garbage."""
        reader = self._reader
        transport = self.transport
        moved = 0
        while True:
            if self._drained and not (self.comes_soon is not None and self.comes_soon(transport.fileno())):
                await transport.wait_readable()
            buffer = reader.buffer()
            size_bytes = transport.receive_now(buffer, reader.in_bulk)
            if not size_bytes:
                self._drained = True
                continue
            self.bytes_in += size_bytes
            self._has_heard = True
            frames = reader.received(size_bytes)
            # Inside bulk data the next piece is probably there; otherwise asking again would mostly be in vain.
            self._drained = not reader.in_bulk and size_bytes < min(len(buffer), RECORDS_MAX_BYTES)
            if frames:
                return frames
            moved += size_bytes
            if moved >= TURN_BYTES:
                moved = 0
                await trio.lowlevel.checkpoint()

    def receive_now(self) -> list[Frame]:
        """The frames that are there, maybe none, without waiting; for a task other than the reader.

        Takes all that has arrived, so that nothing decrypted is left behind for which no socket would wake the
        reader.  Raises as `receive`.
        """
        frames: list[Frame] = []
        while True:
            buffer = self._reader.buffer()
            size_bytes = self.transport.receive_now(buffer, self._reader.in_bulk)
            if not size_bytes:
                break
            self.bytes_in += size_bytes
            self._has_heard = True
            frames += self._reader.received(size_bytes)
            if not self._reader.in_bulk and size_bytes < min(len(buffer), RECORDS_MAX_BYTES):
                break
        self._drained = True
        return frames

    # ------------------------------------------------------------ sending

    def send_at_once(self, frame_id: int, message: wire.Message, bulk: Buffer = b"") -> bool:
        """Send a small frame if nothing must be waited for: without a task switch, the usual case.

        False: nothing was sent.  Raises OSError when the connection is lost, WireError when it is too large.
        """
        if self._busy or self.closed_because or len(bulk) > JOINED_MAX_BYTES:
            return False
        head = encode(frame_id, message, len(bulk))
        if bulk:
            head += bulk
        try:
            sent = self.transport.send_now(head)
        except OSError as error:
            self.close(str(error))
            raise
        self.bytes_out += len(head)
        if sent < len(head):  # the rest follows in a task of its own, before anything else
            self._busy = True
            trio.lowlevel.spawn_system_task(self._finish_aside, head, sent)
        return True

    async def _finish_aside(self, head: bytearray, sent: int) -> None:
        with contextlib.suppress(OSError):  # whoever receives on this connection notices too
            await self._finish(head, sent, b"")

    async def request(self, request_id: int, request: wire.Message, bulk: Bulk = b"") -> None:
        """Send a request.  Raises OSError when the connection is lost, WireError when it is too large."""
        await self._send(request_id, request, bulk)

    async def reply(self, request_id: int, reply: wire.Message, bulk: Bulk = b"") -> None:
        """Send the reply to *request_id*.  Raises as `request`."""
        await self._send(request_id | REPLY_BIT, reply, bulk)

    async def _send(self, frame_id: int, message: wire.Message, bulk: Bulk) -> None:
        if isinstance(bulk, FileSlice) and not self.transport.can_sendfile:
            bulk = os.pread(bulk.fd, bulk.size_bytes, bulk.offset)
        if isinstance(bulk, FileSlice) or not self.send_at_once(frame_id, message, bulk):
            head = encode(frame_id, message, len(bulk))
            if not isinstance(bulk, FileSlice) and len(bulk) <= JOINED_MAX_BYTES:
                head, bulk = head + bulk, b""
            await self._send_in_turn(head, bulk)

    async def _send_in_turn(self, head: bytearray, bulk: Bulk) -> None:
        kept = -1
        if isinstance(bulk, FileSlice):
            # While we wait a CloseFile may close the descriptor, and its number may then mean another file.
            kept = os.dup(bulk.fd)
            bulk = FileSlice(kept, bulk.offset, bulk.size_bytes)
        try:
            if self._busy and not self.closed_because:
                await self._turn.park()  # returns owning the sending side, or after close()
            if self.closed_because:
                raise ConnectionAbortedError(self.closed_because)
            self._busy = True
            self.bytes_out += len(head) + len(bulk)
            await self._finish(head, 0, bulk)
        finally:
            if kept >= 0:
                os.close(kept)

    async def _finish(self, head: bytearray, sent: int, bulk: Bulk) -> None:
        """Send the rest of a frame; we own the sending side and hand it on to the next in line."""
        try:
            if sent < len(head):
                await self._send_all(memoryview(head)[sent:], more=bool(bulk))
            if isinstance(bulk, FileSlice):
                await self._send_slice(bulk)
            elif bulk:
                await self._send_all(memoryview(bulk), more=False)
        except BaseException as error:
            self.close(str(error) or "cancelled in the middle of a frame")
            raise
        finally:
            if len(self._turn):
                self._turn.unpark()
            else:
                self._busy = False

    async def _send_all(self, data: memoryview, more: bool) -> None:
        transport = self.transport
        while data:
            sent = transport.send_now(data[:TURN_BYTES], more)
            if sent:
                data = data[sent:]
                if data and sent == TURN_BYTES:
                    await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                await transport.wait_writable()

    async def _send_slice(self, piece: FileSlice) -> None:
        offset, end = piece.offset, piece.offset + piece.size_bytes
        while offset < end:
            try:
                sent = self.transport.sendfile_now(piece.fd, offset, end - offset)
            except EOFError:
                # Truncated since its size was looked up: the frame's size is promised, and what a reader sees of
                # a file that is cut under it is undefined between old data, zeros and the end.
                await self._send_zeros(end - offset)
                return
            offset += sent
            if sent:
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                await self.transport.wait_writable()

    async def _send_zeros(self, size_bytes: int) -> None:
        while size_bytes > 0:
            piece = memoryview(_ZEROS)[:size_bytes]
            await self._send_all(piece, more=False)
            size_bytes -= len(piece)
