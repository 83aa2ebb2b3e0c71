"""Words and descriptors over body.sock, a seqpacket socket; both ends of it, neither of which ever waits here.

What the socket does not take at once is kept, in order, and goes with `flush`; how much that can become is bounded by
the windows of the standard files and by requests that somebody waits for.  A word too long for one packet goes through
an anonymous file in memory.  Called by guestinit.py (selectors) and body.py (trio).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

from mignode.bodywords import Word, decoded, encoded
from omfs.errors import WireError
from omfs.kernel.descriptors import receive_with

_INLINE_MAX_BYTES: Final = 100_000  # a frame is 64 KiB, and net.core.wmem_default 208 KiB
_WORD_MAX_BYTES: Final = 64 << 20  # arguments and environment have 6 MiB (execve(2)), states less
_DESCRIPTORS_MAX: Final = 32
_HERE: Final = b"w"
_IN_FILE: Final = b"f"


class BodySocket:
    """One end.  *sock* is its own from now on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        """What was not sent is lost."""
        self.sock.close()
        for _, descriptors in self._waiting:
            _close_all(descriptors)
        self._waiting.clear()

    @property
    def is_behind(self) -> bool:
        """Something waits for `flush`, when the socket can be written to."""
        return bool(self._waiting)

    def send(self, word: Word, descriptors: Sequence[int] = ()) -> None:
        """Now or later; the descriptors stay the caller's, and may be closed at once.  OSError: nobody is there."""
        packet, own = _packet(encoded(word))
        try:
            if not self._waiting and self._sent(packet, [*own, *descriptors]):
                return
            self._waiting.append((packet, [os.dup(each) for each in (*own, *descriptors)]))
        finally:
            _close_all(own)

    def flush(self) -> None:
        """Send what the socket takes.  Raises OSError."""
        while self._waiting and self._sent(*self._waiting[0]):
            _close_all(self._waiting.popleft()[1])

    def _sent(self, packet: bytes, descriptors: list[int]) -> bool:
        try:
            socket.send_fds(self.sock, [packet], descriptors, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        return True

    def receive(self) -> tuple[Word, list[int]] | None:
        """The next word and its descriptors, which are the caller's, close-on-exec; None: the other end has closed.

        Raises BlockingIOError where there is none yet, WireError, OSError.
        """
        packet, descriptors, flags = receive_with(self.sock, _INLINE_MAX_BYTES + 1, _DESCRIPTORS_MAX)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise WireError("a packet too long for a word of a guest's init")
            if not packet:
                _close_all(descriptors)
                return None
            if packet == _IN_FILE and descriptors:
                packet = _HERE + _content(descriptors.pop(0))
            return decoded(packet[1:]), descriptors
        except BaseException:
            _close_all(descriptors)
            raise


def _packet(word: bytes) -> tuple[bytes, list[int]]:
    """What to send, and a descriptor that has to go first."""
    if len(word) <= _INLINE_MAX_BYTES - len(_HERE):
        return _HERE + word, []
    file = os.memfd_create("word", os.MFD_CLOEXEC)
    try:
        rest = memoryview(word)
        while rest:
            rest = rest[os.write(file, rest) :]
    except BaseException:
        os.close(file)
        raise
    return _IN_FILE, [file]


def _content(file: int) -> bytes:
    with open(file, "rb") as whole:
        size = os.fstat(whole.fileno()).st_size
        if size > _WORD_MAX_BYTES:
            raise WireError(f"a word of {size} bytes for a guest's init")
        whole.seek(0)
        return whole.read(size)


def _close_all(descriptors: Sequence[int]) -> None:
    for each in descriptors:
        with contextlib.suppress(OSError):
            os.close(each)
