"""A change of names that others have seen already, while the node that makes it has not heard that it was made.

The owner's answers to that node are lost for a while.  Whoever is told by another node what it sees must see it too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.lab.agents import Agent, Call
from tests.lab.cluster import Cluster, Place, wait_until

MAKER, OWNER, OTHER = 1, 2, 3
NOBODY = "02:00:00:00:00:01"

PREPARED: list[Call] = [("create", "aside", ""), ("unlink", "aside"), ("facts", ".")]
"""After these the mount knows what the kernel asks before a change is sent: whether there is an ACL, and all names."""

pytestmark = pytest.mark.lab

CHANGES: dict[str, tuple[list[Call], Call, dict[str, str]]] = {
    "mkdir": ([], ("mkdir", "directory"), {"directory": "directory"}),
    "rename, and what is below": (
        [("mkdir", "old"), ("mkdir", "old/below")], ("rename", "old", "new"), {"new/below": "directory"},
    ),
    "link": ([("create", "file", "text")], ("link", "file", "other"), {"other": "file"}),
    "rename": ([("create", "old", "text")], ("rename", "old", "new"), {"old": "nothing", "new": "file"}),
    "unlink": ([("create", "file", "text")], ("unlink", "file"), {"file": "nothing"}),
}  # fmt: skip


@contextlib.contextmanager
def unheard(cluster: Cluster, node: int, deaf: int) -> Iterator[None]:
    """What *node* sends to *deaf* is lost, but not the other way round."""
    address = cluster.address(deaf)
    mac = cluster.run(deaf, "cat /sys/class/net/eth0/address").strip()
    cluster.run(node, f"ip neigh replace {address} lladdr {NOBODY} dev eth0 nud permanent")
    try:
        yield
    finally:
        cluster.run(node, f"ip neigh replace {address} lladdr {mac} dev eth0 nud stale")


def kinds(agent: Agent, paths: dict[str, str]) -> dict[str, str]:
    found = agent.call(*(("facts", path) for path in paths))
    return {path: facts["kind"] for path, facts in zip(paths, found, strict=True)}


@pytest.mark.parametrize("change", CHANGES)
def test_nobody_here_sees_a_name_as_it_was_when_another_node_sees_it_changed(cluster: Cluster, change: str) -> None:
    before, call, after = CHANGES[change]
    here: Place = cluster.fresh_dir(OWNER)
    maker, looker, other = (Agent(cluster.lab, node, "calls.py", here.remote) for node in (MAKER, MAKER, OTHER))
    maker.call(*before, *PREPARED)
    was = kinds(looker, after)
    assert kinds(looker, after) == kinds(other, after) == was != after
    with unheard(cluster, OWNER, MAKER):
        maker.send_call(call)
        wait_until(lambda: kinds(other, after) == after, "the other node sees the change")
        looker.send_call(*(("facts", path) for path in after))
    seen = [facts.get("kind", facts) for facts in looker.receive()]
    assert seen == list(after.values())
    assert maker.receive() == [None]
    for agent in (maker, looker, other):
        agent.stop()
