"""omfs-admin check of what others hold: each fault planted, found by the pure checks and by the command, and mended."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from omfs import wire
from omfs.cli import audit, leasefacts
from omfs.cli.checks import Finding, Result
from omfs.cli.leasechecks import (
    UNUSED_MANY,
    AuditFacts,
    Difference,
    Fresh,
    HeldFacts,
    HolderFacts,
    Kind,
    Stale,
    differences,
    run_lease_checks,
    stale_parts,
)
from omfs.cli.objects import Objects
from omfs.config import Settings
from omfs.export.disk import Disk
from omfs.export.handles import Sealer, load_key
from omfs.export.mounts import Mounts
from omfs.export.trees import ExportTrees
from omfs.kernel.credentials import Identity
from omfs.net.control import BrokenGuard, Owned
from omfs.wiretypes import Mode
from tests.cli.checkdaemons import Daemons, check, make_daemons

NONE, SHARED, EXCLUSIVE = Mode
KEY = b"k" * 16


@pytest.fixture
def daemons(tmp_path: Path) -> Daemons:
    return make_daemons(tmp_path)


@pytest.fixture(autouse=True)
def nothing_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemons here have no clocks."""
    monkeypatch.setattr(leasefacts, "SETTLE_S", 0.0)
    monkeypatch.setattr(audit, "SETTLE_S", 0.0)


def believed(handle: bytes, serial: int = 5, mode: Mode = SHARED, data: bool = False) -> wire.Believed:
    return wire.Believed(handle, serial, mode, data)


def owned(handle: bytes, serial: int = 5, mode: Mode = SHARED, data: bool = False, recalled: bool = False) -> Owned:
    return Owned(handle, serial, mode, data, recalled)


def wrong(facts: HeldFacts) -> list[Finding]:
    return [one for one in run_lease_checks(facts) if one.result is not Result.FINE]


# ---------------------------------------------------------------- the checks


@pytest.mark.parametrize(
    ("their", "our", "kinds"),
    [
        (None, None, set()),
        (believed(b"f"), owned(b"f"), set()),
        (believed(b"f", 4), owned(b"f", 9), set()),  # a grant that it had no use for
        (believed(b"f", data=True), owned(b"f", data=True), set()),
        (believed(b"f"), owned(b"f", data=True), set()),
        (believed(b"f"), None, {Kind.UNOWNED}),
        (believed(b"f", mode=EXCLUSIVE), owned(b"f"), {Kind.UNOWNED}),
        (None, owned(b"f"), {Kind.UNUSED}),
        (believed(b"f"), owned(b"f", mode=EXCLUSIVE), {Kind.UNUSED}),
        (believed(b"f", data=True), owned(b"f"), {Kind.UNGUARDED}),
        (believed(b"f", mode=EXCLUSIVE, data=True), owned(b"f", mode=EXCLUSIVE), set()),
        (None, owned(b"f", recalled=True), set()),
        (believed(b"f", mode=EXCLUSIVE, data=True), owned(b"f", recalled=True), set()),
    ],
)
def test_what_differs(their: wire.Believed | None, our: Owned | None, kinds: set[Kind]) -> None:
    found = differences([their] if their else [], [our] if our else [])
    assert found == {Difference(kind, b"f", their, our) for kind in kinds}


def holder(kind: Kind, count: int) -> HolderFacts:
    return HolderFacts(2, found=frozenset(Difference(kind, b"%d" % number, None, None) for number in range(count)))


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"guards": (BrokenGuard((b"a", b"b"), "gone", (2, 3)),), "names": {b"a": "/etc/motd"}},
         ("guards", 1, Result.FAULT, "kernel lease gone, node 2, 3 may read old data: /etc/motd")),
        ({"guards": (BrokenGuard((b"\xab",), "missing"),)},
         ("guards", 1, Result.FAULT, "kernel lease missing, node ? may read old data: ab")),
        ({"holders": (HolderFacts(2, "no answer within 10 s"),)},
         ("holders", 2, Result.WARNING, "did not tell what it holds here: no answer within 10 s")),
        ({"holders": (holder(Kind.UNOWNED, 4),), "names": {b"0": "/a", b"1": "/b"}},
         ("holders", 2, Result.FAULT, "4 used without a lease: /a; /b; 32; 1 more")),
        ({"holders": (holder(Kind.UNGUARDED, 1),)},
         ("holders", 2, Result.FAULT, "1 cached while native programs may write it: 30")),
        ({"holders": (holder(Kind.UNUSED, UNUSED_MANY + 1),)},
         ("holders", 2, Result.WARNING, "1001 leased and not used")),
        ({"audits": (AuditFacts(2, "down", 9, stale=(Stale(b"a", "size, data"),)),), "names": {b"a": "/a"}},
         ("audit", 2, Result.FAULT, "1 of 9 objects are seen otherwise there: /a (size, data)")),
        ({"audits": (AuditFacts(2, "down"),)}, ("audit", 2, Result.WARNING, "not audited: down")),
    ],
)  # fmt: skip
def test_what_is_found(facts: dict[str, Any], found: tuple[Any, ...]) -> None:
    (one,) = wrong(HeldFacts(1, **facts))
    assert one[:4] == found
    assert one.remedy


def test_what_is_well() -> None:
    facts = HeldFacts(1, holders=(holder(Kind.UNUSED, UNUSED_MANY),), audits=(AuditFacts(2, "", 9, 1, 2048),))
    assert [one[:4] for one in run_lease_checks(facts)] == [
        ("guards", 1, Result.FINE, ""),
        ("holders", 2, Result.FINE, "1000 leased and not used"),
        ("audit", 2, Result.FINE, "9 objects, 2 KiB of data, 1 skipped"),
    ]


ATTRIBUTES = wire.Attributes(0o100644, 1, 0, 0, 0, 5, 0, 0, 0, 7, 8, 9)
TOLD = wire.Audited(b"f", 0, ATTRIBUTES, 0, 5, b"digest")


def test_what_is_stale() -> None:
    assert stale_parts(TOLD, Fresh(ATTRIBUTES, b"digest")) == ""
    assert stale_parts(TOLD, Fresh(ATTRIBUTES, b"other")) == "data"
    assert stale_parts(TOLD, Fresh(ATTRIBUTES, b"")) == ""
    changed = msgspec.structs.replace(ATTRIBUTES, size_bytes=6, mtime_ns=0, inode=0, atime_ns=3)
    assert stale_parts(TOLD, Fresh(changed, b"digest")) == "size, mtime"
    assert stale_parts(TOLD, None) == "is gone"
    nameless = msgspec.structs.replace(TOLD, attributes=msgspec.structs.replace(ATTRIBUTES, nlink=0))
    assert stale_parts(nameless, None) == ""  # open there, and nowhere else


# ---------------------------------------------------------------- the command


def found_by(daemons: Daemons, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[tuple[str, int, str]]:
    with daemons.running():
        status = check(daemons, "--json", *arguments)
    shown = json.loads(capsys.readouterr().out)["findings"]
    found = [(one["check"], one["node_id"], one["text"]) for one in shown if one["result"] != "ok"]
    assert status == (1 if found else 0)
    return found


def test_a_guard_that_is_lost(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.broken = [BrokenGuard((b"\xab",), "gone", (2,))]
    daemons.on_drop = daemons.broken.clear
    assert found_by(daemons, capsys) == [("guards", 1, "kernel lease gone, node 2 may read old data: ab")]
    assert found_by(daemons, capsys, "--repair") == []
    assert daemons.dropped == [{"handles": ["qw=="]}]


def test_a_guard_that_was_being_broken_just_then(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    told = iter([[BrokenGuard((b"a",), "being broken")], [BrokenGuard((b"a",), "gone"), BrokenGuard((b"b",), "gone")]])
    daemons.on_guards = lambda: daemons.broken.__setitem__(slice(None), next(told))
    assert found_by(daemons, capsys) == []


def test_a_lease_that_is_used_and_not_owned(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.held[2] = wire.HeldTold(KEY, (believed(b"\xaa"), believed(b"\xbb")), is_cut=False)
    daemons.owned = [owned(b"\xaa"), owned(b"unused")]
    assert found_by(daemons, capsys) == [("holders", 2, "1 used without a lease: bb")]

    def recall_all() -> None:
        daemons.held[2] = wire.HeldTold(KEY, (), is_cut=False)
        daemons.owned = []

    daemons.on_drop = recall_all
    assert found_by(daemons, capsys, "--repair") == []
    assert daemons.dropped == [{"node": 2}, {"handles": ["dW51c2Vk"]}]


def test_data_that_native_programs_may_write(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.held[2] = wire.HeldTold(KEY, (believed(b"\xaa", data=True),), is_cut=False)
    daemons.owned = [owned(b"\xaa")]
    assert found_by(daemons, capsys) == [("holders", 2, "1 cached while native programs may write it: aa")]


def test_many_leases_that_are_not_used(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.held[2] = wire.HeldTold(KEY, (), is_cut=False)
    daemons.owned = [owned(b"%d" % number) for number in range(UNUSED_MANY + 1)]
    assert found_by(daemons, capsys) == [("holders", 2, "1001 leased and not used")]
    daemons.on_drop = daemons.owned.clear
    assert found_by(daemons, capsys, "--repair") == []
    assert sum(len(one["handles"]) for one in daemons.dropped) == 1001


def test_leases_that_come_and_go(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    """Each look finds a difference, but not the same."""
    daemons.held[2] = wire.HeldTold(KEY, (believed(b"f"),), is_cut=False)
    serials = iter(range(6, 100))

    def look() -> None:
        daemons.held[2] = wire.HeldTold(KEY, (believed(b"f", next(serials)),), is_cut=False)

    daemons.on_held = look
    assert found_by(daemons, capsys) == []
    assert next(serials) > 7  # it looked again


def test_parts_that_are_too_large(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    """The holder believes much more than this node knows of."""
    leases = tuple(believed(b"%d" % number) for number in range(30))
    daemons.held[2] = wire.HeldTold(KEY, leases, is_cut=False)
    daemons.owned = [owned(one.handle) for one in leases[:-1]]
    assert found_by(daemons, capsys) == [("holders", 2, f"1 used without a lease: {b'29'.hex()}")]


def test_who_does_not_tell(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.held[2], daemons.audited[2] = "no answer within 10 s", "down"
    assert found_by(daemons, capsys) == [
        ("holders", 2, "did not tell what it holds here: no answer within 10 s"),
        ("audit", 2, "not audited: down"),
    ]
    assert found_by(daemons, capsys, "--sample", "0") == [
        ("holders", 2, "did not tell what it holds here: no answer within 10 s")
    ]


# ---------------------------------------------------------------- the audit


class Audited:
    """A file of this node, and what node 2 tells of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"content")
        self.handle = self._sealed(path)
        with Objects(Settings(state_dir=str(path.parent), run_dir=str(path.parent))) as objects:
            self.attributes = objects.fresh(self.handle, None).attributes

    def _sealed(self, path: Path) -> bytes:
        """As a holder gets it: name by name from the root."""
        mounts = Mounts()
        disk = Disk(Sealer(load_key(path.parent)), ExportTrees((), os.path.realpath), mounts)
        handle, _ = disk.attach()
        for name in path.parts[1:]:
            parent = disk.locate(handle)
            fd = disk.open(parent)
            handle, _ = disk.look_up(fd, parent, os.fsencode(name), Identity(0, 0, ()))
            os.close(fd)
        mounts.close()
        return handle

    def told(self, data: bytes = b"content", breaks: int = 0, at_end: bool = True, **changed: Any) -> wire.HeldAudited:
        attributes = msgspec.structs.replace(self.attributes, **changed)
        digest = hashlib.sha256(data).digest()
        return wire.HeldAudited((wire.Audited(self.handle, breaks, attributes, 0, len(data), digest),), 0, at_end)


@pytest.fixture
def file(daemons: Daemons) -> Audited:
    return Audited(daemons.path / "file")


def test_what_is_seen_as_it_is(daemons: Daemons, file: Audited, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.audited[2] = [file.told()]
    with daemons.running():
        assert check(daemons, "--json") == 0
    shown = json.loads(capsys.readouterr().out)["findings"]
    assert [one["text"] for one in shown if one["check"] == "audit"] == ["1 objects, 0 KiB of data, 0 skipped"]


def test_an_audit_goes_on_to_the_end(daemons: Daemons, file: Audited, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.audited[2] = [file.told(at_end=False), file.told(at_end=False), file.told()]
    starts: list[int] = []
    daemons.on_audit = lambda arguments: starts.append(arguments["start"])
    assert found_by(daemons, capsys) == []
    assert starts == [0, 25, 50]
    starts.clear()
    daemons.audited[2] = [file.told(at_end=False)]
    assert found_by(daemons, capsys, "--sample", "30") == []
    assert starts == [0, 25]


def test_old_data(daemons: Daemons, file: Audited, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.audited[2] = [file.told(b"CONTENT")]
    text = f"1 of 1 objects are seen otherwise there: {file.path} (data)"
    assert found_by(daemons, capsys) == [("audit", 2, text)]

    def forget() -> None:
        daemons.audited[2] = [file.told()]

    daemons.on_drop = forget
    assert found_by(daemons, capsys, "--repair") == []


def test_old_attributes(daemons: Daemons, file: Audited, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.audited[2] = [file.told(mode=0o100600, ctime_ns=1)]
    ((_, _, text),) = found_by(daemons, capsys)
    assert text.endswith("(mode, ctime)")


def test_a_file_that_is_gone(daemons: Daemons, file: Audited, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.audited[2] = [file.told()]
    file.path.unlink()
    ((_, _, text),) = found_by(daemons, capsys)
    assert text.endswith(f"{file.handle.hex()} (is gone)")


@pytest.mark.parametrize("again", ["recalled", "changed there", "other data", "forgotten"])
def test_what_was_moving(daemons: Daemons, file: Audited, capsys: pytest.CaptureFixture[str], again: str) -> None:
    second = {
        "recalled": file.told(),
        "changed there": file.told(b"CONTENT", breaks=1),
        "other data": file.told(b"Content"),
        "forgotten": wire.HeldAudited((), 1, at_end=True),
    }[again]
    daemons.audited[2] = [file.told(b"CONTENT"), second]
    assert found_by(daemons, capsys) == []
