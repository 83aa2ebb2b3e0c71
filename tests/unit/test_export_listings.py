"""Directory listings: complete, in pieces of any size, and in time that grows with the number of names."""

# ruff: noqa: ASYNC240 - nothing else runs in these tests: the service answers in this thread

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from omfs import wire
from omfs.config import READDIR_REPLY_BYTES, Tree
from omfs.errors import BadHandle
from tests.unit.exportroom import ANN, ROOT, Asker, FakeSession, refused, serving

pytestmark = pytest.mark.lab


async def test_an_empty_directory(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    open_id = (await root.get(wire.OpenDirectory(here, ROOT), wire.FileOpened)).open_id
    nothing = wire.DirectoryRead((), True, lists_all=True)
    assert await root.get(wire.ReadDirectory(open_id, 0, 4096), wire.DirectoryRead) == nothing
    assert await root.get(wire.ReadDirectory(open_id, 0, 4096), wire.DirectoryRead) == nothing


@pytest.mark.parametrize("size_bytes", [1, 500, 4096, 1 << 20])
async def test_every_name_once_whatever_the_size(root: Asker, room: Path, size_bytes: int) -> None:
    for number in range(300):
        (room / f"file{number:0{1 + number % 90}}").touch()
    (room / "directory").mkdir()
    (room / "link").symlink_to("directory")
    found = await root.list((await root.walk(room)).handle, size_bytes)
    assert sorted(found) == sorted(os.listdir(os.fsencode(room)))
    for name in (b"directory", b"link", b"file0"):
        looked_up = await root.look_up((await root.walk(room)).handle, name)
        assert (found[name].handle, found[name].attributes) == (looked_up.handle, looked_up.attributes)


async def test_cursors_go_on_where_they_were(root: Asker, room: Path) -> None:
    for number in range(500):
        (room / f"file{number}").touch()
    here = (await root.walk(room)).handle
    open_id = (await root.get(wire.OpenDirectory(here, ROOT), wire.FileOpened)).open_id
    first = await root.get(wire.ReadDirectory(open_id, 0, 1 << 20), wire.DirectoryRead)
    names = [entry.name for entry in first.entries]
    for at in (0, 100, 250, 498):
        part = await root.get(wire.ReadDirectory(open_id, first.entries[at].cursor, 3000), wire.DirectoryRead)
        assert [entry.name for entry in part.entries] == names[at + 1 :][: len(part.entries)]
        assert part.entries
    again = await root.get(wire.ReadDirectory(open_id, 0, 3000), wire.DirectoryRead)
    assert [entry.name for entry in again.entries] == names[: len(again.entries)]


async def test_reading_from_the_start_sees_new_names(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    open_id = (await root.get(wire.OpenDirectory(here, ROOT), wire.FileOpened)).open_id
    await root.get(wire.ReadDirectory(open_id, 0, 4096), wire.DirectoryRead)
    (room / "new").touch()
    read = await root.get(wire.ReadDirectory(open_id, 0, 4096), wire.DirectoryRead)
    assert [entry.name for entry in read.entries] == [b"new"]


async def test_names_that_vanish_are_left_out(root: Asker, room: Path) -> None:
    for number in range(1000):
        (room / f"file{number}").touch()
    here = (await root.walk(room)).handle
    open_id = (await root.get(wire.OpenDirectory(here, ROOT), wire.FileOpened)).open_id
    first = await root.get(wire.ReadDirectory(open_id, 0, 1), wire.DirectoryRead)
    assert len(first.entries) == 1
    for path in room.iterdir():
        path.unlink()
    (room / "last").touch()
    rest = await root.get(wire.ReadDirectory(open_id, first.entries[0].cursor, 1 << 20), wire.DirectoryRead)
    assert [entry.name for entry in rest.entries] in ([], [b"last"])
    assert rest.at_end


async def test_a_reply_has_a_limit(root: Asker, room: Path) -> None:
    for number in range(1500):
        (room / f"{number:0200}").touch()
    here = (await root.walk(room)).handle
    open_id = (await root.get(wire.OpenDirectory(here, ROOT), wire.FileOpened)).open_id
    read = await root.get(wire.ReadDirectory(open_id, 0, 1 << 40), wire.DirectoryRead)
    assert not read.at_end
    assert sum(len(entry.name) for entry in read.entries) < READDIR_REPLY_BYTES


async def test_who_may_not_read_it(root: Asker, room: Path) -> None:
    (room / "sub").mkdir(mode=0o711)
    (room / "file").touch()
    with refused(errno.EACCES):
        await root.ask(wire.OpenDirectory((await root.walk(room / "sub")).handle, ANN))
    with refused(errno.ENOTDIR):
        await root.ask(wire.OpenDirectory((await root.walk(room / "file")).handle, ROOT))
    open_id = await root.open((await root.walk(room / "file")).handle)
    with refused(errno.ENOTDIR):
        await root.ask(wire.ReadDirectory(open_id, 0, 4096))


async def test_a_directory_is_no_file(root: Asker, room: Path) -> None:
    open_id = (await root.get(wire.OpenDirectory((await root.walk(room)).handle, ROOT), wire.FileOpened)).open_id
    for request, number in (
        (wire.ReadBlocks(open_id, 0, 10), errno.EISDIR),
        (wire.WriteBlocks(open_id, 0), errno.EBADF),
        (wire.AppendBlocks(open_id), errno.EBADF),
    ):
        with refused(number):
            await root.ask(request, b"x")


async def test_ten_times_the_names_take_ten_times_as_long(root: Asker, tmp_path: Path) -> None:
    """Not a hundred times: the factor between is for a busy machine."""
    seconds = {}
    for count in (4_000, 40_000):
        place = tmp_path / str(count)
        place.mkdir()
        directory_fd = os.open(place, os.O_RDONLY)
        for number in range(count):
            os.mknod(f"{number}", dir_fd=directory_fd)
        os.close(directory_fd)
        handle = (await root.walk(place)).handle
        begun_s = time.thread_time()
        assert len(await root.list(handle)) == count
        seconds[count] = time.thread_time() - begun_s
    assert seconds[40_000] < 30 * seconds[4_000]


@pytest.mark.parametrize("squash", [False, True])
async def test_who_may_read_but_not_search_sees_only_names(room: Path, tmp_path: Path, squash: bool) -> None:
    (room / "sub" / "inner").mkdir(parents=True)
    (room / "sub" / "file").write_bytes(b"secret")
    (room / "sub").chmod(0o744)
    with serving(tmp_path / "state", Tree(str(room), root_squash=squash)) as service:
        asker = Asker(service, FakeSession(), ROOT if squash else ANN)
        here = (await asker.walk(room)).handle
        sub = (await asker.look_up(here, "sub")).handle
        listed = await asker.list(sub)
        assert sorted(listed) == [b"file", b"inner"]
        for native in os.scandir(os.fsencode(room / "sub")):
            entry = listed[native.name]
            kind = stat.S_IFDIR if native.is_dir() else stat.S_IFREG
            assert entry.attributes == wire.Attributes(kind, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, native.inode())
            with pytest.raises(BadHandle):
                await asker.attributes(entry.handle)
        assert listed[b"file"].handle != listed[b"inner"].handle
        with refused(errno.EACCES):
            await asker.look_up(sub, "file")
        (room / "sub").chmod(0o745)
        assert (await asker.list(sub))[b"file"].attributes.size_bytes == 6
        asker.end()
