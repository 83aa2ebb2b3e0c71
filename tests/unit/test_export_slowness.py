"""What takes long does not happen in the trio thread, and what one node takes leaves enough for the others."""

# ruff: noqa: ASYNC110, ASYNC221 - nothing else runs in these tests: the service answers in this thread

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import trio

from omfs import wire
from omfs.export import files
from omfs.export.ranges import F_RDLCK
from omfs.export.service import ExportService
from omfs.net.server import FileSlice
from tests.unit.exportroom import ROOT, Asker, FakeSession, file_system, refused

pytestmark = pytest.mark.lab

BIG_BYTES = 17 << 20


def make_big(path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(fd, 0, BIG_BYTES)
    os.close(fd)


# ---------------------------------------------------------------- freeing


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
@pytest.mark.parametrize("several", [False, True])
async def test_closing_a_big_orphan(root: Asker, room: Path, flags: int, several: bool) -> None:
    make_big(room / "big")
    open_id = await root.open((await root.walk(room / "big")).handle, flags)
    (room / "big").unlink()
    before = len(os.listdir("/proc/self/fd"))
    close = wire.CloseFiles((open_id, 12345)) if several else wire.CloseFile(open_id)
    work = root.begin(close)
    assert not isinstance(work, tuple)
    work.close()
    assert len(await root.read(open_id)) == 4096  # nothing was done
    await root.get(close, wire.Done)
    assert len(os.listdir("/proc/self/fd")) == before - 1


async def test_the_end_of_a_session_with_big_orphans(
    service: ExportService, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker = Asker(service, FakeSession(7))
    for name in ("big", "big2"):
        make_big(room / name)
        await asker.open((await asker.walk(room / name)).handle)
        (room / name).unlink()
    closed = trio.Event()
    token = trio.lowlevel.current_trio_token()
    close_each = files._close_each

    def watch(fds: list[int]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert len(fds) == 2
        close_each(fds)
        token.run_sync_soon(closed.set)

    monkeypatch.setattr(files, "_close_each", watch)
    before = len(os.listdir("/proc/self/fd"))
    asker.end()
    with trio.fail_after(60):
        await closed.wait()
    assert len(os.listdir("/proc/self/fd")) == before - 2


@pytest.mark.parametrize("how", ["open", "create"])
async def test_cutting_off_a_big_file(root: Asker, room: Path, how: str) -> None:
    make_big(room / "big")
    here = (await root.walk(room)).handle
    handle = (await root.look_up(here, "big")).handle
    flags = os.O_WRONLY | os.O_TRUNC
    requests: dict[str, wire.Message] = {
        "open": wire.OpenFile(handle, flags, ROOT),
        "create": wire.CreateFile(here, b"big", 0o600, 0, flags, ROOT),
    }
    work = root.begin(requests[how])
    assert not isinstance(work, tuple)
    assert (room / "big").stat().st_size == BIG_BYTES
    await work
    assert (room / "big").stat().st_size == 0


# ---------------------------------------------------------------- waiting


async def test_who_waits_for_a_lease_keeps_nobody_else_waiting(root: Asker, service: ExportService, room: Path) -> None:
    """A program on the owner that does not give its lease back: more requests than trio has threads wait for it."""
    (room / "leased").touch()
    make_big(room / "big")
    handle = (await root.walk(room / "leased")).handle
    fd = os.open(room / "leased", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(root.open, handle)
        while service._lease_waiters.borrowed_tokens < 50:
            await trio.sleep(0.002)
        with trio.fail_after(60):
            await trio.to_thread.run_sync(int)
            await root.change((await root.walk(room / "big")).handle, size_bytes=0)
            await root.remove((await root.walk(room)).handle, "big")
        os.close(fd)


async def test_a_cold_middle_is_not_sent_from_the_trio_thread(tmp_path: Path, service: ExportService) -> None:
    with file_system("ext4", tmp_path) as disk:
        asker = Asker(service, FakeSession(can_sendfile=True))
        data = os.urandom(1 << 20)
        (disk / "file").write_bytes(data)
        open_id = await asker.open((await asker.walk(disk / "file")).handle)
        assert isinstance(asker.begin(wire.ReadBlocks(open_id, 0, 1 << 20))[1], FileSlice)
        fd = os.open(disk / "file", os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for at in (0, len(data) - 1):
            os.pread(fd, 1, at)
        os.close(fd)
        assert await asker.read(open_id, 0, 1 << 20) == data
        asker.end()


# ---------------------------------------------------------------- shares


async def test_one_node_does_not_take_all_descriptors(root: Asker, service: ExportService, room: Path) -> None:
    (room / "file").touch()
    here = (await root.walk(room)).handle
    greedy, again = Asker(service, FakeSession(4)), Asker(service, FakeSession(4))
    handle = (await greedy.walk(room / "file")).handle
    share = greedy.session.data.files.share
    left, share._descriptors_left = share._descriptors_left, 3
    first = await greedy.open(handle)
    await greedy.get(wire.LockRange(first, 1, F_RDLCK, 0, 9, 1, False), wire.Done)
    await again.create(here, "second")
    for attempt in (
        greedy.open(handle),
        again.create(here, "third"),
        greedy.get(wire.OpenDirectory(here, ROOT), wire.FileOpened),
        greedy.get(wire.LockRange(first, 2, F_RDLCK, 0, 9, 1, False), wire.Done),
    ):
        with refused(errno.ENFILE):
            await attempt
    assert not (room / "third").exists()
    await root.open(handle)
    await greedy.close(first)
    assert share._descriptors_left == 2
    await greedy.open(handle)
    greedy.end()
    again.end()
    assert (share._descriptors_left, left > 3) == (3, True)


# ---------------------------------------------------------------- files that only grow


async def test_append_only_files_can_be_appended_to(tmp_path: Path, service: ExportService) -> None:
    with file_system("ext4", tmp_path) as disk:
        (disk / "log").write_bytes(b"first ")
        asker = Asker(service, FakeSession())
        here = (await asker.walk(disk)).handle
        subprocess.run(["chattr", "+a", str(disk / "log")], check=True)
        try:
            handle = (await asker.look_up(here, "log")).handle
            with refused(errno.EPERM):
                await asker.open(handle, os.O_WRONLY)
            with refused(errno.EPERM):
                await asker.open(handle, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
            opens = [
                await asker.open(handle, os.O_RDWR | os.O_APPEND),
                await asker.open(handle, os.O_RDWR | os.O_APPEND, reclaim=True),
                (await asker.create(here, "log", os.O_RDWR | os.O_APPEND)).open_id,
            ]
            for owner, open_id in enumerate(opens):
                await asker.get(wire.AppendBlocks(open_id), wire.BlocksWritten, b"more ")
                await asker.get(wire.LockRange(open_id, owner, 1, owner, owner, 1, False), wire.Done)
            assert (disk / "log").read_bytes() == b"first more more more "
        finally:
            subprocess.run(["chattr", "-a", str(disk / "log")], check=True)
            asker.end()
