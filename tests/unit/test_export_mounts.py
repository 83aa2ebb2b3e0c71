"""The node's tree over its mounts: crossing, hiding, coming and going; and the configured export trees."""

# ruff: noqa: ASYNC221 - nothing else runs in these tests: the service answers in this thread

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from omfs import wire
from omfs.config import Tree
from omfs.errors import ConfigError, StaleHandle
from omfs.export.service import ExportService
from omfs.kernel.mounttable import parse_mountinfo
from tests.unit.exportroom import ANN, ROOT, Asker, FakeSession, descriptors_left, mounted, refused, serving

pytestmark = pytest.mark.lab


@contextmanager
def silent_omfs(place: Path) -> Iterator[None]:
    """A mount that looks like ours and whose daemon never answers: who asks it anything hangs."""
    place.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    try:
        subprocess.run(["mount", "-i", "-t", "fuse.omfs", "mfs", str(place), "-o", options], check=True, pass_fds=(fd,))
        yield
    finally:
        os.close(fd)
        subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_the_kernels_own_trees_are_hidden(root: Asker) -> None:
    top = (await root.get(wire.AttachTree(ROOT), wire.Found)).handle
    listed = await root.list(top)
    assert b"etc" in listed
    for name in (b"proc", b"sys", b"dev"):
        assert name not in listed
        with refused(errno.ENOENT):
            await root.look_up(top, name)
    with refused(errno.EBUSY):
        await root.remove(top, "proc", directory=True)


async def test_mounts_are_crossed(root: Asker, room: Path) -> None:
    (room / "plain").touch()
    here = (await root.walk(room)).handle
    with mounted(room / "inner", "-t", "tmpfs", "-o", "size=1m", "omfs-test") as inner:
        (inner / "file").write_bytes(b"on the other side")
        found = await root.look_up(here, "inner")
        assert found.attributes.inode == inner.stat().st_ino
        listed = await root.list(here)
        assert (listed[b"inner"].handle, listed[b"inner"].attributes) == (found.handle, found.attributes)
        file = await root.walk(inner / "file")
        assert await root.read(await root.open(file.handle)) == b"on the other side"
        figures = await root.get(wire.StatFilesystem(file.handle), wire.FilesystemStatted)
        assert figures.blocks * figures.fragment_size_bytes == 1 << 20
        plain = (await root.look_up(here, "plain")).handle
        for request in (
            wire.MakeLink(plain, found.handle, b"linked", ROOT),
            wire.RenameName(here, b"plain", found.handle, b"moved", 0, ROOT),
            wire.RenameName(found.handle, b"file", here, b"moved", 0, ROOT),
        ):
            with refused(errno.EXDEV):
                await root.ask(request)
        for attempt in (root.remove(here, "inner", directory=True), root.rename(here, "inner", here, "new")):
            with refused(errno.EBUSY):
                await attempt
        with refused(errno.EEXIST):
            await root.make_directory(here, "inner")
        await root.act_as(ANN).make_directory(found.handle, "anns")
        assert (inner / "anns").stat().st_uid == 1000


async def test_a_file_bound_over_a_file(root: Asker, room: Path) -> None:
    (room / "below").write_bytes(b"below")
    (room / "above").write_bytes(b"above")
    here = (await root.walk(room)).handle
    subprocess.run(["mount", "--bind", str(room / "above"), str(room / "below")], check=True)
    try:
        found = await root.look_up(here, "below")
        assert await root.read(await root.open(found.handle)) == b"above"
        created = await root.create(here, "below", os.O_RDWR)
        assert (created.handle, await root.read(created.open_id)) == (found.handle, b"above")
        with refused(errno.EEXIST):
            await root.create(here, "below", os.O_RDWR | os.O_EXCL)
        with refused(errno.EBUSY):
            await root.remove(here, "below")
        subprocess.run(["mount", "--bind", "/dev/null", str(room / "above")], check=True)
        try:
            with refused(errno.ENOENT):
                await root.look_up(here, "above")
            assert sorted(await root.list(here)) == [b"below"]
        finally:
            subprocess.run(["umount", str(room / "above")], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(room / "below")], check=True)


async def test_mounts_come_and_go(root: Asker, service: ExportService, room: Path) -> None:
    (room / "inner").mkdir()
    here = (await root.walk(room)).handle
    bare = await root.look_up(here, "inner")
    with mounted(room / "inner", "-t", "tmpfs", "omfs-test") as inner:
        (inner / "file").touch()
        file = await root.walk(inner / "file")
        assert (await root.look_up(here, "inner")).handle != bare.handle
        service.drop_idle()
        assert subprocess.run(["umount", str(inner)], check=False, capture_output=True).returncode != 0
        service.drop_idle()
        subprocess.run(["umount", str(inner)], check=True)
        assert (await root.look_up(here, "inner")).handle == bare.handle
        for _ in range(2):
            with pytest.raises(StaleHandle):
                await root.attributes(file.handle)
        subprocess.run(["mount", "-t", "tmpfs", "omfs-test", str(inner)], check=True)
        (inner / "file").touch()
        with pytest.raises(StaleHandle):
            await root.attributes(file.handle)
        assert (await root.walk(inner / "file")).handle != file.handle


MOUNTING = """
import subprocess, sys, trio, trio.testing
from omfs.export.mounts import Mounts
async def wait_told(what):
    with trio.fail_after(60):
        await mounts.wait_changed()
    print(what, mounts.refresh(), mounts.refresh())
async def main():
    for what in (["mount", "-t", "tmpfs", "t", sys.argv[1]], ["umount", sys.argv[1]]):
        with trio.move_on_after(0.2) as quiet:
            await mounts.wait_changed()
        print("quiet", quiet.cancelled_caught)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_told, what[0])
            await trio.testing.wait_all_tasks_blocked()
            subprocess.run(what, check=True)
mounts = Mounts()
trio.run(main)
mounts.close()
"""


def test_a_change_of_mounts_is_told(tmp_path: Path) -> None:
    """Where nobody else mounts anything meanwhile."""
    command = ["unshare", "--mount", sys.executable, "-c", MOUNTING, str(tmp_path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    assert told == "quiet True\nmount True False\nquiet True\numount True False\n"


async def test_a_remounted_disk_knows_its_handles(root: Asker, service: ExportService, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk:
        (disk / "file").write_bytes(b"kept")
        before = await root.walk(disk / "file")
        service.drop_idle()
        service.drop_idle()
        subprocess.run(["umount", str(disk)], check=True)
        with pytest.raises(StaleHandle):
            await root.attributes(before.handle)
        subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
        assert await root.read(await root.open(before.handle)) == b"kept"


async def test_a_covered_mount_is_out_of_reach(root: Asker, room: Path) -> None:
    with mounted(room / "inner", "-t", "tmpfs", "omfs-test") as inner:
        (inner / "secret").touch()
        secret = await root.walk(inner / "secret")
        with mounted(room / "inner", "-t", "tmpfs", "omfs-test"):
            with refused(errno.ENOENT):
                await root.walk(inner / "secret")
            assert await root.list((await root.walk(inner)).handle) == {}
        assert (await root.walk(inner / "secret")).handle == secret.handle


async def test_no_serving_in_a_chain(root: Asker, room: Path) -> None:
    here = (await root.walk(room)).handle
    with silent_omfs(room / "mfs"):
        with refused(errno.EREMOTE):
            await root.look_up(here, "mfs")
        assert await root.list(here) == {}
        with refused(errno.EREMOTE):
            await root.remove(here, "mfs")
        with refused(errno.EBUSY):
            await root.remove(here, "mfs", directory=True)
        with refused(errno.EBUSY):
            await root.rename(here, "mfs", here, "new")


async def test_a_read_only_mount_is_read_only(root: Asker, room: Path) -> None:
    with mounted(room / "inner", "-t", "tmpfs", "omfs-test") as inner:
        (inner / "file").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(inner)], check=True)
        found = await root.walk(inner / "file")
        for attempt in (
            root.open(found.handle, os.O_RDWR),
            root.change(found.handle, mode=0o600),
            root.create((await root.walk(inner)).handle, "new"),
            root.get(wire.CheckAccess(found.handle, os.W_OK, ROOT), wire.Done),
        ):
            with refused(errno.EROFS):
                await attempt


async def test_handles_survive_a_restart(room: Path, tmp_path: Path) -> None:
    (room / "file").write_bytes(b"data")
    with serving(tmp_path / "state") as first:
        asker = Asker(first, FakeSession())
        handle = (await asker.walk(room / "file")).handle
        asker.end()
    with serving(tmp_path / "state") as second:
        asker = Asker(second, FakeSession())
        assert await asker.read(await asker.open(handle)) == b"data"
        assert (await asker.walk(room / "file")).handle == handle
        asker.end()
    with serving(tmp_path / "another state") as stranger:
        asker = Asker(stranger, FakeSession())
        with refused(errno.ESTALE):
            await asker.attributes(handle)
        asker.end()


# ---------------------------------------------------------------- export trees


async def test_a_hidden_tree_is_not_there(room: Path, tmp_path: Path) -> None:
    (room / "way" / "secret").mkdir(parents=True)
    (room / "way" / "secret" / "file").touch()
    (room / "secret").mkdir()
    with serving(tmp_path / "state", Tree(str(room / "way" / "secret"), hidden=True)) as service:
        asker = Asker(service, FakeSession())
        here = (await asker.walk(room)).handle
        way = (await asker.look_up(here, "way")).handle
        assert await asker.list(way) == {}
        assert sorted(await asker.list(here)) == [b"secret", b"way"]
        for attempt, number in (
            (lambda: asker.look_up(way, "secret"), errno.ENOENT),
            (lambda: asker.remove(way, "secret", directory=True), errno.EBUSY),
            (lambda: asker.remove(way, "secret"), errno.EBUSY),
            (lambda: asker.rename(way, "secret", here, "shown"), errno.EBUSY),
            (lambda: asker.rename(here, "way", here, "elsewhere"), errno.EBUSY),
            (lambda: asker.rename(here, "secret", way, "secret", 2), errno.EBUSY),
            (lambda: asker.make_directory(way, "secret"), errno.EACCES),
            (lambda: asker.create(way, "secret"), errno.EACCES),
        ):
            with refused(number):
                await attempt()
        os.rename(room / "way" / "secret", room / "way" / "gone")
        with refused(errno.EACCES):
            await asker.get(wire.MakeSymlink(way, b"secret", b"gone", ROOT), wire.Found)
        assert sorted(await asker.list(way)) == [b"gone"]
        asker.end()


async def test_a_tree_inside_a_tree_has_its_own_options(room: Path, tmp_path: Path) -> None:
    (room / "shared" / "upload").mkdir(parents=True)
    (room / "link").symlink_to(room / "shared")
    trees = (Tree(str(room / "link"), read_only=True), Tree(str(room / "link" / "upload"), root_squash=True))
    with serving(tmp_path / "state", *trees) as service:
        asker = Asker(service, FakeSession())
        shared, upload = await asker.walk(room / "shared"), await asker.walk(room / "shared" / "upload")
        with refused(errno.EROFS):
            await asker.create(shared.handle, "file")
        with refused(errno.EACCES):
            await asker.create(upload.handle, "file")
        (room / "shared" / "upload").chmod(0o777)
        created = await asker.create(upload.handle, "file")
        assert created.attributes.uid == 65534
        assert (await asker.list(shared.handle))[b"upload"].handle == upload.handle
        above = (await asker.walk(room)).handle
        for request in (
            wire.MakeLink(created.handle, above, b"out", ROOT),
            wire.RenameName(upload.handle, b"file", above, b"out", 0, ROOT),
        ):
            with refused(errno.EXDEV):
                await asker.ask(request)
        assert [tree.path for tree in service.exports()] == [
            b"/",
            os.fsencode(room / "shared"),
            os.fsencode(room / "shared" / "upload"),
        ]
        asker.end()


async def test_hiding_a_tree_makes_old_handles_useless(room: Path, tmp_path: Path) -> None:
    (room / "secret").mkdir()
    (room / "secret" / "file").touch()
    with serving(tmp_path / "state") as before:
        asker = Asker(before, FakeSession())
        handle = (await asker.walk(room / "secret" / "file")).handle
        asker.end()
    with serving(tmp_path / "state", Tree(str(room / "secret"), hidden=True)) as after:
        asker = Asker(after, FakeSession())
        with pytest.raises(StaleHandle):
            await asker.attributes(handle)
        asker.end()


async def test_what_a_node_tells_about_itself(root: Asker) -> None:
    told = await root.get(wire.DescribeNode(), wire.NodeDescribed)
    assert (told.node_id, told.version) == (1, wire.PROTOCOL_VERSION)
    assert told.hostname == os.uname().nodename
    assert told.exports == (wire.ExportInfo(b"/", False, False),)
    assert told.uptime_s >= 0
    assert told.standing.users == told.standing.groups == ()
    assert len(told.standing.users_digest) == len(told.standing.groups_digest) == 16
    told = await root.get(wire.DescribeNode(accounts=True), wire.NodeDescribed)
    assert (b"root", 0) in told.standing.users
    assert (b"root", 0) in told.standing.groups


def test_a_wrong_tree_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absolute path"), serving(tmp_path, Tree("relative")):
        pass


async def test_an_owner_without_descriptors_does_not_lose_its_trees(room: Path, tmp_path: Path) -> None:
    (room / "way" / "secret").mkdir(parents=True)
    with serving(tmp_path / "state", Tree(str(room / "way" / "secret"), hidden=True)) as service:
        asker = Asker(service, FakeSession())
        way = (await asker.walk(room / "way")).handle
        with descriptors_left(1), refused(errno.EMFILE):
            await asker.remove(way, "secret", directory=True)
        assert (room / "way" / "secret").is_dir()
        service.drop_idle()
        service.drop_idle()
        with descriptors_left(0), refused(errno.EMFILE):
            await asker.attributes(way)
        assert (await asker.attributes(way)).nlink >= 1
        asker.end()


async def test_a_hidden_tree_is_hidden_under_other_names_too(room: Path, tmp_path: Path) -> None:
    (room / "way" / "secret").mkdir(parents=True)
    with (
        serving(tmp_path / "state", Tree(str(room / "way" / "secret"), hidden=True)) as service,
        mounted(room / "alias", "--bind", str(room / "way")) as alias,
    ):
        asker = Asker(service, FakeSession())
        handle = (await asker.walk(alias)).handle
        assert await asker.list(handle) == {}
        with refused(errno.ENOENT):
            await asker.look_up(handle, "secret")
        with refused(errno.EBUSY):
            await asker.remove(handle, "secret", directory=True)
        asker.end()


async def test_a_narrower_bind_makes_old_handles_stale(root: Asker, service: ExportService, room: Path) -> None:
    (room / "outer" / "inner").mkdir(parents=True)
    (room / "outer" / "secret").touch()
    with mounted(room / "bound", "--bind", str(room / "outer")) as bound:
        secret = await root.walk(bound / "secret")
        service.drop_idle()
        service.drop_idle()
        subprocess.run(["umount", str(bound)], check=True)
        subprocess.run(["mount", "--bind", str(room / "outer" / "inner"), str(bound)], check=True)
        for _ in range(2):  # the second time, nothing remembers the old mount
            with pytest.raises(StaleHandle):
                await root.attributes(secret.handle)


async def test_a_new_mount_with_an_old_mounts_id(root: Asker, service: ExportService, room: Path) -> None:
    for name in ("one", "two"):
        (room / name).mkdir()
    here = (await root.walk(room)).handle
    with mounted(room / "one", "-t", "tmpfs", "omfs-test"):
        await root.look_up(here, "one")
        old_id = mount_ids()[room / "one"]
        service.drop_idle()
        service.drop_idle()
        await root.attributes(here)  # what it lies on stays open, so nothing asks whether the table changed
        subprocess.run(["umount", str(room / "one")], check=True)
        with mounted(room / "two", "-t", "tmpfs", "omfs-test") as two:
            assert mount_ids()[two] == old_id
            found = await root.look_up(here, "two")
            assert (await root.attributes(found.handle)).inode == two.stat().st_ino
        subprocess.run(["mount", "-t", "tmpfs", "omfs-test", str(room / "one")], check=True)


def mount_ids() -> dict[Path, int]:
    lines = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    return {Path(os.fsdecode(line.mountpoint)): line.mount_id for line in lines}
