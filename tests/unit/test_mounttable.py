"""mountinfo and which mounts are shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from omfs.kernel.mounttable import MountLine, is_real_tree, parse_mountinfo, real_trees_within_reach

TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
36 27 98:0 /mnt1 /mnt\0402\011tab\134 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
70 27 0:55 / /mfs rw,nosuid - fuse.omfs mfs_mnt rw,user_id=0
"""


def test_lines_are_taken_apart() -> None:
    lines = parse_mountinfo(TABLE)
    assert lines[0] == MountLine(22, 27, b"0:21", b"/", b"/proc", b"proc", b"rw,relatime", b"rw")
    assert lines[2] == MountLine(
        36, 27, b"98:0", b"/mnt1", b"/mnt 2\ttab\\", b"ext3", b"rw,noatime", b"rw,errors=continue"
    )
    assert [line.fstype for line in lines] == [b"proc", b"ext4", b"ext3", b"fuse.omfs"]


def test_this_machines_own_table() -> None:
    lines = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    assert b"/" in {line.mountpoint for line in lines}


@pytest.mark.parametrize("line", [b"x", b"1 2 0:1 / /", b"1 2 0:1 / / rw -", b"a b 0:1 / / rw - ext4 x rw"])
def test_what_is_no_table_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of mountinfo"):
        parse_mountinfo(line)


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_mountpoint_survives_the_kernels_escaping(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)
    (line,) = parse_mountinfo(b"1 2 0:1 / /" + escaped + b" rw - ext4 x rw")
    assert line.mountpoint == b"/" + name


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "vfat", "fuseblk", "zfs", "f2fs"])
def test_real_trees_are_shown(fstype: str) -> None:
    assert is_real_tree(os.fsencode(fstype))


HIDDEN = (
    "proc sysfs devtmpfs devpts cgroup cgroup2 debugfs tracefs securityfs bpf mqueue pstore configfs fusectl hugetlbfs "
    "binfmt_misc autofs nsfs fuse.omfs fuse.sshfs fuse nfs4 cifs"
)


@pytest.mark.parametrize("fstype", HIDDEN.split())
def test_what_is_no_tree_of_this_node_is_hidden(fstype: str) -> None:
    assert not is_real_tree(os.fsencode(fstype))


def test_what_lies_in_a_hidden_mount_is_out_of_reach() -> None:
    text = rb"""1 0 0:1 / / rw - ext4 x rw
2 1 0:2 / /home rw - xfs x rw
3 2 0:3 / /home/data rw - ext4 x rw
4 1 0:4 / /dev rw - devtmpfs x rw
5 4 0:5 / /dev/shm rw - tmpfs x rw
6 1 0:6 / /mfs rw - fuse.omfs x rw
7 6 0:1 / /mfs/1 rw - ext4 x rw
8 7 0:2 / /mfs/1/home rw - xfs x rw
9 1 0:7 / /boot rw - autofs x rw
10 9 0:8 / /boot rw - vfat x rw
11 10 0:9 / /boot/efi rw - vfat x rw
"""
    assert [line.mount_id for line in real_trees_within_reach(parse_mountinfo(text))] == [1, 2, 3, 10, 11]


def test_what_another_mount_was_laid_over_is_out_of_reach() -> None:
    text = rb"""1 1 0:1 / / rw - rootfs x rw
2 1 0:2 / / rw - ext4 x rw
3 2 0:3 / /srv/disk rw - ext4 x rw
4 3 0:4 / /srv/disk/inner rw - ext4 x rw
5 2 0:5 / /srv rw - fuse.sshfs x rw
6 2 0:6 / /srv2 rw - tmpfs x rw
7 6 0:7 / /srv2/sub rw - tmpfs x rw
8 6 0:8 / /srv2 rw - tmpfs x rw
9 8 0:9 / /srv2/sub rw - tmpfs x rw
"""
    assert [line.mount_id for line in real_trees_within_reach(parse_mountinfo(text))] == [1, 2, 6, 8, 9]


def test_a_carriage_return_is_part_of_its_line() -> None:
    """The kernel does not escape it, and any user may name his FUSE file system so."""
    (line,) = parse_mountinfo(b"1 2 0:1 / /mnt rw - fuse.sshfs a\rb\x0b\x0c\x1c\x85 rw\n")
    assert line.fstype == b"fuse.sshfs"
