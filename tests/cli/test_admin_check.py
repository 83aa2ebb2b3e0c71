"""omfs-admin check: each check with a fault planted, and the command against daemons of canned answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from omfs import wire
from omfs.cache.owner import Change
from omfs.cache.table import LeaseTable, read_boot_id
from omfs.cli.checks import Certificate, ClusterFacts, Finding, LeaseFacts, Result, TableSession, run_checks
from omfs.net.control import (
    Arguments,
    NodeTold,
)
from omfs.wiretypes import Mode
from tests.cli.checkdaemons import ANNA, BERT, DAY_S, NOW_S, Daemons, check, make_daemons, node
from tests.cli.test_admin_status import mount

S = Mode.SHARED


def told(described: wire.NodeDescribed, round_trip_s: float = 0.001) -> NodeTold:
    middle_ns, half_ns = int(NOW_S * 1e9), int(round_trip_s * 5e8)
    return NodeTold(described.node_id, "up", "", described, middle_ns - half_ns, middle_ns + half_ns)


def cluster(*others: wire.NodeDescribed, own: wire.NodeDescribed | None = None, **changed: Any) -> ClusterFacts:
    certificates = (Certificate("ca.pem", int(NOW_S) + 4000 * DAY_S), Certificate("node.pem", int(NOW_S) + 400 * DAY_S))
    facts = ClusterFacts(own or node(1), tuple(map(told, others)), certificates, NOW_S, None)
    return replace(facts, **changed)


def wrong(facts: ClusterFacts) -> list[Finding]:
    return [finding for finding in run_checks(facts) if finding.result is not Result.FINE]


# ---------------------------------------------------------------- the checks


def test_all_is_well() -> None:
    leases = LeaseFacts((TableSession(ANNA, 2, 3),), {ANNA: 0.5}, frozenset(), 3, 12.0)
    found = run_checks(cluster(node(2), node(3), leases=leases))
    assert {finding.result for finding in found} == {Result.FINE}
    assert {finding.check for finding in found} == {
        "answers", "map", "protocol", "software", "dfsa", "users", "groups", "clock", "certificate", "leases",
    }  # fmt: skip
    assert {finding.node_id for finding in found} == {1, 2, 3}


@pytest.mark.parametrize(
    ("changed", "check", "result", "text"),
    [
        ({"map_digest": b"\xab" * 32}, "map", Result.FAULT, "abababababababab, here 6d6d6d6d6d6d6d6d"),
        ({"version": 3}, "protocol", Result.FAULT, "3, here 2"),
        ({"software": "omfs 0.2.0"}, "software", Result.WARNING, "omfs 0.2.0, here omfs 0.1.0"),
        ({"dfsa": False}, "dfsa", Result.FAULT, "dfsa=0, here dfsa=1"),
        ({"users_digest": b"x"}, "users", Result.WARNING, "they differ, too many to tell which"),
        ({"groups_digest": b"x"}, "groups", Result.WARNING, "they differ, too many to tell which"),
        ({"clock_ns": int(NOW_S * 1e9) + 2 * 10**9}, "clock", Result.WARNING, "2.0 s ahead of this node"),
        ({"clock_ns": int(NOW_S * 1e9) - 61 * 10**9}, "clock", Result.FAULT, "61.0 s behind this node"),
        ({"certificate_expires_s": int(NOW_S) + 9 * DAY_S}, "certificate", Result.WARNING, "expires in 9 days"),
        ({"certificate_expires_s": int(NOW_S) + 1 * DAY_S}, "certificate", Result.WARNING, "expires in 1 day"),
        ({"certificate_expires_s": int(NOW_S) - 1}, "certificate", Result.FAULT, "has expired"),
    ],
)
def test_one_node_differs(changed: dict[str, Any], check: str, result: Result, text: str) -> None:
    (found,) = wrong(cluster(node(2), node(3, **changed)))
    assert (found.check, found.node_id, found.result, found.text) == (check, 3, result, text)
    assert found.remedy


def test_nodes_that_do_not_answer() -> None:
    silent = (
        NodeTold(2, "up", "", None, 0, 0),
        NodeTold(3, "down", "silent for 20 s", None, 0, 0),
        NodeTold(4, "refused", "the cluster maps of node 4 and node 1 differ", None, 0, 0),
        NodeTold(5, "connecting", "", None, 0, 0),
    )
    found = wrong(cluster(others=silent))
    assert [(one.check, one.node_id, one.result, one.text) for one in found] == [
        ("answers", 2, Result.WARNING, "connected, but slow to answer"),
        ("answers", 3, Result.FAULT, "down: silent for 20 s"),
        ("answers", 4, Result.FAULT, "the cluster maps of node 4 and node 1 differ"),
        ("answers", 5, Result.FAULT, "connecting"),
    ]


def test_a_slow_answer_says_little_about_the_clock() -> None:
    ahead = node(2, clock_ns=int((NOW_S + 1.5) * 1e9))
    assert [one.check for one in wrong(cluster(others=(told(ahead, 0.9),)))] == ["clock"]
    assert wrong(cluster(others=(told(ahead, 1.1),))) == []


OURS = ((b"anna", 1001), (b"bert", 1002), (b"root", 0))


@pytest.mark.parametrize(
    ("theirs", "result", "text"),
    [
        (((b"anna", 1002), (b"bert", 1002), (b"root", 0)), Result.FAULT, "anna is 1002, here 1001"),
        (((b"bert", 1002), (b"carl", 1001), (b"root", 0)), Result.FAULT, "1001 is carl, here anna"),
        (((b"anna", 1001), (b"root", 0)), Result.WARNING, "bert is not there"),
        (((b"anna", 1001), (b"b\xff", 7), (b"root", 0)), Result.WARNING, "bert is not there; b\\xff is not here"),
        (((b"anna", 1001), (b"root", 0), (b"toor", 0)), Result.WARNING, "bert is not there; toor is not here"),
        (((b"anna", 1), (b"bert", 2), (b"root", 3), (b"carl", 0)), Result.FAULT,
         "anna is 1, here 1001; bert is 2, here 1002; root is 3, here 0"),
        (((b"a", 1001), (b"b", 1002), (b"c", 0), (b"d", 4)), Result.FAULT,
         "1001 is a, here anna; 1002 is b, here bert; 0 is c, here root"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["users", "groups"])
def test_users_and_groups(kind: str, theirs: tuple[tuple[bytes, int], ...], result: Result, text: str) -> None:
    own = node(1, **{kind: OURS})
    (found,) = wrong(cluster(node(2, **{kind: theirs, f"{kind}_digest": b"x"}), own=own))
    assert (found.check, found.node_id, found.result, found.text) == (kind, 2, result, text)


def test_only_some_names_are_shown() -> None:
    own = node(1, users=tuple((b"u%d" % number, number) for number in range(9)))
    theirs = node(2, users=tuple((b"u%d" % number, number + 100) for number in range(9)), users_digest=b"x")
    (found,) = wrong(cluster(theirs, own=own))
    assert found.text == "u0 is 100, here 0; u1 is 101, here 1; u2 is 102, here 2; 6 more"


def test_own_certificates() -> None:
    soon = int(NOW_S) + 5 * DAY_S
    files = (Certificate("ca.pem", 0, "ca.pem: missing"), Certificate("node.pem", soon))
    found = wrong(cluster(certificates=files, own=node(1, certificate_expires_s=soon)))
    assert [(one.result, one.text) for one in found] == [
        (Result.FAULT, "ca.pem: missing"),
        (Result.WARNING, "node.pem expires in 5 days"),
    ]
    (found_one,) = wrong(cluster(own=node(1, certificate_expires_s=soon)))
    assert found_one.text == "the one in use expires in 5 days, another lies ready"
    plain = cluster(node(2, certificate_expires_s=0), certificates=(), own=node(1, certificate_expires_s=0))
    assert wrong(plain) == []  # sec=none


def lease_facts(**changed: Any) -> LeaseFacts:
    sessions = (TableSession(ANNA, 2, 3), TableSession(BERT, 3, 1))
    return replace(LeaseFacts(sessions, {ANNA: 0.5, BERT: None}, frozenset(), 4, 12.0), **changed)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"live": {ANNA: 0.5}}, "1 of a session of node 3 that is no more (62626262)"),
        ({"live": {ANNA: 17.5, BERT: 0.1}}, "3 of node 2, not heard for 18 s: their term is over"),
        ({"held": 5}, "4 in the table, 5 in memory"),
    ],
)
def test_leases_that_nobody_holds(changed: dict[str, Any], text: str) -> None:
    (found,) = wrong(cluster(leases=lease_facts(**changed)))
    assert (found.check, found.node_id, found.result, found.text) == ("leases", 1, Result.FAULT, text)


def test_leases_that_may_be_there() -> None:
    for changed in (
        {"live": {ANNA: 16.9, BERT: 0.0}},  # about to be ended
        {"live": {ANNA: 0.0}, "ghosts": frozenset([BERT])},
        {"held": None},  # they changed while they were read
        {"live": {ANNA: 0.0}, "table": (TableSession(ANNA, 2, 4), TableSession(BERT, 3, 0))},
    ):
        assert wrong(cluster(leases=lease_facts(**changed))) == []


# ---------------------------------------------------------------- the command


@pytest.fixture
def daemons(tmp_path: Path) -> Daemons:
    return make_daemons(tmp_path)


def test_a_good_cluster(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.others += [msgspec.structs.replace(daemons.others[0], node_id=node_id) for node_id in (1, 3, 7)]
    with daemons.running():
        assert check(daemons) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "CHECK NODE RESULT WHAT TO DO"
    assert "answers 1-3, 7 ok" in lines
    assert "clock 2-3, 7 ok" in lines
    assert [asked for asked in daemons.asked if asked[1]] == []  # no need for the names


def test_a_bad_one(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    standing = msgspec.structs.replace(daemons.others[0].standing, users_digest=b"x", dfsa=False)
    daemons.others.append(msgspec.structs.replace(daemons.others[0], node_id=3, standing=standing))
    daemons.accounts = {1: ((b"anna", 1001),), 3: ((b"anna", 1002),)}
    with daemons.running():
        assert check(daemons) == 1
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert check(daemons, "--json") == 1
    assert "dfsa 3 FAULT: dfsa=0, here dfsa=1 mount all nodes with the same" in lines
    assert "users 1-2 ok" in lines
    assert any(line.startswith("users 3 FAULT: anna is 1002, here 1001 give each name") for line in lines)
    assert ("mount", {"accounts": True, "nodes": [3]}) in daemons.asked
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"check": "dfsa", "node_id": 3, "result": "FAULT", "text": "dfsa=0, here dfsa=1",
            "remedy": "mount all nodes with the same"} in findings  # fmt: skip


def test_leases_and_their_repair(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    with LeaseTable.open(daemons.path / "leases", read_boot_id()) as table:
        for key, node_id in ((ANNA, 2), (BERT, 3)):
            table.note_session(key, node_id, "omfs", 0)
            table.note([Change(key, b"%d" % number, S, 1) for number in range(node_id)])

    def forget(keys: list[bytes]) -> int:
        with LeaseTable.open(daemons.path / "leases", read_boot_id()) as table:
            removed = sum(1 for key in keys for _ in table.leases(session=key))
            for key in keys:
                table.forget_session(key)
        daemons.leases["held"] = 2
        return removed

    daemons.on_forget = forget
    daemons.sessions = [{"node_id": 2, "key": ANNA.hex(), "requests": 7, "silent_s": 0.1}]
    daemons.leases = {"held": 5, "grants": 9}
    with daemons.running():
        assert check(daemons) == 1
        assert "3 of a session of node 3 that is no more" in capsys.readouterr().out
        assert check(daemons, "--repair") == 0
        assert "repair: 3 leases removed" in capsys.readouterr().out
        assert check(daemons, "--repair", "--json") == 0
        assert json.loads(capsys.readouterr().out)["removed_leases"] == 0
        daemons.leases["held"] = 7
        assert check(daemons) == 1
        assert "2 in the table, 7 in memory" in capsys.readouterr().out
        daemons.leases["unwritten"] = 5
        assert check(daemons) == 0
        (daemons.path / "leases" / "about").write_text("format 1\nboot another\n")
        assert check(daemons) == 0


def test_it_could_not_run(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(daemons) == 2
    with mount(daemons.path, socket="export.sock", describe=daemons.describe, status=daemons.status):
        assert check(daemons) == 2
    daemons.config.write_text("nonsense = 1\n")
    assert check(daemons) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("omfs-admin: could not check: ") == captured.err.count("\n") == 3


def test_daemons_of_another_version(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    async def odd(_: Arguments) -> object:
        return {"described": 7, "removed": "some", "sessions": [{"key": BERT.hex()}]}

    with (
        mount(daemons.path, describe=odd),
        mount(daemons.path, socket="export.sock", describe=odd, status=odd),
    ):
        assert check(daemons) == 2
    assert "speaks another version" in capsys.readouterr().err
    with LeaseTable.open(daemons.path / "leases", read_boot_id()) as table:
        table.note_session(ANNA, 2, "omfs", 0)
        table.note([Change(ANNA, b"one", S, 1)])
    with mount(daemons.path, socket="export.sock", describe=odd, status=odd, forget=odd):
        assert check(daemons, "--repair") == 2
    assert "speaks another version" in capsys.readouterr().err
