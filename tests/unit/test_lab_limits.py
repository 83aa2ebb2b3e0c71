"""The control groups of a lab's nodes, as directories: what is left of them, and who is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from omfs.kernel import controlgroups
from omfs.kernel.controlgroups import CPU, MEMORY, Hierarchy
from omfs.lab import cluster, limits
from omfs.lab.topology import LabPaths, LabPlan

PROCESSORS = 0.4
# As in a directory that is no control group: what has been written to them stays, and keeps rmdir(2) from it.
FILES = ("cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.shares", "cpu.max", "cpu.weight", "memory.limit_in_bytes")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabPaths:
    for controller in (CPU, MEMORY):
        (tmp_path / controller).mkdir()
    monkeypatch.setattr(
        controlgroups, "hierarchy", lambda name: Hierarchy(tmp_path / name, tmp_path / name, is_unified=False)
    )
    return LabPaths("one", tmp_path / "labs")


def made(lab: LabPaths) -> list[Path]:
    """Groups of two nodes, as if nothing had been written to them."""
    plan = LabPlan(name="one", nodes=2, memory_bytes=1 << 30, processors=PROCESSORS)
    groups = [group for node in (1, 2) for group in limits.make(lab, plan, node)]
    for group in groups:
        for where in (group, *group.parents[:2]):
            for name in FILES:
                (where / name).unlink(missing_ok=True)
    return groups


def test_what_a_node_may_use_is_not_what_others_leave(lab: LabPaths, tmp_path: Path) -> None:
    limits.make(lab, LabPlan(name="one", nodes=2, processors=PROCESSORS), 2)
    common = tmp_path / CPU / "omfs-lab"
    assert (common / "one" / "node2" / "cpu.cfs_quota_us").read_text() == str(round(PROCESSORS * limits.PERIOD_US))
    assert (common / "cpu.shares").read_text() == (common / "one" / "cpu.shares").read_text() == "16384"


def test_all_groups_go_and_no_other_labs(lab: LabPaths, tmp_path: Path) -> None:
    assert len(made(lab)) == 4
    other = tmp_path / CPU / "omfs-lab" / "two"
    other.mkdir()
    assert limits.remove(lab) == []
    assert list((tmp_path / CPU / "omfs-lab").iterdir()) == [other]
    assert not (tmp_path / MEMORY / "omfs-lab").exists()
    assert limits.remove(lab) == []


def test_a_group_that_is_left_is_told_and_goes_next_time(
    lab: LabPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = made(lab)[0] / "somebody"
    busy.mkdir()
    monkeypatch.setattr(limits, "REMOVED_WITHIN_S", 0.0)
    assert not cluster.down(lab), "there is no lab: only its groups are looked at"
    assert capsys.readouterr().err.startswith(f"omfs-lab: control group {busy.parents[1]} is left: ")
    assert busy.is_dir()
    busy.rmdir()
    assert not cluster.down(lab)
    assert capsys.readouterr().err == ""
    assert not busy.parents[2].exists()
