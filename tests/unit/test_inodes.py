"""The table of what the kernel knows."""

from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from omfs.cache.holder import Lease
from omfs.errors import StaleHandle
from omfs.mount import inodes
from omfs.mount.inodes import ROOT_ID, InodeTable, directory_id


class Leases:
    """Counts what is given back."""

    round = 1

    def __init__(self) -> None:
        self.root = Lease()
        self.dropped: list[bytes] = []

    def new_lease(self, handle: bytes) -> Lease:
        return Lease()

    def drop_lease(self, handle: bytes, lease: Lease) -> None:
        self.dropped.append(handle)


class Node:
    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.leases = Leases()


def test_ids_do_not_depend_on_the_order_of_look_ups() -> None:
    one, other = InodeTable[Node](), InodeTable[Node]()
    handles = [b"%d" % number for number in range(100)]
    ids = {handle: one.find(Node(3), handle).id for handle in handles}
    assert ids == {handle: other.find(Node(3), handle).id for handle in reversed(handles)}
    assert len(set(ids.values())) == 100
    assert one.find(Node(4), b"7").id != ids[b"7"]
    assert all(65537 < number < 2**63 for number in ids.values())


def test_collisions_take_the_next_free_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:
        def __init__(self, *_: object, **__: object) -> None: ...
        def digest(self) -> bytes:
            return b"\xff" * 8  # also the largest: the next one wraps around

    monkeypatch.setattr(inodes, "blake2b", Digest)
    table = InodeTable[Node]()
    found = [table.find(Node(1), b"%d" % number) for number in range(50)]
    assert len({inode.id for inode in found}) == 50
    assert all(65537 < inode.id < 2**63 for inode in found)
    assert [table.find(Node(1), b"%d" % number) for number in range(50)] == found


def test_directories_of_nodes_are_never_forgotten() -> None:
    table = InodeTable[Node]()
    table.add_directory(Node(7))
    table.forget(directory_id(7), 1000)
    table.forget(ROOT_ID, 1000)
    assert table.get(directory_id(7)).handle is None
    table.remove_directory(7)
    with pytest.raises(StaleHandle):
        table.get(directory_id(7))


class Kernel(RuleBasedStateMachine):
    """A model of the kernel: it counts its look-ups and forgets some of them, never more than it has."""

    @initialize()
    def begin(self) -> None:
        self.table = InodeTable[Node]()
        self.nodes = {number: Node(number) for number in (1, 2)}
        self.known: dict[int, tuple[int, bytes, int]] = {}  # id -> node, handle, look-ups

    @rule(node=st.sampled_from([1, 2]), handle=st.binary(min_size=1, max_size=1))
    def look_up(self, node: int, handle: bytes) -> None:
        inode = self.table.find(self.nodes[node], handle)
        inode.lookups += 1
        _, _, before = self.known.get(inode.id, (node, handle, 0))
        self.known[inode.id] = (node, handle, before + 1)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if not self.known:
            return
        number = data.draw(st.sampled_from(sorted(self.known)))
        node, handle, lookups = self.known[number]
        dropped = data.draw(st.integers(1, lookups))
        self.table.forget(number, dropped)
        if dropped == lookups:
            del self.known[number]
        else:
            self.known[number] = (node, handle, lookups - dropped)

    @rule(number=st.integers(2**40, 2**63))
    def forget_nonsense(self, number: int) -> None:
        if number not in self.known:
            self.table.forget(number, 1)

    @invariant()
    def the_table_knows_exactly_what_the_kernel_knows(self) -> None:
        assert len(self.table) == len(self.known)
        for number, (node, handle, lookups) in self.known.items():
            inode = self.table.get(number)
            assert (inode.owner.node_id, inode.handle, inode.lookups) == (node, handle, lookups)


TestKernel = Kernel.TestCase
TestKernel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
