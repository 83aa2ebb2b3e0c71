"""A guest's init that is silent: whoever asks it goes on, since a process may stand still meanwhile."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from mignode import body as bodies, bodywords as words
from mignode.body import Body
from mignode.bodysocket import BodySocket


class Silent:
    """A hatchery whose inits say that they are there, and then nothing by themselves."""

    def __init__(self) -> None:
        self.init: Any = None

    def order(self, *_: object) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.init = BodySocket(its)
        with open(os.devnull) as proc:
            self.init.send(words.Ready(os.getpid()), [proc.fileno()])
        return ours


async def test_an_init_that_is_silent_is_waited_for_so_long_only(
    nursery: trio.Nursery, autojump_clock: object, tmp_path: Path
) -> None:
    hatchery: Any = Silent()
    world: Any = None
    body = await bodies.hatch(hatchery, nursery, tmp_path, world)
    for asking in (
        body.keep("criu", [0]), body.fetch("criu"), body.adopt(2), body.given(), body.set_last_pid(2),
        body.external_files(), body.freeze_files(), body.thaw_files(), body.signal(2, 9), body.prepare_files(b"", b""),
        body.start(["criu"], {}),
    ):  # fmt: skip
        with pytest.raises(TimeoutError, match="its init did not answer within 30 s"):
            await asking
    hatchery.init.send(words.Fetched(2), [0])  # nobody waits for it any more: that is closed
    await _answered(body, hatchery)
    hatchery.init.close()
    await body.wait_lost()


async def _answered(body: Body, hatchery: Silent) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.adopt, 7)
        while True:
            await trio.lowlevel.wait_readable(hatchery.init.sock)
            word, descriptors = hatchery.init.receive()
            for each in descriptors:
                os.close(each)
            if word == words.Adopt(12, 7):
                hatchery.init.send(words.Done(12))
                break
    assert body.root == 7
