"""Names: looking up, making, removing, renaming; with the rights of whoever asks."""

# ruff: noqa: ASYNC240 - nothing else runs in these tests: the service answers in this thread

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from omfs import wire
from omfs.errors import BadHandle
from tests.unit.exportroom import ANN, BOB, BOB_IN_STAFF, ROOT, STAFF, Asker, refused

pytestmark = pytest.mark.lab

BAD_NAMES = [
    (b"", errno.EPROTO),
    (b".", errno.EPROTO),
    (b"..", errno.EPROTO),
    (b"a/b", errno.EPROTO),
    (b"/etc", errno.EPROTO),
    (b"../etc", errno.EPROTO),
    (b"a\0b", errno.EPROTO),
    (b"x" * 256, errno.ENAMETOOLONG),
]


async def test_a_walk_finds_what_stat_finds(root: Asker, room: Path) -> None:
    (room / "file").write_bytes(b"12345")
    found = await root.walk(room / "file")
    status = (room / "file").stat()
    assert found.attributes == wire.Attributes(
        status.st_mode,
        1,
        0,
        0,
        0,
        5,
        status.st_blocks,
        status.st_blksize,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )
    assert await root.attributes(found.handle) == found.attributes
    assert (await root.walk(room / "file")).handle == found.handle


@pytest.mark.parametrize("revived", [False, True])
async def test_a_directory_that_was_used_and_removed_is_stale(root: Asker, room: Path, revived: bool) -> None:
    """The owner keeps directories open for a while; whoever removes one natively must not be told "no such name"."""
    old = (await root.make_directory((await root.walk(room)).handle, "old")).handle
    await root.close((await root.create(old, "file")).open_id)
    (room / "old" / "file").unlink()
    (room / "old").rmdir()
    if revived:
        (room / "old").mkdir()
        (room / "old" / "file").touch()
    here = (await root.walk(room)).handle
    for _ in range(2):
        for request in (
            wire.LookUp(old, b"file", ROOT),
            wire.CreateFile(old, b"file", 0o644, 0, os.O_WRONLY, ROOT),
            wire.MakeDirectory(old, b"file", 0o755, 0, ROOT),
            wire.RemoveName(old, b"file", False, ROOT),
            wire.RenameName(old, b"file", here, b"file", 0, ROOT),
            wire.RenameName(here, b"old", old, b"file", 0, ROOT),
        ):
            with refused(errno.ESTALE):
                await root.ask(request)


async def test_more_directories_than_are_kept_open(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    directories = [(await root.make_directory(here, f"{number}")).handle for number in range(100)]
    before = len(os.listdir("/proc/self/fd"))
    for number, directory in enumerate(directories):
        await root.rename(here, f"{number}", directories[number - 1], "moved") if number == 50 else None
        await root.make_directory(directory, "inner")
    assert len(os.listdir("/proc/self/fd")) <= before + 64
    assert sorted(os.listdir(room / "7")) == ["inner"]


async def test_names_are_bytes(root: Asker, room: Path) -> None:
    name = bytes(set(range(1, 256)) - {ord("/")})
    directory = await root.walk(room)
    created = await root.create(directory.handle, os.fsdecode(name))
    assert os.listdir(os.fsencode(room)) == [name]
    assert (await root.look_up(directory.handle, name)).handle == created.handle
    assert list(await root.list(directory.handle)) == [name]
    await root.get(wire.RenameName(directory.handle, name, directory.handle, b"n" * 255, 0, ROOT), wire.NamesChanged)
    await root.remove(directory.handle, b"n" * 255)
    assert os.listdir(room) == []


@pytest.mark.parametrize(("name", "number"), BAD_NAMES)
async def test_what_is_no_name_is_refused_everywhere(root: Asker, room: Path, name: bytes, number: int) -> None:
    (room / "file").touch()
    here = (await root.walk(room)).handle
    file = (await root.walk(room / "file")).handle
    requests: list[wire.Message] = [
        wire.LookUp(here, name, ROOT),
        wire.MakeNode(here, name, stat.S_IFREG | 0o600, 0, ROOT),
        wire.MakeDirectory(here, name, 0o700, 0, ROOT),
        wire.MakeSymlink(here, name, b"target", ROOT),
        wire.MakeLink(file, here, name, ROOT),
        wire.RemoveName(here, name, False, ROOT),
        wire.RemoveName(here, name, True, ROOT),
        wire.RenameName(here, name, here, b"new", 0, ROOT),
        wire.RenameName(here, b"file", here, name, 0, ROOT),
        wire.CreateFile(here, name, 0o600, 0, os.O_RDWR, ROOT),
    ]
    for request in requests:
        with refused(number):
            await root.ask(request)
    assert os.listdir(room) == ["file"]


async def test_a_forged_handle_opens_nothing(root: Asker, room: Path) -> None:
    handle = (await root.walk(room)).handle
    for at in range(len(handle)):
        forged = handle[:at] + bytes([handle[at] ^ 1]) + handle[at + 1 :]
        with pytest.raises(BadHandle):
            await root.attributes(forged)


async def test_links_are_shown_not_followed(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    for name, target in (("absolute", b"/etc/passwd"), ("up", b"../../.."), ("long", b"t" * 4095), ("odd", b"\xff\n ")):
        made = await root.get(wire.MakeSymlink(here, name.encode(), target, ROOT), wire.Found)
        assert stat.S_ISLNK(made.attributes.mode)
        assert (await root.look_up(here, name)).handle == made.handle
        assert (await root.get(wire.ReadLink(made.handle, ROOT), wire.LinkRead)).target == target
        with pytest.raises(NotADirectoryError):
            await root.look_up(made.handle, "passwd")
        with refused(errno.ELOOP):
            await root.open(made.handle)
    for target, number in ((b"", errno.ENOENT), (b"a\0b", errno.EINVAL), (b"t" * 4096, errno.ENAMETOOLONG)):
        with refused(number):
            await root.ask(wire.MakeSymlink(here, b"bad", target, ROOT))
    with refused(errno.EINVAL):
        await root.get(wire.ReadLink(here, ROOT), wire.LinkRead)


async def test_what_is_gone_is_stale(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    made = await root.make_directory(here, "gone")
    await root.remove(here, "gone", directory=True)
    with refused(errno.ESTALE):
        await root.attributes(made.handle)
    with refused(errno.ESTALE):
        await root.look_up(made.handle, "x")
    with pytest.raises(FileNotFoundError):
        await root.look_up(here, "gone")


async def test_nodes_of_all_kinds(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    for name, kind in (("regular", stat.S_IFREG), ("fifo", stat.S_IFIFO), ("socket", stat.S_IFSOCK), ("plain", 0)):
        made = await root.get(wire.MakeNode(here, name.encode(), kind | 0o666, 0o026, ROOT), wire.Found)
        assert made.attributes.mode == (kind or stat.S_IFREG) | 0o640
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        with pytest.raises(PermissionError):
            await root.ask(wire.MakeNode(here, b"device", kind | 0o666, 0, ROOT))
    for kind in (stat.S_IFDIR, stat.S_IFLNK):
        with refused(errno.EINVAL):
            await root.ask(wire.MakeNode(here, b"odd", kind | 0o666, 0, ROOT))
    assert sorted(await root.list(here)) == [b"fifo", b"plain", b"regular", b"socket"]


async def test_devices_are_not_there(root: Asker, room: Path) -> None:
    os.mknod(room / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    here = (await root.walk(room)).handle
    assert await root.list(here) == {}
    with pytest.raises(FileNotFoundError):
        await root.look_up(here, "null")
    with pytest.raises(FileNotFoundError):
        await root.remove(here, "null")
    with pytest.raises(FileNotFoundError):
        await root.rename(here, "null", here, "zero")
    with pytest.raises(PermissionError):
        await root.create(here, "null")
    with pytest.raises(FileExistsError):
        await root.create(here, "null", os.O_RDWR | os.O_EXCL)


async def test_a_fifo_is_shown_but_never_opened(root: Asker, room: Path) -> None:
    os.mkfifo(room / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(room)
        listener.bind("socket")
    os.chdir("/")
    here = (await root.walk(room)).handle
    for name in ("fifo", "socket"):
        found = await root.look_up(here, name)
        with refused(errno.ENXIO):
            await root.open(found.handle, os.O_RDONLY)
        with refused(errno.ENXIO):
            await root.create(here, name, os.O_WRONLY)


async def test_modes_and_the_callers_umask(root: Asker, room: Path) -> None:
    ann = root.act_as(ANN)
    before = os.umask(0o022)
    os.umask(before)
    here = (await root.walk(room)).handle
    created = await ann.get(wire.CreateFile(here, b"file", 0o666, 0o027, os.O_RDWR, ANN), wire.FileCreated)
    made = await ann.get(wire.MakeDirectory(here, b"directory", 0o1777, 0o002, ANN), wire.Found)
    assert (created.attributes.mode, created.attributes.uid, created.attributes.gid) == (
        stat.S_IFREG | 0o640,
        1000,
        1000,
    )
    assert (made.attributes.mode, made.attributes.uid) == (stat.S_IFDIR | 0o1775, 1000)
    now = os.umask(before)
    assert now == before


async def test_a_directorys_group_is_inherited(root: Asker, room: Path) -> None:
    room.chmod(0o2777)
    os.chown(room, 0, STAFF)
    here = (await root.walk(room)).handle
    made = await root.act_as(ANN).make_directory(here, "inside")
    assert made.attributes.gid == STAFF
    assert made.attributes.mode & stat.S_ISGID


async def test_others_may_not(root: Asker, room: Path) -> None:
    ann, bob = root.act_as(ANN), root.act_as(BOB)
    here = (await root.walk(room)).handle
    private = await ann.get(wire.MakeDirectory(here, b"private", 0o700, 0, ANN), wire.Found)
    await ann.create(private.handle, "file")
    for attempt in (
        bob.look_up(private.handle, "file"),
        bob.create(private.handle, "mine"),
        bob.make_directory(private.handle, "mine"),
        bob.remove(private.handle, "file"),
        bob.rename(private.handle, "file", here, "mine"),
        bob.get(wire.OpenDirectory(private.handle, BOB), wire.FileOpened),
    ):
        with pytest.raises(PermissionError):
            await attempt
    room.chmod(0o1777)
    await ann.create(here, "sticky")
    with pytest.raises(PermissionError):
        await bob.remove(here, "sticky")
    await ann.remove(here, "sticky")


async def test_groups_count(root: Asker, room: Path) -> None:
    os.chown(room, 0, STAFF)
    room.chmod(0o770)
    here = (await root.walk(room)).handle
    with pytest.raises(PermissionError):
        await root.act_as(BOB).create(here, "file")
    created = await root.act_as(BOB_IN_STAFF).create(here, "file")
    assert created.attributes.uid == 1001
    with pytest.raises(PermissionError):
        await root.act_as(BOB).create(here, "file2")


async def test_hard_links(root: Asker, room: Path) -> None:
    ann = root.act_as(ANN)
    here = (await root.walk(room)).handle
    created = await ann.create(here, "file")
    linked = await ann.get(wire.MakeLink(created.handle, here, b"second", ANN), wire.Found)
    assert (linked.handle, linked.attributes.nlink) == (created.handle, 2)
    with pytest.raises(FileExistsError):
        await ann.ask(wire.MakeLink(created.handle, here, b"second", ANN))
    symlink = await ann.get(wire.MakeSymlink(here, b"symlink", b"nowhere", ANN), wire.Found)
    again = await ann.get(wire.MakeLink(symlink.handle, here, b"symlink2", ANN), wire.Found)
    assert again.handle == symlink.handle
    with pytest.raises(PermissionError):
        await root.ask(wire.MakeLink(here, here, b"directory", ROOT))
    await ann.remove(here, "file")
    assert (await ann.attributes(created.handle)).nlink == 1


async def test_removing_says_what_is_wrong(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    inside = await root.make_directory(here, "directory")
    await root.create(inside.handle, "file")
    for attempt, number in (
        (root.remove(here, "nothing"), errno.ENOENT),
        (root.remove(here, "directory"), errno.EISDIR),
        (root.remove(here, "directory", directory=True), errno.ENOTEMPTY),
        (root.remove(inside.handle, "file", directory=True), errno.ENOTDIR),
        (root.make_directory(here, "directory"), errno.EEXIST),
    ):
        with refused(number):
            await attempt


async def test_a_big_file_is_removed_too(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    fd = os.open(room / "big", os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(fd, 0, 17 << 20)
    os.close(fd)
    free = os.statvfs(room).f_bfree
    await root.remove(here, "big")
    assert os.listdir(room) == []
    assert os.statvfs(room).f_bfree > free


async def test_renaming(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    sub = (await root.make_directory(here, "sub")).handle
    one = await root.create(here, "one")
    two = await root.create(here, "two")
    await root.rename(here, "one", sub, "moved")
    assert (await root.look_up(sub, "moved")).handle == one.handle
    with pytest.raises(FileExistsError):
        await root.rename(here, "two", sub, "moved", 1)
    await root.rename(here, "two", sub, "moved", 2)
    assert (await root.look_up(sub, "moved")).handle == two.handle
    assert (await root.look_up(here, "two")).handle == one.handle
    await root.rename(here, "two", sub, "moved")
    assert sorted(os.listdir(room)) == ["sub"]
    for flags in (3, 4, -1, 1 << 40):
        with refused(errno.EINVAL):
            await root.rename(here, "sub", here, "new", flags)
    with refused(errno.EINVAL):
        await root.rename(here, "sub", sub, "inside itself")
    with pytest.raises(FileNotFoundError):
        await root.rename(here, "nothing", sub, "new")


async def test_a_rename_neither_moves_nor_replaces_a_device(root: Asker, room: Path) -> None:
    os.mknod(room / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (room / "file").touch()
    here = (await root.walk(room)).handle
    for flags, number in ((0, errno.EACCES), (1, errno.EEXIST), (2, errno.ENOENT)):
        with refused(number):
            await root.rename(here, "file", here, "null", flags)
    assert stat.S_ISCHR((room / "null").stat().st_mode)
    with refused(errno.ENOENT):
        await root.rename(here, "file", here, "nothing", 2)


def make_big(path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(fd, 0, 17 << 20)
    os.close(fd)


@pytest.mark.parametrize("how", ["remove", "rename"])
async def test_freeing_a_big_file_is_begun_later_or_never(root: Asker, room: Path, how: str) -> None:
    """The work is a coroutine: one that is closed before it began has done nothing and holds nothing."""
    here = (await root.walk(room)).handle
    make_big(room / "big")
    (room / "new").touch()
    requests: dict[str, wire.Message] = {
        "remove": wire.RemoveName(here, b"big", False, ROOT),
        "rename": wire.RenameName(here, b"new", here, b"big", 0, ROOT),
    }
    with refused(errno.ENOENT):  # the owner keeps the directory open from here on
        await root.look_up(here, "nothing")
    before = len(os.listdir("/proc/self/fd"))
    work = root.begin(requests[how])
    assert not isinstance(work, tuple)
    work.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(os.listdir(room)) == ["big", "new"]
    await root.get(requests[how], wire.NamesChanged)
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(room) == ["new" if how == "remove" else "big"]
    assert os.statvfs(room).f_bavail * os.statvfs(room).f_frsize > 17 << 20
