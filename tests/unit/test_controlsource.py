"""Asking for the values of /mfs/proc: whom, with which words, and what becomes of their answers."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from omfs.errors import RemoteFailure
from omfs.mount.controlsource import BLOCKING_DEADLINE_S, DEADLINE_S, ControlSource
from omfs.mount.virtual import Target
from omfs.net import control

LOCK = Target("process", "lock", 123, 4567)
NOMFS = Target("hpc", "admin/nomfs", 123, 4567)
EXPEL = Target("hpc", "admin/expel", 123, 4567)
GOTO = Target("process", "goto", 123, 4567)


class Daemon:
    """Answers whatever it is asked with *reply*."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self.reply = reply
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def handler(self, command: str) -> control.Handler:
        async def answer(arguments: control.Arguments) -> object:
            self.asked.append((command, arguments))
            return self.reply

        return answer

    @contextlib.asynccontextmanager
    async def running(self, path: Path) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            commands = ("read_control", "write_control", "nomfs")
            await nursery.start(control.serve, path, {command: self.handler(command) for command in commands})
            yield
            nursery.cancel_scope.cancel()


async def failure(asking: Any) -> int:
    with pytest.raises(RemoteFailure) as failed:
        await asking
    return failed.value.errno


async def test_values_are_mignodes(tmp_path: Path) -> None:
    source, daemon = ControlSource(tmp_path), Daemon({"text": "1\n"})
    async with daemon.running(tmp_path / "mignode.sock"):
        assert await source.read(LOCK, 0) == b"1\n"
        await source.write(LOCK, "0\n", 1000, 77)
    where = {"scope": "process", "file": "lock", "pid": 123, "start_ticks": 4567}
    assert daemon.asked == [
        ("read_control", {**where, "uid": 0}),
        ("write_control", {**where, "text": "0\n", "uid": 1000, "by": 77}),
    ]


async def test_nomfs_is_the_exports(tmp_path: Path) -> None:
    source, daemon = ControlSource(tmp_path), Daemon({"on": True})
    async with daemon.running(tmp_path / "export.sock"):
        assert await source.read(NOMFS, 0) == b"1\n"
        await source.write(NOMFS, "1\n", 0, 77)
        await source.write(NOMFS, "0", 0, 77)
        assert await failure(source.write(NOMFS, "0", 1000, 77)) == errno.EPERM
        daemon.reply = {"on": False}
        assert await source.read(NOMFS, 0) == b"0\n"
        daemon.reply = {"on": 1}
        assert await failure(source.read(NOMFS, 0)) == errno.EIO
    assert [arguments for _, arguments in daemon.asked] == [{}, {"on": True}, {"on": False}, {}, {}]


async def test_a_refusal_is_passed_on(tmp_path: Path) -> None:
    source, daemon = ControlSource(tmp_path), Daemon({"errno": errno.EBUSY, "reason": "it is on its way"})
    async with daemon.running(tmp_path / "mignode.sock"):
        assert await failure(source.write(LOCK, "1", 0, 77)) == errno.EBUSY
        assert await failure(source.read(LOCK, 0)) == errno.EBUSY


@pytest.mark.parametrize("reply", [{}, {"text": 1}, {"errno": 0}, {"errno": 512}, {"errno": "EIO"}, {"error": "no"}])
async def test_bad_answers_are_eio_and_logged(
    tmp_path: Path, reply: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with Daemon(reply).running(tmp_path / "mignode.sock"):
        assert await failure(ControlSource(tmp_path).read(LOCK, 0)) == errno.EIO
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()


async def test_nobody_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said once, and again after it was there."""
    source = ControlSource(tmp_path)
    for _ in range(2):
        assert await failure(source.read(LOCK, 0)) == errno.ENOTCONN
        assert await failure(source.write(LOCK, "1", 0, 77)) == errno.ENOTCONN
    assert len(caplog.records) == 1
    async with Daemon({"text": "1\n"}).running(tmp_path / "mignode.sock"):
        await source.read(LOCK, 0)
    assert await failure(source.read(LOCK, 0)) == errno.ENOTCONN
    assert len(caplog.records) == 2
    caplog.clear()


@pytest.mark.parametrize(
    ("target", "deadline_s"), [(LOCK, DEADLINE_S), (EXPEL, BLOCKING_DEADLINE_S), (GOTO, BLOCKING_DEADLINE_S)]
)
async def test_how_long_an_answer_is_waited_for(
    tmp_path: Path, target: Target, deadline_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def ask(path: Path, command: str, /, *, deadline_s: float, **arguments: object) -> control.Arguments:
        waited.append(deadline_s)
        return {}

    monkeypatch.setattr(control, "ask", ask)
    await ControlSource(tmp_path).write(target, "1", 0, 77)
    assert waited == [deadline_s]
