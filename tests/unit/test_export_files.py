"""Open files: who may open what, reading, writing, appending, and files that lost their name."""

# ruff: noqa: ASYNC110 - nothing else runs in these tests: the service answers in this thread

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path

import pytest
import trio

from omfs import wire
from omfs.config import BULK_MAX_BYTES, WRITTEN_CLOSES_MAX, Tree
from omfs.errors import OpenLost
from omfs.export.service import ExportService
from omfs.net.server import FileSlice
from tests.unit.exportroom import ANN, BOB, ROOT, Asker, FakeSession, refused, serving

pytestmark = pytest.mark.lab


async def test_what_is_written_can_be_read(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    created = await root.create(here, "file")
    assert await root.write(created.open_id, 3, b"abc") == 3
    assert await root.read(created.open_id) == b"\0\0\0abc"
    assert await root.read(created.open_id, 4, 1) == b"b"
    assert await root.read(created.open_id, 5, 100) == b"c"
    assert await root.read(created.open_id, 6) == b""
    assert await root.read(created.open_id, 1 << 40) == b""
    assert (room / "file").read_bytes() == b"\0\0\0abc"
    assert (await root.attributes(created.handle)).size_bytes == 6
    await root.close(created.open_id)
    with pytest.raises(OpenLost):
        await root.read(created.open_id)
    with pytest.raises(OpenLost):
        await root.close(created.open_id)


@pytest.mark.parametrize("size_bytes", [1, 4096, 100_000, 128 << 10, (128 << 10) + 1, 1 << 20, BULK_MAX_BYTES])
async def test_transfers_of_every_size(root: Asker, room: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    here = (await root.walk(room)).handle
    created = await root.create(here, "file")
    assert await root.write(created.open_id, 5, data) == size_bytes
    assert await root.read(created.open_id, 5, size_bytes) == data
    assert await root.read(created.open_id, 6, size_bytes) == data[1:]
    os.posix_fadvise(os.open(room / "file", os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    assert await root.read(created.open_id, 5, size_bytes) == data


async def test_requests_out_of_range(root: Asker, room: Path) -> None:
    created = await root.create((await root.walk(room)).handle, "file")
    for offset, size_bytes in ((-1, 1), (0, -1), (0, BULK_MAX_BYTES + 1), ((1 << 63) - 1, 1), (1 << 64, 1)):
        with refused(errno.EINVAL):
            await root.read(created.open_id, offset, size_bytes)
    for offset in (-1, (1 << 63) - 1, 1 << 70):
        with refused(errno.EFBIG):
            await root.write(created.open_id, offset, b"x")
    assert (room / "file").stat().st_size == 0


async def test_beyond_four_gib(root: Asker, room: Path) -> None:
    created = await root.create((await root.walk(room)).handle, "file")
    assert await root.write(created.open_id, 5 << 30, b"far") == 3
    assert await root.read(created.open_id, (5 << 30) - 1, 10) == b"\0far"
    assert (await root.attributes(created.handle)).size_bytes == (5 << 30) + 3
    sought = await root.get(wire.SeekFile(created.open_id, 0, os.SEEK_DATA), wire.SeekDone)
    assert 4 << 30 < sought.offset <= 5 << 30
    hole = await root.get(wire.SeekFile(created.open_id, 0, os.SEEK_HOLE), wire.SeekDone)
    assert hole.offset == 0
    with refused(errno.ENXIO):
        await root.ask(wire.SeekFile(created.open_id, 6 << 30, os.SEEK_DATA))
    with refused(errno.EINVAL):
        await root.ask(wire.SeekFile(created.open_id, 0, os.SEEK_SET))


async def test_large_reads_on_a_plain_connection_are_slices_of_the_file(service: ExportService, room: Path) -> None:
    """But where nobody can tell whether the disk must be waited for, as on an overlay."""
    asker = Asker(service, FakeSession(can_sendfile=True))
    (room / "file").write_bytes(bytes(100_000))
    open_id = await asker.open((await asker.walk(room / "file")).handle)
    is_told = room.parent.name != "overlay"
    _, bulk = await asker.ask(wire.ReadBlocks(open_id, 50, 64 << 10))
    assert isinstance(bulk, FileSlice) == is_told
    if is_told:
        assert (bulk.offset, bulk.size_bytes) == (50, 64 << 10)
    _, bulk = await asker.ask(wire.ReadBlocks(open_id, 1000, 1 << 20))
    assert len(bulk) == 99_000 if isinstance(bulk, bytes) else bulk.size_bytes == 99_000
    _, bulk = await asker.ask(wire.ReadBlocks(open_id, 99_990, 1 << 20))
    assert bytes(bulk) == bytes(10)
    _, bulk = await asker.ask(wire.ReadBlocks(open_id, 200_000, 1 << 20))
    assert bytes(bulk) == b""
    asker.end()


async def test_an_open_file_allows_what_it_was_opened_for(root: Asker, room: Path) -> None:
    (room / "file").write_bytes(b"data")
    handle = (await root.walk(room / "file")).handle
    reading, writing = await root.open(handle, os.O_RDONLY), await root.open(handle, os.O_WRONLY)
    with refused(errno.EBADF):
        await root.write(reading, 0, b"x")
    with refused(errno.EBADF):
        await root.read(writing)
    with refused(errno.EINVAL):
        await root.open(handle, os.O_ACCMODE)
    with refused(errno.EISDIR):
        await root.open((await root.walk(room)).handle)
    assert (room / "file").read_bytes() == b"data"


async def test_flags_that_belong_to_the_caller_do_nothing_here(root: Asker, room: Path) -> None:
    (room / "file").write_bytes(b"data")
    handle = (await root.walk(room / "file")).handle
    odd = os.O_APPEND | os.O_DIRECT | os.O_ASYNC | os.O_PATH | os.O_CREAT | os.O_EXCL | os.O_TMPFILE | os.O_NONBLOCK
    open_id = await root.open(handle, os.O_RDWR | odd)
    assert await root.write(open_id, 1, b"A") == 1
    assert await root.read(open_id) == b"dAta"


async def test_a_program_that_may_be_executed_need_not_be_readable(root: Asker, room: Path) -> None:
    ann = root.act_as(ANN)
    (room / "program").write_bytes(b"#!/bin/true")
    handle = (await root.walk(room / "program")).handle

    async def execute(flags: int = os.O_RDONLY) -> int:
        return (await ann.get(wire.OpenFile(handle, flags, ANN, execute=True), wire.FileOpened)).open_id

    (room / "program").chmod(0o711)
    with refused(errno.EACCES):
        await ann.open(handle)
    open_id = await execute()
    assert await ann.read(open_id) == b"#!/bin/true"
    with refused(errno.EBADF):
        await ann.write(open_id, 0, b"x")
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        with refused(errno.EINVAL):
            await execute(flags)
    (room / "program").chmod(0o644)
    with refused(errno.EACCES):
        await execute()
    assert (room / "program").read_bytes() == b"#!/bin/true"


@pytest.mark.parametrize(("mode", "left"), [(0o4755, 0o755), (0o6755, 0o755), (0o2755, 0o755), (0o2745, 0o2745)])
async def test_set_id_bits_end_where_the_writer_may_not_keep_them(
    root: Asker, room: Path, mode: int, left: int
) -> None:
    file = room / "file"
    file.write_bytes(b"data")
    handle = (await root.walk(file)).handle
    open_id, reading = await root.open(handle, os.O_RDWR), await root.open(handle)
    file.chmod(mode)
    await root.write(open_id, 0, b"x")
    with refused(errno.EBADF):
        await root.ask(wire.WriteBlocks(reading, 0, kill_set_id=True), b"x")
    assert stat.S_IMODE(file.stat().st_mode) == mode, "root may"
    for request in (wire.WriteBlocks(open_id, 0, kill_set_id=True), wire.AppendBlocks(open_id, kill_set_id=True)):
        file.chmod(mode)
        await root.get(request, wire.BlocksWritten, b"x")
        assert stat.S_IMODE(file.stat().st_mode) == left


async def test_truncating_opens(root: Asker, room: Path) -> None:
    (room / "file").write_bytes(b"data")
    handle = (await root.walk(room / "file")).handle
    await root.open(handle, os.O_WRONLY | os.O_TRUNC)
    assert (room / "file").read_bytes() == b""
    (room / "file").write_bytes(b"data")
    (room / "file").chmod(0o444)
    with refused(errno.EACCES):
        await root.act_as(ANN).open(handle, os.O_RDONLY | os.O_TRUNC)
    assert (room / "file").read_bytes() == b"data"


async def test_only_who_may_opens(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    ann, bob = root.act_as(ANN), root.act_as(BOB)
    created = await ann.create(here, "file", mode=0o640)
    assert await ann.write(created.open_id, 0, b"ann's") == 5
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with refused(errno.EACCES):
            await bob.open(created.handle, flags)
    (room / "file").chmod(0o604)
    assert await bob.read(await bob.open(created.handle)) == b"ann's"
    with refused(errno.EACCES):
        await bob.open(created.handle, os.O_RDWR)
    root_open = await root.open(created.handle, os.O_RDWR)
    assert await root.read(root_open) == b"ann's"
    with refused(errno.EPERM):
        await bob.open(created.handle, os.O_RDONLY | os.O_NOATIME)


async def test_creating_with_a_mode_that_forbids_writing(root: Asker, room: Path) -> None:
    """git writes its objects into files of mode 0444; it must get them back after the owner restarted."""
    here = (await root.walk(room)).handle
    ann, bob = root.act_as(ANN), root.act_as(BOB)
    created = await ann.create(here, "object", os.O_RDWR | os.O_EXCL, mode=0o444)
    assert await ann.write(created.open_id, 0, b"first ") == 6
    with refused(errno.EACCES):
        await ann.open(created.handle, os.O_RDWR)
    with refused(errno.EACCES):
        await bob.open(created.handle, os.O_RDWR, reclaim=True)
    again = await ann.open(created.handle, os.O_RDWR | os.O_TRUNC, reclaim=True)
    assert await ann.write(again, 6, b"second") == 6
    assert (room / "object").read_bytes() == b"first second"


async def test_create_opens_what_is_there(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    (room / "file").write_bytes(b"data")
    (room / "link").symlink_to("file")
    (room / "directory").mkdir()
    opened = await root.create(here, "file")
    assert (opened.handle, opened.attributes.size_bytes) == ((await root.walk(room / "file")).handle, 4)
    truncated = await root.create(here, "file", os.O_RDWR | os.O_TRUNC)
    assert truncated.attributes.size_bytes == 0
    for name, number in (("link", errno.ELOOP), ("directory", errno.EISDIR)):
        with refused(number):
            await root.create(here, name)
        with refused(errno.EEXIST):
            await root.create(here, name, os.O_RDWR | os.O_EXCL)
    (room / "file").chmod(0o600)
    with refused(errno.EACCES):
        await root.act_as(ANN).create(here, "file")
    with refused(errno.EINVAL):
        await root.create(here, "new", os.O_ACCMODE)
    assert sorted(os.listdir(room)) == ["directory", "file", "link"]


async def test_set_id_bits_go_when_others_write(root: Asker, room: Path) -> None:
    created = await root.create((await root.walk(room)).handle, "tool")
    (room / "tool").chmod(0o6777)
    bob = root.act_as(BOB)
    await bob.write(await bob.open(created.handle, os.O_WRONLY), 0, b"x")
    assert stat.S_IMODE((room / "tool").stat().st_mode) == 0o777


async def test_records_are_appended_whole(root: Asker, service: ExportService, room: Path) -> None:
    here = (await root.walk(room)).handle
    created = await root.create(here, "log", os.O_WRONLY)
    other = Asker(service, FakeSession(3))
    others = await other.open(created.handle, os.O_WRONLY)
    big, small = b"b" * 200_000 + b"\n", b"s" * 100 + b"\n"

    async def append(asker: Asker, open_id: int, record: bytes) -> None:
        for _ in range(10):
            reply = await asker.get(wire.AppendBlocks(open_id), wire.BlocksWritten, record)
            assert reply.size_bytes == len(record)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, root, created.open_id, big)
        nursery.start_soon(append, other, others, big)
        nursery.start_soon(append, root, created.open_id, small)
        nursery.start_soon(append, other, others, small)
    other.end()
    lines = (room / "log").read_bytes().splitlines(keepends=True)
    assert sorted(lines) == sorted([big, small] * 20)


async def test_a_file_without_a_name_lives_on(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    created = await root.create(here, "file")
    await root.write(created.open_id, 0, b"still here")
    await root.remove(here, "file")
    assert await root.read(created.open_id) == b"still here"
    assert (await root.attributes(created.handle)).nlink == 0
    assert (await root.change(created.handle, mode=0o600)).mode == stat.S_IFREG | 0o600
    assert (await root.change(created.handle, open_id=created.open_id, size_bytes=5)).size_bytes == 5
    second = await root.open(created.handle, os.O_RDONLY)
    assert await root.read(second) == b"still"
    with refused(errno.ENOENT):
        await root.ask(wire.MakeLink(created.handle, here, b"back", ROOT))
    await root.close(second)
    await root.close(created.open_id)
    with refused(errno.ESTALE):
        await root.attributes(created.handle)


async def test_a_file_of_the_lower_layer_without_a_name_lives_on(root: Asker, any_disk: Path) -> None:
    """On an overlay its handle does not lead back to it: only the open descriptor does."""
    place = any_disk / "below"
    place.mkdir(exist_ok=True)
    if not (place / "file").exists():
        (place / "file").write_bytes(b"from the lower layer")
    handle = (await root.walk(place / "file")).handle
    open_id = await root.open(handle, os.O_RDONLY)
    await root.remove((await root.walk(place)).handle, "file")
    assert await root.read(open_id) == b"from the lower layer"
    assert (await root.attributes(handle)).size_bytes == 20
    await root.close(open_id)


async def test_a_handle_survives_copying_up(root: Asker, any_disk: Path) -> None:
    place = any_disk / "below"
    place.mkdir(exist_ok=True)
    (place / "second").write_bytes(b"")
    before = await root.walk(place)
    file = await root.walk(place / "second")
    (place / "new").touch()
    (place / "second").write_bytes(b"changed")
    assert (await root.walk(place)).handle == before.handle
    assert (await root.attributes(file.handle)).size_bytes == 7
    (place / "new").unlink()


async def test_sync_allocate_and_punch(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    created = await root.create(here, "file")
    for data_only in (False, True):
        await root.get(wire.SyncFile(created.open_id, data_only), wire.Done)
    await root.get(wire.AllocateSpace(created.open_id, 0, 0, 65536), wire.Done)
    assert (await root.attributes(created.handle)).size_bytes == 65536
    await root.get(wire.AllocateSpace(created.open_id, 1, 65536, 65536), wire.Done)
    assert (await root.attributes(created.handle)).size_bytes == 65536
    await root.write(created.open_id, 0, b"x" * 65536)
    await root.get(wire.AllocateSpace(created.open_id, 3, 4096, 8192), wire.Done)
    assert await root.read(created.open_id, 4095, 8194) == b"x" + bytes(8192) + b"x"
    with refused(errno.EINVAL):
        await root.ask(wire.AllocateSpace(created.open_id, 0, -1, 1))
    with refused(errno.EINVAL):
        await root.ask(wire.AllocateSpace(created.open_id, 1 << 40, 0, 1))
    directory = await root.get(wire.OpenDirectory(here, ROOT), wire.FileOpened)
    await root.get(wire.SyncFile(directory.open_id, False), wire.Done)


async def test_copying_on_the_owner(root: Asker, room: Path, tmp_path: Path) -> None:
    data = os.urandom(9 << 20)
    (room / "source").write_bytes(data)
    source = await root.open((await root.walk(room / "source")).handle)
    target = await root.create((await root.walk(room)).handle, "target")
    copied = await root.get(wire.CopyRange(source, 10, target.open_id, 5, 1 << 40), wire.BlocksWritten)
    assert copied.size_bytes == len(data) - 10
    assert (room / "target").read_bytes() == bytes(5) + data[10:]
    at_end = await root.get(wire.CopyRange(source, len(data), target.open_id, 0, 10), wire.BlocksWritten)
    assert at_end.size_bytes == 0
    with refused(errno.EINVAL):
        await root.ask(wire.CopyRange(target.open_id, 0, target.open_id, 1, 10))
    with refused(errno.EINVAL):
        await root.ask(wire.CopyRange(source, -1, target.open_id, 1, 10))
    elsewhere = await root.create((await root.walk(tmp_path)).handle, "elsewhere")
    across = await root.get(wire.CopyRange(source, 0, elsewhere.open_id, 0, len(data)), wire.BlocksWritten)
    assert across.size_bytes == len(data)
    assert (tmp_path / "elsewhere").read_bytes() == data


async def test_a_full_disk_says_so(root: Asker, any_disk: Path, room: Path) -> None:
    created = await root.create((await root.walk(room)).handle, "file")
    with refused(errno.ENOSPC):
        await root.ask(wire.AllocateSpace(created.open_id, 0, 0, 1 << 40))
    (room / "file").unlink()


async def test_sessions_do_not_see_each_others_opens(root: Asker, service: ExportService, room: Path) -> None:
    created = await root.create((await root.walk(room)).handle, "file")
    other = Asker(service, FakeSession(3))
    with pytest.raises(OpenLost):
        await other.read(created.open_id)
    other.end()
    assert await root.read(created.open_id) == b""


async def test_closing_several_at_once(root: Asker, room: Path) -> None:
    (room / "file").write_bytes(b"data")
    handle = (await root.walk(room / "file")).handle
    reading = [await root.open(handle) for _ in range(3)]
    writing = await root.open(handle, os.O_RDWR)
    await root.get(wire.CloseFiles((*reading[:2], 12345)), wire.Done)
    for open_id in reading[:2]:
        with pytest.raises(OpenLost):
            await root.read(open_id)
    many = [await root.open(handle, os.O_RDWR) for _ in range(WRITTEN_CLOSES_MAX)]
    with refused(errno.EINVAL):
        await root.ask(wire.CloseFiles((writing, *many)))
    assert await root.read(writing) == b"data"
    await root.get(wire.CloseFiles(tuple(many)), wire.Done)
    with pytest.raises(OpenLost):
        await root.read(many[0])
    assert await root.read(reading[2]) == b"data"


async def test_an_ended_session_leaves_nothing_open(service: ExportService, room: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    asker = Asker(service, FakeSession())
    here = (await asker.walk(room)).handle
    for number in range(10):
        await asker.create(here, f"file{number}")
    await asker.get(wire.OpenDirectory(here, ROOT), wire.FileOpened)
    asker.end()
    service.drop_idle()
    service.drop_idle()
    assert len(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(OpenLost):
        await asker.walk(room)


@pytest.mark.parametrize("what", ["open", "create", "truncate"])
async def test_a_native_lease_is_waited_for(root: Asker, room: Path, what: str) -> None:
    """A program on the owner has a write lease (fcntl F_SETLEASE): opening breaks it, and must not stop the owner."""
    (room / "leased").write_bytes(b"data")
    handle = (await root.walk(room / "leased")).handle
    here = (await root.walk(room)).handle
    fd = os.open(room / "leased", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # instead of SIGIO, which ends programs
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    finished = trio.Event()

    async def break_lease() -> None:
        if what == "open":
            assert await root.read(await root.open(handle, os.O_RDWR)) == b"data"
        elif what == "create":
            assert (await root.create(here, "leased", os.O_RDWR | os.O_TRUNC)).attributes.size_bytes == 0
        else:
            assert (await root.change(handle, size_bytes=1)).size_bytes == 1
        finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_lease)
        while fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK:
            await trio.sleep(0.001)
        assert not finished.is_set()
        assert (await root.attributes(handle)).size_bytes == 4
        os.close(fd)
        await finished.wait()


async def test_read_only_trees(room: Path, tmp_path: Path) -> None:
    (room / "file").write_bytes(b"data")
    with serving(tmp_path / "state", Tree(str(room), read_only=True)) as service:
        asker = Asker(service, FakeSession())
        here = (await asker.walk(room)).handle
        file = (await asker.walk(room / "file")).handle
        open_id = await asker.open(file)
        assert await asker.read(open_id) == b"data"
        requests: list[wire.Message] = [
            wire.OpenFile(file, os.O_WRONLY, ROOT),
            wire.OpenFile(file, os.O_RDONLY | os.O_TRUNC, ROOT),
            wire.CreateFile(here, b"new", 0o600, 0, os.O_RDONLY, ROOT),
            wire.MakeNode(here, b"new", 0o600, 0, ROOT),
            wire.MakeDirectory(here, b"new", 0o600, 0, ROOT),
            wire.MakeSymlink(here, b"new", b"target", ROOT),
            wire.MakeLink(file, here, b"new", ROOT),
            wire.RemoveName(here, b"file", False, ROOT),
            wire.RenameName(here, b"file", here, b"new", 0, ROOT),
            wire.SetAttributes(file, ROOT, mode=0o600),
            wire.SetXattr(file, b"user.a", b"b", 0, ROOT),
            wire.RemoveXattr(file, b"user.a", ROOT),
            wire.CheckAccess(file, os.W_OK, ROOT),
            wire.WriteBlocks(open_id, 0),
            wire.AppendBlocks(open_id),
            wire.AllocateSpace(open_id, 0, 0, 1),
            wire.CopyRange(open_id, 0, open_id, 0, 1),
        ]
        for request in requests:
            with refused(errno.EROFS):
                await asker.ask(request, b"x")
        await asker.get(wire.CheckAccess(file, os.R_OK, ROOT), wire.Done)
        asker.end()
    assert (room / "file").read_bytes() == b"data"
    assert os.listdir(room) == ["file"]
