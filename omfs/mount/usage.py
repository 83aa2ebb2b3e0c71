"""How much the guests of this node ask of other nodes through this mount: bytes and requests, by guest and owner.

mignode decides by it where a guest should run (dfsa/hints.py).  A guest has a PID namespace of its own, so all its
processes are counted together, also those that live for a millisecond.  What the kernel answers from its caches is not
seen, and is no reason to move anybody.

Nothing is counted unless somebody has asked lately.  Which namespace a thread is in is kept for a second, as its
credentials are (callers.py).  Called by lowlevel.py, for each request, and for the control socket.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Final

from omfs.mount import lowlevel_abi as abi
from omfs.net.control import Arguments, UsageReply

ASKED_WITHIN_S: Final = 10.0  # nobody asks any more: nothing is counted
_KEPT_S: Final = 1.0
_KEPT_MAX: Final = 4096
_COUNTS_MAX: Final = 4096  # of namespaces and owners; who counts looks each second, and ended guests are not told apart
_SIZE: Final = struct.Struct("<I")
_SIZE_AT: Final = abi.IN_HEADER_BYTES + 16  # struct fuse_read_in, fuse_write_in: fh, offset, size
_NAMESPACE: Final = "/proc/{}/ns/pid"


class Usage:
    """Of one mount.  *owner_of*: the node that has the object of that number, 0 where no other node is asked."""

    def __init__(self, owner_of: Callable[[int], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._owner_of = owner_of
        self._clock = clock
        self._asked_s = -ASKED_WITHIN_S
        self._namespaces: dict[int, tuple[float, int]] = {}
        self._counts: dict[tuple[int, int], list[int]] = {}
        self._own = _namespace_of("self")

    def seen(self, opcode: int, number: int, thread: int, request: memoryview) -> None:
        """A request of the kernel.  Never raises."""
        now_s = self._clock()
        if now_s - self._asked_s > ASKED_WITHIN_S:
            self._counts.clear()
            return
        owner = self._owner_of(number) if thread else 0
        if not owner:
            return
        namespace = self._namespace(thread, now_s)
        if namespace in (0, self._own):
            return
        counts = self._counts.setdefault((namespace, owner), [0, 0, 0])
        counts[2] += 1
        if opcode in (abi.READ, abi.WRITE):
            counts[opcode == abi.WRITE] += _SIZE.unpack_from(request, _SIZE_AT)[0]
        if len(self._counts) > _COUNTS_MAX:
            self._counts.clear()

    def _namespace(self, thread: int, now_s: float) -> int:
        kept = self._namespaces.get(thread)
        if kept is not None and now_s - kept[0] < _KEPT_S:
            return kept[1]
        if len(self._namespaces) >= _KEPT_MAX:
            self._namespaces.clear()
        found = _namespace_of(str(thread))
        self._namespaces[thread] = (now_s, found)
        return found

    async def tell(self, _: Arguments) -> UsageReply:
        """For the control socket: counted since somebody began to ask."""
        self._asked_s = self._clock()
        return UsageReply(tuple((*key, read, written, calls) for key, (read, written, calls) in self._counts.items()))


def _namespace_of(thread: str) -> int:
    """Its inode; 0 where the thread has ended."""
    try:
        return os.stat(_NAMESPACE.format(thread)).st_ino
    except OSError:
        return 0
