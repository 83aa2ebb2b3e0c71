"""What was written to one open file and is not at its owner yet: the requests that will carry it, and their order.

Writes that touch are joined into requests of up to PIECE_BYTES, appends likewise, each whole in one of them.  The owner
executes requests in any order, so two that depend on each other are never under way together: writes that overlap,
and an append with anything.  What drops set-id bits is not joined with what does not.
Pure: bytes in, pieces out.  Called by writebehind.py only.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, TypeAlias

PIECE_BYTES: Final = 1 << 20
_JOINED_BACK: Final = (
    8  # so many of the newest pieces are tried: interleaved streams are joined, random ones stay cheap
)

Data: TypeAlias = bytes | bytearray | memoryview


class Piece:
    """One request to be.  *offset* None: at the end of the file, wherever that is.  *is_lost*: nobody wants it."""

    __slots__ = ("data", "is_lost", "kill_set_id", "number", "offset")

    def __init__(self, number: int, offset: int | None, data: Data, kill_set_id: bool) -> None:
        self.number = number
        self.offset = offset
        self.data = bytearray(data)  # a copy: the kernel's request is gone once it is answered
        self.kill_set_id = kill_set_id
        self.is_lost = False

    def meets(self, offset: int | None, size_bytes: int) -> bool:
        """Whether the outcome depends on which of the two is executed first."""
        if self.offset is None or offset is None:
            return True
        return offset < self.offset + len(self.data) and self.offset < offset + size_bytes

    def join(self, offset: int | None, data: Data, kill_set_id: bool) -> bool:
        """Take this newer write in; False if that can't be."""
        if kill_set_id is not self.kill_set_id or (offset is None) is not (self.offset is None):
            return False
        start = len(self.data) if offset is None or self.offset is None else offset - self.offset
        end = start + len(data)
        if not 0 <= start <= len(self.data) or end > PIECE_BYTES:
            return False
        self.data[start:end] = data
        return True


class Dirty:
    """*size_bytes*: of all that waits or is being sent."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._waiting: deque[Piece] = deque()  # in the order of their numbers
        self._sending: list[Piece] = []
        self._last = 0

    @property
    def waiting(self) -> int:
        """Pieces that are not taken."""
        return len(self._waiting)

    @property
    def sending(self) -> int:
        return len(self._sending)

    @property
    def is_ready(self) -> bool:
        """The next piece will hardly grow any more."""
        waiting = self._waiting
        return len(waiting) > 1 or (bool(waiting) and len(waiting[0].data) >= PIECE_BYTES)

    @property
    def newest(self) -> int:
        """Number of the piece with the latest write."""
        return self._last

    @property
    def oldest(self) -> float:
        """Number of the first piece that is not at the owner; infinite: all is."""
        first = self._waiting[0].number if self._waiting else math.inf
        return min([first, *(piece.number for piece in self._sending)])

    def write(self, offset: int | None, data: Data, kill_set_id: bool) -> None:
        """*offset* None: append."""
        before = self.size_bytes
        for back, piece in enumerate(reversed(self._waiting)):
            held = len(piece.data)
            if piece.join(offset, data, kill_set_id):
                self.size_bytes += len(piece.data) - held
                return
            if back + 1 == _JOINED_BACK or piece.meets(offset, len(data)):
                break
        self._last += 1
        self._waiting.append(Piece(self._last, offset, data, kill_set_id))
        self.size_bytes = before + len(data)

    def take(self) -> Piece | None:
        """The next piece to send, unless it must wait for one that is being sent."""
        if not self._waiting:
            return None
        first = self._waiting[0]
        if any(piece.meets(first.offset, len(first.data)) for piece in self._sending):
            return None
        self._waiting.popleft()
        self._sending.append(first)
        return first

    def sent(self, piece: Piece) -> None:
        """It is at the owner, or never will be."""
        self._sending.remove(piece)
        self.size_bytes -= len(piece.data)

    def put_back(self, piece: Piece) -> None:
        """It may not be at the owner, and may be sent again.  Must not be an append."""
        self._sending.remove(piece)
        piece.data = bytearray(piece.data)  # who tried to send the other may still look at it, and this one may grow
        self._waiting = deque(sorted([piece, *self._waiting], key=lambda one: one.number))

    def lose(self) -> int:
        """Drop what waits, and mark what is being sent.  Returns how many bytes are concerned."""
        lost = self.size_bytes
        for piece in self._sending:
            piece.is_lost = True
        self.size_bytes -= sum(len(piece.data) for piece in self._waiting)
        self._waiting.clear()
        return lost
