"""mignode/criutalk.py against programs that behave as CRIU should not; a real one is asked in tests/lab."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio

from mignode import criutalk
from mignode.checkpoint import Criu, Tree
from mignode.criurpc import Kind, encode
from mignode.criutalk import Worker, reason_in, start_here
from omfs.errors import CheckpointError, CriuEnded
from omfs.kernel.criuprogram import CriuProgram

PROGRAM = CriuProgram(Path("/"), "usr/sbin/criu", "lib/ld.so", ("usr/lib",))
SAY = """
import os, socket, sys, time
criu = socket.socket(fileno=3)
criu.recv(9999)
"""
HOLD = encode([(1, Kind.NOTIFY), (2, True), (5, encode([(1, "post-dump")]))])


def pretends(text: str) -> Criu:
    """A CRIU that is this Python program; `criu` is its socket, and it has read the request."""

    async def start(command: Sequence[str], descriptors: Mapping[int, int]) -> Worker:
        assert command[-2:] == ["swrk", "3"]
        return await start_here([sys.executable, "-c", SAY + text], descriptors)

    return Criu(PROGRAM, start)


async def test_one_that_can_not_be_started() -> None:
    async def start(command: Sequence[str], descriptors: Mapping[int, int]) -> Worker:
        return await start_here(["/nowhere/ld.so"], descriptors)

    with pytest.raises(CheckpointError, match="criu can't be started: No such file or directory"):
        await Criu(PROGRAM, start).version(10)


async def test_it_has_just_the_descriptors_that_it_was_given() -> None:
    text = "sys.stderr.write(' '.join(sorted(os.listdir('/proc/self/fd'), key=int)[:-1])); sys.exit(7)"
    with pytest.raises(CriuEnded, match=r"criu ended with status 7 when it was to say its version: 0 1 2 3 4$"):
        await pretends(text).version(10)


async def test_what_it_started_ends_with_it_and_its_socket_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    text = f"left = open({str(fifo)!r}, 'w')\nif os.fork() == 0: time.sleep(1000)\nos.kill(os.getpid(), 9)"
    try:
        with pytest.raises(CriuEnded, match="was killed by signal 9"):
            await pretends(text).version(10)
        await trio.lowlevel.wait_readable(reader)
        assert os.read(reader, 1) == b""  # end of file: its child has ended, too
    finally:
        os.close(reader)


async def test_one_that_ends_right_after_its_answer() -> None:
    answer = encode([(1, Kind.VERSION), (2, True), (10, encode([(1, 4), (2, 2)]))])
    assert await pretends(f"criu.send({answer!r})").version(10) == (4, 2, 0)


async def test_one_that_says_what_nobody_understands() -> None:
    with pytest.raises(CheckpointError, match="criu could not say its version: wire type 7"):
        await pretends("criu.send(b'\\x0f')").version(10)


async def test_one_that_fails_with_nothing_but_a_number() -> None:
    answer = encode([(1, Kind.VERSION), (2, False), (7, 17)])
    with pytest.raises(CheckpointError, match="criu could not say its version: File exists"):
        await pretends(f"criu.send({answer!r})").version(10)


async def test_one_that_does_not_ask(tmp_path: Path) -> None:
    images = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(CheckpointError, match="criu did not ask before it was to dump process 9"):
            async with pretends(f"criu.send({encode([(1, 1), (2, True)])!r})").dump(9, images, Tree(), 10):
                pass
    finally:
        os.close(images)


async def test_a_silent_one_gets_time_to_undo_things() -> None:
    """Its socket is closed, which is how it notices."""
    with pytest.raises(CheckpointError, match=r"criu did not say its version within 0\.2 s$") as caught:
        await pretends("criu.recv(1)").version(0.2)
    assert not isinstance(caught.value, CriuEnded)


async def test_a_deaf_one_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criutalk, "_UNDO_S", 0.1)
    with pytest.raises(CriuEnded, match=r"criu did not say its version within 0\.2 s and was killed$"):
        await pretends("time.sleep(100)").version(0.2)


async def test_one_that_can_not_be_killed_is_left_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck:
        kills = 0

        async def wait(self) -> int:
            await trio.sleep_forever()
            raise AssertionError

        def kill(self) -> None:
            self.kills += 1

    stuck = Stuck()

    async def start(command: Sequence[str], descriptors: Mapping[int, int]) -> Worker:
        return stuck

    monkeypatch.setattr(criutalk, "_UNDO_S", 0.05)
    monkeypatch.setattr(criutalk, "_KILLED_S", 0.05)
    with pytest.raises(CheckpointError):
        await Criu(PROGRAM, start).version(0.1)
    assert stuck.kills == 1
    assert "criu that was to say its version hangs in the kernel and can't be killed" in caplog.text


async def test_who_leaves_without_finishing_says_no(tmp_path: Path) -> None:
    images = os.open(tmp_path, os.O_RDONLY)
    told = tmp_path / "told"
    text = f"criu.send({HOLD!r}); open({str(told)!r}, 'wb').write(criu.recv(99))"
    try:
        async with pretends(text).dump(9, images, Tree(), 10):
            pass
    finally:
        os.close(images)
    assert told.read_bytes() == encode([(1, Kind.NOTIFY), (3, False)])


# ---------------------------------------------------------------- its reasons

LOG = """\
(00.000002)   rlimit: something
(00.000100) Error (criu/rlimit.c:9): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.001000) Warn  (criu/x.c:3): a warning
(00.020000)     42: Error (criu/files-ext.c:87): Can't   restore
(00.020001)     42: Error (criu/files.c:1223): Unable to open fd=2
(00.020002) Error (criu/cr-restore.c:2557): Restoring FAILED.
"""


def test_its_first_error_and_its_last_two_in_one_line() -> None:
    said = "Can't restore; Unable to open fd=2; Restoring FAILED."
    assert reason_in(LOG) == said
    assert reason_in(LOG, "Error (criu/rlimit.c:9): rlimit: Can't setup RLIMIT_NOFILE for self: EPERM") == said
    assert reason_in(LOG, "Error (criu/a.c:1): the first") == "the first; Unable to open fd=2; Restoring FAILED."
    assert (
        reason_in(LOG, "Error (criu/cr-restore.c:2557): Restoring FAILED.") == "Restoring FAILED.; Unable to open fd=2"
    )


def test_without_an_error_its_last_line() -> None:
    assert reason_in("") == ""
    assert reason_in("one\ntwo\n\n") == "two"
    assert reason_in("criu: error while loading shared libraries: libx\n") == (
        "criu: error while loading shared libraries: libx"
    )
    assert reason_in("", "no log yet") == "no log yet"
