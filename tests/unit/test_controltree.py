"""The shape of /mfs/proc: node ids say what an object is, and listings go on where they were."""

from __future__ import annotations

import stat

from hypothesis import given, strategies as st

from omfs.magic.controlfiles import find
from omfs.mount import controltree as tree
from omfs.mount.controltree import Spot

PIDS = st.integers(1, tree.PID_MAX)
DIRECTORIES = [
    Spot(tree.TOP), Spot(tree.PROCESS, 12, 99), Spot(tree.HPC), Spot(tree.ADMIN), Spot(tree.DECAY), Spot(tree.NODES),
    Spot(tree.GUESTS), Spot(tree.NODE, 7), Spot(tree.GUEST, 4711),
]  # fmt: skip


@given(st.integers(0, 255), PIDS, st.integers(0, 2**63 - 1))
def test_a_node_id_says_it_all(kind: int, number: int, start_ticks: int) -> None:
    spot = Spot(kind, number, tree.ticks_of(start_ticks))
    assert tree.spot_of(spot.node_id) == spot
    assert tree.VIRTUAL_FROM <= spot.node_id < 2 * tree.VIRTUAL_FROM


def test_processes_with_one_pid_are_two_objects_of_one_number() -> None:
    first, second = Spot(tree.PROCESS, 12, 5), Spot(tree.PROCESS, 12, 6)
    assert first.node_id != second.node_id
    assert first.inode == second.inode


def test_every_listed_name_is_found_and_every_file_has_an_address() -> None:
    inodes = set()
    for directory in DIRECTORIES:
        for entry in tree.listing(directory, [1, 2, 65535], 0)[2:]:
            spot = tree.named(directory, entry.name)
            if spot is None:
                assert tree.number_of(entry.name) in (1, 2, 65535)
                continue
            assert (spot.number, spot.ticks) == (directory.number, directory.ticks)
            assert (spot.inode, spot.mode) == (entry.inode, entry.mode)
            assert spot.inode not in inodes
            inodes.add(spot.inode)
            if spot.file is not None:
                found = find(*tree.address_of(spot))
                assert found.file is spot.file
                assert found.number == (0 if spot.of_process else directory.number)
                assert stat.S_IMODE(spot.mode) == spot.file.mode
            assert spot.of_process == (directory.kind == tree.PROCESS)
    assert len(inodes) > 50


def test_aliases_lead_to_the_same_object_and_are_not_listed() -> None:
    for directory, alias, name in (
        (Spot(tree.ADMIN), b"decay-interval", b"decayinterval"),
        (Spot(tree.NODE, 3), b"CPUs", b"cpus"),
    ):
        assert tree.named(directory, alias) == tree.named(directory, name)
        names = [entry.name for entry in tree.listing(directory, (), 0)]
        assert name in names
        assert alias not in names
    assert tree.named(Spot(tree.PROCESS, 1, 1), b"hpc") is None


@given(st.sets(PIDS, max_size=20), st.sets(PIDS, max_size=20), st.integers(1, 5))
def test_a_listing_goes_on_though_processes_come_and_go(before: set[int], after: set[int], piece: int) -> None:
    """Who is there all the time is listed once; nobody twice."""
    listed: list[bytes] = []
    position, numbers = 0, before
    while entries := tree.listing(Spot(tree.TOP), numbers, position)[:piece]:
        listed += [entry.name for entry in entries]
        position, numbers = entries[-1].position, after
    assert listed[:4] == [b".", b"..", b"hpc", b"self"]
    assert len(set(listed)) == len(listed)
    assert {b"%d" % pid for pid in before & after} <= set(listed)


def test_what_is_no_number() -> None:
    for name in (b"0", b"01", b"-1", b"1 ", b"", b"4194304", b"\xff", "٣".encode(), b"99999999999"):
        assert tree.number_of(name) == 0
    assert tree.number_of(b"4194303") == tree.PID_MAX
