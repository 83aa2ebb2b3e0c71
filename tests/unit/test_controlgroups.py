"""Where a process is in the control groups, and what it may use there: both hierarchies, as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from omfs.kernel import controlgroups
from omfs.kernel.controlgroups import Hierarchy, Room, hierarchy_of, memory_room, processor_share
from omfs.kernel.mounttable import parse_mountinfo

OLD = b"30 20 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
NEW = b"31 20 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
LINE = {"old": "5:cpu,cpuacct:/a/b\n0::/c\n", "new": "0::/system.slice/mignode.service\n"}


def test_the_old_hierarchy_has_a_tree_for_each_controller() -> None:
    found = hierarchy_of("cpu", LINE["old"], parse_mountinfo(NEW + OLD))
    assert found == (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu/a/b"), False)


def test_what_has_no_tree_of_its_own_is_in_the_new_one() -> None:
    found = hierarchy_of("memory", LINE["old"], parse_mountinfo(NEW + OLD))
    assert found == (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/c"), True)
    found = hierarchy_of("cpu", LINE["new"], parse_mountinfo(NEW))
    assert found is not None
    assert found.own == Path("/sys/fs/cgroup/system.slice/mignode.service")


def test_a_container_sees_only_its_own_group() -> None:
    mounts = parse_mountinfo(OLD.replace(b"0:29 / ", b"0:29 /a "))
    found = hierarchy_of("cpu", LINE["old"], mounts)
    assert found is not None
    assert found.own == Path("/sys/fs/cgroup/cpu/b")
    found = hierarchy_of("cpu", "5:cpu:/elsewhere\n", mounts)
    assert found is not None
    assert found.own == found.mount


def test_nothing_is_known_where_nothing_is_mounted() -> None:
    assert hierarchy_of("cpu", LINE["old"], parse_mountinfo(NEW)) is None
    assert hierarchy_of("cpu", LINE["new"], parse_mountinfo(OLD)) is None


def test_this_machine_can_be_asked() -> None:
    for controller in (controlgroups.CPU, controlgroups.MEMORY):
        where = controlgroups.hierarchy(controller)
        assert where is None or where.own.is_relative_to(where.mount)


class Groups:
    """A hierarchy in a directory: we are in top/sub."""

    def __init__(self, top: Path, *, is_unified: bool) -> None:
        self.where = Hierarchy(top, top / "sub", is_unified)
        self.where.own.mkdir()

    def put(self, group: str, **texts: str) -> None:
        for name, text in texts.items():
            (self.where.mount / group / name.replace("__", ".")).write_text(text)


def test_the_least_room_of_all_groups_above_counts(tmp_path: Path) -> None:
    groups = Groups(tmp_path, is_unified=True)
    assert memory_room(groups.where) is None
    stat = "anon 5\ninactive_file 30\nactive_file 10\nfile 90\n"
    groups.put("sub", memory__max="max\n", memory__current="100\n", memory__stat=stat)
    assert memory_room(groups.where) is None
    groups.put(".", memory__max="1000\n", memory__current="900\n", memory__stat=stat)
    assert memory_room(groups.where) == Room(1000, 140)
    groups.put("sub", memory__max="500\n")
    assert memory_room(groups.where) == Room(500, 440)
    groups.put("sub", memory__current="600\n")  # more than the limit, for a moment
    assert memory_room(groups.where) == Room(500, 0)


def test_the_old_one_says_no_limit_by_a_huge_one(tmp_path: Path) -> None:
    groups = Groups(tmp_path, is_unified=False)
    stat = "inactive_file 1\ntotal_inactive_file 20\ntotal_active_file 5\n"
    groups.put("sub", memory__limit_in_bytes=f"{2**63 - 4096}\n", memory__usage_in_bytes="9\n", memory__stat=stat)
    assert memory_room(groups.where) is None
    groups.put("sub", memory__limit_in_bytes="100\n", memory__usage_in_bytes="90\n")
    assert memory_room(groups.where) == Room(100, 35)


@pytest.mark.parametrize("is_unified", [False, True])
def test_processors_are_time_per_time(tmp_path: Path, is_unified: bool) -> None:
    groups = Groups(tmp_path, is_unified=is_unified)
    assert processor_share(groups.where) is None

    def put(group: str, quota: str, period: str) -> None:
        if is_unified:
            groups.put(group, cpu__max=f"{quota} {period}\n")
        else:
            groups.put(group, cpu__cfs_quota_us=f"{quota}\n", cpu__cfs_period_us=f"{period}\n")

    put(".", "max" if is_unified else "-1", "100000")
    assert processor_share(groups.where) is None
    put(".", "150000", "100000")
    put("sub", "6000", "10000")
    assert processor_share(groups.where) == 0.6
    put("sub", "50000", "10000")
    assert processor_share(groups.where) == 1.5
