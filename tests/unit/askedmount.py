"""A FUSE mount served by hand that looks at each caller while he waits for the answer to his LOOKUP."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.unit.test_fusenotify import FORGETS, HEAD, LOOKUP, Served

FLUSH: Final = 25  # enum fuse_opcode


class AskedMount(Served):
    """*look* is called with the thread that looks a name up; what it said is in `seen`, by name, for each LOOKUP.

    A FLUSH is not answered before `may_flush`.
    """

    def __init__(self, top: Path, look: Callable[[int], bool]) -> None:
        self.look = look
        self.seen: dict[bytes, list[bool]] = {}
        self.is_flushing = threading.Event()
        self.may_flush = threading.Event()
        super().__init__(top)

    def serve(self) -> None:
        with suppress(OSError):  # ENODEV: unmounted
            while True:
                request = os.read(self.fd, 1 << 18)
                _, opcode, unique, number, _, _, thread, _ = HEAD.unpack_from(request)
                if opcode in FORGETS:
                    continue
                body = request[HEAD.size :]
                if opcode == LOOKUP:
                    self.seen.setdefault(body.rstrip(b"\0"), []).append(self.look(thread))
                if opcode == FLUSH and not self.may_flush.is_set():
                    self.is_flushing.set()
                    threading.Thread(target=self.flush, args=(unique,)).start()
                else:
                    self.reply(unique, self.answer(opcode, number, body))

    def flush(self, unique: int) -> None:
        self.may_flush.wait()
        with suppress(OSError):  # the connection was aborted
            self.reply(unique, b"")
