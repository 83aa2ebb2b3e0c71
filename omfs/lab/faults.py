"""What can go wrong with a cluster, on demand: a power cut, a cut cable between two nodes, and their repair.

A cut is a permanent wrong neighbour (ARP) entry on both sides: packets leave and arrive nowhere, so connections
stall as with a broken switch instead of being reset, and it needs no netfilter or netem in the kernel.  Cuts are
remembered (cuts.json) and hold again when a node is started.  Called by the command line and by tests.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from omfs.lab import network, node, state, topology
from omfs.lab.state import LabError
from omfs.lab.topology import LabPaths, LabPlan

Pair = tuple[int, int]


def kill_node(paths: LabPaths, number: int) -> None:
    """Power cut: every process of the node dies at once, and nobody is told.  Raises LabError."""
    with state.hold_lock(paths):
        state.load_plan(paths).check_node(number)
        if not state.alive(paths.node(number).init):
            raise LabError(f"node {number} is not running")
        node.cut_power(paths, number)


def start_node(paths: LabPaths, number: int, on_change: Callable[[node.Boot], None] = lambda boot: None) -> None:
    """Boot a node that was killed, on the disk it had.  Raises LabError; a node that fails is off again."""
    with state.hold_lock(paths) as lock_fd:
        state.load_plan(paths).check_node(number)
        if state.alive(paths.node(number).init):
            raise LabError(f"node {number} is running already")
        node.cut_power(paths, number)  # of a node that ended by itself, the cable is left
        boot = node.start(paths, number, lock_fd)
        try:
            node.wait_up([boot], on_change)
            for pair in load_cuts(paths):
                if number in pair:
                    _cut_side(paths, number, pair[0] + pair[1] - number)
        except BaseException:
            node.cut_power(paths, number)
            raise


def cut(paths: LabPaths, one: int, other: int) -> None:
    """From now on nothing that these two nodes send each other arrives.  Raises LabError."""
    with state.hold_lock(paths):
        plan = state.load_plan(paths)
        pair = _pair(plan, one, other)
        state.save(paths.cuts, sorted({*load_cuts(paths), pair}))
        for here, there in (pair, pair[::-1]):
            _cut_side(paths, here, there)


def heal(paths: LabPaths, one: int | None = None, other: int | None = None) -> list[Pair]:
    """Mend the cut between two nodes, or all of them; gives those that were mended.  Raises LabError."""
    with state.hold_lock(paths):
        plan = state.load_plan(paths)
        cuts = load_cuts(paths)
        chosen = cuts if one is None or other is None else [_pair(plan, one, other)]
        state.save(paths.cuts, [pair for pair in cuts if pair not in chosen])
        for pair in chosen:
            for here, there in (pair, pair[::-1]):
                _heal_side(paths, here, there)
        return [pair for pair in chosen if pair in cuts]


def load_cuts(paths: LabPaths) -> list[Pair]:
    """The cuts that hold now."""
    try:
        return msgspec.json.decode(paths.cuts.read_bytes(), type=list[Pair])
    except FileNotFoundError:
        return []


def _pair(plan: LabPlan, one: int, other: int) -> Pair:
    plan.check_node(one)
    plan.check_node(other)
    if one == other:
        raise LabError(f"node {one} can't be cut off from itself; kill {one} takes it away")
    return min(one, other), max(one, other)


def _cut_side(paths: LabPaths, here: int, there: int) -> None:
    init = state.alive(paths.node(here).init)
    if init is not None:
        target = topology.address(paths.name, there)
        network.ip([f"neigh replace {target} lladdr {topology.UNREACHABLE_MAC} dev eth0 nud permanent"], init.pid)


def _heal_side(paths: LabPaths, here: int, there: int) -> None:
    """Back to the true address: it never changes (topology.mac), and traffic flows again with the next packet."""
    init = state.alive(paths.node(here).init)
    if init is not None:
        target = topology.address(paths.name, there)
        network.ip([f"neigh replace {target} lladdr {topology.mac(there)} dev eth0 nud stale"], init.pid)
