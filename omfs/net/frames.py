"""The frame codec: bytes to messages and back, with no I/O.

A frame is a 16-byte little-endian header (meta_bytes u32, bulk_bytes u32, id u64), the message as msgpack, and
bulk data as they are.  Bit 63 of the id marks a reply to the request with the id in the lower bits.  Each side
numbers its own requests, so both may ask on the same connection.

`FrameReader` is fed by whoever owns the connection: receive into `buffer()`, then tell `received(n)`.  Invariants:
nothing is allocated for a frame before its header passed the limits; bulk data of any size land in a bytearray of
their own, which then belongs to the consumer; after a WireError the reader is dead and the connection must be closed.
Called by net/channel.py only; mignode/line.py brings messages of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from omfs import wire
from omfs.config import BULK_MAX_BYTES, META_MAX_BYTES
from omfs.errors import WireError

Buffer: TypeAlias = bytes | bytearray | memoryview
Frame: TypeAlias = tuple[int, wire.Message, Buffer]
"""(id with REPLY_BIT, message, bulk data)."""
Decode: TypeAlias = Callable[[memoryview], wire.Message]

HEADER: Final = struct.Struct("<IIQ")
HEADER_BYTES: Final = HEADER.size
REPLY_BIT: Final = 1 << 63
BUFFER_BYTES: Final = 64 << 10  # many pipelined small requests, or four TLS records, in one receive

_TLS_HANDSHAKE: Final = b"\x16\x03"  # how a TLS client begins: worth a hint in the log

_encoder = msgspec.msgpack.Encoder()
_decode_request = msgspec.msgpack.Decoder(wire.Request).decode
_decode_recall = msgspec.msgpack.Decoder(wire.Recall).decode
_decode_reply = msgspec.msgpack.Decoder(wire.Reply).decode
_EMPTY_HEADER: Final = bytes(HEADER_BYTES)


def encode(frame_id: int, message: wire.Message, bulk_bytes: int = 0) -> bytearray:
    """Header and message of a frame; the caller sends *bulk_bytes* of bulk data right behind it.

    Raises WireError for what no reader would accept.
    """
    head = bytearray(_EMPTY_HEADER)
    _encoder.encode_into(message, head, HEADER_BYTES)
    meta_bytes = len(head) - HEADER_BYTES
    if meta_bytes > META_MAX_BYTES or bulk_bytes > BULK_MAX_BYTES:
        raise WireError(f"{type(message).__name__} is too large to send: {meta_bytes} bytes and {bulk_bytes} of bulk")
    HEADER.pack_into(head, 0, meta_bytes, bulk_bytes, frame_id)
    return head


class FrameReader:
    """Turns received bytes into frames.

    *meta_max* and *bulk_max* (bytes) may be changed between frames: a stranger gets less than an authenticated node.
    *at_holder*: the only requests that come are the owner's recalls; without it, everything but those.  *decode*: what
    comes is not the file system's at all.
    """

    def __init__(
        self,
        meta_max: int = META_MAX_BYTES,
        bulk_max: int = BULK_MAX_BYTES,
        *,
        at_holder: bool = False,
        decode: Decode | None = None,
    ) -> None:
        self.meta_max = meta_max
        self.bulk_max = bulk_max
        self._decode_request: Decode = decode or (_decode_recall if at_holder else _decode_request)
        self._view = memoryview(bytearray(BUFFER_BYTES))
        self._start = 0  # [start, end) of _view is received and not yet consumed
        self._end = 0
        self._bulk: bytearray | None = None  # of the frame that is just being received
        self._bulk_view = memoryview(b"")  # what is still to be received of it
        self._bulk_id = 0
        self._bulk_message: wire.Message | None = None

    @property
    def in_bulk(self) -> bool:
        """More bulk data of a begun frame are to come."""
        return self._bulk is not None

    def buffer(self) -> memoryview:
        """Where to receive next; never empty."""
        if self._bulk is not None:
            return self._bulk_view
        return self._view[self._end :] if self._end else self._view

    def received(self, size_bytes: int) -> list[Frame]:
        """*size_bytes* were put into buffer(): the frames that are complete now, in order.

        Raises WireError for anything that is not our protocol or over the limits.
        """
        frames: list[Frame] = []
        if self._bulk is not None:
            self._bulk_view = self._bulk_view[size_bytes:]
            if not self._bulk_view:
                self._finish_bulk(frames)
            return frames
        self._end += size_bytes
        while self._end - self._start >= HEADER_BYTES and self._take(frames):
            pass
        self._make_room()
        return frames

    def _take(self, frames: list[Frame]) -> bool:
        """Consume one frame (or its beginning, up to the bulk data), whose header is there; False: the rest is not."""
        start = self._start
        meta_bytes, bulk_bytes, frame_id = HEADER.unpack_from(self._view, start)
        if meta_bytes > self.meta_max or bulk_bytes > self.bulk_max or not meta_bytes:
            raise WireError(self._refusal(meta_bytes, bulk_bytes))
        bulk_start = start + HEADER_BYTES + meta_bytes
        if bulk_start > self._end:
            return False
        message = self._decode(frame_id, self._view[start + HEADER_BYTES : bulk_start])
        if not bulk_bytes:
            self._start = bulk_start
            frames.append((frame_id, message, b""))
            return True
        bulk = bytearray(bulk_bytes)
        here = min(bulk_bytes, self._end - bulk_start)
        bulk[:here] = self._view[bulk_start : bulk_start + here]
        self._start = bulk_start + here
        self._bulk, self._bulk_id, self._bulk_message = bulk, frame_id, message
        self._bulk_view = memoryview(bulk)[here:]
        if here < bulk_bytes:
            return False
        self._finish_bulk(frames)
        return True

    def _finish_bulk(self, frames: list[Frame]) -> None:
        assert self._bulk is not None
        assert self._bulk_message is not None
        self._bulk_view.release()
        frames.append((self._bulk_id, self._bulk_message, self._bulk))
        self._bulk = self._bulk_message = None

    def _make_room(self) -> None:
        """Move an incomplete frame to the front; a message larger than the buffer gets a buffer of its own."""
        start, end = self._start, self._end
        left = end - start
        if not left:
            self._start = self._end = 0
            if len(self._view) > BUFFER_BYTES:
                self._view = memoryview(bytearray(BUFFER_BYTES))
            return
        needed = BUFFER_BYTES
        if left >= HEADER_BYTES:
            needed = max(needed, HEADER_BYTES + HEADER.unpack_from(self._view, start)[0])
        if needed > len(self._view):
            larger = memoryview(bytearray(needed))
            larger[:left] = self._view[start:end]
            self._view = larger
        elif start:
            self._view[:left] = bytes(self._view[start:end])
        self._start, self._end = 0, left

    def _refusal(self, meta_bytes: int, bulk_bytes: int) -> str:
        begin = bytes(self._view[self._start : self._start + 2])
        hint = ": it looks like TLS, so its sec= differs from ours" if begin == _TLS_HANDSHAKE else ""
        return f"refused a frame of {meta_bytes} bytes with {bulk_bytes} bytes of bulk data{hint}"

    def _decode(self, frame_id: int, meta: memoryview) -> wire.Message:
        try:
            message: wire.Message = _decode_reply(meta) if frame_id & REPLY_BIT else self._decode_request(meta)
            return message
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
            kind = "reply" if frame_id & REPLY_BIT else "request"
            raise WireError(f"refused a {kind} that is not one of ours: {error}") from None
