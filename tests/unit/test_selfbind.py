"""Which mounts make up this machine's tree, and what its binds allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omfs.kernel.mounting import mount_at, unmount
from omfs.kernel.mounttable import parse_mountinfo
from omfs.mount.selfbind import _bind, bind_flags, local_trees
from tests.unit.exportroom import mounted

TABLE = b"""\
21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
23 21 0:21 / /dev rw - devtmpfs udev rw
24 23 0:22 / /dev/shm rw - tmpfs tmpfs rw
25 21 8:2 / /home rw - ext4 /dev/sda2 rw
26 25 8:3 / /home/joe/data\\040disk rw - xfs /dev/sdb rw
27 21 8:4 / /srv/www rw - ext4 /dev/sda4 rw
28 21 8:5 / /srv rw - ext4 /dev/sda5 rw
29 21 0:30 / /opt rw - ext4 /dev/sda6 rw
30 29 0:31 / /opt rw - tmpfs tmpfs rw
31 21 0:40 / /mfs rw - fuse.omfs mfs_mnt rw
32 31 8:1 / /mfs/1 rw - ext4 /dev/sda1 rw
33 32 8:2 / /mfs/1/home rw - ext4 /dev/sda2 rw
34 21 0:41 / /nfs rw - nfs4 server:/ rw
35 21 8:9 / /mfs2 rw - ext4 /dev/sdc rw
"""


def shown(table: bytes) -> dict[bytes, int]:
    return {line.mountpoint: line.mount_id for line in local_trees(parse_mountinfo(table), b"/mfs")}


def test_real_trees_that_a_path_leads_to() -> None:
    assert shown(TABLE) == {
        b"/": 21,
        b"/dev/shm": 24,  # real, though what it lies in is not
        b"/home": 25,
        b"/home/joe/data disk": 26,
        b"/mfs2": 35,
        b"/opt": 30,  # the upper one of two
        b"/srv": 28,  # mounted later over the parent of /srv/www
    }


def test_parents_come_first() -> None:
    names = list(shown(TABLE))
    assert names == sorted(names)


def test_a_root_over_the_root_hides_what_was_below() -> None:
    table = (
        b"1 0 8:1 / / rw - ext4 a rw\n"
        b"2 1 8:2 / /home rw - ext4 b rw\n"
        b"3 1 8:3 / / rw - ext4 c rw\n"
        b"4 3 8:4 / /var rw - ext4 d rw\n"
    )
    assert shown(table) == {b"/": 3, b"/var": 4}


def test_a_bind_keeps_the_limits_of_what_it_shows() -> None:
    (line,) = parse_mountinfo(b"21 1 8:1 / /usr/ro ro,nosuid,nodev,noexec,nosymfollow,relatime - ext4 /dev/sda1 rw")
    ro, nosuid, nodev, noexec, nosymfollow = 1, 2, 4, 8, 256
    assert bind_flags(0, line) == ro | nosuid | nodev | noexec | nosymfollow
    assert bind_flags(nosuid, line._replace(options=b"rw,noexec")) == nosuid | nodev | noexec
    assert bind_flags(ro, None) == ro | nodev, "devices never work through a bind"
    assert bind_flags(1 << 10, line._replace(options=b"rw")) == nodev, "atime flags stay as the mount has them"


def test_a_real_bind_of_a_read_only_mount_is_read_only(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with mounted(source, "-t", "tmpfs", "-o", "ro,noexec", "omfs-test"):
        target.mkdir()
        line = mount_at(os.fsencode(source))
        assert line is not None
        _bind(os.fsencode(source), os.fsencode(target), bind_flags(0, line))
        try:
            with pytest.raises(OSError, match="Read-only"):
                (target / "new").touch()
            found = mount_at(os.fsencode(target))
            assert found is not None
            assert {b"ro", b"noexec", b"nodev"} <= set(found.options.split(b","))
        finally:
            unmount(os.fsencode(target))
