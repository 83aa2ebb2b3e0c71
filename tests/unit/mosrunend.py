"""mosrun's end of its connection to mignode, said and heard word by word."""

from __future__ import annotations

from typing import Any

import trio

from mignode.deputywords import Words, pack


class MosrunEnd:
    """Over a connected socket."""

    def __init__(self, end: trio.socket.SocketType) -> None:
        self.stream = trio.SocketStream(end)
        self._words = Words()
        self._heard: list[Any] = []

    async def hear(self) -> Any:
        while not self._heard:
            data = await self.stream.receive_some()
            assert data, "the connection has ended"
            self._heard = list(self._words.arrived(bytes(data)))
        return self._heard.pop(0)

    async def wait_closed(self) -> None:
        """And nothing is said before."""
        assert self._heard == []
        assert await self.stream.receive_some() == b""

    async def say(self, *words: Any) -> None:
        await self.stream.send_all(b"".join(map(pack, words)))

    async def close(self) -> None:
        await self.stream.aclose()
