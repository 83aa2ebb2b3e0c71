"""Writes that were answered before the owner has them: seen by everybody all the same, and never lost unheard."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.agents import Agent
from tests.lab.cluster import Cluster, Place, wait_until

pytestmark = pytest.mark.lab

TERM_S = 10
TURNS = 100
NATIVE = 1  # which of the readers below
BLOCK = 4096


@pytest.fixture
def here(cluster: Cluster) -> Place:
    return cluster.fresh_dir(2)


def kept_open(cluster: Cluster, node: int, path: str, *arguments: str) -> Agent:
    agent = Agent(cluster.lab, node, "keptopen.py", path, *arguments)
    assert agent.receive() == "open"
    return agent


def test_what_is_written_is_seen_while_the_file_stays_open(cluster: Cluster, here: Place) -> None:
    """By others through /mfs and by native programs of the owner, which open it, at once."""
    path = f"{here.remote}/file"
    writer = kept_open(cluster, 1, path, "create")
    readers = [
        Agent(cluster.lab, 3, "calls.py", here.remote),
        Agent(cluster.lab, 2, "calls.py", here.native),
        Agent(cluster.lab, 1, "calls.py", here.remote),
    ]
    written = ""
    for turn in range(TURNS):
        text = f"{turn}," * (1 + turn % 3)
        for _ in range(1 + turn % 2):
            assert writer.ask(["write", text]) == len(text)
            written += text
        (facts,) = readers[turn % 3].call(("facts", "file", "data"))
        assert facts["data"] == written, f"turn {turn}: {readers[turn % 3].name}"
        if turn % 3 != NATIVE:  # whose stat(2) nobody can keep waiting
            assert facts["size"] == len(written), f"turn {turn}"
    assert writer.ask(["close"]) is None


@pytest.fixture
def short_term(cluster: Cluster) -> Iterator[Cluster]:
    with cluster.export_configured(2, f"lease_term_s = {TERM_S}"):
        for node in (1, 3):
            cluster.wait_up(node, 2)
            wait_until(lambda node=node: holds_leases(cluster, node), f"leases are granted to node {node}")  # type: ignore[misc]
        yield cluster


def holds_leases(cluster: Cluster, node: int) -> bool:
    """Of node 2, which was started anew: not before what its former process granted is given back."""
    cluster.run(node, "stat /mfs/2/srv")
    return any(lease["node_id"] == node for lease in json.loads(cluster.run(2, "omfs-admin leases --json"))["leases"])


def test_who_is_cut_off_hears_what_was_lost(short_term: Cluster) -> None:
    cluster = short_term
    here = cluster.fresh_dir(2)
    path = f"{here.remote}/file"
    writer = kept_open(cluster, 1, path, "create")
    assert writer.ask(["write", "kept"]) == 4
    assert writer.ask(["sync"]) is None
    with cluster.cut(1, 2):
        assert writer.ask(["write", " and lost"]) == 9, "it still holds the file, so nobody needs to be asked"
        assert cluster.run(3, f"cat {path}; printf , >> {path}; cat {path}", timeout_s=60) == "keptkept,"
        assert writer.ask(["sync"]) in ("EIO", "EHOSTDOWN")
        assert cluster.try_run(1, f"cat {path}", timeout_s=60).returncode != 0, "no old data"
    cluster.wait_up(1, 2)
    assert cluster.run(1, f"cat {path}") == "kept,"
    assert writer.ask(["close"]) is None, "an error is reported once"
    assert cluster.run(2, f"cat {here.native}/file") == "kept,"


def test_a_write_that_comes_late_does_not_undo_what_others_wrote(short_term: Cluster) -> None:
    """Held up in the network for longer than the term, and then let through."""
    cluster = short_term
    here = cluster.fresh_dir(2)
    path = f"{here.remote}/file"
    writer = kept_open(cluster, 1, path, "create")
    assert writer.ask(["write", "first"]) == 5
    with cluster.cut(1, 2):
        assert writer.ask(["write", " late"]) == 5
        cluster.run(3, f"printf SECOND > {path}", timeout_s=60)
    cluster.wait_up(1, 2)
    wait_until(lambda: writer.ask(["sync"]) != "EHOSTDOWN", "the loss was told")
    assert cluster.run(2, f"cat {here.native}/file") == "SECOND"

    def is_seen() -> bool:
        """The connection of before may be given up only now."""
        seen = cluster.try_run(1, f"cat {path}")
        assert seen.stdout == "SECOND" or "Host is down" in seen.stderr, seen
        return seen.returncode == 0

    wait_until(is_seen, "node 2 is up again")


def test_a_full_disk_is_reported_and_what_was_synced_is_there(cluster: Cluster, here: Place) -> None:
    path = f"{here.remote}/file"
    cluster.run(
        2, f"fallocate -l $(( $(df --output=avail -B1 {here.native} | tail -1) - 4000000 )) {here.native}/ballast"
    )
    try:
        writer = kept_open(cluster, 1, path, "create")
        assert writer.ask(["fill", BLOCK, 100]) == [100 * BLOCK, None]
        assert writer.ask(["sync"]) is None
        _, error = writer.ask(["fill", BLOCK, 20000])
        errors = [error, writer.ask(["sync"]), writer.ask(["close"])]
        assert "ENOSPC" in errors
        assert set(errors) <= {"ENOSPC", None}
        assert (
            cluster.try_run(1, f"dd if=/dev/zero of={here.remote}/other bs=4k count=20000 status=none").returncode != 0
        )
        assert cluster.try_run(1, f"cp {here.remote}/ballast {here.remote}/copy").returncode != 0
    finally:
        cluster.run(2, f"rm {here.native}/ballast")
    check = f"""
with open('{here.native}/file', 'rb') as file: data = file.read()
print(all(data[at] == at // {BLOCK} % 251 for at in range(0, 100 * {BLOCK})), len(data) >= 100 * {BLOCK})"""
    assert cluster.python(2, check) == "True True\n"


def test_an_export_that_is_killed_loses_nothing_that_was_written(cluster: Cluster, here: Place) -> None:
    path = f"{here.remote}/file"
    writer = kept_open(cluster, 1, path, "create")
    for _ in range(3):
        before = cluster.export_pid(2)
        assert writer.ask(["fill", BLOCK, 300]) == [300 * BLOCK, None]
        cluster.kill_daemon(2, before)
        assert writer.ask(["fill", BLOCK, 300]) == [300 * BLOCK, None]
        cluster.wait_new_export(2, before)
        assert writer.ask(["sync"]) is None
    assert writer.ask(["close"]) is None
    expected = "b''.join(bytes([n % 251]) * 4096 for n in range(300)) * 6"
    assert cluster.python(2, f"print(open('{here.native}/file', 'rb').read() == {expected})") == "True\n"
