"""mignode's end of a connection of mosrun (deputywords.py): who it is, what it says, and what it is told.

Who it is, the kernel says (SO_PEERCRED).  What it is told waits here without a bound, since the windows of the standard
files are one.  Called by deputies.py.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
from typing import Final

import trio

from mignode.deputywords import RELAYED_MAX_BYTES, REQUEST_MAX_BYTES, Call, Called, DeputyWord, Words, pack

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred, unix(7)
_RECEIVE_BYTES: Final = 1 << 16


class _Call:
    """A call that mosrun does."""

    def __init__(self) -> None:
        self.is_done = trio.Event()
        self.value = 0
        self.errno = errno.EHOSTDOWN


class DeputyStream:
    """*pid*, *uid*, *gid*: of who connected, as it was then."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, self.uid, self.gid = _CREDENTIALS.unpack(credentials)
        self._calls: dict[int, _Call] = {}
        self._last_call = 0
        self._is_lost = False
        self._words = Words(REQUEST_MAX_BYTES)
        self._heard: list[DeputyWord] = []
        self._is_said = trio.Event()
        self._to_say, self._said = trio.open_memory_channel[DeputyWord](math.inf)

    async def hear(self) -> DeputyWord | None:
        """The next word; None: the connection has ended.  Raises WireError."""
        while not self._heard:
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self._lose()
                return None
            self._heard = list(self._words.arrived(bytes(data)))
            self._words.largest_bytes = RELAYED_MAX_BYTES
        return self._heard.pop(0)

    def say(self, word: DeputyWord) -> None:
        """Sent by `speak`."""
        self._to_say.send_nowait(word)

    async def tell(self, word: DeputyWord) -> None:
        """Sent when this returns, for one that says nothing else meanwhile.  Raises OSError where mosrun has ended."""
        try:
            await self._stream.send_all(pack(word))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise BrokenPipeError(errno.EPIPE, "mosrun has ended") from None

    async def speak(self) -> None:
        """Until the connection has ended, or `finish`."""
        try:
            async for word in self._said:
                await self._stream.send_all(pack(word))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # `hear` says it
        finally:
            self._is_said.set()

    async def call(self, call: str, arguments: tuple[int, ...]) -> int:
        """Have mosrun do a system call, as the process that it is; what it returns.

        Raises OSError, EHOSTDOWN where mosrun has ended.
        """
        self._last_call += 1
        number = self._last_call
        self._calls[number] = waiting = _Call()
        try:
            self.say(Call(number, call, arguments))
            if not self._is_lost:
                await waiting.is_done.wait()
        finally:
            del self._calls[number]
        if waiting.errno:
            raise OSError(waiting.errno, os.strerror(waiting.errno))
        return waiting.value

    def called(self, word: Called) -> None:
        """mosrun's answer to one; the first counts."""
        waiting = self._calls.get(word.number)
        if waiting is not None and not waiting.is_done.is_set():
            waiting.value, waiting.errno = word.value, word.errno
            waiting.is_done.set()

    def _lose(self) -> None:
        """Nobody answers any more."""
        self._is_lost = True
        for waiting in self._calls.values():
            waiting.is_done.set()

    async def finish(self) -> None:
        """Nothing more will be said; returns when all that was is on its way, or can't be."""
        self._to_say.close()
        await self._is_said.wait()
