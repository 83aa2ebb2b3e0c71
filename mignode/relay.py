"""Streams of bytes between a program and who started it, over a way that breaks, loses and changes (pure).

A Relay is one end.  Each of its streams goes one way, and is ordered, acknowledged and limited by itself: who does not
read one holds up no other.  The two ends exchange frames, opaque to everybody between; a frame may be lost, but what
arrives was sent, and in order as long as the way is the same.

How no byte is lost or repeated:

* every byte of a stream has an offset, the stream's end one too; the receiver takes what follows what it has, trims
  what it has already, and leaves what comes too early;
* the sender keeps what is not acknowledged.  *Acknowledged* is what the other end's memory has, not what its reader has
  taken; that memory goes along (`state`) when the end moves to another node;
* whatever may have lost frames ends with `connected` at one end at least: it tells the other what it has and asks it
  for the same (_RESUME), and each sends from there.  Until it has heard that, it sends nothing else.

A receiver grants WINDOW_BYTES beyond what its reader has taken, and the sender puts no more in (`room`), so neither
memory grows; only what is drained from a program that is about to move may be more (`put` takes all, and sends what is
granted).

What it does not know: what the streams mean (filewords.py), descriptors, connections.  Nothing here waits.  Used by
bodyfiles.py and deputyfiles.py.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from omfs.errors import WireError

WINDOW_BYTES: Final = 256 << 10  # 1 GB/s where a round trip takes 0.25 ms; a pipe holds 64 KiB
PIECE_BYTES: Final = 32 << 10  # of data in one frame
FRAME_MAX_BYTES: Final = 64 << 10


_AT_END: Final = -1  # of _Out.sent: the end was acknowledged, the other side has everything


class Stream(enum.IntEnum):
    """The streams of a guest; the names are those of the program's view.  CONTROL exists in both directions."""

    CONTROL = 0
    INPUT = 1
    OUTPUT = 2
    ERRORS = 3
    TERMINAL = 4  # what is to be seen on its terminal


FROM_BODY: Final = (Stream.CONTROL, Stream.OUTPUT, Stream.ERRORS, Stream.TERMINAL)
TO_BODY: Final = (Stream.CONTROL, Stream.INPUT)

_DATA: Final = 1  # offset, data
_END: Final = 2  # offset
_HAVE: Final = 3  # what was received, and up to where more may come
_RESUME: Final = 4  # asks?, and a _HAVE of each stream that this end receives
_HEAD: Final = struct.Struct(">BBQ")
_LIMITS: Final = struct.Struct(">BBQQ")


class _Out(msgspec.Struct):
    """A stream that this end sends.  Offsets: acknowledged <= sent <= end, and the end itself counts as one more."""

    acknowledged: int = 0
    kept: bytearray = msgspec.field(default_factory=bytearray)  # from `acknowledged` on
    limit: int = WINDOW_BYTES
    is_ended: bool = False
    sent: int = 0

    @property
    def end(self) -> int:
        return self.acknowledged + len(self.kept)

    @property
    def is_settled(self) -> bool:
        return not self.kept and (not self.is_ended or self.sent == _AT_END)


class _In(msgspec.Struct):
    """A stream that this end receives: `kept` is what its reader has not taken."""

    taken: int = 0  # below zero: the first of it came from another end (begun_anew)
    kept: bytearray = msgspec.field(default_factory=bytearray)
    is_ended: bool = False
    told: int = 0  # received, as the other end knows
    told_limit: int = WINDOW_BYTES  # never less: what was granted, comes

    @property
    def received(self) -> int:
        """The end counts as one more."""
        return self.taken + len(self.kept) + self.is_ended

    @property
    def limit(self) -> int:
        return self.taken + WINDOW_BYTES


class _State(msgspec.Struct, forbid_unknown_fields=True):
    """What moves along with an end."""

    out: dict[int, _Out]
    into: dict[int, _In]


class Relay:
    """One end.  `frames` gives what is to be sent after anything else was called."""

    def __init__(self, out: Collection[Stream], into: Collection[Stream], state: bytes = b"") -> None:
        """*state*: of `state()` of the end that this one replaces.  Raises WireError if it is none."""
        self._is_attached = False
        self._is_open = False  # the other end has told what it has
        self._resumes = False
        self._asks = False
        self._out = {stream: _Out() for stream in out}
        self._in = {stream: _In() for stream in into}
        if state:
            self._take_over(state)

    # ------------------------------------------------------------ what is sent

    def room(self, stream: Stream) -> int:
        """How many bytes may be put now."""
        out = self._out[stream]
        return 0 if out.is_ended else max(0, out.limit - out.end)

    def put(self, stream: Stream, data: bytes) -> None:
        self._out[stream].kept += data

    def end(self, stream: Stream) -> None:
        """Nothing more comes; may be said again."""
        self._out[stream].is_ended = True

    def offset(self, stream: Stream) -> int:
        """How many bytes were put, ever."""
        return self._out[stream].end

    def is_ended(self, stream: Stream) -> bool:
        return self._out[stream].is_ended

    def is_settled(self) -> bool:
        """The other end has all that was put and ended."""
        return all(out.is_settled for out in self._out.values())

    # ------------------------------------------------------------ what is received

    def peek(self, stream: Stream, size: int = PIECE_BYTES) -> bytes:
        """What comes next, at most *size* bytes; b"" while nothing is there."""
        return bytes(self._in[stream].kept[:size])

    def took(self, stream: Stream, size: int) -> None:
        """The reader has the first *size* bytes."""
        into = self._in[stream]
        del into.kept[:size]
        into.taken += size

    def put_back(self, stream: Stream, data: bytes) -> None:
        """The reader did not want what it took last."""
        into = self._in[stream]
        into.kept[:0] = data
        into.taken -= len(data)

    def taken(self, stream: Stream) -> int:
        """How many bytes the reader has, ever."""
        return self._in[stream].taken

    def is_at_end(self, stream: Stream) -> bool:
        """The reader has everything, and nothing more comes."""
        into = self._in[stream]
        return into.is_ended and not into.kept

    # ------------------------------------------------------------ the way

    def connected(self) -> None:
        """There is a way to the other end, again or for the first time; also after frames were left unread."""
        self._is_attached = True
        self._is_open = False
        self._resumes = self._asks = True

    def disconnected(self) -> None:
        self._is_attached = self._is_open = self._resumes = self._asks = False

    def received(self, frame: bytes) -> None:
        """Raises WireError where the other end broke the rules; nothing of the frame counts then."""
        if not self._is_attached:
            return
        try:
            kind = frame[0]
            if kind == _RESUME:
                self._resume(bool(frame[1]), list(_LIMITS.iter_unpack(frame[2:])))
            elif kind == _HAVE:
                self._have([_LIMITS.unpack(frame)])
            elif kind in (_DATA, _END):
                _, stream, offset = _HEAD.unpack_from(frame)
                self._arrived(self._in[Stream(stream)], offset, frame[_HEAD.size :], kind == _END)
            else:
                raise ValueError(f"unknown kind {kind}")
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise WireError(f"bad frame of a guest's standard files: {error}") from None

    def frames(self) -> Iterator[bytes]:
        """What is to be sent now, in order; each counts as sent."""
        if self._resumes:
            frame = bytes((_RESUME, self._asks)) + b"".join(map(self._telling, self._in))
            self._resumes = self._asks = False
            yield frame
        if self._is_open:
            for stream in self._in:
                if self._is_news(stream):
                    yield self._telling(stream)
            for stream, out in self._out.items():
                yield from _pieces(stream, out)

    def state(self) -> bytes:
        """Of this end, for the one that replaces it."""
        return msgspec.msgpack.encode(
            _State(
                {int(key): out for key, out in self._out.items()}, {int(key): into for key, into in self._in.items()}
            )
        )

    # ------------------------------------------------------------ inside

    def _telling(self, stream: Stream) -> bytes:
        into = self._in[stream]
        into.told, into.told_limit = into.received, max(into.told_limit, into.limit)
        return _LIMITS.pack(_HAVE, stream, into.told, into.told_limit)

    def _is_news(self, stream: Stream) -> bool:
        """Worth a frame: the sender may soon wait for it, or wants to know whether it is done."""
        into = self._in[stream]
        if into.is_ended or stream is Stream.CONTROL:
            return into.told != into.received
        return into.received - into.told >= WINDOW_BYTES // 4 or into.limit - into.told_limit >= WINDOW_BYTES // 4

    def _resume(self, asks: bool, limits: list[tuple[int, int, int, int]]) -> None:
        self._have(limits)
        for out in self._out.values():
            if out.sent != _AT_END:
                out.sent = out.acknowledged
        self._is_open = True
        self._resumes |= asks

    def _have(self, limits: list[tuple[int, int, int, int]]) -> None:
        found = []
        for kind, stream, received, limit in limits:
            out = self._out[Stream(stream)]
            if kind != _HAVE or received > out.end + out.is_ended:
                raise ValueError("more was received than was sent")
            found.append((out, received, limit))
        for out, received, limit in found:
            if received > out.end:
                out.sent = _AT_END
                received = out.end
            if received > out.acknowledged:  # an older one may come later, over a way that is gone
                del out.kept[: received - out.acknowledged]
                out.acknowledged = received
            if out.sent != _AT_END:
                out.sent = max(out.sent, out.acknowledged)
            out.limit = max(out.limit, limit)

    def _arrived(self, into: _In, offset: int, data: bytes, is_end: bool) -> None:
        until = offset + len(data) + is_end
        if offset > into.received or until <= into.received:
            return  # after a gap, or known
        if into.is_ended or (is_end and data) or offset + len(data) > into.told_limit:
            raise ValueError("more came than was granted")
        into.kept += data[into.received - offset :]
        into.is_ended = is_end

    def _take_over(self, state: bytes) -> None:
        try:
            found = msgspec.msgpack.decode(state, type=_State)
            if found.out.keys() != self._out.keys() or found.into.keys() != self._in.keys():
                raise ValueError("other streams")
        except (msgspec.DecodeError, ValueError) as error:
            raise WireError(f"bad state of a guest's standard files: {error}") from None
        self._out = {Stream(key): out for key, out in found.out.items()}
        self._in = {Stream(key): into for key, into in found.into.items()}


def begun_anew(state: bytes, control: bytes = b"") -> tuple[bytes, bool]:
    """*state* for another end that knows nothing of the one before: it is sent all that was not acknowledged.

    Control words were for the one before, and are left out, but for *control*.  What was received and not read comes
    before what the new end sends.  False: the input has ended, and the new end must end it, too.  Raises WireError.
    """
    try:
        found = msgspec.msgpack.decode(state, type=_State)
    except msgspec.DecodeError as error:
        raise WireError(f"bad state of a guest's standard files: {error}") from None
    control_out = _Out(kept=bytearray(control))
    out = {key: _Out(kept=out.kept, is_ended=out.is_ended) for key, out in found.out.items()}
    into = {key: _In(-len(into.kept), into.kept, into.is_ended) for key, into in found.into.items()}
    out[int(Stream.CONTROL)], into[int(Stream.CONTROL)] = control_out, _In()
    has_input = not into[int(Stream.INPUT)].is_ended
    return msgspec.msgpack.encode(_State(out, into)), has_input


def _pieces(stream: Stream, out: _Out) -> Iterator[bytes]:
    """What may be sent of a stream."""
    if out.sent == _AT_END:
        return
    while out.sent < (until := min(out.end, out.limit)):
        begin = out.sent - out.acknowledged
        data = out.kept[begin : min(begin + PIECE_BYTES, until - out.acknowledged)]
        yield _HEAD.pack(_DATA, stream, out.sent) + data
        out.sent += len(data)
    if out.is_ended and out.sent == out.end:
        yield _HEAD.pack(_END, stream, out.end)
        out.sent += 1  # once; what follows is the acknowledgement
