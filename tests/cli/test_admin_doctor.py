"""omfs-admin doctor: each answer that a probe may get, and what is made of it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omfs.cli import admin, probes
from omfs.cli.probes import PROBES, Probe, Said, Weight, errors_of, has_capability
from omfs.config import Settings
from omfs.errors import ConfigError
from omfs.kernel.abilities import FUSE_PASSTHROUGH, FuseGreeting
from omfs.kernel.criuprogram import CriuProgram

CRIU = CriuProgram(Path("/opt/criu"), "usr/sbin/criu", "ld.so", ("lib",))
BY_NAME = {probe.name: probe for probe in PROBES}
ALL_FUSE_FLAGS = sum(probes.abilities.FUSE_FLAGS.values())


def ask(name: str, **settings: Any) -> Said:
    return BY_NAME[name].ask(Settings(**settings))


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def only(monkeypatch: pytest.MonkeyPatch, *chosen: Probe) -> None:
    monkeypatch.setattr(probes, "PROBES", chosen)


# ---------------------------------------------------------------- the command


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Every question gets an answer, and what is missing comes with a remedy."""
    status = admin.main(["doctor", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in printed["rows"]] == [probe.name for probe in PROBES]
    for row in printed["rows"]:
        assert row["text"]
        assert row["there"] == (row["remedy"] == "")
    missed = [row["name"] for row in printed["rows"] if row["needed"] and not row["there"]]
    assert printed["missed"] == missed
    assert status == (1 if missed else 0)
    assert missed == [], "the tests themselves need it"


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = Probe("one", Weight.NEEDED, "files", "", lambda settings: Said("works"))
    slow = Probe("two", Weight.WANTED, "speed", "buy it", refuse)  # type: ignore[arg-type]
    bad = Probe("three", Weight.NEEDED, "migration", "install it", refuse)  # type: ignore[arg-type]
    only(monkeypatch, good, slow)
    assert admin.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["one", "yes", "works"]
    assert lines[2].split() == ["two", "NO", "Operation", "not", "permitted", "no", "speed", "buy", "it"]
    assert lines[-1] == "nothing that is needed is missing"
    only(monkeypatch, good, slow, bad)
    assert admin.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "missing and needed: three"


def test_a_fault_of_the_configuration_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings) -> Said:
        raise ConfigError("there is no CRIU")

    only(monkeypatch, Probe("criu", Weight.NEEDED, "migration", "make install", fail))
    (row,) = probes.probe_all(Settings())
    assert (row.text, row.remedy, row.is_missed) == ("there is no CRIU", "make install", True)


def test_others_than_root_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert admin.main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("omfs-admin: doctor must run as root")


# ---------------------------------------------------------------- the probes


@pytest.mark.parametrize(
    ("version", "text", "has_remedy"),
    [
        ((4, 2, 1), "4.2.1, private: /opt/criu", False),
        ((3, 17, 1), "3.17.1, private: /opt/criu: older than 4.2", True),
    ],
)
def test_criu(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], text: str, has_remedy: bool) -> None:
    monkeypatch.setattr(probes, "find_criu", lambda named: CRIU)
    monkeypatch.setattr(probes, "version_of", lambda criu: version)
    said = ask("criu")
    assert said.text == text
    assert bool(said.remedy) is has_remedy


def finished(status: int, stderr: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda criu, *arguments: subprocess.CompletedProcess([], status, "", stderr)


def test_criu_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "find_criu", lambda named: CRIU)
    monkeypatch.setattr(probes, "run", finished(0, "Looks good.\n"))
    assert ask("criu check") == Said("looks good")
    monkeypatch.setattr(probes, "run", finished(0, "Warn  (criu/cr-check.c:824): Tracking is OFF.\n"))
    assert ask("criu check") == Said("looks good; missing for some processes: Tracking is OFF.")
    monkeypatch.setattr(probes, "run", finished(1, "Error (criu/x.c:1): no ptrace\nError (criu/y.c:2): failed\n"))
    assert ask("criu check").text == "no ptrace; failed"
    assert ask("criu check").remedy


def test_errors_of() -> None:
    log = "Warn  (criu/kerndat.c:1290): Can't keep kdat cache on non-tempfs\nError (a.c:1): one\none\n"
    assert errors_of(log) == "one"
    assert errors_of("") == ""


def test_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def offers(minor: int, flags: int) -> None:
        monkeypatch.setattr(probes.abilities, "fuse_greeting", lambda: FuseGreeting((7, minor), flags))

    offers(45, ALL_FUSE_FLAGS | FUSE_PASSTHROUGH)
    assert ask("fuse") == Said("protocol 7.45")
    assert ask("fuse passthrough") == Said("offered")
    offers(31, 0)
    assert ask("fuse").text.startswith("protocol 7.31, without explicit invalidation, killpriv v2, ")
    assert ask("fuse").remedy == ""
    assert ask("fuse passthrough").remedy
    offers(23, 0)
    assert ask("fuse").text == "protocol 7.23: older than 7.31"
    assert ask("fuse").remedy


def test_file_leases_outlast_the_term() -> None:
    assert ask("file leases").remedy == ""
    assert "lease_term_s in omfs.toml (it is 500)" in ask("file leases", lease_term_s=500.0).remedy


def test_refused_namespaces_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.abilities, "try_namespace", lambda kind: refuse() if kind == 0x20000000 else None)
    assert ask("namespaces").text == "refused: pid (Operation not permitted)"


def test_seccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.abilities, "try_seccomp_notification", lambda: False)
    assert ask("seccomp notification") == Said("without killable waits (Linux 5.19)")


@pytest.mark.parametrize("has_it", [True, False])
def test_soft_dirty(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr(probes.abilities, "has_soft_dirty", lambda: has_it)
    assert (ask("soft-dirty").remedy == "") is has_it


@pytest.mark.parametrize(("hard", "is_enough"), [(20000, False), (65536, True), (-1, True)])
def test_open_files(monkeypatch: pytest.MonkeyPatch, hard: int, is_enough: bool) -> None:
    monkeypatch.setattr(probes.resource, "getrlimit", lambda which: (1024, hard))
    assert (ask("open files").remedy == "") is is_enough


def test_capabilities() -> None:
    status = "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\n"
    assert has_capability(0, status)
    assert not has_capability(24, status)
    assert has_capability(24, status.replace("a8", "a9"))
    assert not has_capability(0, "")
