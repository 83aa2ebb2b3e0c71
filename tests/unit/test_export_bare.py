"""What the owner tells of objects and directories so that nobody need ask: on real file systems of several kinds."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from omfs import wire
from omfs.export import bare
from omfs.kernel import directories, walk
from tests.unit.exportroom import ANN, ROOT, Asker

pytestmark = pytest.mark.lab

ACL = bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff")


async def read(asker: Asker, directory: bytes, with_bare: bool = True) -> wire.DirectoryRead:
    opened = await asker.get(wire.OpenDirectory(directory, asker.caller), wire.FileOpened)
    return await asker.get(wire.ReadDirectory(opened.open_id, 0, 1 << 16, with_bare), wire.DirectoryRead)


async def test_what_an_entry_does_not_have(root: Asker, room: Path) -> None:
    for name in ("nothing", "user", "acl", "capability", "trusted"):
        (room / name).touch()
    os.setxattr(room / "user", "user.k", b"v")
    os.setxattr(room / "trusted", "trusted.k", b"v")
    os.setxattr(room / "acl", "system.posix_acl_access", ACL)
    os.setxattr(room / "capability", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    here = (await root.walk(room)).handle
    told = {entry.name: entry.bare for entry in (await read(root, here)).entries}
    assert told == {
        b"nothing": wire.Bare.OF_ALL,
        b"user": wire.Bare.OF_ACCESS,
        b"trusted": wire.Bare.OF_ACCESS,
        b"acl": wire.Bare.UNKNOWN,
        b"capability": wire.Bare.UNKNOWN,
    }
    assert {entry.bare for entry in (await read(root, here, with_bare=False)).entries} == {wire.Bare.UNKNOWN}, (
        "not asked"
    )


async def test_a_new_file_has_the_acl_of_its_directory(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    assert (await root.create(here, "one")).bare is wire.Bare.OF_ALL
    os.setxattr(room, "system.posix_acl_default", ACL)
    assert (await root.create(here, "two")).bare is wire.Bare.UNKNOWN


async def test_directories_after_a_change(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    sub = await root.make_directory(here, "sub")
    assert sub.parent == await root.attributes(here)
    assert sub.lists_all
    assert (await root.create(here, "file")).parent == await root.attributes(here)
    rename = wire.RenameName(here, b"file", sub.handle, b"moved", 0, ROOT)
    changed = await root.get(rename, wire.NamesChanged)
    assert changed.parents == (await root.attributes(here), await root.attributes(sub.handle))
    rename = wire.RenameName(sub.handle, b"moved", sub.handle, b"again", 0, ROOT)
    assert (await root.get(rename, wire.NamesChanged)).parents == (await root.attributes(sub.handle),)
    removed = await root.get(wire.RemoveName(sub.handle, b"again", False, ROOT), wire.NamesChanged)
    assert removed.parents == (await root.attributes(sub.handle),)
    assert removed.serial == 0, "nothing is granted without leases"


async def test_what_is_hidden_from_listings_is_hidden_from_look_ups(root: Asker, room: Path) -> None:
    os.mknod(room / "device", 0o60600, os.makedev(7, 77))
    here = (await root.walk(room)).handle
    assert (await read(root, here)).lists_all


async def test_who_may_not_search_is_not_told_all(root: Asker, room: Path) -> None:
    (room / "file").touch()
    here = (await root.walk(room)).handle
    os.chmod(room, 0o744)
    (entry,) = (await read(root.act_as(ANN), here)).entries
    assert entry.attributes.block_size_bytes == 0, "the mount takes no such listing for whole"


def _fold(*_: object) -> bytes:
    return (0x40000000 | 0x80000).to_bytes(8, "little")


def _cannot_say(*_: object) -> bytes:
    raise OSError(errno.ENOTTY, "not on this file system")


@pytest.mark.parametrize("get_flags", [_fold, _cannot_say])
async def test_a_directory_that_may_fold_case_never_lists_all(
    root: Asker, room: Path, get_flags: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may be found there that no listing shows."""
    here = (await root.walk(room)).handle
    assert (await read(root, here)).lists_all
    assert (await root.make_directory(here, "one")).lists_all
    monkeypatch.setattr(directories.fcntl, "ioctl", get_flags)
    assert not (await read(root, here)).lists_all
    assert not (await root.make_directory(here, "two")).lists_all


async def test_a_file_system_that_is_not_known_tells_nothing(
    root: Asker, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (room / "file").touch()
    monkeypatch.setattr(bare, "TELLING", frozenset())
    here = (await root.walk(room)).handle
    told = await read(root, here)
    assert not told.lists_all
    assert [entry.bare for entry in told.entries] == [wire.Bare.UNKNOWN]


async def test_an_entry_that_can_not_be_shown_is_not_absent(
    root: Asker, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LookUp of it fails otherwise than with ENOENT: that is for the owner to say."""
    (room / "broken").touch()
    (room / "file").touch()
    here = (await root.walk(room)).handle
    real = walk.step

    def step(directory: int, name: bytes) -> int:
        if name == b"broken":
            raise OSError(errno.EIO, "a bad block")
        return real(directory, name)

    monkeypatch.setattr(walk, "step", step)
    told = await read(root, here)
    assert [entry.name for entry in told.entries] == [b"file"]
    assert not told.lists_all
