"""Attributes, access, file system figures, extended attributes and ACLs."""

# ruff: noqa: ASYNC221, ASYNC240 - nothing else runs in these tests: the service answers in this thread

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from omfs import wire
from omfs.config import Tree
from omfs.errors import OpenLost
from tests.unit.exportroom import ANN, BOB, BOB_IN_STAFF, ROOT, STAFF, Asker, FakeSession, refused, serving

pytestmark = pytest.mark.lab


async def test_mode_owner_and_times(root: Asker, room: Path) -> None:
    (room / "file").touch()
    handle = (await root.walk(room / "file")).handle
    changed = await root.change(handle, mode=0o4751, uid=1000, gid=STAFF, atime_ns=1_500_000_000, mtime_ns=-1)
    assert (changed.mode, changed.uid, changed.gid) == (stat.S_IFREG | 0o4751, 1000, STAFF)
    assert (changed.atime_ns, changed.mtime_ns) == (1_500_000_000, -1)
    assert await root.attributes(handle) == changed
    changed = await root.change(handle, mtime_ns=7 * 10**9 + 5)
    assert (changed.atime_ns, changed.mtime_ns) == (1_500_000_000, 7 * 10**9 + 5)
    before_ns = time.time_ns()
    changed = await root.change(handle, mtime_now=True)
    assert abs(changed.mtime_ns - before_ns) < 10**9
    assert changed.atime_ns == 1_500_000_000
    changed = await root.change(handle, uid=1001)
    assert (changed.uid, changed.gid, changed.mode & stat.S_ISUID) == (1001, STAFF, 0)
    assert await root.change(handle) == changed


async def test_who_may_change_what(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    ann, bob = root.act_as(ANN), root.act_as(BOB)
    handle = (await ann.create(here, "file", mode=0o666)).handle
    (room / "file").chmod(0o666)
    for fields in (dict(mode=0o600), dict(uid=1001), dict(gid=1001), dict(mtime_ns=0), dict(atime_ns=0)):
        with refused(errno.EPERM):
            await bob.change(handle, **fields)
    with refused(errno.EPERM):
        await ann.change(handle, uid=1001)
    with refused(errno.EPERM):
        await ann.change(handle, gid=STAFF)
    await bob.change(handle, atime_now=True, mtime_now=True)
    await bob.change(handle, size_bytes=10)
    (room / "file").chmod(0o644)
    with refused(errno.EACCES):
        await bob.change(handle, size_bytes=5)
    with refused(errno.EACCES):
        await bob.change(handle, atime_now=True, mtime_now=True)
    in_staff = root.act_as(BOB_IN_STAFF)
    bobs = (await in_staff.create(here, "bobs")).handle
    assert (await in_staff.change(bobs, gid=STAFF, mode=0o2755)).mode == stat.S_IFREG | 0o2755
    assert not (await root.act_as(BOB).change(bobs, mode=0o2755)).mode & stat.S_ISGID


async def test_impossible_ids_are_refused(root: Asker, room: Path) -> None:
    handle = (await root.walk(room)).handle
    for number in (-1, 2**32 - 1, 2**32):
        for fields in (dict(uid=number), dict(gid=number)):
            with refused(errno.EINVAL):
                await root.change(handle, **fields)
        with refused(errno.EINVAL):
            await root.ask(wire.LookUp(handle, b"x", wire.Caller(number, 0)))
    assert room.stat().st_uid == 0


async def test_symlinks_have_attributes_of_their_own(root: Asker, room: Path) -> None:
    (room / "target").touch()
    (room / "link").symlink_to("target")
    handle = (await root.walk(room)).handle
    link = (await root.look_up(handle, "link")).handle
    changed = await root.change(link, uid=1000, gid=1000, mtime_ns=5)
    assert (changed.uid, changed.gid, changed.mtime_ns) == (1000, 1000, 5)
    assert (room / "link").lstat().st_uid == 1000
    assert (room / "target").stat().st_uid == 0
    assert (room / "target").stat().st_mtime > 1e9
    with refused(errno.EINVAL):
        await root.change(link, size_bytes=0)
    with refused(errno.EISDIR):
        await root.change(handle, size_bytes=0)


async def test_a_fifo_is_not_opened_to_truncate_it(root: Asker, room: Path) -> None:
    os.mkfifo(room / "fifo")
    with refused(errno.EINVAL):
        await root.change((await root.walk(room / "fifo")).handle, size_bytes=0)


async def test_truncating(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    ann = root.act_as(ANN)
    created = await ann.create(here, "file", mode=0o444)
    with refused(errno.EACCES):
        await ann.change(created.handle, size_bytes=5)
    assert (await ann.change(created.handle, open_id=created.open_id, size_bytes=5)).size_bytes == 5
    with pytest.raises(OpenLost):
        await ann.change(created.handle, open_id=created.open_id + 1, size_bytes=5)
    for bad in (-1, 1 << 63):
        with refused(errno.EINVAL):
            await ann.change(created.handle, open_id=created.open_id, size_bytes=bad)
    other = await root.create(here, "other")
    with refused(errno.EACCES):  # somebody else's open file helps nobody
        await ann.change(created.handle, open_id=other.open_id, size_bytes=1)
    reading = await ann.open(created.handle)
    with refused(errno.EACCES):
        await ann.change(created.handle, open_id=reading, size_bytes=1)


async def test_cutting_off_much_is_done_in_a_thread(root: Asker, room: Path) -> None:
    created = await root.create((await root.walk(room)).handle, "file")
    assert (await root.change(created.handle, size_bytes=100 << 20)).size_bytes == 100 << 20
    assert (await root.change(created.handle, open_id=created.open_id, size_bytes=3)).size_bytes == 3
    assert (await root.change(created.handle, size_bytes=100 << 20)).size_bytes == 100 << 20
    assert (await root.change(created.handle, size_bytes=0)).size_bytes == 0


async def test_access(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    handle = (await root.act_as(ANN).create(here, "file", mode=0o640)).handle
    os.chown(room / "file", 1000, STAFF)
    for caller, mask, allowed in (
        (ANN, os.R_OK | os.W_OK, True),
        (ANN, os.X_OK, False),
        (BOB, os.F_OK, True),
        (BOB, os.R_OK, False),
        (BOB_IN_STAFF, os.R_OK, True),
        (BOB_IN_STAFF, os.W_OK, False),
        (ROOT, os.R_OK | os.W_OK, True),
        (ROOT, os.X_OK, False),
    ):
        if allowed:
            await root.get(wire.CheckAccess(handle, mask, caller), wire.Done)
        else:
            with refused(errno.EACCES):
                await root.ask(wire.CheckAccess(handle, mask, caller))
    with refused(errno.EINVAL):
        await root.ask(wire.CheckAccess(handle, 8, ROOT))


async def test_file_system_figures(root: Asker, room: Path) -> None:
    told = await root.get(wire.StatFilesystem((await root.walk(room)).handle), wire.FilesystemStatted)
    native = os.statvfs(room)
    assert (told.block_size_bytes, told.blocks, told.files) == (native.f_bsize, native.f_blocks, native.f_files)
    assert told.name_max == native.f_namemax


async def test_extended_attributes_come_back(root: Asker, room: Path) -> None:
    (room / "file").touch()
    handle = (await root.walk(room / "file")).handle
    values = {b"user.plain": b"value", b"user.\xff\xfe": bytes(range(256)), b"user.empty": b"", b"trusted.t": b"x"}
    for name, value in values.items():
        await root.get(wire.SetXattr(handle, name, value, 0, ROOT), wire.Done)
    for name, value in values.items():
        assert (await root.get(wire.GetXattr(handle, name, ROOT), wire.XattrGot)).value == value
    assert set((await root.get(wire.ListXattrs(handle, ROOT), wire.XattrsListed)).names) >= set(values)
    assert os.getxattr(room / "file", b"user.\xff\xfe") == bytes(range(256))
    with refused(errno.EEXIST):
        await root.ask(wire.SetXattr(handle, b"user.plain", b"new", 1, ROOT))
    await root.get(wire.SetXattr(handle, b"user.plain", b"new", 2, ROOT), wire.Done)
    await root.get(wire.RemoveXattr(handle, b"user.plain", ROOT), wire.Done)
    for attempt in (
        wire.GetXattr(handle, b"user.plain", ROOT),
        wire.RemoveXattr(handle, b"user.plain", ROOT),
        wire.SetXattr(handle, b"user.plain", b"", 2, ROOT),
    ):
        with refused(errno.ENODATA):
            await root.ask(attempt)


async def test_extended_attributes_that_are_none(root: Asker, room: Path) -> None:
    handle = (await root.walk(room)).handle
    for request, number in (
        (wire.SetXattr(handle, b"", b"", 0, ROOT), errno.ERANGE),
        (wire.SetXattr(handle, b"user." + b"x" * 251, b"", 0, ROOT), errno.ERANGE),
        (wire.GetXattr(handle, b"user.a\0b", ROOT), errno.EINVAL),
        (wire.SetXattr(handle, b"user.a", bytes(65537), 0, ROOT), errno.E2BIG),
        (wire.SetXattr(handle, b"user.a", b"", 4, ROOT), errno.EINVAL),
        (wire.GetXattr(handle, b"nonsense.a", ROOT), errno.EOPNOTSUPP),
    ):
        with refused(number):
            await root.ask(request)


async def test_users_do_not_borrow_the_daemons_rights(root: Asker, room: Path) -> None:
    handle = (await root.act_as(ANN).create((await root.walk(room)).handle, "file", mode=0o666)).handle
    os.setxattr(room / "file", "trusted.secret", b"x")
    for name in (b"trusted.secret", b"trusted.new", b"security.capability", b"security.ima", b"security.selinux"):
        with refused(errno.EPERM):
            await root.ask(wire.SetXattr(handle, name, b"x", 0, ANN))
        with refused(errno.EPERM):
            await root.ask(wire.RemoveXattr(handle, name, ANN))
    with refused(errno.ENODATA):
        await root.ask(wire.GetXattr(handle, b"trusted.secret", ANN))
    assert (await root.get(wire.ListXattrs(handle, ANN), wire.XattrsListed)).names == ()
    await root.get(wire.SetXattr(handle, b"user.mine", b"x", 0, ANN), wire.Done)
    (room / "file").chmod(0o600)
    for request in (wire.SetXattr(handle, b"user.his", b"x", 0, BOB), wire.GetXattr(handle, b"user.mine", BOB)):
        with refused(errno.EACCES):
            await root.ask(request)


async def test_acls_are_kept_and_obeyed(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    ann, bob = root.act_as(ANN), root.act_as(BOB)
    handle = (await ann.create(here, "file", mode=0o600)).handle
    subprocess.run(["setfacl", "-m", "u:1001:r", str(room / "file")], check=True)
    acl = (await ann.get(wire.GetXattr(handle, b"system.posix_acl_access", ANN), wire.XattrGot)).value
    await bob.open(handle, os.O_RDONLY)
    await root.get(wire.CheckAccess(handle, os.R_OK, BOB), wire.Done)
    with refused(errno.EACCES):
        await bob.open(handle, os.O_WRONLY)
    with refused(errno.EPERM):
        await bob.ask(wire.RemoveXattr(handle, b"system.posix_acl_access", BOB))
    await ann.get(wire.RemoveXattr(handle, b"system.posix_acl_access", ANN), wire.Done)
    with refused(errno.EACCES):
        await bob.open(handle, os.O_RDONLY)
    await ann.get(wire.SetXattr(handle, b"system.posix_acl_access", acl, 0, ANN), wire.Done)
    await bob.open(handle, os.O_RDONLY)
    told = subprocess.run(["getfacl", "-cn", str(room / "file")], check=True, capture_output=True, text=True).stdout
    assert "user:1001:r--" in told


async def test_a_default_acl_overrides_the_umask(root: Asker, room: Path) -> None:
    subprocess.run(["setfacl", "-d", "-m", "u:1001:rwx,g::rwx", str(room)], check=True)
    here = (await root.walk(room)).handle
    created = await root.act_as(ANN).create(here, "file", mode=0o666, umask=0o077)
    assert stat.S_IMODE(created.attributes.mode) == 0o666
    made = await root.act_as(ANN).get(wire.MakeDirectory(here, b"sub", 0o777, 0o077, ANN), wire.Found)
    assert stat.S_IMODE(made.attributes.mode) == 0o777
    await root.act_as(BOB).create(made.handle, "bobs")


async def test_squashed_root_is_nobody(room: Path, tmp_path: Path) -> None:
    (room / "secret").write_bytes(b"x")
    (room / "secret").chmod(0o600)
    with serving(tmp_path / "state", Tree(str(room), root_squash=True, anon_uid=4711, anon_gid=4712)) as service:
        asker = Asker(service, FakeSession())
        here = (await asker.walk(room)).handle
        secret = (await asker.walk(room / "secret")).handle
        created = await asker.create(here, "file")
        assert (created.attributes.uid, created.attributes.gid) == (4711, 4712)
        with refused(errno.EACCES):
            await asker.open(secret)
        with refused(errno.EPERM):
            await asker.change(secret, mode=0o666)
        with refused(errno.EPERM):
            await asker.ask(wire.SetXattr(created.handle, b"trusted.x", b"", 0, ROOT))
        in_roots_group = asker.act_as(wire.Caller(1000, 0, (0, 5)))
        os.chown(room / "secret", 0, 0)
        (room / "secret").chmod(0o060)
        with refused(errno.EACCES):
            await in_roots_group.open(secret)
        asker.end()


async def test_a_failed_request_leaves_root_behind_it(root: Asker, room: Path) -> None:
    """Whatever goes wrong while acting as a user, the next request starts as the daemon itself."""
    (room / "private").mkdir(mode=0o700)
    handle = (await root.walk(room / "private")).handle
    for caller in (ANN, BOB_IN_STAFF, BOB):
        with refused(errno.EACCES):
            await root.ask(wire.LookUp(handle, b"x", caller))
        uids = next(line for line in Path("/proc/thread-self/status").read_text().splitlines() if line[:4] == "Uid:")
        assert uids.split()[1:] == ["0", "0", "0", "0"]
    created = await root.create(handle, "file")
    assert (created.attributes.uid, created.attributes.gid) == (0, 0)
