"""The images of TCP connections whose two ends are in the tree, made to fit together.

CRIU reads one socket after the other.  Between two of them the kernel may still deliver: what waits for its turn (BBR
and SO_MAX_PACING_RATE pace by timers), what is sent again.  Where the receiver was read first, and then the sender, who
has its acknowledgement by now, those bytes are in neither image, and both ends would wait for ever.  CRIU's own way is
to have a packet filter drop them; we need none: when all has been dumped, what each socket has received is looked at
again.  By then it has at least what any sender knew to have arrived; what it has beyond is sent once more and ignored.

What one end has not sent yet CRIU sends as it restores that end, which the kernel refuses with a reset where the other
end is not there yet.  So it is made to have been sent, and lost: it is sent again.

An image tcp-stream-<inode>.img is CRIU's tcp_stream_entry (images/tcp-stream.proto, 4.2), then the bytes received, then
those to be sent.  Called by migrate.py and saving.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mignode.criuimages import MAGIC_BYTES, as_number, changed, fields_of, message_of, messages_of
from omfs.errors import MoveFailed
from omfs.kernel.descriptors import copied_from
from omfs.kernel.tcpqueue import Received, received

_IN_BYTES, _IN_NEXT, _UNSENT_BYTES = 1, 2, 12  # numbers of fields
_MASK32: Final = 0xFFFFFFFF
_SOCKET: Final = "socket:["


def fit_together(images: Path, pids: Iterable[int]) -> None:
    """For worker threads, while CRIU holds the dumped tree of *pids*.  Raises OSError, WireError, MoveFailed."""
    streams = {int(image.stem.removeprefix("tcp-stream-"), 16): image for image in images.glob("tcp-stream-*.img")}
    for pid in pids if streams else ():
        for number, inode in _sockets(pid):
            if inode in streams:
                _fit(streams.pop(inode), pid, number)
    if streams:
        raise MoveFailed("a TCP connection could not be looked at again")


def fitting(image: bytes, now: Received) -> bytes:
    """With what it has received by *now*, and nothing unsent.  Pure.

    Raises WireError, and MoveFailed where the other end's FIN came as well: that would be lost.
    """
    entry = next(messages_of(image))
    has = {field.number: as_number(field.value) for field in fields_of(entry) if field.number in (_IN_BYTES, _IN_NEXT)}
    rest = image[MAGIC_BYTES + len(message_of(entry)) + has[_IN_BYTES] :]
    if (now.next_sequence - has[_IN_NEXT]) & _MASK32 != len(now.data) - has[_IN_BYTES]:
        raise MoveFailed("a TCP connection between its processes was being closed; try again")
    changes = {_IN_BYTES: lambda _: len(now.data), _IN_NEXT: lambda _: now.next_sequence, _UNSENT_BYTES: lambda _: 0}
    return image[:MAGIC_BYTES] + message_of(changed(entry, changes)) + now.data + rest


def _fit(image: Path, pid: int, number: int) -> None:
    with socket.socket(fileno=copied_from(pid, number)) as connection:
        now = received(connection)
    before = image.read_bytes()
    if (after := fitting(before, now)) != before:
        image.write_bytes(after)


def _sockets(pid: int) -> Iterable[tuple[int, int]]:
    """Number and inode; nothing of who has ended."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(folder):
            target = os.readlink(f"{folder}/{name}")
            if target.startswith(_SOCKET):
                yield int(name), int(target.removeprefix(_SOCKET).rstrip("]"))
